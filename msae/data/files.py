"""Series out of a user's own files: `.csv`, `.parquet`, `.npy`, `.npz`."""

from __future__ import annotations

import contextlib
import difflib
import glob
import math
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msae.data.tables import BLOCK, INDEX, Csv, Format, Parquet
from msae.errors import InputError

SUFFIXES = (".csv", ".parquet", ".npy", ".npz")
SECONDS = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Table:
    """The content of one file.

    Attributes:
        path: of the file.
        columns: the channels' names.
        values: `(time, channels)`, sorted by group, memory-mapped; or windows already cut, `(n, channels, length)`.
        times: of each row, in seconds after the first, or in the column's own units; None without a time column.
        origin: the first row's time stamp, where times are stamps.
        groups: name, first row and row after the last of each series; the name is empty without a group column.
        order: the row in the file of each row here, where they differ.
        line: tells in which line of a text a row of the file stands.
    """

    path: Path
    columns: list[str]
    values: np.ndarray
    times: np.ndarray | None = None
    origin: np.datetime64 | None = None
    groups: list[tuple[str, int, int]] = field(default_factory=list)
    order: np.ndarray | None = None
    line: Callable[[int], int] | None = None

    def where(self, row: int) -> str:
        """The file and the line (of text) or row (of other files, from 0) of a row here."""
        row = int(row if self.order is None else self.order[row])
        return f"{self.path}, line {self.line(row)}" if self.line else f"{self.path}, row {row}"

    def when(self, row: int) -> str:
        """The time of a row here."""
        assert self.times is not None
        if self.origin is None:
            return f"{self.times[row]:g}"
        stamp = self.origin + np.timedelta64(round(self.times[row] * 1e6), "us")
        return str(stamp).replace("T", " ").rstrip("0").rstrip(".")


def find(path: str | Sequence[str], key: str = "path") -> list[Path]:
    """The files that a path means: a file, those of a folder that can be read, or those of a glob; sorted.

    A list of paths means the files of each.

    Raises:
        InputError: no such file, none in the folder, or one of another kind.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        return list(dict.fromkeys(file for one in path for file in find(one, key)))
    if not isinstance(path, str) or not path:
        raise InputError(f"{key}={path}: expected a file, a folder or a glob of {', '.join(SUFFIXES)} files")
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    elif place.exists():
        files = [place]
    else:
        found = map(Path, glob.glob(str(place), recursive=True))  # noqa: PTH207  (of a whole path, absolute or not)
        files = sorted(file for file in found if file.is_file())
    if not files:
        what = f"no {', '.join(SUFFIXES)} file in it" if place.is_dir() else "no such file or folder, and no match"
        raise InputError(f"{key}={path}: {what}")
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise InputError(f"{key}={file}: expected one of {', '.join(SUFFIXES)}")
    return files


def read(path: Path, form: Format) -> Table:
    """The table of a file; raises InputError that says where it cannot be used."""
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file")
    if path.suffix.lower() in (".npy", ".npz"):
        for name in ("time_column", "group_column"):
            if getattr(form, name) is not None:
                raise InputError(f"{name}={getattr(form, name)}: {path} is an array, without columns of other kinds")
        return read_array(path, form.columns)
    return read_table(path, form)


def read_array(path: Path, columns: Sequence[str | int] | None) -> Table:
    """`.npy`, memory-mapped, or `.npz`: `(time,)`, `(time, channels)`, or windows `(n, channels, length)`."""
    try:  # private pages, written to only where missing values are filled in
        loaded = np.load(path, mmap_mode="c" if path.suffix.lower() == ".npy" else None)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an array file of numbers: {' '.join(str(error).split())}") from None
    if not arrays:
        raise InputError(f"{path}: no array in it")
    if len(arrays) == 1:
        [array] = arrays.values()
        names = [str(i) for i in range(array.shape[1] if array.ndim > 1 else 1)]
    else:
        if len({array.shape for array in arrays.values()}) > 1 or next(iter(arrays.values())).ndim != 1:
            sizes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise InputError(f"{path}: expected one array, or columns of one length, got {sizes}")
        array, names = np.stack(list(arrays.values()), axis=1), list(arrays)
    if array.ndim not in (1, 2, 3) or array.dtype.kind not in "fiub" or array.size == 0:
        raise InputError(
            f"{path}: expected numbers (time,), (time, channels) or (n, channels, length), "
            f"got {array.dtype} {array.shape}"
        )
    if array.ndim == 1:
        array = array[:, None]
    wanted = names if columns is None else chosen(path, columns, names)
    array = mappable(array, [names.index(name) for name in wanted])
    table, precision = Table(path, wanted, array, groups=[("", 0, len(array))]), Precision()
    for start in range(0, len(array), step := max(1, BLOCK // math.prod(array.shape[1:]))):
        check_finite(table, array[start : start + step], start)
        precision.add(array[start : start + step])
    precision.check(table)
    return table


def write_array(like: Path, path: Path, columns: Sequence[str], values: np.ndarray) -> None:
    """An array file of the form that another has, with new values; several arrays stay several."""
    loaded = np.load(like, mmap_mode="r" if like.suffix.lower() == ".npy" else None)
    if isinstance(loaded, np.ndarray):
        np.save(path, values.reshape(-1) if loaded.ndim == 1 else values)
        return
    named = dict(zip(columns, values.T, strict=True))
    if len(loaded.files) == 1:
        [name] = loaded.files
        named = {name: values.reshape(-1) if loaded[name].ndim == 1 else values}
    np.savez(path, allow_pickle=False, **named)


def mappable(array: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """These channels of an array in a type that torch reads; a copy, in a temporary file, only where it has to be."""
    steps = set(np.diff(channels).tolist()) or {1}
    if len(steps) == 1 and min(steps) > 0:
        array = array[:, channels[0] : channels[-1] + 1 : min(steps)]
        if array.dtype.isnative and (
            array.dtype.kind == "f" or array.dtype.name in ("uint8", "int16", "int32", "int64")
        ):
            return array
        channels = range(array.shape[1])
    with Spool(np.float32, len(channels) * math.prod(array.shape[2:])) as copy:
        for start in range(0, len(array), step := max(1, BLOCK // copy.width)):
            copy.append(array[start : start + step][:, channels])
        return copy.array().reshape(len(array), len(channels), *array.shape[2:])


def open_table(path: Path, form: Format) -> Csv | Parquet:
    """The reader, and writer, of a table's format."""
    return Csv(path, form) if path.suffix.lower() == ".csv" else Parquet(path)


def read_table(path: Path, form: Format) -> Table:
    """`.csv` and `.parquet`, in pieces, into temporary memory-mapped files: neither has to fit in memory."""
    source = open_table(path, form)
    others = chosen(path, form.others, source.names)
    left = [name for name in source.names if name not in others and not INDEX.fullmatch(name)]
    columns = left if form.columns is None else chosen(path, form.columns, source.names)
    if "" in columns:
        raise InputError(f"{path}: a column without a name, perhaps an index; data.columns=[...] chooses the channels")
    if not columns:
        raise InputError(f"{path}: no column is left; it has {', '.join(source.names)}")
    table = Table(path, columns, np.empty((0, 0)), line=source.line if isinstance(source, Csv) else None)
    clock, precision = Clock(table, form), Precision()
    known: dict[str, int] = {}
    with Spool(np.float32, len(columns)) as values, Spool(np.float64) as times, Spool(np.int64) as groups:
        for batch in source.batches(columns, others):
            numbers = np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in columns], axis=1)
            check_finite(table, numbers, values.rows)
            precision.add(numbers)
            if form.time_column is not None:
                times.append(clock.read(batch.column(form.time_column), values.rows))
            if form.group_column is not None:
                names = batch.column(form.group_column).cast(pa.string()).fill_null("").to_pylist()
                if "" in names:
                    where = table.where(values.rows + names.index(""))
                    raise InputError(f"{where}, column {form.group_column}: empty; expected the name of a series")
                groups.append(np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64))
            values.append(numbers)
        rows, stamps, ids = values.array(), times.array()[:, 0], groups.array()[:, 0]
    if not len(rows):
        raise InputError(f"{path}: no rows; expected numbers below the header {', '.join(source.names)}")
    precision.check(table)
    spans, order = [("", 0, len(rows))], None
    if known:
        if np.count_nonzero(np.diff(ids)) >= len(known):  # rows of one series stand apart
            order = np.argsort(ids, kind="stable")
            rows, stamps = reordered(rows, order), reordered(stamps, order)
        sizes = np.bincount(ids, minlength=len(known))
        ends = np.cumsum(sizes)
        spans = [(name, int(end - size), int(end)) for name, end, size in zip(known, ends, sizes, strict=True)]
    found = None if form.time_column is None else stamps
    return replace(table, values=rows, times=found, origin=clock.origin, groups=spans, order=order)


class Spool:
    """An array that grows in a temporary file without a name, and is then memory-mapped."""

    def __init__(self, dtype: Any, width: int = 1) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed on leaving the `with`)
        self.dtype = np.dtype(dtype)
        self.width = width
        self.rows = 0

    def append(self, rows: np.ndarray) -> None:
        """Add rows, `(n, width)` or `(n,)`."""
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def array(self) -> np.ndarray:
        """All rows, `(rows, width)`; the file is gone when the array is."""
        self.file.flush()
        if not self.rows:
            return np.empty((0, self.width), self.dtype)
        return np.memmap(self.file, self.dtype, "r+", shape=(self.rows, self.width))

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def reordered(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The rows of an array in another order."""
    if not len(array):
        return array
    with Spool(array.dtype, math.prod(array.shape[1:])) as new:
        for start in range(0, len(array), step := max(1, BLOCK // new.width)):
            new.append(array[order[start : start + step]])
        return new.array().reshape(array.shape)


def chosen(path: Path, columns: Sequence[Any], names: Sequence[str]) -> list[str]:
    """`columns` as text, if the file has them; InputError with the nearest of `names` otherwise."""
    for name in map(str, columns):
        if name not in names:
            near = difflib.get_close_matches(name, names, 3) or names[:10]
            raise InputError(f"{path}: no column {name}; it has {len(names)}, such as {', '.join(near)}")
    return list(map(str, columns))


def check_finite(table: Table, numbers: np.ndarray, first: int) -> None:
    """Raise InputError for the first infinity, or value that float32 cannot hold; `first` is the row of the first."""
    bad = np.argwhere(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0][:2].tolist()
        value = numbers[tuple(bad[0])]
        raise InputError(
            f"{table.where(first + row)}, column {table.columns[column]}: {value}: expected a finite number"
        )


class Precision:
    """Whether float32, in which models work, keeps the differences within each column of a file read in pieces."""

    def __init__(self) -> None:
        self.low, self.high, self.lost = np.array(np.inf), np.array(-np.inf), np.array(0.0)

    def add(self, numbers: np.ndarray) -> None:
        """Look at rows, `(n, channels)`; those of types that float32 holds, and windows already cut, are let pass."""
        if numbers.dtype.name in ("float64", "int64", "int32") and numbers.ndim == 2:
            numbers = numbers.astype(np.float64)
            lost = np.nanmax(np.abs(numbers - numbers.astype(np.float32)), axis=0, initial=0)
            self.lost = np.maximum(self.lost, lost)
            self.low = np.minimum(self.low, np.nanmin(numbers, axis=0, initial=np.inf))
            self.high = np.maximum(self.high, np.nanmax(numbers, axis=0, initial=-np.inf))

    def check(self, table: Table) -> None:
        """Raise InputError for a column whose greatest error of rounding is above a thousandth of its range."""
        coarse = np.flatnonzero((self.high > self.low) & (self.lost > 1e-3 * (self.high - self.low)))
        if len(coarse):
            name, low, high = table.columns[coarse[0]], self.low[coarse[0]], self.high[coarse[0]]
            raise InputError(
                f"{table.path}, column {name}: from {low:.10g} to {high:.10g}; models work in float32, "
                "with 7 digits: subtract the level first, or leave the column out with data.columns=[...]"
            )


class Clock:
    """Reads a time column in pieces; `origin` is the first row's time where these are stamps and not plain numbers."""

    KINDS = (pa.float64(), *(pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("us", "ns")))

    def __init__(self, table: Table, form: Format) -> None:
        self.table = table
        self.name = str(form.time_column)
        self.format = form.time_format
        self.origin: np.datetime64 | None = None
        self.stamps: bool | None = None

    def read(self, column: pa.Array, first: int) -> np.ndarray:
        """Times of rows, float64: seconds since the origin, or the numbers; `first` is the row of the first."""
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.utf8_trim_whitespace(column)
            column = pc.replace_with_mask(column, pc.equal(column, ""), pa.scalar(None, column.type))
        if column.null_count or (pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py()):
            row = column.is_null(nan_is_null=True).index(True).as_py()
            raise InputError(f"{self.table.where(first + row)}, column {self.name}: no time; expected one in every row")
        times = self._parsed(column)
        stamps = times is not None and pa.types.is_timestamp(times.type)
        if times is None or self.stamps not in (None, stamps):
            raise self._unreadable(column, first)
        self.stamps = stamps
        found = times.to_numpy(zero_copy_only=False)
        if not stamps:
            return np.asarray(found, dtype=np.float64)
        if self.origin is None:
            self.origin = found[0]
        return np.asarray((found - self.origin) / np.timedelta64(1, "s"))

    def _parsed(self, column: pa.Array) -> pa.Array | None:
        """A column as float64 or as time stamps, or None."""
        if pa.types.is_date(column.type):
            return column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            return column
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return column.cast(pa.float64(), safe=False)
        if self.format is not None:
            found = pc.strptime(column, format=self.format, unit="us", error_is_null=True)
            return None if found.null_count else found
        for kind in self.KINDS:
            with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return column.cast(kind)
        return None

    def _unreadable(self, column: pa.Array, first: int) -> InputError:
        """What to say of the first value that is not a time, or one of another kind than those before."""
        stamps = self.stamps
        for row in range(len(column)):
            found = self._parsed(column[row : row + 1])
            is_stamp = found is not None and pa.types.is_timestamp(found.type)
            if found is None or stamps not in (None, is_stamp):
                break
            stamps = is_stamp
        value = f"{self.table.where(first + row)}, column {self.name}: {column[row].as_py()!r}"
        if self.format is not None:
            return InputError(f"{value} is not written as data.time_format={self.format!r} says")
        if found is not None:
            return InputError(f"{value}: numbers and time stamps in one column")
        return InputError(
            f"{value} is neither a number nor an ISO 8601 time; data.time_format says how times are written, "
            "such as '%d/%m/%Y %H:%M'"
        )


def duration(text: Any, table: Table) -> float:
    """`max_gap` in the units of a table's times: a text such as `90s`, `5min`, `1h`, `4d`, or a number.

    Raises:
        InputError: anything else, or a unit where times are plain numbers.
    """
    match = re.fullmatch(r"([\d.]+(?:e[-+]?\d+)?)\s*(ms|s|min|h|d|w)?", str(text))
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    if not match or not value:
        raise InputError(
            f"max_gap={text}: expected a time such as 90s, 5min, 1h, 4d, or a number in the column's units"
        )
    if match[2] and table.origin is None:
        raise InputError(f"max_gap={text}: {table.path} has times that are plain numbers; expected one in their units")
    return value * SECONDS[match[2] or "s"]


def spelled(seconds: float, table: Table) -> str:
    """A length of time as `duration` reads it."""
    if table.origin is None:
        return f"{seconds:g}"
    unit = next((unit for unit in ("d", "h", "min", "s") if seconds % SECONDS[unit] == 0), "ms")
    return f"{seconds / SECONDS[unit]:g}{unit}"


def stretches(table: Table, max_gap: Any = None) -> list[tuple[str, int, int]]:
    """Name, first row and row after the last of the series of a table, broken where time has a gap above `max_gap`.

    Raises:
        InputError: time goes backwards or repeats, or, without `max_gap`, has a step of more than 1.5 usual ones.
    """
    if table.times is None:
        if max_gap is not None:
            raise InputError(f"max_gap={max_gap}: {table.path} has no data.time_column to see gaps by")
        return table.groups
    limit = None if max_gap is None else duration(max_gap, table)
    parts = []
    for name, start, stop in table.groups:
        usual = float(np.median(np.diff(table.times[start : min(stop, start + 100_000)]))) if stop > start + 1 else 0.0
        breaks = [start]
        for first in range(start, stop - 1, BLOCK):
            times = np.asarray(table.times[first : min(stop, first + BLOCK + 1)])
            steps = np.diff(times)
            bad = np.flatnonzero(~(steps > 0))
            if len(bad):
                row, kind = first + int(bad[0]) + 1, "goes back from" if steps[bad[0]] < 0 else "repeats"
                before = f"{table.when(row - 1)} of the row before" + (f" in {name}" if name else "")
                hint = "remove such rows" if name else "remove such rows, or tell series apart by data.group_column"
                raise InputError(
                    f"{table.where(row)}: time {table.when(row)} {kind} {before}; {hint}; "
                    "without data.time_column rows count as even"
                )
            gaps = np.flatnonzero(steps > (1.5 * usual if limit is None else limit))
            if limit is None and len(gaps):
                step, row = steps[gaps[0]], first + int(gaps[0]) + 1
                raise InputError(
                    f"{table.where(row)}: a gap of {spelled(step, table)} after {table.when(row - 1)}, where steps are "
                    f"of {spelled(usual, table)}; data.max_gap={spelled(usual, table)} breaks the series at gaps, "
                    f"data.max_gap={spelled(step, table)} lets windows cross this one"
                )
            breaks += [first + int(gap) + 1 for gap in gaps]
        parts += [(name, a, b) for a, b in zip(breaks, [*breaks[1:], stop], strict=True)]
    return parts


def first_hole(values: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
    """Row and column of the first NaN in these rows, or None."""
    step = max(1, BLOCK // math.prod(values.shape[1:]))
    for first in range(start, stop, step):
        holes = np.isnan(values[first : min(first + step, stop)])
        if holes.any():
            row, column = np.argwhere(holes)[0][:2]
            return first + int(row), int(column)
    return None


def has_value(values: np.ndarray, start: int, stop: int) -> bool:
    """Whether a value of these rows is not NaN."""
    step = max(1, BLOCK // math.prod(values.shape[1:]))
    return any(not np.isnan(values[first : min(first + step, stop)]).all() for first in range(start, stop, step))


def interpolate(values: np.ndarray) -> None:
    """Fill in NaN, in place: on straight lines between the values beside it, at an end with the nearest value.

    Args:
        values: `(time, channels)`, or windows `(n, channels, length)`; lines without any value stay as they are.
    """
    for line in values.T if values.ndim == 2 else (line for window in values for line in window):
        rows = np.flatnonzero(np.isnan(line))
        if not 0 < len(rows) < len(line):
            continue
        starts = np.diff(rows, prepend=-2) > 1
        hole = np.cumsum(starts) - 1  # which one each row belongs to
        before, after = rows[starts] - 1, np.append(rows[:-1][starts[1:]], rows[-1]) + 1
        left, right = (line[side.clip(0, len(line) - 1)].astype(np.float64) for side in (before, after))
        left, right = np.where(before < 0, right, left), np.where(after == len(line), left, right)
        share = (rows - before[hole]) / (after - before)[hole]
        line[rows] = left[hole] + share * (right - left)[hole]
