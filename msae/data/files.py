"""Read a user's files, `.csv`, `.csv.gz`, `.parquet`, `.npy` and `.npz`, as tables."""

from __future__ import annotations

import difflib
import glob
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from msae.data.clock import AUTO, Clock, localized, settled
from msae.data.grid import on_grid
from msae.data.head import INDEX_NAME
from msae.data.holes import without
from msae.data.rows import Table
from msae.data.spool import Spool, mapped, reordered
from msae.data.tables import BLOCK, INDEX, Csv, Format, Parquet
from msae.errors import InputError, check_utf8, one_line
from msae.whole import available, size

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npy", ".npz")
SHOWN = 10
"""Names of columns in an error, at most."""


def find(path: str | Sequence[str], key: str = "path") -> list[Path]:
    """The files that a path names: a file, the readable files of a folder, or the files of a glob; sorted.

    A list of paths names the files of each. A folder's folders are searched as well. Hidden files and folders, whose
    names begin with a dot, are left out.

    Raises:
        InputError: there is no such file, none in the folder, or a file is of another kind.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        files = list(dict.fromkeys(file for one in path for file in find(one, key)))
        if files:
            return files
    if not isinstance(path, str) or not path:
        raise InputError(f"{key}={path}: expected a file, a folder or a glob of {', '.join(SUFFIXES)} files")
    place = Path(path).expanduser()
    if place.is_dir():
        visible = (file for file in place.rglob("*") if not is_hidden(file.relative_to(place)))
        files = sorted(file for file in visible if file.name.lower().endswith(SUFFIXES) and file.is_file())
    elif place.exists():
        files = [place]
    else:
        found = map(Path, glob.glob(str(place), recursive=True))  # noqa: PTH207  (of a whole path, absolute or not)
        files = sorted(file for file in found if file.is_file())
    if not files:
        what = (
            f"no {', '.join(SUFFIXES)} file in it or its folders"
            if place.is_dir()
            else "no such file or folder, and no match"
        )
        raise InputError(f"{key}={path}: {what}")
    for file in files:
        check_utf8(str(file))
        if not file.name.lower().endswith(SUFFIXES):
            raise InputError(f"{key}={file}: expected one of {', '.join(SUFFIXES)}")
    return files


def is_hidden(path: Path) -> bool:
    """Whether a part of a path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def read(path: Path, form: Format) -> Table:
    """The table of a file, on the grid that `form` asks for; raises InputError that says where it cannot be used."""
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file")
    if path.suffix.lower() in (".npy", ".npz"):
        for name in ("time_column", "group_column"):
            if getattr(form, name) not in (None, AUTO):
                raise InputError(f"{name}={getattr(form, name)}: {path} is an array, which has no such column")
        return without(read_array(path, form.columns), form.missing_values)
    table = without(read_table(path, form), form.missing_values)
    if table.times is None:
        return table
    table = table if form.time_zone is None else localized(table, form.time_zone)
    return table if form.freq is None else on_grid(table, form)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` by their names, or the one of a `.npy`, memory-mapped."""
    try:  # copy on write: only interpolation writes, and never to the file
        if path.suffix.lower() == ".npz":
            check_claims(path)
        loaded = np.load(path, mmap_mode="c" if path.suffix.lower() == ".npy" else None)
        if isinstance(loaded, np.memmap):
            order: Literal["C", "F"] = "C" if loaded.flags.c_contiguous else "F"
            with path.open("rb") as file:
                return {"": np.ndarray(loaded.shape, loaded.dtype, mapped(file, False), loaded.offset, order=order)}
        return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except InputError:
        raise
    except (ValueError, OverflowError, MemoryError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not an array file of numbers: {one_line(error)}") from None


def read_array(path: Path, columns: Sequence[str | int] | None) -> Table:
    """Read `.npy`, memory-mapped, or `.npz`: `(time,)`, `(time, channels)`, or windows `(n, channels, length)`."""
    arrays = arrays_of(path)
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
    wanted = names if columns is None else chosen("data.columns", path, columns, names)
    places = {name: place for place, name in enumerate(names)}
    array = mappable(array, [places[name] for name in wanted])
    table = Table(path, wanted, array, groups=[("", 0, len(array))])
    for start in range(0, len(array), step := max(1, BLOCK // math.prod(array.shape[1:]))):
        check_finite(table, array[start : start + step], start)
    return table


def check_claims(path: Path) -> None:
    """Raise InputError unless each array of an `.npz` is as large as it claims, and all of them fit in memory."""
    total = 0
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            with archive.open(one) as file:
                form: Any = np.lib.format
                header = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
                shape, _, dtype = header(file)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > one.file_size:
                raise InputError(f"{path}: {one.filename} claims {size(claimed)} and holds {size(one.file_size)}")
            total += claimed
    if total > available():
        raise InputError(
            f"{path}: takes {size(total)} unpacked, and {size(available())} of memory are available; expected .npy "
            "files, which are not read into memory"
        )


def write_array(like: Path, path: Path, columns: Sequence[str], values: np.ndarray) -> None:
    """Write an array file like another one, with new values; several arrays stay several."""
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
    """These channels of an array, in a type that torch reads; copied, to a temporary file, only if necessary."""
    steps = set(np.diff(channels).tolist()) or {1}
    if len(steps) == 1 and min(steps) > 0:
        array = array[:, channels[0] : channels[-1] + 1 : min(steps)]
        if array.dtype.isnative and (
            array.dtype.kind == "f" or array.dtype.name in ("uint8", "int16", "int32", "int64")
        ):
            return array
        channels = range(array.shape[1])
    with Spool(np.float64, len(channels) * math.prod(array.shape[2:])) as copy:
        for start in range(0, len(array), step := max(1, BLOCK // copy.width)):
            copy.append(array[start : start + step][:, channels])
        return copy.array().reshape(len(array), len(channels), *array.shape[2:])


def open_table(path: Path, form: Format) -> Csv | Parquet:
    """The reader and writer of a table's format."""
    return Parquet(path) if path.suffix.lower() == ".parquet" else Csv(path, form)


def selected(source: Csv | Parquet, form: Format) -> tuple[list[str], list[str]]:
    """The columns of a table that become channels, and those of times and names of series."""
    path = source.path
    others = []
    for key, name in (("data.time_column", form.time_column), ("data.group_column", form.group_column)):
        others += [] if name is None else chosen(key, path, [name], source.names)
    left = [name for name in source.names if name not in others and not INDEX.fullmatch(name)]
    columns = left if form.columns is None else chosen("data.columns", path, form.columns, source.names)
    if form.columns is None and isinstance(source, Csv) and source.head.unnamed and INDEX_NAME in left:
        raise InputError(
            f"{path}: the first column has no name; is it an index of times? then set data.time_column={INDEX_NAME}, "
            "else choose the channels with data.columns=[...]"
        )
    if "" in columns:
        raise InputError(f"{path}: a column without a name; choose the channels with data.columns=[...]")
    if not columns:
        raise InputError(f"{path}: no column is left; it has: {listed(source.names)}")
    return columns, others


def read_table(path: Path, form: Format) -> Table:
    """Read `.csv` and `.parquet` in pieces, into temporary memory-mapped files: a table need not fit in memory."""
    source = open_table(path, form)
    form = settled(source, form)
    columns, others = selected(source, form)
    table = Table(path, columns, np.empty((0, 0)), line=source.line if isinstance(source, Csv) else None)
    clock = Clock(table, form)
    known: dict[str, int] = {}
    with Spool(np.float64, len(columns)) as values, Spool(np.float64) as times, Spool(np.int64) as groups:
        for batch in source.batches(columns, others):
            numbers = np.stack([batch.column(i).to_numpy(zero_copy_only=False) for i in range(len(columns))], axis=1)
            check_finite(table, numbers, values.rows)
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
        raise InputError(f"{path}: no rows; expected numbers below the header {listed(source.names)}")
    spans, order = [("", 0, len(rows))], None
    if known:
        if np.count_nonzero(np.diff(ids)) >= len(known):  # the rows of a series are not together
            order = np.argsort(ids, kind="stable")
            rows, stamps = reordered(rows, order), reordered(stamps, order)
        sizes = np.bincount(ids, minlength=len(known))
        ends = np.cumsum(sizes)
        spans = [(name, int(end - size), int(end)) for name, end, size in zip(known, ends, sizes, strict=True)]
    found = None if form.time_column is None else stamps
    return replace(table, values=rows, times=found, groups=spans, order=order, clock=form.time_column, **clock.of())


def chosen(key: str, path: Path, columns: Sequence[Any], names: Sequence[str]) -> list[str]:
    """`columns`, which the option `key` asks for, as texts; InputError with the file's `names` if it lacks one."""
    known = set(names)
    for name in map(str, columns):
        if name not in known:
            near = difflib.get_close_matches(name, names, 3) if len(names) > SHOWN else []
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise InputError(f"{key}={name}: no such column in {path}{hint}; it has: {listed(names)}")
    return list(map(str, columns))


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_finite(table: Table, numbers: np.ndarray, first: int) -> None:
    """Raise InputError for the first value that is infinite or too large for float32; row 0 is row `first`."""
    bad = np.argwhere(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0][:2].tolist()
        value = numbers[tuple(bad[0])]
        raise InputError(
            f"{table.where(first + row)}, column {table.columns[column]}: {value}: expected a finite number"
        )
