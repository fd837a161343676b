"""Series out of a user's own files: `.csv`, `.parquet`, `.npy`, `.npz`."""

from __future__ import annotations

import difflib
import glob
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from msae.data.tables import BLOCK, Csv, Format, Parquet
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
        times: of each row, in seconds or in the column's own units; None without a time column.
        groups: name, first row and row after the last of each series; the name is empty without a group column.
        order: the row in the file of each row here, where they differ.
        first_line: what a message adds to a row's number here to say where it stands in the file.
    """

    path: Path
    columns: list[str]
    values: np.ndarray
    times: np.ndarray | None = None
    groups: list[tuple[str, int, int]] = field(default_factory=list)
    order: np.ndarray | None = None
    first_line: int = 0

    def where(self, row: int) -> str:
        """The file and the line (of text) or row (of other files, from 0) of a row here."""
        row = int(row if self.order is None else self.order[row])
        return f"{self.path}, line {row + self.first_line}" if self.first_line else f"{self.path}, row {row}"


def find(path: str, key: str = "path") -> list[Path]:
    """The files that a path means: a file, those of a folder that can be read, or those of a glob; sorted.

    Raises:
        InputError: no such file, none in the folder, or one of another kind.
    """
    if not isinstance(path, str) or not path:
        raise InputError(f"{key}={path}: expected a file, a folder or a glob of {', '.join(SUFFIXES)} files")
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    elif place.exists():
        files = [place]
    else:
        files = sorted(map(Path, glob.glob(str(place))))  # noqa: PTH207  (of a whole path, absolute or not)
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
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not an array file of numbers: {' '.join(str(error).split())}") from None
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
    if columns is not None:
        array, names = array[:, [names.index(name) for name in chosen(path, columns, names)]], list(map(str, columns))
    table = Table(path, names, mappable(array), groups=[("", 0, len(array))])
    for start in range(0, len(array), step := max(1, BLOCK // math.prod(array.shape[1:]))):
        check_numbers(table, table.values[start : start + step], start)
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


def mappable(array: np.ndarray) -> np.ndarray:
    """The array in a type that torch reads; a copy only where it has to be one."""
    if array.dtype.isnative and array.dtype.name in ("float16", "float32", "float64", "int16", "int32", "int64"):
        return array
    return array.astype(np.float32)


def open_table(path: Path, form: Format) -> Csv | Parquet:
    """The reader, and writer, of a table's format."""
    return Csv(path, form) if path.suffix.lower() == ".csv" else Parquet(path)


def read_table(path: Path, form: Format) -> Table:
    """`.csv` and `.parquet`, in pieces, into temporary memory-mapped files: neither has to fit in memory."""
    source = open_table(path, form)
    others = [name for name in (form.time_column, form.group_column) if name is not None]
    columns = [name for name in source.names if name not in others] if form.columns is None else form.columns
    columns = chosen(path, columns, source.names)
    chosen(path, others, source.names)
    if "" in columns:
        raise InputError(f"{path}: a column without a name, perhaps an index; data.columns=[...] chooses the channels")
    if not columns:
        raise InputError(f"{path}: no column is left; it has {', '.join(source.names)}")
    table = Table(path, columns, np.empty((0, 0)), first_line=source.first_line)
    known: dict[str, int] = {}
    with Spool(np.float32, len(columns)) as values, Spool(np.float64) as times, Spool(np.int64) as groups:
        for batch in source.batches(columns, others):
            numbers = np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in columns], axis=1)
            check_numbers(table, numbers, values.rows)
            if form.time_column is not None:
                times.append(seconds(table, batch.column(form.time_column), form.time_column, values.rows))
            if form.group_column is not None:
                names = batch.column(form.group_column).cast(pa.string()).fill_null("").to_pylist()
                groups.append(np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64))
            values.append(numbers)
        rows, stamps, ids = values.array(), times.array()[:, 0], groups.array()[:, 0]
    if not len(rows):
        raise InputError(f"{path}: no rows; expected numbers below the header {', '.join(source.names)}")
    spans, order = [("", 0, len(rows))], None
    if known:
        if np.count_nonzero(np.diff(ids)) >= len(known):  # rows of one series stand apart
            order = np.argsort(ids, kind="stable")
            rows, stamps = reordered(rows, order), reordered(stamps, order)
        sizes = np.bincount(ids, minlength=len(known))
        ends = np.cumsum(sizes)
        spans = [(name, int(end - size), int(end)) for name, end, size in zip(known, ends, sizes, strict=True)]
    found = None if form.time_column is None else stamps
    return Table(path, columns, rows, found, spans, order, source.first_line)


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


def check_numbers(table: Table, numbers: np.ndarray, first: int) -> None:
    """Raise InputError for an infinity, or for values whose differences are lost in float32, in which models work."""
    bad = np.argwhere(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0][:2].tolist()
        value = numbers[tuple(bad[0])]
        raise InputError(
            f"{table.where(first + row)}, column {table.columns[column]}: {value}: expected a finite number"
        )
    if numbers.dtype.name in ("float64", "int64", "int32") and numbers.ndim == 2:
        numbers = numbers.astype(np.float64)
        lost = np.nanmax(np.abs(numbers - numbers.astype(np.float32)), axis=0, initial=0)
        low, high = np.nanmin(numbers, axis=0, initial=np.inf), np.nanmax(numbers, axis=0, initial=-np.inf)
        coarse = np.flatnonzero((high > low) & (lost > 1e-3 * (high - low)))
        if len(coarse):
            name, low, high = table.columns[coarse[0]], low[coarse[0]], high[coarse[0]]
            raise InputError(
                f"{table.path}, column {name}: from {low:.10g} to {high:.10g}; models work in float32, "
                "with 7 digits: subtract the level first, or leave the column out with data.columns=[...]"
            )


def seconds(table: Table, column: pa.Array, name: str, first: int) -> np.ndarray:
    """Time stamps in seconds, float64; numbers as they are."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{table.where(first + row)}, column {name}: no time; expected one in every row")
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        nanoseconds = column.cast(pa.timestamp("ns", getattr(kind, "tz", None))).cast(pa.int64()).to_numpy()
        return np.asarray(nanoseconds / 1e9)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    raise InputError(
        f"{table.where(first)}, column {name}: {column[0].as_py()!r} is neither a number nor an ISO 8601 time; "
        "data.time_format says how it is written, such as '%d/%m/%Y %H:%M'"
    )


def duration(text: Any) -> float:
    """Seconds of a text such as `90s`, `5min`, `1h`, `4d`; a number is left as it is.

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d|w)?", str(text))
    if not match or float(match[1]) == 0:
        raise InputError(
            f"max_gap={text}: expected a time such as 90s, 5min, 1h, 4d, or a number in the column's units"
        )
    return float(match[1]) * SECONDS[match[2] or "s"]


def stretches(table: Table, max_gap: Any = None) -> list[tuple[str, int, int]]:
    """Name, first row and row after the last of the series of a table, broken where time has a gap above `max_gap`.

    Raises:
        InputError: time goes backwards or repeats, or, without `max_gap`, has a step of more than 1.5 usual ones.
    """
    limit = None if max_gap is None else duration(max_gap)
    if table.times is None:
        if limit is not None:
            raise InputError(f"max_gap={max_gap}: {table.path} has no data.time_column to see gaps by")
        return table.groups
    parts = []
    for name, start, stop in table.groups:
        usual = float(np.median(np.diff(table.times[start : min(stop, start + 100_000)]))) if stop > start + 1 else 0.0
        breaks = [start]
        for first in range(start, stop - 1, BLOCK):
            times = np.asarray(table.times[first : min(stop, first + BLOCK + 1)])
            steps = np.diff(times)
            bad = np.flatnonzero(~(steps > 0))
            if len(bad):
                row, kind = first + int(bad[0]) + 1, "goes backwards" if steps[bad[0]] < 0 else "repeats"
                hint = f" in {name}" if name else "; many series in one table need data.group_column"
                raise InputError(f"{table.where(row)}: time {kind}{hint}; without data.time_column rows count as even")
            gaps = np.flatnonzero(steps > (1.5 * usual if limit is None else limit))
            if limit is None and len(gaps):
                step, row = steps[gaps[0]], first + int(gaps[0]) + 1
                raise InputError(
                    f"{table.where(row)}: a gap of {step:g} where steps are of {usual:g}; windows cross gaps up to "
                    f"data.max_gap, such as {math.ceil(step)}, and break at longer ones"
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


def interpolate(values: np.ndarray) -> None:
    """Fill in NaN, in place: on straight lines between the values beside it, at an end with the nearest value.

    Args:
        values: `(time, channels)`, or windows `(n, channels, length)`; lines without any value stay as they are.
    """
    for line in values.T if values.ndim == 2 else (line for window in values for line in window):
        missing = np.isnan(line)
        if missing.any() and not missing.all():
            there = np.flatnonzero(~missing)
            line[missing] = np.interp(np.flatnonzero(missing), there, line[there])
