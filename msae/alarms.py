"""Scores and events as columns of tables, and the picture of the strangest series: what `msae.detect` writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from msae import write
from msae.parts import Part, steps_of

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import numpy as np
    from jaxtyping import Int
    from matplotlib.figure import Figure
    from torch import Tensor

    from msae.normality import Normal
    from msae.timeline import Stretch
    from msae.uses.anomaly import Scorer, Scores
    from msae.uses.events import Event, Limits
    from msae.uses.reasons import Reason
    from msae.uses.rules import Rules

log = logging.getLogger(__name__)
PLACES = ("start", "end", "peak", "known_at")
"""Steps of an event that its table gives."""
REASON = {
    "from": "int64",
    "to": "int64",
    "differs_in": "string",
    "value": "float64",
    "expected": "float64",
    "band": "float64",
    "normal_file": "string",
    "normal_row": "int64",
    "normal_time": "string",
}
"""Columns of an event that tell why it is one: the window with the highest score that contains the peak, whether its
values or its shape differ most from normal, the value at the peak and that of the nearest normal window, give or take
the usual distance, and where that window begins in the training data."""


@dataclass(frozen=True)
class Scored:
    """A part with its scores, the ratios of its scales, `(time, scales)`, its events and why; kept for the picture."""

    part: Part
    totals: np.ndarray
    ratios: np.ndarray
    runs: list[Event]
    reasons: list[Reason | None]


class Detector:
    """Turns scores into columns of a table, and collects the events.

    Args:
        scorer: the scorer of a model.
        limits: what makes a run of scores an event.
        rules: the rules on raw values; None for none.
        normal: what the scores are compared with; None without a reference.

    Attributes:
        events: a row of the table of events for each event.
        ruled: the number of events that only rules found.
        shown: the greatest score, and the parts of the series with this score, for the picture.
    """

    def __init__(self, scorer: Scorer, limits: Limits, rules: Rules | None, normal: Normal | None) -> None:
        self.scorer = scorer
        self.limits = limits
        self.rules = rules
        self.normal = normal
        self.events: list[dict[str, Any]] = []
        self.ruled = 0
        self.shown: tuple[float, list[Scored]] | None = None
        self._series: list[Scored] = []  # the parts so far of the series that the last part is of
        self._greatest = -1.0

    def scores(self, part: Part) -> Iterator[dict[str, Any]]:
        """The table of a part, in pieces; after the last piece `events` includes its events."""
        import numpy as np
        import torch

        from msae.data.spool import Spool
        from msae.uses import anomaly, events, ranges

        for number in ranges.without_values(part.x):
            log.warning(
                "%s: channel %s has no value; scores are of the other channels", part.name, part.channels[number]
            )
        length = part.x.shape[2] if part.x.ndim == 3 else None
        if self.normal is not None and part.stretch is not None and length is None:
            self.scorer.own, self.scorer.first = self.normal.own(part.stretch.table.path), part.stretch.first
        done = 0
        runs: list[Event] = []
        with Spool(np.float32) as totals, Spool(np.float32, len(self.scorer.names)) as ratios:
            for found in filter(len, anomaly.scores(self.scorer, part.x)):
                if found.scales:
                    ratios.append(torch.stack(list(found.scales.values()), dim=1).numpy())
                yield self.columns(part, found, done)
                runs += events.events(found, self.limits, found.strangest(), done, length)
                totals.append(found.total.numpy())
                done += len(found)
            runs = self._found(part, runs, length)
            reasons = [self.reason(part, run) for run in runs]
            self.events += [self.row(part, run, reason) for run, reason in zip(runs, reasons, strict=True)]
            self._keep(
                Scored(
                    part,
                    totals.array()[:, 0],
                    ratios.array() if self.scorer.names else np.zeros((done, 0), np.float32),
                    runs,
                    reasons,
                )
            )

    def columns(self, part: Part, found: Scores, done: int) -> dict[str, Any]:
        """The rows of the table of scores, of the steps that follow the first `done` ones of a part."""
        import torch

        steps = torch.arange(done, done + len(found))
        table = part.owner(steps) | part.place(steps) | {"score": found.total}
        table |= {f"score_{name}": row for name, row in zip(part.channels, found.channels, strict=True)}
        if found.scales:
            table |= {f"scale_{name}": row for name, row in found.scales.items()}
            table["strangest"] = write.texts(self.scorer.names, found.strangest())
        table["alarm"] = found.total > self.limits.above
        return table | named(part, "known_at", self._certain(part, steps))

    def _found(self, part: Part, runs: list[Event], length: int | None) -> list[Event]:
        """The events of a part: those of its scores, which are known when these are certain, and those of the rules."""
        import torch

        from msae.uses import events, rules

        found = events.merged(runs, self.limits, length)
        known = self._certain(part, torch.tensor([run.known for run in found]).long()).tolist()
        found = [replace(run, known=step) for run, step in zip(found, known, strict=True)]
        if self.rules is not None:
            found = events.together(found, rules.events(self.rules, part.x), self.limits.gap, length)
        self.ruled += sum(math.isnan(run.score) for run in found)
        return found

    def _certain(self, part: Part, steps: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
        """The step at which the score of each step was certain."""
        from msae.uses import events

        if part.x.ndim == 3:
            length = part.x.shape[2]
            return (steps // length + 1) * length - 1
        return events.certain(steps, part.x.shape[1], self.scorer.delay + 1, self.scorer.stride)

    def row(self, part: Part, run: Event, reason: Reason | None = None) -> dict[str, Any]:
        """An event as a row of a table."""
        import torch

        found = part.owner(torch.tensor([run.start]))
        places = [
            named(part, name, torch.tensor([step]))
            for name, step in zip(PLACES, (run.start, run.end, run.peak, run.known), strict=True)
        ]
        for names in zip(*places, strict=True):  # start, end, ..., then start_time, end_time, ...
            found |= {name: place[name] for name, place in zip(names, places, strict=True)}
        above = math.nan if math.isnan(run.score) else self.limits.above
        found |= {"score": [run.score], "threshold": [above], "rule": [run.rule]}
        if self.scorer.names:
            found["strangest"] = [self.scorer.names[run.scale] if run.scale >= 0 else ""]
        found["channel"] = [part.channels[run.channel]]
        return found | self._why(part, run, reason) if self.normal else found

    def reason(self, part: Part, run: Event) -> Reason | None:
        """Why an event is one; None for an event of a rule alone, and without a reference."""
        from msae.uses import reasons

        if run.scale < 0 or self.normal is None:
            return None
        return reasons.reason(self.scorer, part.x, run.peak, run.channel, self.scorer.names[run.scale])

    def _why(self, part: Part, run: Event, reason: Reason | None) -> dict[str, Any]:
        """The columns of an event that tell why it is one."""
        import pyarrow as pa
        import torch

        assert self.normal is not None
        values: tuple[Any, ...] = (None,) * len(REASON)
        if reason is not None:
            normal = self.normal.place(reason.normal, reason.scale)
            steps = (torch.tensor([step]) for step in (reason.start, reason.end))
            start, end = (int(next(iter(part.place(step).values()))[0]) for step in steps)
            value = (part.x if part.x.ndim == 2 else part.x.movedim(1, 0).flatten(1))[run.channel, run.peak]
            expected = float(reason.expected[run.peak - reason.start])
            values = (start, end, reason.kind, float(value), expected, reason.band, *normal)
        return {name: pa.array([value], kind) for (name, kind), value in zip(REASON.items(), values, strict=True)}

    def _keep(self, scored: Scored) -> None:
        """Keep the parts of the series with the greatest score for the picture."""
        import numpy as np

        if not self._series or self._series[-1].part.name != scored.part.name:
            self._series, self._greatest = [], -1.0
        self._series.append(scored)  # `shown` may be this list
        self._greatest = float(np.nanmax(scored.totals, initial=self._greatest))
        if self.shown is None or self._greatest > self.shown[0]:
            self.shown = self._greatest, self._series

    def figure(self, clock: str | None) -> Figure:
        """The picture of the series with the greatest score; `clock` is the name of the time column."""
        import numpy as np
        import pyarrow as pa
        import torch

        from msae import timeline

        assert self.shown is not None, "something was scored"
        part = self.shown[1][0].part
        name, span = part.name, None
        if part.x.ndim == 3:
            number = int(np.nanargmax(self.shown[1][0].totals)) // part.x.shape[2]
            name, span = f"{name}, number {number}", number
        stretches = [stretch(scored, span) for scored in self.shown[1]]
        times = part.place(torch.tensor([0])).get("time")
        zone = times[0].as_py().tzinfo if times is not None and pa.types.is_timestamp(times.type) else None
        unit = "row" if span is None else "step"
        figure = timeline.anomalies(stretches, part.channels, self.scorer.names, self.limits.above, clock, zone, unit)
        figure.suptitle(name, fontsize=9)
        return figure


def limits_of(cfg: DictConfig, length: int, part: Part, normal: Normal | None) -> Limits:
    """What makes a run of scores an event: the thresholds, and what lies between two events.

    By default events end where the scores are no longer in the tail of the training scores, and those less than half
    a window apart, which most windows that contain one of them share, are one. A budget of alarms is counted in steps
    of a part.
    """
    import numpy as np

    from msae.uses import events

    probability = cfg.probability if cfg.alarms_per is None else 1 / steps_of(cfg.alarms_per, part)
    gap = length // 2 if cfg.merge == "auto" else cfg.merge
    if normal is None:
        return events.Limits(float(cfg.threshold), float(cfg.threshold), gap)
    totals, every = normal.totals
    above, low = cfg.threshold, float(np.nanquantile(totals, events.LEVEL))
    if isinstance(above, str):
        method, apart = above, None if cfg.alarms_per is None else gap // every
        above = events.threshold(totals, probability * (1 if apart is None else every), method, gap=apart)
        if method == "evt" and part.x.ndim == 2:
            above = events.raised(above, normal.steps / length)
    return events.Limits(float(above), min(low, above) if cfg.hysteresis else above, gap)


def stretch(scored: Scored, window: int | None) -> Stretch:
    """A part, or a window of it, as the picture takes it."""
    import numpy as np
    import torch

    from msae import timeline

    x, length = scored.part.x, len(scored.totals)
    first = 0
    if window is not None:
        x, length = x[window], x.shape[2]
        first = window * length
    steps = torch.arange(first, first + length)
    at = scored.part.place(steps)
    rows, times = next(iter(at.values())), at.get("time")
    shown = [
        (replace(run, start=run.start - first, end=run.end - first), reason)
        for run, reason in zip(scored.runs, scored.reasons, strict=True)
        if first <= run.start < first + length
    ]
    return timeline.Stretch(
        x.T.numpy(),
        scored.totals[first : first + length],
        scored.ratios[first : first + length],
        np.asarray(rows),
        None if times is None else times.to_numpy(zero_copy_only=False),
        [run for run, _ in shown],
        [
            timeline.Expected(run.channel, reason.start - first, reason.expected.numpy(), reason.band)
            for run, reason in shown
            if reason is not None
        ],
    )


def named(part: Part, name: str, steps: Int[Tensor, " m"]) -> dict[str, Any]:
    """The place of steps as columns `name` and, where there are times, `name_time`."""
    return {f"{name}_time" if key == "time" else name: values for key, values in part.place(steps).items()}
