"""Anomaly scores of the time steps of a series, by channel and by scale. High scores are anomalous.

At each scale, a window's score is the mean squared distance from the nearest normal window of training plus the error
of its reconstruction, once of the values less their mean and once of the shape alone. A step has the mean score of the
windows that contain it. Scores of different scales, channels and kinds are compared by their ratio to their usual value
in training; `combined` makes one score of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from msae.errors import InputError, check_choice, check_int
from msae.models.reconstructor import Reconstructor
from msae.uses.bank import BLOCK, views
from msae.uses.ranges import Data, warn_of_far

if TYPE_CHECKING:
    from msae.uses.reference import Reference


@dataclass(frozen=True)
class Scores:
    """Scores of time steps, NaN where no channel has a value; high scores are anomalous.

    Attributes:
        total: the greatest score of the channels.
        channels: of each channel, relative to what is usual in training; NaN where the channel has no value. Without
            training data, the mean squared error of the windows that contain the step.
        scales: the greatest score of the channels at each scale, by its name; NaN where no window of the scale contains
            the step.
    """

    total: Float[Tensor, " time"]
    channels: Float[Tensor, "channels time"]
    scales: dict[str, Float[Tensor, " time"]]

    def __len__(self) -> int:
        return len(self.total)

    def strangest(self) -> Int[Tensor, " time"]:
        """The number of the scale with the greatest score at each step, -1 where there is none."""
        if not self.scales:
            return torch.full((len(self),), -1)
        found, number = torch.stack(list(self.scales.values())).nan_to_num(-1.0).max(0)
        return number.where(found >= 0, -1)


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of consecutive parts as one."""
    return Scores(
        torch.cat([part.total for part in parts]),
        torch.cat([part.channels for part in parts], dim=1),
        {name: torch.cat([part.scales[name] for part in parts]) for name in parts[0].scales},
    )


class Scorer:
    """Scores the time steps of a series that comes in pieces.

    The model sees the same windows in the same blocks however the series is cut into pieces, so the scores are the
    same to the bit. A call returns the scores that later windows can no longer change, up to about a block of windows
    before the end of its input. `finish` returns the rest. Where scores are causal, `ready` returns those of the steps
    so far, with the same bits.

    Args:
        model: in evaluation mode.
        known: what is normal; see `msae.uses.reference.learn`. Without it a score is the mean squared error of the
            reconstruction.
        stride: time steps from the start of a window to that of the next, at most the length of a window.
        block: the number of windows in a block; 1 gives scores as soon as they are final.
        own: the number of the training series, or first training window, that is scored: a window is then compared with
            normal windows that share no step with it.
        causal: whether a step's score is that of the windows that end with it, rather than the mean over all windows
            that contain it; it is then final at once, and the steps before the first window's last have none.

    Attributes:
        names: the keys of `Scores.scales`.
        own: as given; it may be set before a series.
        first: the number of a series' first step, as the bank counts them.

    Raises:
        InputError: a stride or block that is out of range.
    """

    def __init__(
        self,
        model: Reconstructor,
        known: Reference | None = None,
        stride: int = 1,
        block: int = BLOCK,
        causal: bool = False,
        own: int | None = None,
    ) -> None:
        self.model = model
        self.known = known
        self.stride = check_int("stride", stride, 1, 1 if causal else model.length)
        self.block = check_int("block", block)
        self.causal = check_choice("causal", causal, (True, False))
        self.own = own
        self.first = 0
        example = torch.zeros(1, model.channels, model.length, dtype=model.raw_dtype)
        self.lengths = {view.name: view.length for view, _ in views(model, example)}
        self.names = list(self.lengths) if known else []
        self._told: set[str] = set()
        self.restart()

    @property
    def delay(self) -> int:
        """Time steps after which the score of a step is final."""
        return 0 if self.causal else self.model.length - 1

    def restart(self) -> None:
        """Start a new series, without the rest of the one before."""
        scales, kinds = (len(self.lengths), 2) if self.known else (1, 1)
        self._x = torch.zeros(self.model.channels, 0, dtype=self.model.raw_dtype)
        self._sums = torch.zeros(scales, kinds * self.model.channels, 0, dtype=torch.float64)
        self._counts = torch.zeros(scales, 0, dtype=torch.float64)
        self._next = 0  # first step, in `_x`, of the next window
        self._given = 0  # steps of `_x` whose scores have been returned
        self._taken = 0  # steps before `_x`

    def push(self, piece: Float[Tensor, "channels time"]) -> Scores:
        """Add the next time steps, in raw units and NaN where missing; return the scores that are final now."""
        return self.compared(*self._push(piece))

    def ready(self) -> Scores:
        """Return the scores of all steps so far, of a scorer that is causal; it computes a block, which may grow later.

        Examples:
            >>> import torch
            >>> from msae.models.ae import AutoEncoder
            >>> scorer = Scorer(AutoEncoder((1, 32), latent_dim=4).eval(), causal=True)
            >>> len(scorer.push(torch.randn(1, 50))), len(scorer.ready()), len(scorer.push(torch.randn(1, 1)))
            (0, 50, 0)
        """
        check_choice("causal", self.causal, (True,))
        n = self._x.shape[1] - self.model.length - self._next + 1  # windows of the block
        if n > 0:  # steps that were returned are counted again, in vain
            self._count(self._next, n)
        short = self._taken + self._x.shape[1] < self.model.length
        return self.compared(*self._take(self._given if short else self._x.shape[1]))

    def finish(self) -> Scores:
        """Return the remaining scores, with a last window that ends with the series; then a new series begins.

        Raises:
            InputError: the series was shorter than a window.
        """
        return self.compared(*self._finish())

    def windows(self, x: Float[Tensor, "n channels length"]) -> Scores:
        """Scores of the steps of windows that do not overlap, one window after the other."""
        return self.compared(*self._windows(x))

    def rows(self, x: Data, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The steps of a series or of windows, `size` at a time, and their scores before they are compared."""
        if x.ndim == 3:
            yield from (self._windows(batch) for batch in torch.split(x, max(1, size // x.shape[2])))
            return
        for piece in torch.split(x, size, 1):
            yield self._push(piece)
        yield self._finish()

    def _push(self, piece: Tensor) -> tuple[Tensor, Tensor]:
        length = self.model.length
        if piece.ndim != 2 or len(piece) != self.model.channels:
            raise InputError(f"series of shape {tuple(piece.shape)}: expected ({self.model.channels}, time)")
        warn_of_far(self.model, piece, self._told)
        self._x = torch.cat([self._x, piece.to(self._x)], dim=1)
        wider = (0, piece.shape[1])
        self._sums, self._counts = (torch.nn.functional.pad(sums, wider) for sums in (self._sums, self._counts))
        width = (self.block - 1) * self.stride + length
        while self._next + width <= self._x.shape[1]:
            self._count(self._next, self.block)
            self._next += self.block * self.stride
        time, reach = self._x.shape[1], self._next + (length - 1 if self.causal else 0)
        last = time - length + (self.stride == 1)  # first step of the window that `_finish` may add
        return self._take(reach if self.causal else max(0, min(reach, last))) if self._next else self._take(self._given)

    def _finish(self) -> tuple[Tensor, Tensor]:
        time, length = self._x.shape[1], self.model.length
        if self._taken + time < length:
            raise InputError(
                f"series of {self._taken + time} steps: expected at least {length}, the length of a window"
            )
        n = max(0, (time - length - self._next) // self.stride + 1)
        if n:
            self._count(self._next, n)
        if self._next + n * self.stride - self.stride != time - length:
            self._count(time - length, 1)
        taken = self._take(time)
        self.restart()
        return taken

    def _windows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        warn_of_far(self.model, x, self._told)
        found = []
        for batch in x.split(self.block):
            series = None if self.own is None else self.own + torch.arange(len(batch))
            rows = self._judged(batch, series, torch.zeros(len(batch), dtype=torch.long))
            kept = [row.new_full((row.shape[0], len(batch), x.shape[2]), torch.nan) for row in rows]
            for wide, row, length in zip(kept, rows, self.lengths.values(), strict=False):
                wide[..., -length:] = row[..., None]
            found.append(torch.stack(kept).flatten(2))
            if self.own is not None:
                self.own += len(batch)
        return x.movedim(1, 0).flatten(1), torch.cat(found, dim=2)

    def _count(self, start: int, n: int) -> None:
        """Add the scores of n windows to the sums of their steps; the first window starts at step `start` of `_x`."""
        length = self.model.length
        width = (n - 1) * self.stride + length
        windows = self._x[:, start : start + width].unfold(1, length, self.stride).movedim(0, 1).contiguous()
        if self.causal:  # a block that is full in shape, whose windows so far have the bits of the full one
            windows = torch.cat([windows, windows[-1:].expand(self.block - n, -1, -1)])
        starts = self.first + self._taken + start + self.stride * torch.arange(len(windows))
        series = None if self.own is None else torch.full((len(windows),), self.own)
        rows = [row[:, :n] for row in self._judged(windows, series, starts)]
        for number, (row, reach) in enumerate(zip(rows, self.lengths.values(), strict=False)):
            steps = 1 if self.causal else reach
            first = start + length - steps
            ones = torch.ones(1, n, dtype=torch.float64)
            spread = over_steps(torch.cat([row, ones]), steps, self.stride)
            self._sums[number, :, first : start + width] += spread[:-1]
            self._counts[number, first : start + width] += spread[-1]

    def _judged(
        self, x: Tensor, series: Int[Tensor, " n"] | None, starts: Int[Tensor, " n"]
    ) -> list[Float[Tensor, "rows n"]]:
        """The scores of windows at each scale: rows for the values of each channel, then for their shapes."""
        found = [view for view, _ in views(self.model, x)]
        if self.known is None:
            return [found[0].error.T.double()]
        bank = self.known.bank
        barred = None if series is None else bank.barred(series, starts)
        far = (bank.shelves[view.name].distances(view, barred)[0] for view in found)
        return [each.movedim(1, 2).flatten(0, 1).double() for each in far]

    def _take(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the steps before the n-th and their scores, NaN where there is none; drop what no window needs."""
        rows = self._sums[..., self._given : n] / self._counts[:, None, self._given : n]
        x = self._x[:, self._given : n]
        gone = min(n, self._next)
        self._x, self._sums, self._counts = self._x[:, gone:], self._sums[..., gone:], self._counts[:, gone:]
        self._next -= gone
        self._given = n - gone
        self._taken += gone
        return x, rows

    def compared(self, x: Float[Tensor, "channels time"], rows: Float[Tensor, "scales rows time"]) -> Scores:
        """The scores of steps, from what `rows` gives."""
        rows = rows.clamp(max=torch.finfo(torch.float32).max)
        missing = x.isnan()
        if self.known is None:
            channels = rows[0].where(~missing, torch.nan).float()
            return Scores(channels.nanmean(0), channels, {})
        ratios = (rows.unflatten(1, (2, len(x))) / self.known.usual[..., None]).where(~missing, torch.nan)
        scales, channels = combined(ratios)
        total = channels.nan_to_num(-1.0).max(0).values
        return Scores(total.where(total >= 0, torch.nan), channels, dict(zip(self.names, scales, strict=True)))


def combined(
    ratios: Float[Tensor, "scales 2 channels time"],
) -> tuple[Float[Tensor, "scales time"], Float[Tensor, "channels time"]]:
    """The scores of scales and of channels, from ratios to usual values; NaN where there is none.

    Both kinds, values and shape, count alike. A channel's score is the root mean square over its scales: a high one
    stands out, and several that agree count more than one. This rule was chosen, against the greatest, the mean and the
    geometric mean, by faults put into training parts (`studies/anomalies`).
    """
    each = ratios.double().mean(1)  # whose squares float32 may not hold
    scales = each.nan_to_num(-1.0).max(1).values
    scales = scales.where(scales >= 0, torch.nan)
    most = torch.finfo(torch.float32).max
    return scales.clamp(max=most).float(), each.square().nanmean(0).sqrt().clamp(max=most).float()


def over_steps(rows: Float[Tensor, "rows n"], steps: int, stride: int) -> Float[Tensor, "rows time"]:
    """The sum, at each time step, of the values of the windows that contain it.

    Args:
        rows: values of n windows.
        steps: of a window.
        stride: time steps from the start of a window to that of the next.

    Examples:
        >>> over_steps(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64), steps=2, stride=1)
        tensor([[1., 3., 6., 4.]], dtype=torch.float64)
    """
    n = rows.shape[1]
    sums = torch.nn.functional.pad(rows.cumsum(1), (1, 0))
    at = torch.arange((n - 1) * stride + steps)
    last = (at // stride + 1).clamp(max=n)
    first = ((at - steps) // stride + 1).clamp(min=0)
    return sums[:, last] - sums[:, first]


def scores(
    scorer: Scorer, x: Float[Tensor, "channels time"] | Float[Tensor, "n channels length"], size: int = 1 << 16
) -> Iterator[Scores]:
    """The scores of a whole series, or of windows that do not overlap, `size` time steps at a time.

    Memory-mapped data are read piece by piece.

    Examples:
        >>> import torch
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.anomaly import Scorer, joined, scores
        >>> from msae.uses.reference import learn
        >>> model = AutoEncoder((1, 32), latent_dim=4).eval()
        >>> series = torch.sin(torch.arange(400) / 5)[None]
        >>> known = learn(model, [series])
        >>> found = joined(list(scores(Scorer(model, known), series)))
        >>> found.total.shape, found.channels.shape
        (torch.Size([400]), torch.Size([1, 400]))
    """
    for steps, rows in scorer.rows(x, size):
        yield scorer.compared(steps, rows)
