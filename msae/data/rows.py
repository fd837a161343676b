"""The rows of a table: their place in the file, their times, gaps between them, and missing values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from msae.data.tables import BLOCK
from msae.errors import InputError

SECONDS = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}

SHORT = 5
"""Rows, or values of a channel, that may be missing one after another in a short gap, which is interpolated."""


@dataclass(frozen=True)
class Table:
    """The content of one file.

    Attributes:
        path: of the file.
        columns: names of the channels.
        values: `(time, channels)`, sorted by group, memory-mapped; or windows, `(n, channels, length)`.
        times: of each row, in seconds after the first row, or in the column's units after `base`; None without a time
            column.
        origin: the time stamp of the first row, in UTC if they have a zone, if times are time stamps.
        groups: name, first row and row after the last of each series; without a group column the name is empty.
        order: the row in the file of each row here, where they differ; of a row that the file lacks, the one before.
        line: gives the line of a row in a text file.
        kind: the type of the time column, of which `stamps` makes arrays.
        clock: the name of the time column.
        freq: the step of the grid that rows are on, as `data.freq` takes it; None where they are as in the file.
        breaks: on a grid, the rows that begin a stretch, after a gap.
        place: on a grid, the row here of each row of the file, where they differ.
        base: the first row's time where it is a large whole number, such as nanoseconds since 1970; else 0.
    """

    path: Path
    columns: list[str]
    values: np.ndarray
    times: np.ndarray | None = None
    origin: np.datetime64 | None = None
    groups: list[tuple[str, int, int]] = field(default_factory=list)
    order: np.ndarray | None = None
    line: Callable[[int], int] | None = None
    kind: pa.DataType | None = None
    base: int = 0
    clock: str | None = None
    freq: Any = None
    breaks: np.ndarray | None = None
    place: np.ndarray | None = None

    def lacking(self, start: int, stop: int) -> np.ndarray:
        """Which of these rows the file lacks."""
        none = np.ones(len(self.values), dtype=bool)
        none[slice(None) if self.place is None else self.place] = False
        return none[start:stop]

    def where(self, row: int) -> str:
        """The file and the line (of a text) or row (of other files, from 0) of a row of `values`."""
        row = int(row if self.order is None else self.order[row])
        return f"{self.path}, line {self.line(row)}" if self.line else f"{self.path}, row {row}"

    def when(self, row: int) -> str:
        """The time of a row of `values`."""
        assert self.times is not None
        if self.origin is None:
            return str(self.base + round(self.times[row])) if self.base else f"{self.times[row]:g}"
        stamp = self.origin + np.timedelta64(round(self.times[row] * 1e6), "us")
        zone = "Z" if self.kind and self.kind.tz else ""
        return str(stamp).replace("T", " ").rstrip("0").rstrip(".") + zone

    def stamps(self, times: np.ndarray) -> pa.Array:
        """Values of `times` as a column: numbers, or time stamps to the microsecond or nanosecond, in their zone."""
        if self.origin is None:
            return pa.array(self.base + np.round(times).astype(np.int64) if self.base else times)
        kind = self.kind or pa.timestamp("us")
        after = np.round(times * (1e9 if kind.unit == "ns" else 1e6)).astype(f"m8[{kind.unit}]")
        return pa.array(self.origin.astype(f"M8[{kind.unit}]") + after).cast(kind)


def duration(text: Any, table: Table, key: str = "max_gap") -> float:
    """The value of a key in the units of a table's times: a text such as `90s`, `5min`, `1h`, `4d`, or a number.

    Raises:
        InputError: any other value, or a unit where times are plain numbers.
    """
    match = re.fullmatch(r"([\d.]+(?:e[-+]?\d+)?)\s*(ms|s|min|h|d|w)?", str(text))
    try:
        value = float(match[1]) if match else 0.0
    except ValueError:
        value = 0.0
    if not match or not value:
        raise InputError(f"{key}={text}: expected a time such as 90s, 5min, 1h, 4d, or a number in the column's units")
    if match[2] and table.origin is None:
        raise InputError(
            f"{key}={text}: {table.path} has times that are plain numbers; expected a number in their units"
            + (", or auto" if key == "freq" else "")
        )
    return value * SECONDS[match[2] or "s"]


def unordered(table: Table, row: int, name: str, zone: bool = False) -> InputError:
    """The error for a row of a series whose time is not after the one before, as where clocks of a `zone` change."""
    assert table.times is not None
    kind = "goes back from" if table.times[row] < table.times[row - 1] else "repeats"
    said = f"{table.where(row)}: time {table.when(row)} {kind} {table.when(row - 1)} of the row before"
    said += f" in {name}" if name else ""
    if zone:
        return InputError(f"{said}, as where clocks change; set their zone, such as data.time_zone=Europe/Berlin")
    hint = "remove such rows" if name else "remove such rows, or name the series with data.group_column"
    return InputError(f"{said}; {hint}, or data.time_column=null ignores the times")


def spelled(seconds: float, table: Table) -> str:
    """A length of time as a text that `duration` reads."""
    if table.origin is None:
        return f"{seconds:g}"
    whole = (unit for unit in ("d", "h", "min", "s") if seconds and seconds % SECONDS[unit] == 0)
    unit = next(whole, "s" if seconds > 1 else "ms")
    return f"{seconds / SECONDS[unit]:g}{unit}"


def stretches(table: Table, max_gap: Any = None) -> list[tuple[str, int, int]]:
    """Name, first row and row after the last of each stretch of a table: its series, split at gaps above `max_gap`.

    Raises:
        InputError: time goes backwards or repeats; or, without `max_gap`, a step is above 1.5 times the usual one.
    """
    if table.times is None:
        if max_gap is not None:
            raise InputError(f"max_gap={max_gap}: gaps of {table.path} are unknown; set data.time_column")
        return table.groups
    if table.breaks is not None:
        found = []
        for name, start, stop in table.groups:
            first, last = np.searchsorted(table.breaks, [start, stop])
            begins = table.breaks[first:last].tolist()
            found += [(name, a, b) for a, b in zip(begins, [*begins[1:], stop], strict=True)]
        return found
    limit = None if max_gap is None else duration(max_gap, table)
    parts = []
    for name, start, stop in table.groups:
        usual = float(np.median(np.diff(table.times[start : min(stop, start + 100_000)]))) if stop > start + 1 else 0.0
        breaks = [start]
        for first in range(start, stop - 1, BLOCK):
            times = np.asarray(table.times[first : min(stop, first + BLOCK + 1)])
            steps = np.diff(times)
            bad = np.flatnonzero(~(steps > 0))
            if len(bad):
                raise unordered(table, first + int(bad[0]) + 1, name)
            gaps = np.flatnonzero(steps > (1.5 * usual if limit is None else limit))
            if limit is None and len(gaps):
                step, row = steps[gaps[0]], first + int(gaps[0]) + 1
                raise InputError(
                    f"{table.where(row)}: a gap of {spelled(step, table)} after {table.when(row - 1)}, where the usual "
                    f"step is {spelled(usual, table)}; data.max_gap={spelled(usual, table)} splits the series at gaps, "
                    f"data.max_gap={spelled(step, table)} lets windows cross this one"
                )
            breaks += [first + int(gap) + 1 for gap in gaps]
        parts += [(name, a, b) for a, b in zip(breaks, [*breaks[1:], stop], strict=True)]
    return parts


def first_hole(values: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
    """Row and column of the first NaN in these rows, or None."""
    step = max(1, BLOCK // math.prod(values.shape[1:]))
    for first in range(start, stop, step):
        holes = np.isnan(values[first : min(first + step, stop)])
        if holes.any():
            row, column = np.argwhere(holes)[0][:2]
            return first + int(row), int(column)
    return None


def has_value(values: np.ndarray, start: int, stop: int) -> bool:
    """Whether any value of these rows is not NaN."""
    step = max(1, BLOCK // math.prod(values.shape[1:]))
    return any(not np.isnan(values[first : min(first + step, stop)]).all() for first in range(start, stop, step))


def interpolate(values: np.ndarray) -> None:
    """Replace NaN, in place, by values on straight lines between its neighbours, and at an end by the nearest value.

    Args:
        values: `(time, channels)`, or windows `(n, channels, length)`; a channel without any value stays as it is.

    Examples:
        >>> x = np.array([[np.nan], [1.0], [np.nan], [np.nan], [4.0]])
        >>> interpolate(x)
        >>> x[:, 0].tolist()
        [1.0, 1.0, 2.0, 3.0, 4.0]
    """
    for line in values.T if values.ndim == 2 else (line for window in values for line in window):
        rows = np.flatnonzero(np.isnan(line))
        if not 0 < len(rows) < len(line):
            continue
        starts = np.diff(rows, prepend=-2) > 1
        hole = np.cumsum(starts) - 1  # the number of the hole that each row belongs to
        before, after = rows[starts] - 1, np.append(rows[:-1][starts[1:]], rows[-1]) + 1
        left, right = (line[side.clip(0, len(line) - 1)].astype(np.float64) for side in (before, after))
        left, right = np.where(before < 0, right, left), np.where(after == len(line), left, right)
        share = (rows - before[hole]) / (after - before)[hole]
        line[rows] = left[hole] + share * (right - left)[hole]
