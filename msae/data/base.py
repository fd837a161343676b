"""The one LightningDataModule: windows in tensors, batches as slices of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from msae.errors import InputError, check_int

STEPS_PER_CALL = 32
"""Batches handed to one call of `training_step`, which makes an optimizer step for each."""


@dataclass(frozen=True)
class Windows:
    """Samples of one split: windows in raw units and, where the data has them, a label for each."""

    x: Float[Tensor, "n channels length"]
    y: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Shaped[Tensor, " m"] | slice) -> Windows:
        return Windows(self.x[index], None if self.y is None else self.y[index])


class Batches(Dataset[Tensor | list[Tensor]]):
    """Indexed reads of one tensor: by indices, several batches of `batch_size` windows; by a slice, one batch."""

    def __init__(self, x: Float[Tensor, "n channels length"], batch_size: int) -> None:
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

    So a resumed run sees the order that an uninterrupted one would have seen. Lightning calls `set_epoch`, when it
    resumes only after it has asked for the iterator: the epoch is looked at when the first indices are.
    """

    def __init__(self, windows: int, size: int, seed: int) -> None:
        self.windows = windows
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.windows / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        state = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(self.windows, generator=torch.Generator().manual_seed(state))
        yield from order.split(self.size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        self.epoch = epoch


def check_windows(train: Windows, test: Windows) -> None:
    """Raise InputError unless both splits are finite float32 `(n, channels, length)`, with the same last two sizes."""
    for name, x in (("training", train.x), ("test", test.x)):
        if x.ndim != 3 or x.dtype != torch.float32 or not len(x):
            raise InputError(f"{name} windows: expected float32 (n, channels, length), got {x.dtype} {tuple(x.shape)}")
        bad = (~x.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            raise InputError(f"{name} windows: {len(bad)} hold NaN or infinity, the first is number {int(bad[0])}")
    if train.x.shape[1:] != test.x.shape[1:]:
        raise InputError(f"windows: {tuple(train.x.shape[1:])} in training, {tuple(test.x.shape[1:])} in test")


class DataModule(L.LightningDataModule):
    """Windows of a training, a validation and a test split, in raw units.

    A data set is a function that reads its files and returns a DataModule, and a yaml under `conf/data` that names it.

    Args:
        train: the official training split; validation windows are taken out of it.
        test: the official test split, never touched.
        batch_size: windows in a batch.
        val_size: windows of the validation split; 0 for none.
        val_seed: which windows these are; apart from `seed`, so that every run has the same.
        seed: of the order of the training windows.
        offset: what a model subtracts from each channel, one value or one a channel.
        scale: what a model then divides by.
        value_range: least and greatest value that a window can have; by default those of the training split.
        image_shape: (rows, columns), where a window is an image read row by row.

    Raises:
        InputError: a size that is not possible, or windows that are not float32, finite, and of one shape.
    """

    def __init__(
        self,
        train: Windows,
        test: Windows,
        batch_size: int = 64,
        val_size: int = 0,
        val_seed: int = 0,
        seed: int = 0,
        offset: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
        value_range: tuple[float, float] | None = None,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_windows(train, test)
        self.batch_size = check_int("batch_size", batch_size)
        check_int("val_size", val_size, 0, len(train) - 1)
        check_int("val_seed", val_seed, 0, 2**32 - 1)
        self.seed = check_int("seed", seed, 0, 2**32 - 1)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(val_seed))
        self.val = train[order[:val_size]]
        self.train = train[order[val_size:].sort().values] if val_size else train
        self.test = test
        self.shape: tuple[int, int] = (train.x.shape[1], train.x.shape[2])
        self.offset = torch.as_tensor(offset, dtype=torch.float32).expand(self.shape[0]).reshape(-1, 1)
        self.scale = torch.as_tensor(scale, dtype=torch.float32).expand(self.shape[0]).reshape(-1, 1)
        low, high = value_range or (self.train.x.min(), self.train.x.max())
        self.value_range = torch.tensor([float(low), float(high)])
        self.image_shape = image_shape

    @property
    def steps_per_call(self) -> int:
        """Optimizer steps in a call of `training_step`: one where the Trainer counts batches within an epoch."""
        if self.trainer is None:
            return STEPS_PER_CALL
        knobs = (self.trainer.limit_train_batches, self.trainer.val_check_interval)
        return STEPS_PER_CALL if all(isinstance(knob, float) and knob == 1.0 for knob in knobs) else 1

    def train_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Lists of up to `steps_per_call` batches."""
        order = Shuffled(len(self.train), self.batch_size * self.steps_per_call, self.seed)
        return DataLoader(Batches(self.train.x, self.batch_size), sampler=order, batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor | list[Tensor]] | list[DataLoader[Tensor | list[Tensor]]]:
        """Batches of the validation split; an empty list where there is none."""
        return self._in_order(self.val) if len(self.val) else []

    def test_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Batches of the test split."""
        return self._in_order(self.test)

    def predict_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Batches of the test split, in order."""
        return self._in_order(self.test)

    def _in_order(self, windows: Windows) -> DataLoader[Tensor | list[Tensor]]:
        size = self.batch_size * STEPS_PER_CALL
        return DataLoader(Batches(windows.x, size), sampler=InOrder(len(windows), size), batch_size=None)
