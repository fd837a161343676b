"""Events: runs of time steps whose anomaly scores are above a threshold, and the threshold itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from msae.errors import InputError, check_choice, check_int, check_number
from msae.uses.anomaly import Scores

PEAKS = 20
"""The least number of peaks to which a tail is fitted."""
METHODS = ("evt", "quantile")


def threshold(totals: Float[Tensor, " n"], probability: float, method: str = "evt", level: float = 0.98) -> float:
    """The score that a training step exceeds with the given probability.

    Args:
        totals: the scores of training steps; NaN is left out.
        probability: the probability of an alarm at a step like those of training.
        method: `quantile`, that of the scores; or `evt`, extreme value theory: a generalized Pareto distribution is
            fitted by maximum likelihood to the peaks over a first threshold, and extends beyond the training scores
            (Siffer et al., KDD 2017, equation 1).
        level: the quantile that is the first threshold of `evt`; a probability of 1 - level or more needs no tail and
            gives a quantile.

    Raises:
        InputError: a probability that is not between 0 and 1, another method, or too few scores.

    Examples:
        >>> import torch
        >>> from msae.uses.events import threshold
        >>> threshold(torch.arange(1000.0), probability=0.1, method="quantile")
        899.1
    """
    check_choice("method", method, METHODS)
    if not 0 < check_number("probability", probability, 1) < 1:
        raise InputError(f"probability={probability}: expected a number between 0 and 1, such as 1e-3")
    found = totals[~totals.isnan()].double().numpy()
    least = PEAKS / (1 - level) if method == "evt" and probability < 1 - level else 1 / probability
    if len(found) < least - 1e-6:
        hint = "a higher probability" if method == "quantile" else "threshold=quantile"
        raise InputError(
            f"probability={probability:g}: {len(found)} training scores; expected at least {least:.0f}, or {hint}"
        )
    if method == "quantile" or probability >= 1 - level:
        return float(np.quantile(found, 1 - probability))
    from scipy.stats import genpareto

    first = float(np.quantile(found, level))
    peaks = found[found > first] - first
    if not len(peaks):  # the highest scores are all equal
        return first
    unit = peaks.mean()
    shape, _, scale = genpareto.fit(peaks / unit, floc=0)
    return first + float(unit) * float(genpareto.isf(probability * len(found) / len(peaks), shape, scale=scale))


@dataclass(frozen=True)
class Event:
    """A run of time steps above the threshold; steps are counted from 0.

    Attributes:
        start: the first step.
        end: the last step.
        peak: the step with the greatest score.
        score: the score at the peak.
        scale: the number of the scale with the highest relative score at the peak, -1 for none.
        channel: the number of the channel with the greatest score at the peak.
    """

    start: int
    end: int
    peak: int
    score: float
    scale: int
    channel: int


def events(
    found: Scores,
    above: float,
    scale: Int[Tensor, " time"] | None = None,
    first: int = 0,
    length: int | None = None,
) -> list[Event]:
    """The runs of steps whose score is above a threshold.

    Args:
        found: the scores of steps.
        above: the threshold.
        scale: the number of the scale with the highest relative score at each step.
        first: the number of the first step.
        length: of separate windows, the length of a window; no event extends from one window to the next.

    Examples:
        >>> import torch
        >>> from msae.uses.anomaly import Scores
        >>> from msae.uses.events import events
        >>> total = torch.tensor([0.0, 5.0, 6.0, 0.0])
        >>> [event] = events(Scores(total, total[None], {}), above=2)
        >>> event.start, event.end, event.peak
        (1, 2, 2)
    """
    length = length or max(1, len(found))
    edges = torch.diff(F.pad((found.total > above).int().reshape(-1, length), (1, 1)))
    starts, stops = ((edges == sign).nonzero() @ torch.tensor([length, 1]) for sign in (1, -1))
    result = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        peak = start + int(found.total[start:stop].argmax())
        channel = int(found.channels[:, peak].nan_to_num(-1.0).argmax())
        number = -1 if scale is None else int(scale[peak])
        result.append(Event(first + start, first + stop - 1, first + peak, float(found.total[peak]), number, channel))
    return result


def merged(runs: Iterable[Event], gap: int = 0, length: int | None = None) -> list[Event]:
    """Events in order; those at most `gap` steps apart are joined, with 0 those that touch.

    Events of separate windows of `length` steps are never joined.
    """
    check_int("gap", gap, 0)
    result: list[Event] = []
    for run in runs:
        together = length is None or (result and run.start // length == result[-1].end // length)
        if result and together and run.start - result[-1].end - 1 <= gap:
            peak = max(result[-1], run, key=lambda event: event.score)
            run = Event(result[-1].start, run.end, peak.peak, peak.score, peak.scale, peak.channel)  # noqa: PLW2901
            result.pop()
        result.append(run)
    return result
