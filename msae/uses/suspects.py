"""What may be a failure in training data: it would count as normal, raise the threshold and hide later failures.

Two signs were chosen on synthetic series (`studies/anomalies`): a score far above all others, and values that leave the
range of all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msae.uses.ranges import Data
from msae.uses.reference import Reference
from msae.uses.rules import SAMPLE, TAIL

TIMES = 4.0
"""A score so many times the highest of all others is suspicious."""
PARTS = 10
"""The parts of training data, each of which is compared with the others, but for a half of one at each side."""
BEYOND = 1.75
"""A part whose values leave the range of the others by so many times their outer tenth is suspicious."""


@dataclass(frozen=True)
class Suspect:
    """A step of training data that may be in a failure.

    Attributes:
        series: the number of its series.
        step: the step there.
        why: what is suspicious about it, as a text that follows the name of the place.
    """

    series: int
    step: int
    why: str


def suspects(known: Reference, data: Iterable[Data], length: int, names: list[str]) -> list[Suspect]:
    """The suspicious steps of training data, at most one by scores and one by values.

    Args:
        known: what was learned of the data.
        data: series, or windows, of which only scores are looked at.
        length: of a window.
        names: of the channels.

    Examples:
        >>> import torch
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.reference import learn
        >>> x = torch.sin(torch.arange(2000) / 5)[None]
        >>> x[0, 700:710] = 5
        >>> model = AutoEncoder((1, 32), latent_dim=4).eval()
        >>> [(one.step, one.why) for one in suspects(learn(model, [x]), [x], 32, ["flow"])][-1:]
        [(700, 'flow is 5, where all other values are at most 1')]
    """
    return [one for one in (by_scores(known, length), by_values(data, names)) if one is not None]


def by_scores(known: Reference, length: int) -> Suspect | None:
    """The step with the highest score, if no other that is more than a window away is nearly as high."""
    totals, places = known.totals, known.places
    peak = int(totals.argmax())
    near = (places[:, 0] == places[peak, 0]) & ((places[:, 1] - places[peak, 1]).abs() <= length)
    others = totals[~near]
    if not len(others) or not totals[peak] > TIMES * others.max():
        return None
    why = f"its score is {float(totals[peak] / others.max()):.2g} times the highest of all others"
    return Suspect(int(places[peak, 0]), int(places[peak, 1]), why)


def by_values(data: Iterable[Data], names: list[str]) -> Suspect | None:
    """The value that is furthest outside of the range of all others, if it is by more than `BEYOND` outer tenths."""
    series = [(number, x) for number, x in enumerate(data) if x.ndim == 2]
    total = sum(x.shape[1] for _, x in series)
    if total < 2 * PARTS:
        return None
    every, done = max(1, total // SAMPLE), 0
    cells = [Cell() for _ in range(2 * PARTS)]
    for number, x in series:
        for place, cell in enumerate(cells):
            a, b = (min(max(total * edge // len(cells) - done, 0), x.shape[1]) for edge in (place, place + 1))
            if a < b:
                cell.add(number, a, x[:, a:b].double(), every)
        done += x.shape[1]
    worst, found = BEYOND, None
    for part in range(PARTS):
        own = cells[2 * part : 2 * part + 2]
        others = cells[: max(0, 2 * part - 1)] + cells[2 * part + 3 :]
        for sign, channel in ((sign, channel) for sign in (1, -1) for channel in range(len(names))):
            value, series_, step = max(cell.most[channel, sign] for cell in own)
            edge = max(cell.most[channel, sign][0] for cell in others)
            sample = sign * np.concatenate([piece[channel] for cell in others for piece in cell.sample])
            width = edge - float(np.nanquantile(sample, 1 - TAIL)) if np.isfinite(sample).any() else 0.0
            if width > 0 and value - edge > worst * width:
                worst = (value - edge) / width
                limit = f"at {'most' if sign > 0 else 'least'} {sign * edge:.6g}"
                why = f"{names[channel]} is {sign * value:.6g}, where all other values are {limit}"
                found = Suspect(series_, step, why)
    return found


class Cell:
    """A stretch of steps: a sample of its values, and the greatest value and negative value of each channel."""

    def __init__(self) -> None:
        self.most: dict[tuple[int, int], tuple[float, int, int]] = {}
        self.sample: list[np.ndarray] = []

    def add(self, series: int, first: int, x: Tensor, every: int) -> None:
        """Add steps of a series."""
        self.sample.append(x[:, ::every].numpy())
        for sign in (1, -1):
            values, steps = (sign * x).nan_to_num(-torch.inf).max(1)
            for channel, (value, step) in enumerate(zip(values.tolist(), steps.tolist(), strict=True)):
                new = (value, series, first + step)
                old = self.most.get((channel, sign), new)
                self.most[channel, sign] = old if old[0] >= value else new
