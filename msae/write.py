"""The last step of every use: write tables and pictures, whole or not at all, and show progress."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError
from msae.read import SUFFIXES, found, has_files

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import pyarrow as pa
    from matplotlib.figure import Figure

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
        if file.exists() and not overwrite:
            raise InputError(f"{key}={path}: {file} exists; overwrite=true replaces it")
    if above := next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None):
        raise InputError(f"{key}={path}: {above} is a file; expected a folder")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` at the end and is removed after a failure.

    Raises:
        InputError: an OSError while writing, such as of a full disk.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with as_input_error(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def as_input_error(path: Path) -> Iterator[None]:
    """Turn an OSError into an InputError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be written: {reason}; the unfinished file was removed") from None


class Writer:
    """Writes a table in pieces, as .parquet or .csv by the ending of its path, whole or not at all.

    The first piece, which may have no rows, determines the columns and types. NaN and None are empty fields.

        with Writer(path) as out:
            out.write({"row": numpy_array, "score": tensor, "label": texts})

    Raises:
        InputError: the file cannot be written, such as on a full disk; no part of it is left.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{os.getpid()}.{path.name}")
        self.rows = 0
        self._out: Any = None
        self._schema: pa.Schema | None = None
        self._held: list[pa.Table] = []

    def write(self, columns: Mapping[str, Any]) -> None:
        """Add rows: arrays, tensors or lists of one length, by column name. Do not change them afterwards."""
        import pyarrow as pa

        csv = self.path.suffix.lower() == ".csv"
        arrays = [column(values, csv) for values in columns.values()]
        batch = pa.RecordBatch.from_arrays(arrays, list(columns))
        with as_input_error(self.path):
            if self._schema is None:
                self._schema = batch.schema
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._out = self._open(csv)
            self._held.append(pa.Table.from_batches([batch]).cast(self._schema))
            if sum(map(len, self._held)) * len(columns) >= PIECE:
                self._flush()
        self.rows += len(batch)

    def _flush(self) -> None:
        import pyarrow as pa

        self._out.write(pa.concat_tables(self._held))
        self._held.clear()

    def _open(self, csv: bool) -> Any:
        from pyarrow import csv as pa_csv
        from pyarrow import parquet

        return (pa_csv.CSVWriter if csv else parquet.ParquetWriter)(str(self.temporary), self._schema)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                assert self._out is not None, "a table without rows is written by a piece without rows"
                with as_input_error(self.path):
                    if self._held:
                        self._flush()
                    self._out.close()
                    self.temporary.replace(self.path)
            elif self._out is not None:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    self._out.close()
        finally:
            self.temporary.unlink(missing_ok=True)


def column(values: Any, text: bool) -> pa.Array:
    """Values as a column of a table; with `text`, time stamps as ISO 8601, without fractions if there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(values, pa.Array):
        values = pa.array(values.numpy() if hasattr(values, "numpy") else values, from_pandas=True)
    if text and pa.types.is_timestamp(values.type):
        seconds = values.cast(pa.timestamp("s", values.type.tz), safe=False)
        return (seconds if pc.all(pc.equal(seconds, values)).as_py() else values).cast(pa.string())
    return values


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
