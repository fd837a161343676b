"""What the commands share that put a trained model to data: checks, series and samples as streams, tables as output.

A command takes its model from `begin`, checks its output by `check_out`, goes through `stretches(cfg, model)` of
files or `samples(cfg, model)` of data sets of samples (`has_files` tells which), and writes to a `Writer`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError, check_choice, check_int

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import numpy as np
    import pyarrow as pa
    from jaxtyping import Float, Int, Shaped
    from matplotlib.figure import Figure
    from torch import Tensor

    from msae.data.rows import Table
    from msae.data.tables import Format
    from msae.models.reconstructor import Reconstructor

BATCH = 2048
"""Windows encoded at a time."""
PIECE = 1 << 22
"""Values of a table written at a time: a .parquet keeps something in memory of each of its row groups."""
SECONDS = 10
"""Between lines of progress, at least."""
FORMAT = ("columns", "time_column", "group_column", "separator", "decimal", "header", "time_format")
SUFFIXES = (".csv", ".parquet")


def has_files(cfg: DictConfig) -> bool:
    """Whether `cfg.data` reads files of the user's, and is no data set of samples."""
    return {"path", "window"} <= set(cfg.data)


def begin(cfg: DictConfig, files: bool = True) -> Reconstructor:
    """The model of `cfg.ckpt`, on the CPU, for evaluation; `cfg.data` becomes what the model and the user say.

    Args:
        cfg: the command's config.
        files: whether `data` has to be of files.

    Raises:
        InputError: a value that no command can use, or a checkpoint that cannot be read.
    """
    if OmegaConf.is_missing(cfg, "ckpt") or not cfg.ckpt:
        raise InputError("ckpt: no value; expected the folder of a run, such as ckpt=runs/msae, or its best.ckpt")
    check_int("threads", cfg.threads)
    check_choice("overwrite", cfg.overwrite, (True, False))
    import torch

    from msae.models import checkpoint

    torch.set_num_threads(cfg.threads)
    model = checkpoint.load(cfg.ckpt)
    cfg.data = data_of(cfg, model)
    if files and not has_files(cfg):
        raise InputError("data: expected series, or an option made of it, such as ecg")
    OmegaConf.to_container(cfg.data, resolve=True)
    if has_files(cfg):
        check_int("data.stride", cfg.data.stride)
        check_choice("data.missing", cfg.data.missing, ("error", "interpolate", "mask"))
    return model


def data_of(cfg: DictConfig, model: Reconstructor) -> DictConfig:
    """How to read data: as the model's run did, but for what the command line says.

    Raises:
        InputError: the checkpoint does not say how, says it by code that is not msae's, or has windows of another
            length than the command line asks for.
    """
    typed = [text.lstrip("+") for text in HydraConfig.get().overrides.task] if HydraConfig.initialized() else []
    keys = {text.partition("=")[0].removeprefix("data.") for text in typed if text.startswith("data.")}
    chosen = any(text.startswith("data=") for text in typed)
    if "window" in keys and cfg.data.window not in (None, model.length):
        raise InputError(f"data.window={cfg.data.window}: the model takes {model.length} steps; leave it out")
    before = model.data_options
    if before is None:
        if not (chosen or keys):
            raise InputError(f"ckpt={cfg.ckpt}: does not say how its data were read; expected data=NAME and its keys")
        return cast(DictConfig, cfg.data)
    if not keys <= before.keys() or (chosen and cfg.data._target_ != before["_target_"]):  # other data
        return cast(DictConfig, cfg.data)
    target = str(before["_target_"])
    if not target.startswith("msae.data."):
        raise InputError(f"ckpt={cfg.ckpt}: reads its data by {target}, which is not msae's; expected data=NAME")
    given = {key: cfg.data[key] for key in keys}
    same = cfg.data if cfg.data._target_ == target else {}
    return cast(DictConfig, OmegaConf.merge(same, before, given))


def check_out(cfg: DictConfig, *beside: str) -> Path:
    """The path `cfg.out` of a table; InputError unless it can be written, as `beside` it what is called `out` + those.

    What exists is refused unless `cfg.overwrite`; a file of `data.path` always.
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


def found(cfg: DictConfig) -> list[Path]:
    """The files of `data.path`; InputError where there are none."""
    from msae.data import files

    return files.find(cfg.data.path, "data.path")


def form(cfg: DictConfig, model: Reconstructor) -> Format:
    """How the files are written; their channels are by default those that the model was trained on, in that order."""
    from msae.data.tables import Format

    options = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    given = Format(**{name: options[name] for name in FORMAT})
    if given.columns is None and model.names is not None:
        return replace(given, columns=list(model.names))
    return given


def check_channels(table: Table, model: Reconstructor) -> None:
    """Raise InputError unless a table has the model's channels and, of windows already cut, length."""
    channels = table.values.shape[1]
    if channels != model.channels or (table.values.ndim == 3 and table.values.shape[2] != model.length):
        raise InputError(
            f"{table.path}: {channels} channels, {', '.join(table.columns[:8])}"
            + (f", in windows of {table.values.shape[2]} steps" if table.values.ndim == 3 else "")
            + f"; the model takes {model.channels}, in windows of {model.length} steps"
        )


def spans(table: Table, model: Reconstructor, cfg: DictConfig) -> list[tuple[str, int, int]]:
    """Name, first row and row after the last of the stretches between gaps that hold a window.

    Missing values in them are filled in, or refused, as `data.missing` says. Of windows already cut each is a row.

    Raises:
        InputError: not the model's channels or length, time that does not grow, a missing value, no such stretch.
    """
    from msae.data import rows
    from msae.data.series import fill

    check_channels(table, model)
    parts = rows.stretches(table, cfg.data.max_gap)
    if table.values.ndim == 2:
        parts = [part for part in parts if part[2] - part[1] >= model.length]
    if not parts:
        raise InputError(f"{table.path}: no stretch of {model.length} steps, the length of a window")
    fill([table], {"whole": [(0, start, stop) for _, start, stop in parts]}, cfg.data.missing)
    return parts


@dataclass(frozen=True)
class Stretch:
    """A stretch of a file's series between gaps; it is memory-mapped, and read where it is looked at.

    Attributes:
        table: of the file: `table.path`, `table.columns`.
        group: the series' name in a long table, else empty.
        first: its first row in `table`.
        x: the series; or windows, of a file that holds windows already.
        labels: of its steps, where the command has `label`.
    """

    table: Table
    group: str
    first: int
    x: Shaped[Tensor, "channels time"] | Shaped[Tensor, "n channels length"]
    labels: Labels | None = None

    def windows(
        self, length: int, stride: int, size: int = BATCH
    ) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m channels length"]]]:
        """Batches of windows, every `stride` steps and one that ends with the series, after the step each starts at.

        Windows already cut start one step after the other, and `stride` is not used.
        """
        import torch

        from msae.data.windows import cut, starts

        if self.x.ndim == 3:
            yield from ((i, self.x[i].float()) for i in torch.arange(len(self.x)).split(size))
        else:
            where = starts(self.x.shape[1], length, stride).split(size)
            yield from zip(where, (x.float() for x in cut(self.x, length, stride, size)), strict=True)

    def count(self, length: int, stride: int) -> int:
        """How many windows there are."""
        return len(self.x) if self.x.ndim == 3 else -(-(self.x.shape[1] - length) // stride) + 1

    def rows(self, steps: Int[Tensor, " m"]) -> np.ndarray:
        """The rows, from 0, in which steps of the stretch stand in the file."""
        rows = steps.numpy() + self.first
        return rows if self.table.order is None else self.table.order[rows]

    def times(self, steps: Int[Tensor, " m"]) -> pa.Array | None:
        """The times of steps of the stretch, stamps or numbers as in the file; None without a time column."""
        if self.table.times is None:
            return None
        return stamps(self.table.times[steps.numpy() + self.first], self.table.origin)


def stamps(times: np.ndarray, origin: np.datetime64 | None) -> pa.Array:
    """A table's `times` as a column: time stamps, to the microsecond, or numbers where there is no origin."""
    import numpy as np
    import pyarrow as pa

    if origin is None:
        return pa.array(times)
    return pa.array(origin.astype("M8[us]") + np.round(times * 1e6).astype("m8[us]"))


@dataclass(frozen=True)
class Labels:
    """A column of a file as numbers of the labels in it: `names[numbers[row]]`, rows as in the file."""

    names: list[str]
    numbers: np.ndarray

    def of(self, rows: np.ndarray) -> list[str]:
        """The labels of these rows of the file."""
        return [self.names[i] for i in self.numbers[rows]]


def labels(path: Path, like: Format, name: str) -> Labels:
    """The column `name` of a table; InputError where it has none such."""
    import numpy as np
    import pyarrow as pa

    from msae.data import files

    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"label={name}: {path} is an array, without columns of other kinds")
    source, known = files.open_table(path, like), dict[str, int]()
    if name not in source.names:
        raise InputError(f"label={name}: {path} has no such column; it has {', '.join(source.names[:10])}")
    with files.Spool(np.int32) as numbers:
        for batch in source.batches([], [name]):
            texts = batch.column(name).cast(pa.string()).fill_null("").to_pylist()
            numbers.append(np.array([known.setdefault(text, len(known)) for text in texts]))
        return Labels(list(known), numbers.array()[:, 0])


def stretches(cfg: DictConfig, model: Reconstructor, label: str | None = None) -> Iterator[Stretch]:
    """The stretches of all files of `data.path`, file by file; all but the values' errors are raised by the first.

    Memory does not grow with a file: tables are read in pieces into a temporary file, arrays where they lie.

    Args:
        cfg: the command's config.
        model: to which channels, names and lengths are matched.
        label: a column of the files that is no channel and is read as well.

    Raises:
        InputError: see `spans`, and a file that cannot be read or lacks a column.
    """
    import torch

    from msae.data import files

    like = form(cfg, model)
    for path in found(cfg):
        named = None if label is None else labels(path, like, label)
        table = files.read(path, like)
        for group, start, stop in spans(table, model, cfg):
            x = torch.from_numpy(table.values[start:stop])
            yield Stretch(table, group, start, x.T if x.ndim == 2 else x, named)


@dataclass(frozen=True)
class Samples:
    """A batch of a data set's samples.

    Attributes:
        split: `train` or `test`, the official ones.
        first: the number of the first sample in its split.
        x: the samples, in raw units.
        y: numbers of their labels, where there are such.
        labels: the labels by name, or their numbers where they have no names.
    """

    split: str
    first: int
    x: Float[Tensor, "m channels length"]
    y: Int[Tensor, " m"] | None
    labels: list[str] | list[int] | None


def samples(cfg: DictConfig, model: Reconstructor) -> Iterator[Samples]:
    """The samples of a data set such as ucr, mnist or digits, in batches, in the order of its official splits.

    Raises:
        InputError: samples of other channels or another length than the model's, or what the data set raises.
    """
    from hydra.utils import instantiate

    data = instantiate(cfg.data, val_size=0)  # validation windows stay in their place
    if data.shape != (model.channels, model.length):
        raise InputError(
            f"data: {data.shape[0]} channels, in windows of {data.shape[1]} steps; "
            f"the model takes {model.channels}, in windows of {model.length} steps"
        )
    for split, windows in (("train", data.train), ("test", data.test)):
        for first in range(0, len(windows), BATCH):
            batch = windows[first : first + BATCH]
            labels = None if batch.y is None else data.labels(batch.y)
            yield Samples(split, first, batch.x, batch.y, labels)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what is there at the end is put in its place, or removed where it failed.

    Raises:
        InputError: an OSError while writing, such as of a full disk.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with told(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """An OSError as an InputError that names it and the file that was to be written."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be written: {reason}; what was written of it is removed") from None


class Writer:
    """A table written in pieces, .parquet or .csv by the ending of its path; it is there whole or not at all.

    The first piece, which may be without rows, tells columns and types; NaN and None are empty fields.

        with Writer(path) as out:
            out.write({"row": numpy_array, "score": tensor, "label": texts})

    Raises:
        InputError: an OSError, such as of a full disk; nothing is left then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{os.getpid()}.{path.name}")
        self.rows = 0
        self._out: Any = None
        self._schema: pa.Schema | None = None
        self._held: list[pa.Table] = []

    def write(self, columns: Mapping[str, Any]) -> None:
        """Add rows: arrays, tensors or lists of one length, by the columns' names; not to be changed afterwards."""
        import pyarrow as pa

        csv = self.path.suffix.lower() == ".csv"
        arrays = [column(values, csv) for values in columns.values()]
        batch = pa.RecordBatch.from_arrays(arrays, list(columns))
        with told(self.path):
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
                with told(self.path):
                    if self._held:
                        self._flush()
                    self._out.close()
                    self.temporary.replace(self.path)
            elif self._out is not None:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    self._out.close()
        finally:
            self.temporary.unlink(missing_ok=True)


def column(values: Any, text: bool) -> pa.Array:
    """Values as a column of a table; time stamps as ISO 8601, without the fraction where all are whole, for `text`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(values, pa.Array):
        values = pa.array(values.numpy() if hasattr(values, "numpy") else values, from_pandas=True)
    if text and pa.types.is_timestamp(values.type):
        seconds = values.cast(pa.timestamp("s"), safe=False)
        return (seconds if pc.all(pc.equal(seconds, values)).as_py() else values).cast(pa.string())
    return values


def picture(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; raises InputError as `Writer` does."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110)


class Progress:
    """Progress on stderr: a bar where that is a terminal; else a line for about every tenth, where work takes long.

    Args:
        unit: of what is counted.

        with Progress("windows") as progress:
            progress.begin("a.csv", 5000)
            progress.update(2048)
    """

    def __init__(self, unit: str) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=0, unit=f" {unit}", unit_scale=True, disable=None, leave=False)
        self.unit = unit
        self.told = time.monotonic()

    def begin(self, text: str, total: int) -> None:
        """What is done next, and how many of the unit it has."""
        self.text, self.total, self.done, self.tenth = text, total, 0, 0
        self.bar.reset(total)
        self.bar.set_description(text)

    def update(self, n: int) -> None:
        """So many more are done."""
        self.bar.update(n)
        self.done += n
        tenth, now = 10 * self.done // self.total, time.monotonic()
        if self.bar.disable and tenth > self.tenth and now >= self.told + SECONDS:
            self.tenth, self.told = tenth, now
            print(f"{self.text}: {self.done:,} of {self.total:,} {self.unit}", file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
