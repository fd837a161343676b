"""Scores and events of a .csv file that grows: `python -m msae.detect ... follow=true`.

Scores are causal, and the same to the bit as those of `causal=true` on the whole file at once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from msae import normality, parts, read, write
from msae.alarms import Detector, limits_of
from msae.errors import InputError
from msae.runs import signals

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from msae.data.growing import Growing
    from msae.data.rows import Table
    from msae.models.reconstructor import Reconstructor
    from msae.normality import Normal
    from msae.uses.events import Event

log = logging.getLogger(__name__)
QUIET = ("msae.data.grid", "msae.data.holes")
"""Loggers that tell of a file each time that it is read."""
FILLED = ("auto", "interpolate")
"""Values of `data.missing` with which missing values are filled in."""
NAP = 0.05
"""Seconds after which a signal is noticed."""


def follow(cfg: DictConfig, model: Reconstructor, out: Path) -> None:
    """Add scores and events to tables as rows are added to a file, until SIGINT or SIGTERM.

    Raises:
        InputError: data that cannot be followed, or a file that is cut or replaced.
        SystemExit: a signal, with its exit status.
    """
    from msae.data.growing import Growing

    cfg.causal = True
    if out.suffix.lower() != ".csv":
        raise InputError(f"out={out}: rows cannot be added to it; expected a .csv with follow=true")
    if cfg.data.group_column is not None:
        raise InputError(f"group_column={cfg.data.group_column}: expected null with follow=true, and a file a series")
    paths = read.found(cfg)
    if len(paths) > 1:
        raise InputError(f"path={cfg.data.path}: {len(paths)} files; expected one with follow=true")
    growing = Growing(paths[0], read.form(cfg, model))
    normal = normality.find(cfg, model)
    beside = out.with_name(f"{out.name}.events.csv")
    with write.Appended(out, cfg.escape) as table, write.Appended(beside, cfg.escape) as found:
        signals.defer()
        print(f"follows {growing.path}, every {cfg.poll:g} s until Ctrl-C", flush=True)
        with contextlib.closing(Live(cfg, model, normal, growing, table, found)) as live:
            while not signals.received():
                if growing.grown():
                    live.take()
                else:
                    wait(cfg.poll)
            live.over()
        late = f"; {growing.late} rows out of order were left out" * bool(growing.late)
        print(f"\n{table.rows} time steps, {write.counted(found.rows)}{late}\n  {out}\n  {found.path}", flush=True)
    signals.release()


def wait(seconds: float) -> None:
    """Wait so long, or until a signal."""
    until = time.monotonic() + seconds
    while not signals.received() and (left := until - time.monotonic()) > 0:
        time.sleep(min(NAP, left))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the loggers `QUIET` from repeating what they tell."""
    loggers = [logging.getLogger(name) for name in QUIET]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


class Live:
    """Scores what is new in a growing file.

    Args:
        cfg: the command's config.
        model: in evaluation mode.
        normal: what is normal.
        growing: the file.
        table: of scores.
        found: of events.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: Reconstructor,
        normal: Normal | None,
        growing: Growing,
        table: write.Appended,
        found: write.Appended,
    ) -> None:
        from msae.uses import anomaly

        self.cfg, self.model, self.normal = cfg, model, normal
        self.growing, self.table, self.found = growing, table, found
        self.scorer = anomaly.Scorer(model, normal.scores if normal else None, cfg.stride, causal=True)
        self.scorer.own = normal.own(growing.path) if normal else None
        self.detector: Detector | None = None
        self.done = -1  # the row of the file that was scored last
        self.stretch: Stretch | None = None
        self._waits = False

    def take(self) -> None:
        """Score the rows that the file has now."""
        from msae.data import holes, rows

        cfg, growing = self.cfg, self.growing
        if self.stretch is None and len(growing.row) < self.model.length:
            return
        with quiet():
            table, place, complete = growing.table()
            read.check_channels(table, self.model)
            spans = rows.stretches(table, cfg.data.max_gap)
            holes.check_gaps(table, spans, cfg.data.missing, cfg.data.max_gap)
            whole = {"": [(0, start, stop) for _, start, stop in spans]}
            whole = holes.bridged([table], whole, cfg.data.missing, cfg.data.max_gap)
            complete = self._settled(table, complete)
            holes.fill([table], whole, cfg.data.missing)
        order = np.arange(len(table.values)) if table.order is None else table.order
        at = int(np.searchsorted(growing.row, self.done, "right")) - 1
        last = -1 if at < 0 else int(place[at])  # the step that was scored last
        for _, start, stop in whole[""]:
            end, goes_on = min(stop, complete), self.stretch is not None and start <= last < stop
            if end - 1 <= last and not goes_on:
                continue
            if not goes_on:
                self.over()
            if self.stretch is None and end - start < self.model.length:
                continue
            first = last + 1 if self.stretch is not None else start
            if self.stretch is None:
                self.scorer.first = growing.cells + start
                self.stretch = self._begun(table)
            if first < end:
                new = slice(first, end)
                self.stretch.add(table, new, growing.row[order[new]])
                last, self.done = end - 1, int(growing.row[order[end - 1]])
            if end == stop < len(table.values):
                self.over()
        if last >= 0:
            growing.cut(table, place, last, cfg.data.missing in FILLED)

    def _settled(self, table: Table, complete: int) -> int:
        """The number of steps that later rows do not change: after a missing value it is unknown what fills it in."""
        if self.cfg.data.missing not in FILLED:
            return complete
        there = ~np.isnan(table.values[:complete])
        until = np.where(there.any(0), complete - there[::-1].argmax(0), 0) if complete else np.zeros(1, int)
        if complete - until.min() > self.model.length and not self._waits:
            name = table.columns[int(until.argmin())]
            log.warning("%s: rows wait for a value of channel %s; with data.missing=mask they do not", table.path, name)
            self._waits = True
        return int(until.min())

    def _begun(self, table: Table) -> Stretch:
        """A new stretch; with the first one it is known what a budget of alarms means, and which columns there are."""
        from msae.uses import rules
        from msae.uses.events import Event

        if self.detector is None:
            part = part_of(table, table.values, np.zeros(len(table.values), int), table.times, self.model)
            known = self.normal.rules if self.normal else rules.unknown(self.model.channels)
            limits = limits_of(self.cfg, self.model.length, part, self.normal)
            self.detector = Detector(self.scorer, limits, known if self.cfg.rules else None, self.normal)
            print(f"threshold {limits.above:.3g}{self.normal.told(limits) if self.normal else ''}", flush=True)
            like = self.detector.row(part, Event(0, 0, 0, 0.0, 0, 0, 0))
            self.found.write({name: write.column(values, text=False)[:0] for name, values in like.items()})
        return Stretch(self.detector, self.model, self.table, self.found)

    def over(self) -> None:
        """End a stretch, where there is one: at a gap, or with the command."""
        if self.stretch is not None:
            self.stretch.end()
            self.scorer.restart()
            self.close()

    def close(self) -> None:
        """Leave a stretch as it is."""
        if self.stretch is not None:
            self.stretch.close()
            self.stretch = None


class Stretch:
    """A stretch without gaps that grows."""

    def __init__(self, detector: Detector, model: Reconstructor, table: write.Appended, found: write.Appended) -> None:
        from msae.data.spool import Spool
        from msae.uses import rules

        self.detector, self.model, self.table, self.found = detector, model, table, found
        self.watch = None if detector.rules is None else rules.Watch(detector.rules, model.channels)
        self._x, self._rows, self._times = Spool(np.float64, model.channels), Spool(np.int64), Spool(np.float64)
        self._like: Table | None = None
        self._runs: list[Event] = []  # of scores, and of rules, that may still be part of new events
        self._ruled: list[Event] = []
        self._written: list[Event] = []
        self._told: list[Event] = []

    @property
    def part(self) -> parts.Part:
        """What it is so far."""
        assert self._like is not None
        times = None if self._like.times is None else self._times.array()[:, 0]
        return part_of(self._like, self._x.array(), self._rows.array()[:, 0], times, self.model)

    def add(self, table: Table, steps: slice, rows: np.ndarray) -> None:
        """Score more steps, those of `table` that are in these rows of the file."""
        import torch

        from msae.uses import events, rules

        self._like = table
        first, values = self._x.rows, table.values[steps]
        self._x.append(values)
        self._rows.append(rows)
        if table.times is not None:
            self._times.append(table.times[steps])
        part, x = self.part, torch.from_numpy(np.array(values, dtype=np.float64)).T
        scorer, limits = self.detector.scorer, self.detector.limits
        for found in filter(len, (scorer.push(x), scorer.ready())):
            self.table.write(self.detector.columns(part, found, first))
            for run in events.events(found, limits, found.strangest(), first):
                touches = self._runs and events.near(self._runs[-1], run, 0)
                self._runs.append(events.union(self._runs.pop(), run) if touches else run)
            first += len(found)
        if self.watch is not None:
            self._ruled += rules.told(self.watch.rules, self.watch.push(x))
        self._tell(part)

    def _open(self) -> tuple[list[Event], float]:
        """The events of rules that go on, and the first step of any run that goes on."""
        from msae.uses import rules

        time = self._x.rows
        going = [run.start for run in self._runs[-1:] if run.end == time - 1]
        found: list[Event] = []
        if self.watch is not None:
            going += [one.open - 1 for one in self.watch.every.values() if one.open is not None]
            found += rules.told(self.watch.rules, self.watch.finish())
        return found, min(going, default=time)

    def _tell(self, part: parts.Part) -> None:
        """Write events that no later step can change, and print those that are new."""
        from msae.uses import events

        gap = self.detector.limits.gap
        going, open_from = self._open()
        runs = events.merged(self._runs, self.detector.limits)
        for event in events.together(runs, [*self._ruled, *going], gap):
            self._print(part, event, gap)
        all_ = events.together(runs, self._ruled, gap)
        final = [event for event in all_ if event.end + gap + 1 < open_from]
        self._write(part, final)
        keep = min([open_from, *(event.start for event in all_ if event not in final)]) - gap - 1
        while crossing := [event.start for event in all_ if event.start < keep <= event.end]:
            keep = min(crossing)
        for some in (self._runs, self._ruled, self._written, self._told):
            some[:] = [event for event in some if event.end >= keep]

    def _write(self, part: parts.Part, found: list[Event]) -> None:
        """Write events that were not written before."""
        before = {key(event) for event in self._written}
        for event in found:
            if key(event) not in before:
                self.found.write(self.detector.row(part, event, self.detector.reason(part, event)))
                self._written.append(event)

    def _print(self, part: parts.Part, event: Event, gap: int) -> None:
        """Print an event that is known, once."""
        import torch

        for number, told in enumerate(self._told):
            if (
                told.channel == event.channel
                and told.start <= event.end + gap + 1
                and event.start <= told.end + gap + 1
            ):
                self._told[number] = event
                return
        self._told.append(event)
        place = ", ".join(f"{name} {values[0]}" for name, values in part.place(torch.tensor([event.known])).items())
        score = "" if math.isnan(event.score) else f"score {event.score:.3g}"
        said = ", ".join(filter(None, (score, event.rule)))
        print(f"{place}: event in channel {part.channels[event.channel]}, {said}", flush=True)

    def end(self) -> None:
        """Write the events that are left, as if the stretch ended here."""
        from msae.uses import events, rules

        if self.watch is not None:
            self._ruled += rules.told(self.watch.rules, self.watch.finish())
        limits = self.detector.limits
        self._write(self.part, events.together(events.merged(self._runs, limits), self._ruled, limits.gap))

    def close(self) -> None:
        """Close the files that hold it."""
        for spool in (self._x, self._rows, self._times):
            spool.file.close()


def key(event: Event) -> tuple[Any, ...]:
    """What tells events apart, of which a score may be NaN."""
    return event.start, event.end, event.peak, event.channel, event.rule


def part_of(
    like: Table, values: np.ndarray, rows: np.ndarray, times: np.ndarray | None, model: Reconstructor
) -> parts.Part:
    """Steps of a table as a part, with their rows in the file and their times."""
    import torch

    table = replace(like, values=values, order=rows, times=times)
    stretch = read.Stretch(table, "", 0, torch.from_numpy(values).T, model.raw_dtype)
    owner, place = (
        partial(parts.owner, stretch, False, model.length),
        partial(parts.place, stretch, model.length),
    )
    return parts.Part(stretch.x, str(table.path), list(table.columns), owner, place, stretch)
