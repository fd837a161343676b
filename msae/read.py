"""The first step of every use: read a trained model, and the series or samples that it is applied to.

A command takes its model from `begin` and iterates over `stretches(cfg, model)` of files or `samples(cfg, model)` of a
data set; `has_files` tells which.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError, check_choice, check_int, check_threads
from msae.runs.found import check as check_options

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import numpy as np
    import pyarrow as pa
    import torch
    from jaxtyping import Float, Int, Shaped
    from torch import Tensor

    from msae.data.rows import Table
    from msae.data.tables import Format
    from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)

BATCH = 2048
"""Windows that are encoded together."""
FORMAT = (
    *("columns", "time_column", "group_column", "separator", "decimal", "header", "time_format", "time_zone"),
    *("freq", "max_gap", "missing_values"),
)
SUFFIXES = (".csv", ".parquet")


def has_files(cfg: DictConfig) -> bool:
    """Whether `cfg.data` reads the user's files; if not, it is a data set of samples."""
    return {"path", "window"} <= set(cfg.data)


def begin(cfg: DictConfig, files: bool = True) -> Reconstructor:
    """The model of `cfg.ckpt`, on the CPU, in evaluation mode; sets `cfg.data` to `data_of(cfg, model)`.

    Args:
        cfg: the command's config.
        files: whether the command needs files, not a data set of samples.

    Raises:
        InputError: a value that no command can use, or a checkpoint that cannot be read.
    """
    if OmegaConf.is_missing(cfg, "ckpt") or not cfg.ckpt:
        raise InputError("ckpt: no value; expected the folder of a run, such as ckpt=runs/msae, or its best.ckpt")
    check_threads(cfg.threads)
    for key in ("overwrite", "escape"):
        check_choice(key, cfg[key], (True, False))
    import torch

    torch.set_num_threads(cfg.threads)
    model = model_of(cfg)
    cfg.data = data_of(cfg, model)
    if files and not has_files(cfg):
        raise InputError("data: a data set of samples; expected data=series, or an option made of it, such as data=ecg")
    OmegaConf.to_container(cfg.data, resolve=True)
    if has_files(cfg):
        check_int("data.stride", cfg.data.stride)
        from msae.data.holes import MISSING

        check_choice("data.missing", cfg.data.missing, MISSING)
    return model


def model_of(cfg: DictConfig) -> Reconstructor:
    """The model of `cfg.ckpt`, whose class `cfg.model_class` may name, which is then imported."""
    from msae.models import checkpoint

    if cfg.model_class is not None:
        checkpoint.trust(str(cfg.model_class))
    return checkpoint.load(cfg.ckpt)


def data_of(cfg: DictConfig, model: Reconstructor) -> DictConfig:
    """The options that read the data: those of the model's run, overridden by the command line.

    Raises:
        InputError: the checkpoint contains no data options, its options name a data set that is not known, or
            `data.window` is not the length of the model's windows.
    """
    if not HydraConfig.initialized():  # composed in Python
        return cast(DictConfig, cfg.data)
    typed = [text.lstrip("+") for text in HydraConfig.get().overrides.task]
    keys = {text.partition("=")[0].removeprefix("data.") for text in typed if text.startswith("data.")}
    chosen = any(text.startswith("data=") for text in typed)
    if "window" in keys and cfg.data.window not in (None, model.length):
        raise InputError(f"data.window={cfg.data.window}: the model takes {model.length} steps; leave it out")
    before = model.data_options
    if before is None:
        if not (chosen or keys):
            raise InputError(f"ckpt={cfg.ckpt}: does not say how its data were read; expected data=NAME and its keys")
        return cast(DictConfig, cfg.data)
    if not keys <= before.keys() or (chosen and cfg.data._target_ != before.get("_target_")):  # other data
        return cast(DictConfig, cfg.data)
    named = [cfg.data._target_] if chosen or "_target_" in keys else []
    check_options(f"ckpt={cfg.ckpt}", before, "type data._target_={}", named)
    target = before["_target_"]
    given = {key: cfg.data[key] for key in keys}
    same = cfg.data if cfg.data._target_ == target and "_target_" not in keys else {}
    data = cast(DictConfig, OmegaConf.merge(same, before, given))
    if "path" in keys:
        from msae.data import files

        if all(path.suffix.lower() in (".npy", ".npz") for path in files.find(data.path, "data.path")):
            none = {key: None for key in ("time_column", "group_column") if key not in keys}  # which arrays lack
            return cast(DictConfig, OmegaConf.merge(data, none))
    return data


def found(cfg: DictConfig) -> list[Path]:
    """The files of `data.path`; InputError where there are none."""
    from msae.data import files

    return files.find(cfg.data.path, "data.path")


def form(cfg: DictConfig, model: Reconstructor) -> Format:
    """The format of the files; the default columns are the channels that the model was trained on, in that order."""
    from msae.data.tables import Format

    options = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    given = Format(**{name: options[name] for name in FORMAT if name in options})  # some are newer than a run
    if given.columns is None and model.names is not None:
        return replace(given, columns=list(model.names))
    return given


def check_channels(table: Table, model: Reconstructor) -> None:
    """Raise InputError unless a table has the model's number of channels and, if it contains windows, their length."""
    channels = table.values.shape[1]
    if channels != model.channels or (table.values.ndim == 3 and table.values.shape[2] != model.length):
        raise InputError(
            f"{table.path}: {channels} channels, {', '.join(table.columns[:8])}"
            + (f", in windows of {table.values.shape[2]} steps" if table.values.ndim == 3 else "")
            + f"; the model takes {model.channels}, in windows of {model.length} steps"
        )


def spans(table: Table, model: Reconstructor, cfg: DictConfig) -> list[tuple[str, int, int]]:
    """Name, first row and row after the last of each stretch between gaps that is at least a window long.

    Missing values in them are filled in or refused, or end a stretch, according to `data.missing`. In a table of
    windows a row is a window.

    Raises:
        InputError: not the model's channels or length, time that does not grow, a missing value, no such stretch.
    """
    parts = long_enough(table, model, cfg)
    if not parts:
        raise InputError(f"{table.path}: no stretch of {model.length} steps, the length of a window")
    return parts


def long_enough(table: Table, model: Reconstructor, cfg: DictConfig) -> list[tuple[str, int, int]]:
    """`spans`, of which there may be none."""
    from msae.data import holes, rows

    check_channels(table, model)
    parts = rows.stretches(table, cfg.data.max_gap)
    holes.check_gaps(table, parts, cfg.data.missing, cfg.data.max_gap)
    if table.values.ndim == 2:
        named: dict[str, list[tuple[int, int, int]]] = {}
        for name, start, stop in parts:
            named.setdefault(name, []).append((0, start, stop))
        whole = holes.bridged([table], named, cfg.data.missing, cfg.data.max_gap)
        parts = [(name, a, b) for name, its in whole.items() for _, a, b in its if b - a >= model.length]
    short = len(table.values) - sum(stop - start for _, start, stop in parts)
    if short and parts:
        log.warning(
            "%s: leaves out %d of %d rows, in stretches between gaps that are shorter than a window of %d steps",
            table.path,
            short,
            len(table.values),
            model.length,
        )
    holes.fill([table], {"whole": [(0, start, stop) for _, start, stop in parts]}, cfg.data.missing)
    return parts


@dataclass(frozen=True)
class Stretch:
    """A stretch of a file's series between gaps. Its values are memory-mapped: they are read when they are used.

    Attributes:
        table: the table of the file, with `table.path` and `table.columns`.
        group: the name of the series in a long table, else empty.
        first: the first row of the stretch in `table`.
        x: the series, or the windows of a file that already contains windows.
        dtype: of the windows that the model takes.
        labels: the labels of its steps, if the command was given `label`.
    """

    table: Table
    group: str
    first: int
    x: Shaped[Tensor, "channels time"] | Shaped[Tensor, "n channels length"]
    dtype: torch.dtype
    labels: Labels | None = None

    def windows(
        self, length: int, stride: int, size: int = BATCH
    ) -> Iterator[tuple[Int[Tensor, " m"], Float[Tensor, "m channels length"]]]:
        """Batches of windows, one every `stride` steps and one that ends with the series, each with its first steps.

        If the file already contains windows, the first steps are their numbers and `stride` is not used.
        """
        import torch

        from msae.data.windows import cut, starts

        if self.x.ndim == 3:
            yield from ((i, self.x[i].to(self.dtype)) for i in torch.arange(len(self.x)).split(size))
        else:
            where = starts(self.x.shape[1], length, stride).split(size)
            yield from zip(where, (x.to(self.dtype) for x in cut(self.x, length, stride, size)), strict=True)

    def count(self, length: int, stride: int) -> int:
        """The number of windows."""
        return len(self.x) if self.x.ndim == 3 else -(-(self.x.shape[1] - length) // stride) + 1

    def rows(self, steps: Int[Tensor, " m"]) -> np.ndarray:
        """The rows of the file, from 0, that contain these steps of the stretch; of steps it lacks, the rows before."""
        rows = steps.numpy() + self.first
        return rows if self.table.order is None else self.table.order[rows]

    def times(self, steps: Int[Tensor, " m"]) -> pa.Array | None:
        """The times of these steps of the stretch, stamps or numbers as in the file; None without a time column."""
        if self.table.times is None:
            return None
        return self.table.stamps(self.table.times[steps.numpy() + self.first])


@dataclass(frozen=True)
class Labels:
    """A column of labels: the label of a row of the file is `names[numbers[row]]`."""

    names: list[str]
    numbers: np.ndarray

    def of(self, rows: np.ndarray) -> list[str]:
        """The labels of rows of the file."""
        return [self.names[i] for i in self.numbers[rows]]


def labels(path: Path, like: Format, name: str) -> Labels:
    """The column `name` of a table; raises InputError if there is no such column."""
    import numpy as np
    import pyarrow as pa

    from msae.data import files
    from msae.data.spool import Spool

    if path.suffix.lower() in (".npy", ".npz"):
        raise InputError(f"label={name}: {path} is an array, which has no columns of labels")
    source, known = files.open_table(path, like), dict[str, int]()
    files.chosen("label", path, [name], source.names)
    with Spool(np.int32) as numbers:
        for batch in source.batches([], [name]):
            texts = batch.column(name).cast(pa.string()).fill_null("").to_pylist()
            numbers.append(np.array([known.setdefault(text, len(known)) for text in texts]))
        return Labels(list(known), numbers.array()[:, 0])


def stretches(cfg: DictConfig, model: Reconstructor, label: str | None = None) -> Iterator[Stretch]:
    """The stretches of all files of `data.path`, file by file.

    Memory does not grow with a file: tables are read in pieces into a temporary file, and arrays are memory-mapped.

    Args:
        cfg: the command's config.
        model: the model whose channels, names and length the files must have.
        label: a column of labels that is read beside the channels.

    Raises:
        InputError: see `spans`, and a file that cannot be read or lacks a column.
    """
    import torch

    from msae.data import files

    like, paths, none = form(cfg, model), found(cfg), 0
    for path in paths:
        named = None if label is None else labels(path, like, label)
        table = files.read(path, like)
        parts = long_enough(table, model, cfg)
        if not parts:
            none, few = none + 1, f"no stretch of {model.length} steps, the length of a window"
            if none == len(paths):
                raise InputError(f"{cfg.data.path if none > 1 else path}: {few}")
            log.warning("%s: left out: %s", path, few)
        for group, start, stop in parts:
            x = torch.from_numpy(table.values[start:stop])
            yield Stretch(table, group, start, x.T if x.ndim == 2 else x, model.raw_dtype, named)


@dataclass(frozen=True)
class Samples:
    """A batch of a data set's samples.

    Attributes:
        split: `train` or `test`, the official ones.
        first: the number of the first sample in its split.
        x: the samples, in raw units.
        y: the numbers of their labels; None without labels.
        labels: the names of the labels, or their numbers if they have no names.
    """

    split: str
    first: int
    x: Float[Tensor, "m channels length"]
    y: Int[Tensor, " m"] | None
    labels: list[str] | list[int] | None


def samples(cfg: DictConfig, model: Reconstructor) -> Iterator[Samples]:
    """The samples of a data set such as ucr, mnist or digits, in batches, in the order of its official splits.

    Raises:
        InputError: the samples do not have the model's channels and length, or the data set cannot be read.
    """
    from hydra.utils import instantiate

    data = instantiate(cfg.data, val_size=0)  # keeps the order of the official split
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
