"""Windows of series: cut without a copy, and stitched to a series again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from msae.errors import InputError, check_int

PIECE = 1 << 22
"""Number of values read at a time where all data are gone through."""


class Views:
    """Windows that are read on request, from series or arrays that may be memory-mapped.

    Args:
        blocks: series `(time, channels)`; or, without `length`, arrays of windows `(n, channels, length)`.
        spans: stretches (block, first row, row after the last); windows lie within one stretch, and each stretch holds
            at least one window.
        length: number of time steps of a window, or None where blocks are windows.
        stride: number of time steps from the start of a window to the start of the next.
        dtype: of the windows that are read.

    Examples:
        >>> series = torch.arange(10.0)[:, None]
        >>> views = Views([series], spans=[(0, 0, 6), (0, 7, 10)], length=3)
        >>> views[:][:, 0].tolist()
        [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0], [7.0, 8.0, 9.0]]
    """

    def __init__(
        self,
        blocks: Sequence[Shaped[Tensor, "_ channels"] | Shaped[Tensor, "_ channels length"]],
        spans: Sequence[tuple[int, int, int]],
        length: int | None = None,
        stride: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.blocks = blocks
        self.spans = spans
        self.length = length
        self.stride = stride
        self.dtype = dtype
        # (start, channels, length): all windows of a block, as a view
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
        """Size of the blocks."""
        return sum(block.nbytes for block in self.blocks)

    def cast(self, dtype: torch.dtype) -> Views:
        """The same windows, read in another type."""
        return Views(self.blocks, self.spans, self.length, self.stride, dtype)

    def to(self, device: torch.device, like: Views | None = None) -> Views:
        """The same windows on a device, in one block, so that any windows are read at once.

        Args:
            device: the device.
            like: what `to` returned for other windows of the same blocks; their copy on the device is then shared.
        """
        doubles = self.blocks[0].dtype == torch.float64
        dtype = self.dtype if doubles else self.blocks[0].dtype  # integers take less memory as they are
        joined = like.blocks if like else [torch.cat([block.to(device, dtype) for block in self.blocks])]
        ends = torch.tensor([0, *map(len, self.blocks)]).cumsum(0).tolist()
        spans = [(0, ends[number] + start, ends[number] + stop) for number, start, stop in self.spans]
        return Views(joined, spans, self.length, self.stride, self.dtype)

    def __getitem__(self, index: Int[Tensor, " m"] | slice) -> Float[Tensor, "m channels length"]:
        """A copy of the windows at these indices."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        index = index.long()
        span = torch.searchsorted(self.ends, index, right=True)
        row = self.start[span] + (index - self.first[span]) * self.stride
        if len(self.blocks) == 1:
            row = row.to(self.blocks[0].device, non_blocking=True)  # else the host waits for the GPU
            return self.views[0][row].to(self.dtype)
        block = self.block[span]
        x = torch.empty(len(index), *self.shape[1:], dtype=self.dtype, device=self.blocks[0].device)
        for number in block.unique().tolist():
            chosen = block == number
            x[chosen] = self.views[number][row[chosen]].to(self.dtype)
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
    """The starts of a series' windows: every `stride` steps, and a last window that ends with the series.

    Examples:
        >>> starts(time=10, length=4, stride=4)
        tensor([0, 4, 6])
    """
    for name, value in (("length", length), ("stride", stride)):
        check_int(name, value)
    check_int("time", time, length)
    regular = torch.arange(0, time - length + 1, stride)
    return regular if regular[-1] == time - length else torch.cat([regular, torch.tensor([time - length])])


def cut(
    series: Shaped[Tensor, "channels time"], length: int, stride: int, size: int | None = None
) -> Iterator[Shaped[Tensor, "m channels length"]]:
    """Cut a series into overlapping windows, from which `stitch` makes the series again.

    Args:
        series: the series.
        length: number of time steps of a window.
        stride: number of time steps from the start of a window to the start of the next.
        size: number of windows in a batch; None for all windows at once.

    Raises:
        InputError: a length or stride that is not a positive whole number, or a series shorter than a window.

    Examples:
        >>> series = torch.arange(10.0)[None]
        >>> [windows] = cut(series, length=4, stride=4)
        >>> windows.tolist()
        [[[0.0, 1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0, 7.0]], [[6.0, 7.0, 8.0, 9.0]]]
        >>> torch.equal(stitch(windows, time=10, stride=4), series)
        True
    """
    where, views = starts(series.shape[1], length, stride), series.unfold(1, length, 1)
    for batch in where.split(size or len(where)):
        yield views[:, batch].movedim(0, 1)


def stitch(
    windows: Float[Tensor, "n channels length"] | Iterable[Float[Tensor, "m channels length"]], time: int, stride: int
) -> Float[Tensor, "channels time"]:
    """The series whose windows `cut` gives: the mean where windows overlap.

    Sums are in float64, so that windows which agree give back their values exactly. Time steps that are in no window,
    as with a stride longer than a window, are NaN.

    Args:
        windows: all windows, or batches of them, in order.
        time: number of time steps of the series.
        stride: number of time steps from the start of a window to the start of the next.

    Raises:
        InputError: the number of windows is not that of such a series.

    Examples:
        >>> windows = torch.tensor([[[1.0, 1.0, 1.0]], [[3.0, 3.0, 3.0]]])
        >>> stitch(windows, time=4, stride=1)
        tensor([[1., 2., 2., 3.]])
    """
    total, count, where, done, dtype = torch.empty(0), torch.zeros(time), torch.empty(0), 0, torch.float32
    for batch in [windows] if isinstance(windows, Tensor) else windows:
        if not done:
            where, dtype = starts(time, batch.shape[2], stride), batch.dtype
            total = torch.zeros(batch.shape[1], time, dtype=torch.float64)
        steps = (where[done : done + len(batch), None] + torch.arange(batch.shape[2])).flatten()
        if len(steps) != len(batch) * batch.shape[2]:
            raise InputError(
                f"windows: expected the {len(where)} of a series of {time} steps at stride {stride}, got more"
            )
        total.index_add_(1, steps, batch.movedim(0, 1).flatten(1).double())
        count.index_add_(0, steps, torch.ones(len(steps)))
        done += len(batch)
    if done != len(where):
        raise InputError(
            f"windows: expected the {len(where)} of a series of {time} steps at stride {stride}, got {done}"
        )
    return (total / count).to(dtype)
