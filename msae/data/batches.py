"""The order of windows, and batches as slices of one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from msae.data.windows import Views


class Batches(Dataset[Tensor | list[Tensor]]):
    """Reads of windows by index: a slice gives one batch, a tensor of indices several batches of `batch_size`."""

    def __init__(self, x: Float[Tensor, "n channels length"] | Views, batch_size: int) -> None:
        self.x = x
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return self.x[index]
        if isinstance(self.x, Tensor):
            index = index.to(self.x.device, non_blocking=True)  # else the host waits for the GPU
        return list(self.x[index].split(self.batch_size))


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
    """Indices of `size` windows at a time, in a random order that depends on the seed and the epoch only.

    A resumed run therefore sees the windows in the order in which an uninterrupted run would have seen them. An epoch
    goes through all windows `passes` times. Several processes draw the same order, and each takes its `share` of it.

    A run that resumes within an epoch sets `skip`, the number of reads that are made already.

    Lightning calls `set_epoch`. When it resumes a run it does so after it has asked for the iterator, so the epoch is
    read when the first indices are drawn.
    """

    def __init__(self, windows: int, size: int, seed: int, passes: int = 1, share: range | None = None) -> None:
        self.windows = windows
        self.size = size
        self.seed = seed
        self.passes = passes
        self.share = range(passes * windows) if share is None else share
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return math.ceil(len(self.share) / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        state = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0])
        dtype = torch.int32 if self.windows < 2**31 else torch.int64  # the same order, with half the memory
        generator = torch.Generator().manual_seed(state)
        order = torch.randperm(self.windows, generator=generator, dtype=dtype)
        if self.passes > 1:
            more = [torch.randperm(self.windows, generator=generator, dtype=dtype) for _ in range(self.passes - 1)]
            order = torch.cat([order, *more])
        skip, self.skip = self.skip, 0
        yield from order[self.share.start : self.share.stop : self.share.step].split(self.size)[skip:]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch


def spread(total: int, n: int) -> Int[Tensor, " m"]:
    """Indices of n of `total` windows, evenly spread; of all windows where there are fewer than n.

    Examples:
        >>> spread(10, 4)
        tensor([0, 3, 6, 9])
    """
    return torch.linspace(0, total - 1, min(n, total), dtype=torch.float64).long()
