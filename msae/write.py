"""The last step of every use: write tables and pictures, whole or not at all, and show progress."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError
from msae.read import SUFFIXES, found, has_files
from msae.whole import part, told, whole

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import pyarrow as pa
    from jaxtyping import Int
    from matplotlib.figure import Figure
    from torch import Tensor

PIECE = 1 << 22
"""Values of a table that are written together: a .parquet writer keeps memory for each row group."""
SECONDS = 10
"""Least time between lines of progress."""


def check_out(cfg: DictConfig, *beside: str) -> Path:
    """The path `cfg.out` of a table; raises InputError unless it and the files named `out` + `beside` can be written.

    Existing files are refused without `cfg.overwrite`; the files of `data.path` are always refused.
    """
    if OmegaConf.is_missing(cfg, "out") or not cfg.out:
        raise InputError("out: no value; expected a file ending .parquet or .csv")
    path = Path(cfg.out).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"out={path}: expected a file ending .parquet or .csv")
    written = [path, *(path.with_name(path.name + end) for end in beside)]
    check_free("out", path, written, cfg.overwrite)
    if has_files(cfg) and {file.resolve() for file in written} & {file.resolve() for file in found(cfg)}:
        raise InputError(f"out={path}: a file of data.path, which would be written over")
    return path


def check_free(key: str, path: Path, written: Sequence[Path], overwrite: bool) -> None:
    """Raise InputError unless the files of `key=path` can be written; those that exist only with `overwrite`."""
    for file in written:
        if file.is_dir():
            raise InputError(f"{key}={path}: {file} is a folder; expected a file")
        if os.path.lexists(file) and not overwrite:  # a link to nothing too
            raise InputError(f"{key}={path}: {file} exists; overwrite=true replaces it")
    if above := next((folder for folder in path.parents if os.path.lexists(folder) and not folder.is_dir()), None):
        raise InputError(
            f"{key}={path}: {above} is {'a broken link' if above.is_symlink() else 'a file'}; expected a folder"
        )


class Writer:
    """Writes a table in pieces, as .parquet or .csv by the ending of its path, whole or not at all.

    The first piece, which may have no rows, determines the columns and types. NaN and None are empty fields.

        with Writer(path) as out:
            out.write({"row": numpy_array, "score": tensor, "label": texts})

    Args:
        path: of the table.
        escape: whether a text that a spreadsheet would run, such as =A1, gets an apostrophe in front in a .csv.

    Raises:
        InputError: the file cannot be written, such as on a full disk; no part of it is left.
    """

    def __init__(self, path: Path, escape: bool = True) -> None:
        self.path = path
        self.escape = escape
        self.rows = 0
        self._out: Any = None
        self._schema: pa.Schema | None = None
        self._held: list[pa.Table] = []
        self._fractions: set[str] = set()
        self._file = contextlib.ExitStack()

    def write(self, columns: Mapping[str, Any]) -> None:
        """Add rows: arrays, tensors or lists of one length, by column name. Do not change them afterwards."""
        import pyarrow as pa

        csv = self.path.suffix.lower() == ".csv"
        rows = batch(columns, csv, self.escape, self._fractions)
        with told(self.path):
            if self._schema is None:
                self._schema = rows.schema
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._out = self._open(csv, self._file.enter_context(part(self.path)))
            self._held.append(pa.Table.from_batches([rows]).cast(self._schema))
            if sum(map(len, self._held)) * len(columns) >= PIECE:
                self._flush()
        self.rows += len(rows)

    def _flush(self) -> None:
        import pyarrow as pa

        self._out.write(pa.concat_tables(self._held))
        self._held.clear()

    def _open(self, csv: bool, temporary: Path) -> Any:
        from pyarrow import csv as pa_csv
        from pyarrow import parquet

        return (pa_csv.CSVWriter if csv else parquet.ParquetWriter)(str(temporary), self._schema)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None:
            assert self._out is not None, "a table without rows is written by a piece without rows"
            with told(self.path), self._file:
                if self._held:
                    self._flush()
                self._out.close()
        elif self._out is not None:
            with contextlib.suppress(OSError):  # the first error is the one to report
                self._out.close()
            self._file.__exit__(kind, *error)


class Appended:
    """A .csv to which rows are added; whole rows are on the disk after each `write`, so that others can read them.

    Raises:
        InputError: the file cannot be written; it ends with the last whole row.
    """

    def __init__(self, path: Path, escape: bool) -> None:
        self.path = path
        self.escape = escape
        self.rows = 0
        self._schema: Any = None
        self._fractions: set[str] = set()

    def __enter__(self) -> Appended:
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {os.strerror(error.errno or 0)}") from None

    def write(self, columns: Mapping[str, Any]) -> None:
        """Add rows, as `Writer` does; the first ones, of which there may be none, determine columns and types."""
        import pyarrow as pa
        from pyarrow import csv

        found = batch(columns, True, self.escape, self._fractions)
        first = self._schema is None
        if first:
            self._schema = found.schema
        text = io.BytesIO()
        rows = pa.Table.from_batches([found]).cast(self._schema)
        csv.write_csv(rows, text, csv.WriteOptions(include_header=first))
        size, left = self._file.tell(), text.getbuffer()
        with self._told():
            try:
                while left:
                    left = left[self._file.write(left) or 0 :]
            except OSError:
                self._file.truncate(size)
                raise
        self.rows += len(found)


def batch(columns: Mapping[str, Any], csv: bool, escape: bool, fractions: set[str]) -> pa.RecordBatch:
    """Columns as rows of a .csv, whose texts `escape` makes inert, or of a .parquet; see `Writer`.

    Once a column of times has a fraction of a second, its name is in `fractions`, and all its times are written with
    fractions.
    """
    import pyarrow as pa

    from msae.data.tables import inert

    fractions |= {name for name, values in columns.items() if has_fractions(column(values, text=False))}
    arrays = [column(values, csv, name in fractions) for name, values in columns.items()]
    names = pa.array(columns, pa.string())
    if csv and escape:
        names, *arrays = (inert(one) if pa.types.is_string(one.type) else one for one in (names, *arrays))
    return pa.RecordBatch.from_arrays(arrays, names.to_pylist())


def column(values: Any, text: bool, fractions: bool = False) -> pa.Array:
    """Values as a column of a table; with `text`, time stamps as ISO 8601, without fractions if there are none."""
    import pyarrow as pa

    if not isinstance(values, pa.Array):
        values = pa.array(values.numpy() if hasattr(values, "numpy") else values, from_pandas=True)
    if text and pa.types.is_timestamp(values.type):
        if not fractions and not has_fractions(values):
            values = values.cast(pa.timestamp("s", values.type.tz), safe=False)
        return values.cast(pa.string())
    return values


def has_fractions(values: pa.Array) -> bool:
    """Whether they are time stamps, of which one has a fraction of a second."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(values.type):
        return False
    seconds = values.cast(pa.timestamp("s", values.type.tz), safe=False)
    return pc.all(pc.equal(seconds, values)).as_py() is False


def texts(names: list[str], numbers: Int[Tensor, " n"]) -> pa.Array:
    """A column of texts, `names[number]` for each number; empty where the number is -1."""
    import pyarrow as pa

    index = numbers.numpy()
    return pa.array(names, pa.string()).take(pa.array(index, mask=index < 0))


def picture(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; raises InputError as `Writer` does."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110)


class Progress:
    """Progress on stderr: a bar on a terminal; otherwise a line for about every tenth of long work.

    Args:
        unit: the name of the units, such as windows.

        with Progress("windows") as progress:
            progress.begin("a.csv", 5000)
            progress.update(2048)
    """

    def __init__(self, unit: str) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=0, unit=f" {unit}", unit_scale=True, disable=None, leave=False)
        self.unit = unit
        self.printed = time.monotonic()

    def begin(self, text: str, total: int) -> None:
        """Begin the next part, which has `total` units."""
        self.text, self.total, self.done, self.tenth = text, total, 0, 0
        self.bar.reset(total)
        self.bar.set_description(text)

    def update(self, n: int) -> None:
        """Count n more units as done."""
        self.bar.update(n)
        self.done += n
        tenth, now = 10 * self.done // self.total, time.monotonic()
        if self.bar.disable and tenth > self.tenth and now >= self.printed + SECONDS:
            self.tenth, self.printed = tenth, now
            print(f"{self.text}: {self.done:,} of {self.total:,} {self.unit}", file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def counted(n: int) -> str:
    """A number of events, in words."""
    return f"{n} event{'s' * (n != 1)}"
