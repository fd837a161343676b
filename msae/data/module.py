"""The one LightningDataModule: windows in tensors, batches as slices of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from msae.data.windows import Views, values
from msae.errors import InputError, check_choice, check_int

NORMALIZATIONS = ("none", "minmax", "standard", "window")
STEPS_PER_CALL = 32
"""Batches handed to one call of `training_step`, which makes an optimizer step for each."""


@dataclass(frozen=True)
class Windows:
    """Samples of one split: windows in raw units and, where the data has them, a label for each.

    NaN is a value that is missing, or padding.
    """

    x: Float[Tensor, "n channels length"] | Views
    y: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Shaped[Tensor, " m"] | slice) -> Windows:
        return Windows(self.x[index], None if self.y is None else self.y[index])


class Batches(Dataset[Tensor | list[Tensor]]):
    """Indexed reads of one tensor: by indices, several batches of `batch_size` windows; by a slice, one batch."""

    def __init__(self, x: Float[Tensor, "n channels length"] | Views, batch_size: int) -> None:
        self.x = x
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Tensor | list[Tensor]:
        return self.x[index] if isinstance(index, slice) else list(self.x[index].split(self.batch_size))


class InOrder(Sampler[slice]):
    """Slices of `size` windows, in order."""

    def __init__(self, windows: int, size: int) -> None:
        self.windows = windows
        self.size = size

    def __len__(self) -> int:
        return math.ceil(self.windows / self.size)

    def __iter__(self) -> Iterator[slice]:
        return (slice(start, start + self.size) for start in range(0, self.windows, self.size))


class Shuffled(Sampler[Tensor]):
    """Indices of `size` windows, in an order of each epoch's own that follows from the seed and the epoch alone.

    An epoch goes `passes` times through all windows. Several processes draw the same order, and each takes its `share`.

    So a resumed run sees the order that an uninterrupted one would have seen. Lightning calls `set_epoch`, when it
    resumes only after it has asked for the iterator: the epoch is looked at when the first indices are.
    """

    def __init__(self, windows: int, size: int, seed: int, passes: int = 1, share: range | None = None) -> None:
        self.windows = windows
        self.size = size
        self.seed = seed
        self.passes = passes
        self.share = range(passes * windows) if share is None else share
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self.share) / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        state = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0])
        dtype = torch.int32 if self.windows < 2**31 else torch.int64  # the same order in half of the memory
        generator = torch.Generator().manual_seed(state)
        order = torch.randperm(self.windows, generator=generator, dtype=dtype)
        if self.passes > 1:
            more = [torch.randperm(self.windows, generator=generator, dtype=dtype) for _ in range(self.passes - 1)]
            order = torch.cat([order, *more])
        yield from order[self.share.start : self.share.stop : self.share.step].split(self.size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        self.epoch = epoch


def spread(total: int, n: int) -> Int[Tensor, " m"]:
    """Indices of n of `total` windows, evenly spread, or of all where they are fewer."""
    return torch.linspace(0, total - 1, min(n, total), dtype=torch.float64).long()


def check_windows(splits: dict[str, Windows], missing: bool) -> None:
    """Raise InputError unless all splits are float32 `(n, channels, length)` with the same last two sizes, and finite.

    With `missing` there may be NaN. What reads series into Views has looked at their values already.
    """
    for name, windows in splits.items():
        x = windows.x
        if isinstance(x, Views):
            continue
        if x.ndim != 3 or x.dtype != torch.float32 or not len(x):
            raise InputError(f"{name} windows: expected float32 (n, channels, length), got {x.dtype} {tuple(x.shape)}")
        bad = (x.isinf() if missing else ~x.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            raise InputError(f"{name} windows: {len(bad)} hold NaN or infinity, the first is number {int(bad[0])}")
    sizes = {name: tuple(windows.x.shape[1:]) for name, windows in splits.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"windows: {', '.join(f'{size} in {name}' for name, size in sizes.items())}")


def channel_statistics(x: Float[Tensor, "n channels length"] | Views, normalize: str) -> tuple[Tensor, Tensor, Tensor]:
    """Offset and scale of each channel, `(channels, 1)`, and the least and greatest value of all; NaN is left out.

    Args:
        x: windows of the training split.
        normalize: `minmax` takes a channel to [0, 1], `standard` to mean 0 and deviation 1 (a constant one to 0);
            `none`, and `window`, where each window is scaled by itself, leave it.
    """
    count, mean, squares = (torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(3))
    low, high = torch.full_like(mean, math.inf), torch.full_like(mean, -math.inf)
    for piece in values(x):
        present = ~piece.isnan()
        low = torch.minimum(low, piece.double().where(present, math.inf).amin(1))
        high = torch.maximum(high, piece.double().where(present, -math.inf).amax(1))
        if normalize == "standard":  # merges mean and sum of squares of two sets (Chan, Golub, LeVeque 1983)
            n = present.sum(1)
            its_mean = piece.double().nanmean(1).nan_to_num()
            its_squares = (piece.double() - its_mean[:, None]).square().nansum(1)
            total = (count + n).clamp(min=1)
            squares += its_squares + (its_mean - mean).square() * count * n / total
            mean += (its_mean - mean) * n / total
            count += n
    value_range = torch.stack([low.min(), high.max()]).float()
    if normalize == "minmax":
        offset, width = low, high - low
    elif normalize == "standard":
        offset, width = mean, (squares / count).sqrt()
    else:
        offset, width = torch.zeros_like(mean), torch.ones_like(mean)
    width = width.where((width > 0) & width.isfinite() & (high > low), 1.0)
    return offset.where(offset.isfinite(), 0.0)[:, None].float(), width[:, None].float(), value_range


class DataModule(L.LightningDataModule):
    """Windows of a training, a validation and a test split, in raw units.

    A data set is a function that reads its files and returns a DataModule, and a yaml under `conf/data` that names it.

    Args:
        train: the official training split; validation windows are taken out of it.
        test: the official test split, never touched.
        batch_size: windows in a batch, of each process where there are several.
        val_size: windows of the validation split, or a share of the training split below 1; 0 for none.
        val_seed: which windows these are; apart from `seed`, so that every run has the same.
        seed: of the order of the training windows.
        normalize: what a model scales windows by: `none`; `minmax` or `standard`, each channel by statistics of the
            training split; `window`, each channel of each window by its own mean and deviation; or (offset, scale).
        value_range: least and greatest value that a window can have, where there are such; not with `normalize=window`.
        image_shape: (rows, columns), where a window is an image read row by row.
        missing: whether windows may hold NaN.
        val: the validation split, where it is not to be taken out of the training split.
        names: of the channels, where they have any.
        classes: names of the labels 0, 1, ..., where they have any.
        epoch_steps: optimizer steps that an epoch has at least; few windows are gone through several times in it.

    Attributes:
        bounded: whether `value_range` was given; else it is that of the training split.

    Raises:
        InputError: a size or normalization that is not possible, or windows not float32, finite and of one shape.
    """

    def __init__(
        self,
        train: Windows,
        test: Windows,
        batch_size: int = 64,
        val_size: float = 0,
        val_seed: int = 0,
        seed: int = 0,
        normalize: str | tuple[float, float] = "none",
        value_range: tuple[float, float] | None = None,
        image_shape: tuple[int, int] | None = None,
        missing: bool = False,
        val: Windows | None = None,
        names: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        epoch_steps: int = 1,
    ) -> None:
        super().__init__()
        check_windows({"training": train, "test": test} | ({"validation": val} if val else {}), missing)
        self.batch_size = check_int("batch_size", batch_size)
        self.seed = check_int("seed", seed, 0, 2**32 - 1)
        self._resident: dict[str, Tensor | Views] = {}
        self.train, self.test = train, test
        if val is None:
            self.train, val = self._without_validation(train, val_size, val_seed)
        self.val = val
        self.epoch_steps = check_int("epoch_steps", epoch_steps)
        self.shape: tuple[int, int] = (train.x.shape[1], train.x.shape[2])
        self.image_shape = image_shape
        self.bounded = value_range is not None
        self.missing = missing
        self.names = None if names is None else list(names)
        self.classes = None if classes is None else list(classes)
        self.per_window = normalize == "window"
        name = check_choice("normalize", normalize, NORMALIZATIONS) if isinstance(normalize, str) else "none"
        if self.per_window and value_range is not None:
            raise InputError(
                f"normalize=window value_range={value_range}: expected none, minmax, standard or (offset, scale), or "
                "normalize=window without value_range: windows that are scaled each by itself have no range in common"
            )
        self.offset, self.scale, self.value_range = channel_statistics(self.train.x, name)
        if not isinstance(normalize, str):
            self.offset, self.scale = (torch.full((self.shape[0], 1), float(value)) for value in normalize)
        if value_range:
            self.value_range = torch.tensor([float(value) for value in value_range])

    @staticmethod
    def _without_validation(train: Windows, size: float, seed: int) -> tuple[Windows, Windows]:
        """The training split without the windows of the validation split, and these."""
        check_int("val_seed", seed, 0, 2**32 - 1)
        if isinstance(size, float) and 0 < size < 1:
            size = max(1, round(size * len(train)))
        size = check_int("val_size", size, 0, len(train) - 1)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        return train[order[size:].sort().values] if size else train, train[order[:size]]

    @property
    def statistics(self) -> dict[str, Any]:
        """The arguments of a model's `set_statistics`."""
        keys = ("offset", "scale", "value_range", "per_window", "missing", "bounded", "names")
        return {key: getattr(self, key) for key in keys}

    def labels(self, y: Int[Tensor, " m"]) -> list[str] | list[int]:
        """Labels by the names of their classes; their numbers where these have no names."""
        numbers: list[int] = y.tolist()
        return numbers if self.classes is None else [self.classes[i] for i in numbers]

    def shown(self, n: int) -> tuple[Float[Tensor, "m channels length"], Int[Tensor, " m"] | None]:
        """Up to n windows of the test split, evenly spread, and their labels: for pictures."""
        index = spread(len(self.test), n)
        return self.test.x[index], None if self.test.y is None else self.test.y[index]

    @property
    def steps_per_call(self) -> int:
        """Optimizer steps in a call of `training_step`: one where the Trainer counts batches within an epoch."""
        if self.trainer is None:
            return STEPS_PER_CALL
        knobs = (self.trainer.limit_train_batches, self.trainer.val_check_interval)
        return STEPS_PER_CALL if all(isinstance(knob, float) and knob == 1.0 for knob in knobs) else 1

    @property
    def processes(self) -> int:
        """Processes that share the batches."""
        return 1 if self.trainer is None else self.trainer.num_devices * self.trainer.num_nodes

    @property
    def passes(self) -> int:
        """How often an epoch goes through all windows."""
        size = self.batch_size * self.processes
        return math.ceil(self.epoch_steps * size / len(self.train)) if self.epoch_steps > 1 else 1

    @property
    def epoch_windows(self) -> int:
        """Windows of a whole epoch: all of its passes, but for a last batch too small for one window a process."""
        total = self.passes * len(self.train)
        rest = total % (self.batch_size * self.processes)
        return total - rest if rest < self.processes else total

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a whole epoch."""
        return math.ceil(self.epoch_windows / (self.batch_size * self.processes))

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the Trainer's whole run, or None where that is not known."""
        assert self.trainer is not None
        if self.trainer.max_steps != -1:
            return self.trainer.max_steps
        steps = self.steps_per_epoch
        limit = self.trainer.limit_train_batches
        steps = min(steps, limit) if isinstance(limit, int) else int(steps * limit)
        epochs = self.trainer.max_epochs or -1
        return steps * epochs if epochs > 0 else None

    def train_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Lists of up to `steps_per_call` batches; those of all processes make up the batches of one process."""
        if not self.steps_per_epoch:
            raise InputError(f"{len(self.train)} training windows: expected one for each of {self.processes} processes")
        process = 0 if self.trainer is None else self.trainer.global_rank
        share = range(process, self.epoch_windows, self.processes)
        order = Shuffled(len(self.train), self.batch_size * self.steps_per_call, self.seed, self.passes, share)
        return DataLoader(Batches(self._at_hand("train"), self.batch_size), sampler=order, batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor | list[Tensor]] | list[DataLoader[Tensor | list[Tensor]]]:
        """Batches of the validation split; an empty list where there is none."""
        return self._in_order("val") if len(self.val) else []

    def test_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Batches of the test split."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Batches of the test split, in order."""
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader[Tensor | list[Tensor]]:
        size, x = self.batch_size * STEPS_PER_CALL, self._at_hand(split)
        return DataLoader(Batches(x, size), sampler=InOrder(len(x), size), batch_size=None)

    def _at_hand(self, split: str) -> Float[Tensor, "n channels length"] | Views:
        """The windows of a split; on the GPU once it has trained there, if it has room: no step waits for them then."""
        x: Tensor | Views = getattr(self, split).x
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda":
            return x
        if isinstance(x, Views) and split not in self._resident:
            there = [(getattr(self, of).x, views) for of, views in self._resident.items()]
            same = [v for of, v in there if isinstance(of, Views) and isinstance(v, Views) and of.blocks is x.blocks]
            if same:  # splits of the same series
                self._resident[split] = x.to(device, same[0])
        if split not in self._resident and 4 * x.nbytes < torch.cuda.mem_get_info(device)[0]:
            self._resident[split] = x.to(device)
        return self._resident.get(split, x)
