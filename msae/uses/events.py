"""Events: runs of time steps whose anomaly scores are above a threshold, and the thresholds themselves."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby, product
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from msae.errors import InputError, check_choice, check_int, check_number

if TYPE_CHECKING:
    from msae.uses.anomaly import Scores

log = logging.getLogger(__name__)
PEAKS = 20
"""The least number of peaks to which a tail is fitted."""
LEVEL = 0.98
"""The quantile of training scores above which their tail begins; an event lasts until scores are below it."""
METHODS = ("evt", "quantile")
FEW = 8
"""A threshold by training scores of so many window lengths is raised to its double, of more to less."""


@dataclass(frozen=True)
class Limits:
    """What makes a run of scores an event.

    Attributes:
        above: a score above it is an alarm; an event contains at least one.
        low: an event extends over the neighbouring steps whose scores are above it; at most `above`.
        gap: events with at most so many steps between them are one.
    """

    above: float
    low: float
    gap: int = 0


def threshold(
    totals: Float[Tensor, " n"], probability: float, method: str = "evt", level: float = LEVEL, gap: int | None = None
) -> float:
    """The score that a training step exceeds with the given probability.

    Where there are too few training scores, the threshold is their quantile, at most the greatest, and the log says so.

    Args:
        totals: the scores of training steps; NaN is left out.
        probability: the probability of an alarm at a step like those of training.
        method: `quantile`, that of the scores; or `evt`, extreme value theory: a generalized Pareto distribution is
            fitted by maximum likelihood to the peaks over a first threshold, and extends beyond the training scores
            (Siffer et al., KDD 2017, equation 1).
        level: the quantile that is the first threshold of `evt`; a probability of 1 - level or more needs no tail and
            gives a quantile.
        gap: the probability is that of an event in place of a step, with the first threshold as `Limits.low` and this
            `Limits.gap`; only the peaks of events count.

    Raises:
        InputError: a probability that is not between 0 and 1, another method, or no score.

    Examples:
        >>> import torch
        >>> from msae.uses.events import threshold
        >>> threshold(torch.arange(1000.0), probability=0.1, method="quantile")
        899.1
    """
    check_choice("threshold", method, METHODS)
    if not 0 < check_number("probability", probability, 1) < 1:
        raise InputError(f"probability={probability}: expected a number between 0 and 1, such as 1e-3")
    found = totals[~totals.isnan()].double().numpy()
    if not len(found):
        raise InputError("training scores: none is a number; expected a reference with values")
    expected = probability * len(found)
    first = float(np.quantile(found, level))
    peaks = found[found > first] if gap is None else tops(found, first, gap)
    while gap is not None and len(peaks) < expected and level > 0.5:  # events that are to be frequent begin lower
        level = 1 - 2 * (1 - level)
        first = float(np.quantile(found, level))
        peaks = tops(found, first, gap)
    if probability >= 1 - level:
        return float(np.quantile(found, 1 - probability))
    few = method == "evt" and len(found) * (1 - level) < PEAKS - 1e-6
    if few or (method == "evt" and 0 < len(peaks) < PEAKS) or (expected < 1 - 1e-6 and method == "quantile"):
        log.warning(
            "%d training scores%s are too few for %s; the threshold is their quantile%s",
            len(found),
            "" if gap is None else f" with {len(peaks)} separate peaks",
            f"probability={probability:.3g}" if method == "quantile" else "extreme value theory",
            f", close to the highest: expect an alarm in about {len(found)} steps" if expected < 1 else "",
        )
        method = "quantile"
    if method == "quantile" and gap is None:
        return float(np.quantile(found, 1 - probability))
    if method == "quantile" or not len(peaks):  # without peaks the highest scores are all equal
        return float(np.append(np.sort(peaks)[::-1], first)[min(int(expected + 1e-6), len(peaks))])
    from scipy.stats import genpareto

    unit = (peaks - first).mean()
    shape, _, scale = genpareto.fit((peaks - first) / unit, floc=0)
    return first + float(unit) * float(genpareto.isf(expected / len(peaks), shape, scale=scale))


def raised(above: float, windows: float) -> float:
    """A threshold that was learned from training scores, with room for what so few of them do not show.

    The scores of new data are higher than those of training data where these are a few periods long. How much, as
    against the number of lengths of a window in training, was chosen on synthetic series (`studies/anomalies`).

    Examples:
        >>> raised(1.0, 16), raised(1.0, 800)
        (1.5, 1.01)
    """
    return above * (1 + FEW / max(1.0, windows))


def tops(found: Float[np.ndarray, " n"], low: float, gap: int) -> Float[np.ndarray, " m"]:
    """The peaks of events, the highest first: a threshold that is the peak number i, from 0, gives at most i events.

    Peaks of one event that are lower than its highest are none, as long as no higher threshold makes more events of it.
    """
    runs = spans(torch.from_numpy(found > low)).tolist()
    heights = np.array([found[start:stop].max() for start, stop in runs])
    active: list[int] = []  # the runs that are as high, in their order
    events, result = 0, list[float]()
    for height, tied in groupby(np.argsort(-heights, kind="stable").tolist(), key=heights.__getitem__):
        for run in tied:  # which a threshold takes together
            i = bisect.bisect(active, run)
            before, after = active[i - 1 : i], active[i : i + 1]
            pairs = [*product(before, [run]), *product([run], after)]
            joins = sum(runs[right][0] - runs[left][1] <= gap for left, right in pairs)
            events += 1 - joins + sum(runs[right][0] - runs[left][1] <= gap for left, right in product(before, after))
            active.insert(i, run)
        result += [float(height)] * (events - len(result))
    return np.array(result)


@dataclass(frozen=True)
class Event:
    """A run of time steps that are not normal; steps are counted from 0.

    Attributes:
        start: the first step.
        end: the last step.
        peak: the step with the greatest score.
        score: the score at the peak, NaN for an event of a rule alone.
        scale: the number of the scale with the highest relative score at the peak, -1 for none.
        channel: the number of the channel with the greatest score at the peak.
        known: the step at which it is certain that this is an event; in `events` the first alarm, -1 for none.
        rule: the names of the rules that found it, see `msae.uses.rules`; empty for an event of the scores alone.
    """

    start: int
    end: int
    peak: int
    score: float
    scale: int
    channel: int
    known: int
    rule: str = ""

    def moved(self, first: int) -> Event:
        """The event where step 0 is step `first`."""
        places = {name: getattr(self, name) + first for name in ("start", "end", "peak", "known")}
        return replace(self, **places)


def spans(flags: Bool[Tensor, " time"], length: int | None = None) -> Int[Tensor, "runs 2"]:
    """The first step, and the one after the last, of each run of True; with `length` no run leaves its window.

    Examples:
        >>> import torch
        >>> from msae.uses.events import spans
        >>> spans(torch.tensor([True, True, False, True])).tolist()
        [[0, 2], [3, 4]]
    """
    length = length or max(1, len(flags))
    edges = torch.diff(F.pad(flags.int().reshape(-1, length), (1, 1)))
    return torch.stack([(edges == sign).nonzero() @ torch.tensor([length, 1]) for sign in (1, -1)], dim=1)


def events(
    found: Scores,
    limits: Limits,
    scale: Int[Tensor, " time"] | None = None,
    first: int = 0,
    length: int | None = None,
) -> list[Event]:
    """The runs of steps whose score is above `limits.low`, of which `merged` makes events.

    Args:
        found: the scores of steps.
        limits: the thresholds.
        scale: the number of the scale with the highest relative score at each step.
        first: the number of the first step.
        length: of separate windows, the length of a window; no event extends from one window to the next.

    Examples:
        >>> import torch
        >>> from msae.uses.anomaly import Scores
        >>> from msae.uses.events import Limits, events, merged
        >>> total = torch.tensor([0.0, 2.0, 6.0, 0.0, 2.0])
        >>> limits = Limits(above=5, low=1)
        >>> [event] = merged(events(Scores(total, total[None], {}), limits), limits)
        >>> event.start, event.end, event.peak
        (1, 2, 2)
    """
    result = []
    for start, stop in spans(found.total > min(limits.low, limits.above), length).tolist():
        total = found.total[start:stop]
        peak = start + int(total.argmax())
        channel = int(found.channels[:, peak].nan_to_num(-1.0).argmax())
        number = -1 if scale is None else int(scale[peak])
        alarm = first + start + int((total > limits.above).int().argmax()) if total.max() > limits.above else -1
        result.append(Event(first + start, first + stop - 1, first + peak, float(total.max()), number, channel, alarm))
    return result


def merged(runs: Iterable[Event], limits: Limits, length: int | None = None) -> list[Event]:
    """The events among the runs of consecutive calls of `events`, in order.

    Runs that touch are joined, those without an alarm are dropped, and the others are joined if they are at most
    `limits.gap` steps apart. Events of separate windows of `length` steps are never joined.
    """
    check_int("gap", limits.gap, 0)
    touching = _joined(runs, 0, length)
    return _joined([run for run in touching if run.known >= 0], limits.gap, length)


def _joined(runs: Iterable[Event], gap: int, length: int | None) -> list[Event]:
    result: list[Event] = []
    for run in runs:
        if result and near(result[-1], run, gap, length):
            run = union(result.pop(), run)  # noqa: PLW2901
        result.append(run)
    return result


def near(one: Event, other: Event, gap: int, length: int | None = None) -> bool:
    """Whether the second of two events starts at most `gap` steps after the first ends, in the same window."""
    return other.start - one.end - 1 <= gap and (length is None or other.start // length == one.end // length)


def union(one: Event, other: Event) -> Event:
    """Two events as one: with the greater peak, known as soon as one of them."""
    peak = one if math.isnan(other.score) or one.score >= other.score else other
    known = min((run.known for run in (one, other) if run.known >= 0), default=-1)
    rule = ", ".join(dict.fromkeys(filter(None, [*one.rule.split(", "), *other.rule.split(", ")])))
    return replace(peak, start=min(one.start, other.start), end=max(one.end, other.end), known=known, rule=rule)


def count(totals: Float[Tensor, " n"], limits: Limits) -> int:
    """The number of events in the scores of a series, such as the training scores that the limits were learned from.

    Examples:
        >>> import torch
        >>> count(torch.tensor([0.0, 3.0, 1.0, 3.0, 0.0, 3.0]), Limits(above=2, low=0.5))
        2
    """
    from msae.uses.anomaly import Scores

    return len(merged(events(Scores(totals, totals[None], {}), limits), limits))


def together(scored: Iterable[Event], ruled: Iterable[Event], gap: int, length: int | None = None) -> list[Event]:
    """Events of scores and of rules, in order.

    Those of rules are joined where they are of one channel and at most `gap` steps apart, and joined with the events of
    scores of that channel that contain them, or whose peak is at most as far from them.
    """
    result: list[Event] = []
    for run in sorted(ruled, key=lambda run: (run.channel, run.start)):
        same = result and result[-1].channel == run.channel
        result.append(union(result.pop(), run) if same and near(result[-1], run, gap, length) else run)
    for run in scored:
        peak = replace(run, start=run.peak, end=run.peak)
        same = [
            rule
            for rule in result
            if rule.channel == run.channel
            and (
                (run.start <= rule.start and rule.end <= run.end)
                or (near(rule, peak, gap, length) and near(peak, rule, gap, length))
            )
        ]
        result = [*(rule for rule in result if rule not in same), reduce(union, same, run)]
    return sorted(result, key=lambda run: (run.start, run.end))


def certain(steps: Int[Tensor, " m"], time: int, length: int, stride: int = 1) -> Int[Tensor, " m"]:
    """The step at which the score of each step is final: the end of the last window that contains it.

    Args:
        steps: of a series.
        time: the number of steps of the series.
        length: of a window.
        stride: steps between the starts of windows; a last window ends with the series.

    Examples:
        >>> import torch
        >>> certain(torch.tensor([0, 5, 95]), time=100, length=10)
        tensor([ 9, 14, 99])
    """
    last = (steps // stride * stride).clamp(max=(time - length) // stride * stride) + length - 1
    return last.where((steps < time - length) | ((time - length) % stride == 0), torch.tensor(time - 1))
