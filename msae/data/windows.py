"""Windows of series: cut without a copy, and stitched back into a series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from msae.errors import InputError, check_int

PIECE = 1 << 22
"""Values read at a time where all of the data is gone through."""


class Views:
    """Windows that are read when they are asked for, out of series or arrays that may be memory-mapped.

    Args:
        blocks: series `(time, channels)`; or, without `length`, arrays of windows `(n, channels, length)`.
        spans: stretches (block, first row, row after the last), which no window leaves; each holds a window at least.
        length: time steps of a window, or None for blocks that are windows.
        stride: time steps from the start of a window to that of the next.
    """

    def __init__(
        self,
        blocks: Sequence[Shaped[Tensor, "_ channels"] | Shaped[Tensor, "_ channels length"]],
        spans: Sequence[tuple[int, int, int]],
        length: int | None = None,
        stride: int = 1,
    ) -> None:
        self.blocks = blocks
        self.spans = spans
        self.length = length
        self.stride = stride
        # (start, channels, length): every window that a block has, as a view
        self.views = [block.unfold(0, length, 1) if length and len(block) >= length else block for block in blocks]
        self.block, self.start, stop = torch.tensor(spans, dtype=torch.int64).reshape(-1, 3).unbind(1)
        counts = (stop - self.start - length) // stride + 1 if length else stop - self.start
        self.ends = counts.cumsum(0)
        self.first = self.ends - counts
        self.shape = (int(counts.sum()), blocks[0].shape[1], length or blocks[0].shape[2])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Of the blocks."""
        return sum(block.nbytes for block in self.blocks)

    def to(self, device: torch.device, like: Views | None = None) -> Views:
        """The same windows on a device, where all blocks are one, so that any windows are read at once.

        Args:
            device: where to.
            like: what `to` gave of other windows of the same blocks, which then are there once.
        """
        joined = like.blocks if like else [torch.cat([block.to(device) for block in self.blocks])]
        ends = torch.tensor([0, *map(len, self.blocks)]).cumsum(0).tolist()
        spans = [(0, ends[number] + start, ends[number] + stop) for number, start, stop in self.spans]
        return Views(joined, spans, self.length, self.stride)

    def __getitem__(self, index: Int[Tensor, " m"] | slice) -> Float[Tensor, "m channels length"]:
        """A copy of the windows of these numbers."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        index = index.long()
        span = torch.searchsorted(self.ends, index, right=True)
        row = self.start[span] + (index - self.first[span]) * self.stride
        if len(self.blocks) == 1:
            return self.views[0][row].float()
        block = self.block[span]
        x = torch.empty(len(index), *self.shape[1:], device=self.blocks[0].device)
        for number in block.unique().tolist():
            chosen = block == number
            x[chosen] = self.views[number][row[chosen]].float()
        return x


def values(x: Float[Tensor, "n channels length"] | Views) -> Iterator[Shaped[Tensor, "channels m"]]:
    """All values of the windows' stretches, each once, in pieces."""
    if isinstance(x, Tensor) or x.blocks[0].ndim == 3:
        rows = max(1, PIECE // (x.shape[1] * x.shape[2]))
        for first in range(0, len(x), rows):
            yield x[first : first + rows].movedim(1, 0).flatten(1)
        return
    rows = max(1, PIECE // x.shape[1])
    for number, start, stop in x.spans:
        for first in range(start, stop, rows):
            yield x.blocks[number][first : min(first + rows, stop)].T


def starts(time: int, length: int, stride: int) -> Int[Tensor, " n"]:
    """Where the windows of a series of `time` steps start: every `stride` steps, and one that ends with the series."""
    for name, value in (("length", length), ("stride", stride)):
        check_int(name, value)
    check_int("time", time, length)
    regular = torch.arange(0, time - length + 1, stride)
    return regular if regular[-1] == time - length else torch.cat([regular, torch.tensor([time - length])])


def cut(
    series: Shaped[Tensor, "channels time"], length: int, stride: int, size: int | None = None
) -> Iterator[Shaped[Tensor, "m channels length"]]:
    """The windows of a series that `stitch` makes a series of again, in batches of `size`, or all at once.

    Raises:
        InputError: a length or stride that is not a whole number above 0, or a series shorter than a window.
    """
    where, views = starts(series.shape[1], length, stride), series.unfold(1, length, 1)
    for batch in where.split(size or len(where)):
        yield views[:, batch].movedim(0, 1)


def stitch(
    windows: Float[Tensor, "n channels length"] | Iterable[Float[Tensor, "m channels length"]], time: int, stride: int
) -> Float[Tensor, "channels time"]:
    """One series out of the windows that `cut` gives of a series of `time` steps: the mean where they overlap.

    Sums are of float64, so that windows that agree give back their values exactly. Time steps that no window holds, as
    a stride longer than a window leaves them, are NaN.

    Args:
        windows: all of them, or batches of them, in order.
        time: time steps of the series.
        stride: time steps from the start of a window to that of the next.

    Raises:
        InputError: not as many windows as such a series has.
    """
    total, count, where, done = torch.empty(0), torch.zeros(time), torch.empty(0), 0
    for batch in [windows] if isinstance(windows, Tensor) else windows:
        if not done:
            where = starts(time, batch.shape[2], stride)
            total = torch.zeros(batch.shape[1], time, dtype=torch.float64)
        steps = (where[done : done + len(batch), None] + torch.arange(batch.shape[2])).flatten()
        if len(steps) != len(batch) * batch.shape[2]:
            raise InputError(f"windows: more than the {len(where)} of a series of {time} steps at stride {stride}")
        total.index_add_(1, steps, batch.movedim(0, 1).flatten(1).double())
        count.index_add_(0, steps, torch.ones(len(steps)))
        done += len(batch)
    if done != len(where):
        raise InputError(f"windows: {done}, not the {len(where)} of a series of {time} steps at stride {stride}")
    return (total / count).float()
