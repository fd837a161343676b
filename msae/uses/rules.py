"""Rules on raw values, for what an autoencoder hardly sees: a channel that stands still, left its range, or is missing.

A value that does not move lies within the usual ones, and a model reconstructs it well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float64, Int, Shaped
from torch import Tensor

from msae.uses.events import Event, spans
from msae.uses.ranges import PIECE, Data

RULES = "stands still", "out of range", "missing"
LEAST = 5
"""The least number of steps for which a channel has to stand still, or be missing."""
TIMES = 2
"""The longest such run in training, times this, is still normal."""
TAIL = 0.1
"""The fraction of the training values that is the tail at each end; the range is wider by the width of the tail."""
FEW = 10
"""After so many excursions of training values into a tail, the range is wider by twice its width; after more, less."""
NOISE = 0.01
"""A change of at most this fraction of the median change from step to step is none."""
SAMPLE = 20_000
"""About the greatest number of steps that quantiles are computed of; they are spread evenly."""


@dataclass(frozen=True)
class Rules:
    """What is normal for the raw values of each channel.

    Attributes:
        low: the least normal value.
        high: the greatest normal value.
        change: a value that differs from the one before it by at most this stands still.
        longest: for each of `RULES`, the longest run of steps that is normal.
    """

    low: Float64[Tensor, " channels"]
    high: Float64[Tensor, " channels"]
    change: Float64[Tensor, " channels"]
    longest: Float64[Tensor, "rules channels"]

    def flags(
        self, x: Shaped[Tensor, "channels time"], before: Shaped[Tensor, "channels 1"], length: int | None = None
    ) -> Bool[Tensor, "rules channels time"]:
        """The steps that break a rule if enough of them follow each other.

        Args:
            x: raw values; separate windows of `length` steps one after the other.
            before: the step before the first, NaN where there is none.
            length: of separate windows.
        """
        change = torch.cat([before, x], dim=1).double().diff(dim=1).abs()
        still = change <= self.change[:, None]
        if length is not None:
            still[:, ::length] = False
        return torch.stack([still, (x < self.low[:, None]) | (x > self.high[:, None]), x.isnan()])


def unknown(channels: int) -> Rules:
    """The rules where nothing is known of the training values: only a missing channel is told."""
    none = torch.full((channels,), torch.inf, dtype=torch.float64)
    longest = torch.stack([none, torch.zeros_like(none), torch.full_like(none, LEAST - 1)])
    return Rules(-none, none, torch.full_like(none, -1), longest)


def pieces(x: Data) -> Iterator[tuple[Shaped[Tensor, "channels time"], int | None]]:
    """A series, or windows one after the other, in pieces of about `PIECE` steps; with the length of a window."""
    if x.ndim == 2:
        yield from ((piece, None) for piece in torch.split(x, PIECE, 1))
    else:
        n = x.shape[2]
        yield from ((batch.movedim(1, 0).flatten(1), n) for batch in torch.split(x, max(1, PIECE // n)))


class Runs:
    """The runs of True in flags that come in pieces."""

    def __init__(self) -> None:
        self.done = 0
        self.open: int | None = None  # the first step of a run that touches the end

    def push(self, flags: Bool[Tensor, " time"], length: int | None = None) -> Int[Tensor, "runs 2"]:
        """The first step, and the one after the last, of each run that has ended; see `events.spans`."""
        found = spans(flags, length) + self.done
        if self.open is not None:
            if not len(found) or found[0, 0] > self.done:
                found = torch.cat([torch.tensor([[0, self.done]]), found])
            found[0, 0] = self.open
            self.open = None
        self.done += len(flags)
        if length is None and len(found) and found[-1, 1] == self.done:
            self.open = int(found[-1, 0])
            found = found[:-1]
        return found

    def touching(self) -> Int[Tensor, "runs 2"]:
        """The run that touches the end, if there is one."""
        return torch.tensor([] if self.open is None else [[self.open, self.done]]).reshape(-1, 2).long()


class Watch:
    """The runs of steps that break a rule, however short, in a series, or windows, that come in pieces."""

    def __init__(self, rules: Rules, channels: int) -> None:
        self.rules = rules
        self.every = {pair: Runs() for pair in product(range(len(RULES)), range(channels))}
        self._before = torch.full((channels, 1), torch.nan)

    def push(
        self, piece: Shaped[Tensor, "channels time"], length: int | None = None
    ) -> Iterator[tuple[int, int, Int[Tensor, "runs 2"]]]:
        """Rule, channel and the runs that have ended; `length` is that of separate windows."""
        flags = self.rules.flags(piece, self._before, length)
        self._before = piece[:, -1:]
        for (rule, channel), one in self.every.items():
            yield rule, channel, one.push(flags[rule, channel], length)

    def finish(self) -> Iterator[tuple[int, int, Int[Tensor, "runs 2"]]]:
        """The runs that touch the end, which may go on."""
        for (rule, channel), one in self.every.items():
            yield rule, channel, one.touching()


def broken(rules: Rules, x: Data) -> Iterator[tuple[int, int, Int[Tensor, "runs 2"]]]:
    """Rule, channel and runs of steps that `Rules.flags` tells, however short, of a series or of windows."""
    watch = Watch(rules, x.shape[-2])
    for piece, length in pieces(x):
        yield from watch.push(piece, length)
    yield from watch.finish()


def learn(data: Iterable[Data], channels: int) -> Rules:
    """The rules that training series, or windows, keep; in raw units, read more than once, piece by piece.

    A channel without any value has no range, and may be missing.

    Examples:
        >>> import torch
        >>> from msae.uses import rules
        >>> x = torch.sin(torch.arange(2000.0))[None]
        >>> known = rules.learn([x], channels=1)
        >>> new = x[:, :300].clone()
        >>> new[:, 100:160] = new[:, 100:101]
        >>> [event] = rules.events(known, new)
        >>> event.start, event.end, event.rule
        (100, 159, 'stands still')
    """
    every = max(1, sum(x.numel() for x in data) // channels // SAMPLE)
    sampled, low, high, exact = [], [], [], 0.0
    for piece, length in (found for x in data for found in pieces(x)):
        change = piece.double().diff(dim=1, append=piece[:, -1:].double()).abs()
        change[:, (length or piece.shape[1]) - 1 :: length or piece.shape[1]] = torch.nan
        sampled.append(torch.stack([piece.double(), change])[:, :, ::every])
        low.append(piece.double().nan_to_num(torch.inf).amin(1))
        high.append(piece.double().nan_to_num(-torch.inf).amax(1))
        exact = torch.finfo(piece.dtype).eps
    values, changes = torch.cat(sampled, dim=2)
    least, most = torch.stack(low).amin(0), torch.stack(high).amax(0)
    ends = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
    tails = torch.stack([row.nanquantile(ends) for row in values], dim=1)
    wider = [1 + FEW / excursions(beyond) for beyond in (values < tails[0][:, None], values > tails[1][:, None])]
    rounding = exact * torch.maximum(least.abs(), most.abs())
    found = Rules(
        least - wider[0] * (tails[0] - least).nan_to_num(0.0) - rounding,
        most + wider[1] * (most - tails[1]).nan_to_num(0.0) + rounding,
        NOISE * changes.nanmedian(1).values.nan_to_num(0.0),
        torch.zeros(len(RULES), channels, dtype=torch.float64),
    )
    longest = found.longest
    for rule, channel, runs in (one for x in data for one in broken(found, x)):
        if len(runs):
            longest[rule, channel] = max(float(longest[rule, channel]), float((runs[:, 1] - runs[:, 0]).max()))
    longest.mul_(TIMES).clamp_(min=LEAST - 1)
    longest[RULES.index("out of range")] = 0
    return found


def excursions(beyond: Bool[Tensor, "channels time"]) -> Float64[Tensor, " channels"]:
    """The number of runs of True of each channel, at least 1."""
    begins = torch.nn.functional.pad(beyond.int(), (1, 0)).diff(dim=1) > 0
    return begins.sum(1).clamp(min=1).double()


def events(rules: Rules, x: Data) -> list[Event]:
    """The events of each channel of a series, or of windows, in raw units; the reason is `Event.rule`."""
    return sorted(told(rules, broken(rules, x)), key=lambda event: event.start)


def told(rules: Rules, runs: Iterable[tuple[int, int, Int[Tensor, "runs 2"]]]) -> Iterator[Event]:
    """The events among runs, those that are too long to be normal."""
    for rule, channel, found in runs:
        longest = float(rules.longest[rule, channel])
        for start, stop in found[found[:, 1] - found[:, 0] > longest].tolist():
            first = start - (rule == 0)  # the value that the others repeat
            yield Event(first, stop - 1, first, float("nan"), -1, channel, start + int(longest), RULES[rule])
