"""Missing values: codes that stand for them, short holes that are interpolated, longer ones that end a stretch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from msae.data.rows import SHORT, Table, duration, first_hole, has_value, interpolate, spelled
from msae.data.spool import reordered
from msae.data.tables import BLOCK
from msae.errors import InputError

log = logging.getLogger(__name__)
MISSING = ("auto", "error", "interpolate", "mask")
Span = tuple[int, int, int]
"""A stretch of rows: number of the table, first row, row after the last."""
TIMES = 3
"""A value that repeats at least so often, far outside of all others, may be a code for no value."""


def without(table: Table, codes: Sequence[float] | None) -> Table:
    """A table with NaN in place of numbers that stand for no value; floats are changed in place."""
    if codes and table.values.dtype.kind != "f":
        table = replace(table, values=reordered(table.values, np.arange(len(table.values)), np.float64))
    for code in codes or []:
        for start in range(0, len(table.values), step := max(1, BLOCK // math.prod(table.values.shape[1:]))):
            piece = table.values[start : start + step]
            piece[piece == code] = np.nan
    return table


def warn_of_codes(tables: Sequence[Table]) -> None:
    """Warn of each value that may stand for none: far outside of all others of its channel, and repeated exactly."""
    for number, name in enumerate(tables[0].columns):
        columns = [np.asarray(table.values[:BLOCK, number], dtype=np.float64).ravel() for table in tables]
        present = np.concatenate([column[~np.isnan(column)] for column in columns])
        for code in {float(present.min()), float(present.max())} if len(present) else set():
            others = present[present != code]
            count = len(present) - len(others)
            if not TIMES <= count < len(others):
                continue
            low, high = float(others.min()), float(others.max())
            if 0 < high - low < max(low - code, code - high):
                log.warning(
                    "channel %s: %g is far outside of all other values, in %d of %d rows; if it stands for no value, "
                    "set data.missing_values=[%g]",
                    *(name, code, count, len(present), code),
                )


def bridged(
    tables: Sequence[Table], spans: Mapping[str, Sequence[Span]], missing: str, max_gap: object = None
) -> dict[str, list[Span]]:
    """The stretches of each split without long holes: with `missing=auto` rows in a long hole are left out.

    A hole is long if it has more than `SHORT` values, or if time passes it in more than `max_gap`. One line counts the
    holes of both kinds, but for rows that the files lack, which were told before.

    Raises:
        InputError: a channel has no value, so that nothing is left.
    """
    if missing != "auto":
        return {split: list(parts) for split, parts in spans.items()}
    found: dict[str, list[Span]] = {split: [] for split in spans}
    short = values = long = rows = 0
    whole = {n for n, table in enumerate(tables) if first_hole(table.values, 0, len(table.values)) is None}
    for split, (number, start, stop) in ((split, span) for split, parts in spans.items() for span in parts):
        table = tables[number]
        if number in whole:
            found[split].append((number, start, stop))
            continue
        limit = SHORT if max_gap is None or table.times is None else gap_rows(table, max_gap)
        there = ~table.lacking(start, stop)
        bad = np.zeros(stop - start, dtype=bool)
        for column in np.asarray(table.values[start:stop]).reshape(stop - start, -1).T:
            for first, last in runs(np.isnan(column)):
                count = int(there[first:last].sum())
                if last - first > limit:
                    bad[first:last] = True
                else:
                    short, values = short + (count > 0), values + count
        rows, long = rows + int(bad.sum()), long + len(runs(bad))
        found[split] += [(number, start + first, start + last) for first, last in runs(~bad)]
    for table in tables if not any(found.values()) else []:
        empty = [name for i, name in enumerate(table.columns) if np.isnan(table.values[:, i]).all()]
        if empty:
            raise InputError(f"{table.path}, column {empty[0]}: no value at all; data.missing=mask does without it")
    if short or long:
        said = [f"{values} in {short} short holes are interpolated"] if short else []
        said += [f"longer holes of {rows} rows end a stretch, {long} times"] if long else []
        log.info("missing values: %s", "; ".join(said))
    return found


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """The first place and the one after the last of each run of true flags.

    Examples:
        >>> runs(np.array([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def gap_rows(table: Table, max_gap: object) -> int:
    """The number of rows that may be missing within `max_gap`."""
    assert table.times is not None
    usual = float(np.median(np.diff(table.times[:100_000]))) if len(table.times) > 1 else 1.0
    return max(0, int(duration(max_gap, table) / usual + 0.01) - 1)


def check_gaps(table: Table, parts: Sequence[tuple[str, int, int]], missing: str, max_gap: object) -> None:
    """Raise InputError for the first gap of a table on a grid, with `missing=error` and without `max_gap`."""
    if missing != "error" or max_gap is not None or table.breaks is None or table.times is None:
        return
    starts = {start for _, start, _ in table.groups}
    rows = [start for _, start, _ in parts if start not in starts]
    lacking = table.lacking(0, len(table.values))
    rows += np.flatnonzero(lacking)[:1].tolist()
    if rows:
        row = min(rows)
        after = row + int(np.argmin(lacking[row:]))
        raise InputError(
            f"{table.where(after)}: a gap after {table.when(row - 1)}, where there is a row every {table.freq}; "
            "data.missing=auto interpolates short gaps and splits the series at longer ones, "
            f"data.max_gap={spelled(float(np.median(np.diff(table.times))), table)} splits it at all gaps"
        )


def fill(tables: list[Table], spans: dict[str, list[Span]], missing: str) -> bool:
    """Interpolate missing values within each stretch, if asked to; returns whether there is NaN left, to be masked.

    Raises:
        InputError: a value is missing and `missing` is `error`; a channel has no value in a stretch, so that there is
            nothing to interpolate; or a split has no value at all.
    """
    left = False
    whole = {n for n, table in enumerate(tables) if first_hole(table.values, 0, len(table.values)) is None}
    for split, parts in spans.items():
        gappy = [span for span in parts if span[0] not in whole]
        for number, start, stop in gappy:
            left |= fill_stretch(tables[number], start, stop, missing)
        if gappy == parts and parts and not any(has_value(tables[n].values, a, b) for n, a, b in parts):
            raise InputError(f"{tables[parts[0][0]].path}: no value at all in the {split} split")
    return left


def fill_stretch(table: Table, start: int, stop: int, missing: str) -> bool:
    """`fill` for one stretch."""
    hole = first_hole(table.values, start, stop)
    if hole is not None and missing in ("auto", "interpolate"):
        interpolate(table.values[start:stop])
        hole = first_hole(table.values, start, stop)
    if hole is not None and missing != "mask":
        row, column = hole
        if missing == "error" and table.lacking(row, row + 1)[0]:
            raise InputError(f"{table.where(row)}: no row follows for {table.when(row)}; set data.missing=auto")
        hint = "data.missing=interpolate or data.missing=mask" if missing == "error" else "data.missing=mask"
        raise InputError(f"{table.where(row)}, column {table.columns[column]}: no value; set {hint}")
    return hole is not None
