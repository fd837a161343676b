"""Rows on a grid of even steps: jitter of times is absorbed, and rows that are missing get a place, without values."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.compute as pc

from msae.data.clock import AUTO
from msae.data.rows import SECONDS, SHORT, Table, duration, spelled, unordered
from msae.data.spool import Spool, reordered
from msae.data.tables import BLOCK, Format
from msae.errors import InputError

log = logging.getLogger(__name__)
TRACKED = 256
"""Rows by which the place of the grid is measured, which may drift against the clock of the file."""
FEW = 0.05
"""The share of rows that may go back, repeat a time or lie between two steps of the usual length."""
WEEK = "1111100"


@dataclass(frozen=True)
class Grid:
    """Even steps of a clock or a calendar.

    Attributes:
        step: in the units of the times; of a calendar, the usual one.
        months: months of a step, else 0.
        week: the days of a week that a calendar of days has, from Monday, such as 1111100; else empty.
        whole: whether steps begin at whole ones of the clock, as where many rows are in one.
    """

    step: float
    months: int = 0
    week: str = ""
    whole: bool = False

    def spelled(self, table: Table) -> Any:
        """The step as `data.freq` takes it."""
        if self.months:
            return f"{self.months if self.months > 1 else ''}month"
        return "weekday" if self.week else spelled(self.step, table)

    def steps(self, table: Table, times: np.ndarray, limit: int) -> np.ndarray:
        """The number of steps from each time to the next, of times that do not go back, `(n - 1,)`."""
        if self.months:
            return np.diff(wall(table, times).astype("M8[M]").astype(np.int64) // self.months)
        if self.week:
            days = wall(table, times).astype("M8[D]")
            return np.diff(np.busday_count(days[0], days, weekmask=self.week))
        if self.whole:
            clock = times if table.origin is None else wall(table, times).astype(np.int64) / 1e6
            return np.diff(np.floor(clock / self.step + 1e-9).astype(np.int64))
        x = (times - times[0]) / self.step
        steps = np.diff(x)
        found = np.round(steps).astype(np.int64)
        if np.abs(steps - 1).max(initial=0) < 0.01:
            return found
        edges = [0, *(np.flatnonzero(steps > limit + 0.5) + 1).tolist(), len(x)]
        for start, stop in pairwise(edges):
            found[start : stop - 1] = np.diff(even(x[start:stop]))
        return found

    def between(self, table: Table, before: np.ndarray, after: np.ndarray, number: np.ndarray, n: np.ndarray) -> Any:
        """The times of rows that the file lacks: each is the `number`th of the steps, `n` in all, between two times."""
        if not (self.months or self.week):
            return before + (after - before) * number / n
        first = wall(table, before)
        if self.week:
            days = first.astype("M8[D]")
            return before + (np.busday_offset(days, number, weekmask=self.week) - days).astype(np.int64) * SECONDS["d"]
        last, months = wall(table, after), first.astype("M8[M]") + self.months * number
        anchor = np.maximum(day_of(first), day_of(last))
        days = months.astype("M8[D]") + (np.minimum(anchor, length_of(months)) - 1)
        return before + (days - first.astype("M8[D]")).astype(np.int64) * SECONDS["d"]


def even(x: np.ndarray) -> np.ndarray:
    """The places on a grid of whole numbers of times in steps that may jitter by less than a half, and drift slowly.

    Examples:
        >>> even(np.array([0.0, 1.2, 1.9, 3.8, 5.1])).tolist()
        [0, 1, 2, 4, 5]
    """
    edges, phase = np.arange(0, len(x), TRACKED), phases(x)
    middles = (edges + np.append(edges[1:], len(x)) - 1) / 2
    places = np.round(x - np.interp(np.arange(len(x)), middles, phase)).astype(np.int64)
    return np.asarray(np.maximum.accumulate(places - places[0]))


def phases(x: np.ndarray) -> np.ndarray:
    """What the places of a grid have beyond whole numbers, for each piece of `TRACKED` of them, in one course."""
    edges = np.arange(0, len(x), TRACKED)
    return np.asarray(np.unwrap(np.angle(np.add.reduceat(np.exp(2j * np.pi * x), edges))) / (2 * np.pi))


def on_grid(table: Table, form: Format) -> Table:
    """A table whose rows are even steps: those of the file, the mean of several in one step, and missing ones (NaN).

    A gap of more than `SHORT` rows, or `max_gap`, begins a new stretch, with a grid of its own. Rows that go back and
    repeated times are put in order and averaged where they are few. One line tells what was found.

    Raises:
        InputError: more than a few rows that go back or repeat a time, as at a change of clocks; uneven steps; or a
            `freq` or `max_gap` that cannot be used.
    """
    assert table.times is not None
    table, moved = in_order(table)
    grid = grid_of(table, form.freq)
    limit = SHORT + 1 if form.max_gap is None else max(1, int(duration(form.max_gap, table) / grid.step + 0.01))
    steps = np.ones(len(table.values), dtype=np.int64)  # from the row before; a stretch begins where they are negative
    clock, shared = np.asarray(table.times), 0
    for name, start, stop in table.groups:
        times = clock[start:stop]
        found = grid.steps(table, times, limit)
        same = np.flatnonzero(found == 0) + 1
        if form.freq == AUTO and len(same) > FEW * (stop - start) + 1:
            row = start + int(same[0])
            if (times[same] == times[same - 1]).mean() > 0.5:  # most of them
                raise unordered(table, row, name)
            raise uneven(table, row, grid)
        shared += len(same)
        steps[start + 1 : stop] = np.where(found > limit, -1, found)
        steps[start] = -1
    inside = steps > 1
    missing = int((steps[inside] - 1).sum())
    if form.freq == AUTO and missing > len(steps) / 2:
        raise uneven(table, int(np.flatnonzero(inside)[0]), grid)
    gaps = int((steps < 0).sum()) - len(table.groups)
    tell(table, grid, moved, shared, missing, int(inside.sum()), gaps)
    cells = np.cumsum(np.abs(steps)) - 1
    breaks = cells[steps < 0]
    table = replace(table, breaks=breaks, freq=grid.spelled(table))
    return table if not shared and not missing else filled(table, grid, cells)


def tell(table: Table, grid: Grid, moved: int, shared: int, missing: int, holes: int, gaps: int) -> None:
    """One line about the grid of a table."""
    said = [f"a row every {grid.spelled(table)}"]
    said += [f"rows that go back, put in order: {moved}"] if moved else []
    said += [f"rows averaged with the one before, in the same step: {shared}"] if shared else []
    said += [f"rows missing: {missing} in short gaps ({holes}), which data.missing treats"] if missing else []
    said += [f"longer gaps, which no window crosses: {gaps}"] if gaps else []
    log.log(logging.WARNING if moved or shared else logging.INFO, "%s: %s", table.path, "; ".join(said))


def in_order(table: Table) -> tuple[Table, int]:
    """A table with the rows of each series in the order of their times, and how many went back.

    Raises:
        InputError: more than a few go back, or an hour is there twice, as at a change of clocks.
    """
    assert table.times is not None
    times, order, moved = table.times, None, 0
    for name, start, stop in table.groups:
        its = np.asarray(times[start:stop])
        back = np.flatnonzero(np.diff(its) < 0) + 1
        usual = float(np.median(np.diff(its))) if len(its) > 1 else 0.0
        again = (np.flatnonzero(np.diff(its) <= 0) + 1).tolist()
        turned = [row for row in again if changes_clocks(table, start + row, usual)]
        if turned or len(back) > FEW * len(its) + 1:
            raise unordered(table, start + int([*turned, *back][0]), name, bool(turned))
        if len(back):
            order = np.arange(len(times)) if order is None else order
            order[start:stop] = start + np.argsort(its, kind="stable")
            moved += int((its < np.maximum.accumulate(its)).sum())
    if order is None:
        return table, 0
    rows = order if table.order is None else table.order[order]
    return replace(table, values=reordered(table.values, order), times=times[order], order=rows), moved


def changes_clocks(table: Table, row: int, usual: float) -> bool:
    """Whether local time repeats an hour at this row, as where daylight saving ends: on a Sunday, in the night."""
    if table.origin is None or table.kind is None or table.kind.tz:
        return False
    assert table.times is not None
    now = wall(table, table.times[row : row + 1])
    day, month = now.astype("M8[D]"), now.astype("M8[M]").astype(np.int64) % 12 + 1
    hour = (now - day) / np.timedelta64(1, "h")
    repeats = table.times[row - 1] - table.times[row] + usual
    sunday = np.busday_count(day, day + 1, weekmask="0000001")
    return bool(sunday[0] and month[0] in (3, 4, 9, 10, 11) and hour[0] < 4 and abs(repeats - 3600) < 36)


def uneven(table: Table, row: int, grid: Grid) -> InputError:
    """The error about times that no grid fits."""
    step = grid.spelled(table)
    return InputError(
        f"{table.where(row)}: the times have no even step (the usual one is {step}, and many rows are between); set "
        f"data.freq to a longer step, such as data.freq={spelled(10 * grid.step, table)}, whose rows are averaged, or "
        "data.freq=null data.max_gap=TIME to take rows as even"
    )


def grid_of(table: Table, freq: Any) -> Grid:
    """The grid of a table: that of `freq`, or with `auto` the calendar that fits all rows, or the usual step."""
    assert table.times is not None
    steps = np.diff(table.times)
    steps[[start - 1 for _, start, _ in table.groups if start]] = 0  # from one series to the next
    steps = steps[steps > 0]
    usual = float(np.median(steps)) if len(steps) else 1.0
    if freq != AUTO:
        match = re.fullmatch(r"(\d*)(weekday|month)", str(freq))
        if match is None:
            step = duration(freq, table, "freq")
            return Grid(step, whole=usual < 0.75 * step)
        if table.origin is None or match[1] == "0" or (match[1] and match[2] == "weekday"):
            raise InputError(f"freq={freq}: expected auto, null or a step such as 5min, 1h, weekday, month, 3month")
        if match[2] == "weekday":
            return Grid(SECONDS["d"], week=WEEK)
        return Grid(SECONDS["d"] * 30 * int(match[1] or 1), months=int(match[1] or 1))
    if table.origin is not None and usual > 0.9 * SECONDS["d"]:
        _, start, stop = max(table.groups, key=lambda group: group[2] - group[1])
        if (found := calendar(wall(table, np.asarray(table.times[start:stop])), usual)) is not None:
            return found
    steps = steps[steps < (SHORT + 1.5) * usual]
    return Grid(mean_step(steps, usual))


def mean_step(steps: np.ndarray, usual: float) -> float:
    """The step of times that jitter: the roundest number that leads to the same end, as 300 s; else the mean.

    Examples:
        >>> mean_step(np.array([299.0, 302.0, 300.0, 600.0]), 299.5)
        300.0
        >>> round(mean_step(np.array(1000 * [16.0, 17.0, 17.0]), 17.0), 4)
        16.667
    """
    numbers = np.round(steps / usual)
    off = np.abs(steps / usual - numbers).max(initial=0)
    if off < 1e-6 or not numbers.any():
        return usual
    mean = float(steps.sum() / numbers.sum())
    if off > 0.25:  # too late or early to be counted one by one
        times = np.cumsum(steps)
        near = usual * np.linspace(0.95, 1.05, 401)
        mean = float(near[np.abs(np.exp(2j * np.pi * times[:512, None] / near).mean(0)).argmax()])
        phase = phases(times / mean)
        mean *= 1 + float(phase[-1] - phase[0]) / (TRACKED * max(1, len(phase) - 1))
    for digits in range(1, 7):
        number = float(f"{mean:.{digits}g}")
        if abs(number - mean) < min(0.01, max(0.25, 2 * off) / len(steps)) * usual:
            return number
    return mean


def calendar(stamps: np.ndarray, usual: float) -> Grid | None:
    """The calendar of months, or of some days of the week, that all time stamps are in; None without one."""
    months, days = stamps.astype("M8[M]"), stamps.astype("M8[D]")
    apart = np.unique(np.diff(months.astype(np.int64)))
    if len(apart) and apart[0] > 0:
        day, length = day_of(stamps), length_of(months)
        if (day == np.minimum(length, 31 if (day == length).all() else day.max())).all():
            return Grid(usual, months=math.gcd(*apart.tolist()))
    weekdays = (days.astype(np.int64) + 3) % 7  # from Monday
    seen = np.isin(np.arange(7), weekdays)
    if (
        usual < 1.1 * SECONDS["d"]
        and len(days) > 10
        and 1 < seen.sum() < 7
        and (np.diff(days) > np.timedelta64(0)).all()
    ):
        return Grid(SECONDS["d"], week="".join("01"[one] for one in seen.astype(int)))
    return None


def day_of(stamps: np.ndarray) -> np.ndarray:
    """The days of the month, from 1."""
    return np.asarray((stamps.astype("M8[D]") - stamps.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1)


def length_of(months: np.ndarray) -> np.ndarray:
    """The numbers of days of months."""
    return np.asarray(((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64))


def wall(table: Table, times: np.ndarray) -> np.ndarray:
    """Times as time stamps that a clock on the wall shows, in the table's zone."""
    stamps = table.stamps(np.asarray(times))
    return np.asarray(pc.local_timestamp(stamps) if stamps.type.tz else stamps).astype("M8[us]")


def filled(table: Table, grid: Grid, cells: np.ndarray) -> Table:
    """A table whose rows are the steps of a grid; row i of `table` belongs to step `cells[i]`."""
    assert table.times is not None
    begins = np.flatnonzero(np.diff(cells, prepend=-1) > 0)  # the first row of each step that has one
    there = cells[begins]
    n = int(cells[-1]) + 1
    number = np.zeros(n, dtype=np.int64)
    number[there[1:]] = 1
    number = np.cumsum(number)  # of the step with rows that is here or before
    values = means(table.values, begins, there, n)
    times = np.empty(n)
    times[there] = table.times[begins]
    holes = np.flatnonzero(there[number] != np.arange(n))
    left, right = there[number[holes]], there[np.minimum(number[holes] + 1, len(there) - 1)]
    times[holes] = grid.between(table, times[left], times[right], holes - left, right - left)
    rows = np.arange(len(cells)) if table.order is None else np.asarray(table.order)
    place = np.empty_like(cells)
    place[rows] = cells
    groups = [(name, int(cells[start]), int(cells[stop - 1]) + 1) for name, start, stop in table.groups]
    return replace(table, values=values, times=times, order=rows[begins][number], place=place, groups=groups)


def means(values: np.ndarray, begins: np.ndarray, there: np.ndarray, n: int) -> np.ndarray:
    """The mean of the rows of each step, `(n, channels)`; NaN where there are none."""
    ends = np.append(begins[1:], len(values))
    with Spool(np.float64, values.shape[1]) as new:
        size = max(1, BLOCK // (8 * new.width))
        for first in range(0, n, size):
            a, b = np.searchsorted(there, [first, min(n, first + size)])
            piece = np.full((min(n, first + size) - first, new.width), np.nan)
            if b > a:
                its = np.asarray(values[begins[a] : ends[b - 1]], dtype=np.float64)
                if len(its) > b - a:
                    counts = np.add.reduceat(~np.isnan(its), begins[a:b] - begins[a], dtype=np.int64)
                    with np.errstate(invalid="ignore"):
                        its = np.add.reduceat(np.nan_to_num(its), begins[a:b] - begins[a]) / counts
                piece[there[a:b] - first] = its
            new.append(piece)
        return new.array()
