"""The picture of scores and events on the axis of the file: rows or times, with its gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from msae.plots import CHANNELS, STRETCHES, positions, ticks
from msae.uses.events import Event


@dataclass(frozen=True)
class Expected:
    """What would have been normal in a window.

    Attributes:
        channel: the number of the channel.
        start: the first step.
        values: the nearest normal window, in raw units.
        band: the usual distance from it.
    """

    channel: int
    start: int
    values: Float[np.ndarray, " steps"]
    band: float


@dataclass(frozen=True)
class Stretch:
    """A stretch without gaps; its arrays may be memory-mapped.

    Attributes:
        x: values in raw units.
        score: the score of each step, high if anomalous.
        times: for each scale, how many times its usual value the score is; without a reference there are no scales.
        rows: the place of each step, in the file.
        stamps: the time of each step, time stamps or numbers; None without times.
        events: its events, whose steps are counted from its start.
        expected: what would have been normal, at its events.
    """

    x: Shaped[np.ndarray, "time channels"]
    score: Float[np.ndarray, " time"]
    times: Float[np.ndarray, "time scales"]
    rows: Shaped[np.ndarray, " time"]
    stamps: Shaped[np.ndarray, " time"] | None
    events: Sequence[Event]
    expected: Sequence[Expected] = ()


def anomalies(
    stretches: Sequence[Stretch],
    names: Sequence[str],
    scales: Sequence[str],
    threshold: float,
    clock: str | None = None,
    zone: tzinfo | None = None,
    unit: str = "row",
) -> Figure:
    """Up to four channels, first those of events; the score with its threshold; a strip with a row for each scale.

    Events are shaded on all axes, and those of a rule named on that of their channel. Green bands are the nearest
    normal windows, give or take what is usual. Long series are drawn as the least and the greatest value of each of
    about 1,000 pieces.

    Args:
        stretches: of one series, in order; there is a gap on the axis between two of them.
        names: the names of the channels; a unit at the end, such as `flow [m3/h]`, gets a line of its own.
        scales: the names of the scales.
        threshold: the score above which steps are alarms.
        clock: the name of the times, for the axis.
        zone: the time zone of the axis; `stamps` are in UTC.
        unit: the name of the rows, for an axis without times.
    """
    channels = shown(stretches, len(names))
    n = len(channels)
    height = 0.3 + 0.18 * len(scales)
    figure = Figure(figsize=(11, 2.2 + 1.4 * n + height * bool(scales)), layout="constrained")
    ratios = [*[1.0] * n, 1.4, *[height / 1.4] * bool(scales)]
    axes: list[Axes] = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    rows = np.concatenate([stretch.rows for stretch in stretches])
    have = all(stretch.stamps is not None for stretch in stretches)
    stamps = np.concatenate([stretch.stamps for stretch in stretches if stretch.stamps is not None]) if have else None
    at, label = positions(rows, stamps, clock, unit)
    dates = at.dtype.kind == "M"
    numbers = date2num(at) if dates else at  # type: ignore[no-untyped-call]
    where = np.split(numbers, np.cumsum([len(stretch.rows) for stretch in stretches])[:-1])
    cells = cut([len(part) for part in where])
    for channel, axis in zip(channels, axes, strict=False):
        band(axis, where, [stretch.x[:, channel] for stretch in stretches], cells, color="tab:blue")
        axis.set_ylabel(titled(names[channel]), fontsize=8)
    score = axes[n]
    band(score, where, [stretch.score for stretch in stretches], cells, color="black", label="score")
    score.axhline(threshold, color="tab:red", linestyle="--", linewidth=1, label="threshold")
    if any(np.nanmax(stretch.score, initial=0) > 0 for stretch in stretches):
        score.set_yscale("log", nonpositive="mask")
    score.set_ylabel("score\n(high: anomalous)", fontsize=8)
    if scales:
        strip(figure, axes[-1], where, [stretch.times for stretch in stretches], cells, scales)
    for part, stretch in zip(where, stretches, strict=True):
        for event in stretch.events:
            shade(axes[: n + 1], channels, event, part)
        for expected in stretch.expected:
            normal(axes, channels, expected, part)
    for axis in axes:
        ticks(axis, at, zone)
    handles, texts = score.get_legend_handles_labels()
    known = dict(zip(texts, handles, strict=True))
    score.legend(known.values(), known.keys(), fontsize=8, loc="upper left", ncols=4)
    axes[-1].set_xlabel(label)
    return figure


def shown(stretches: Sequence[Stretch], n: int) -> list[int]:
    """The channels to draw: those with the most events, then the first ones; in their order."""
    found = [event.channel for stretch in stretches for event in stretch.events]
    return sorted(sorted(range(n), key=lambda channel: (-found.count(channel), channel))[:CHANNELS])


def titled(name: str) -> str:
    r"""The name of a channel with its unit, if it ends with one in brackets, on a second line.

    Examples:
        >>> titled("flow [m3/h]")
        'flow\n[m3/h]'
    """
    return re.sub(r"(?<=\S)\s*([\[(][^\[\]()]+[\])])$", r"\n\1", name)


def cut(sizes: Sequence[int]) -> list[np.ndarray]:
    """For stretches of these sizes the edges of the cells that are drawn: steps, or about 1,000 pieces of all."""
    total = sum(sizes)
    counts = sizes if total <= 2 * STRETCHES else [max(1, round(STRETCHES * size / total)) for size in sizes]
    return [np.linspace(0, size, n + 1).astype(int) for size, n in zip(sizes, counts, strict=True)]


def band(axis: Axes, where: list[np.ndarray], values: list[np.ndarray], cells: list[np.ndarray], **look: Any) -> None:
    """Draw a line through all steps, or the band between each cell's least and greatest value; gaps stay empty."""
    x, low, high = [], [], []
    for at, row, edges in zip(where, values, cells, strict=True):
        x += [at[(edges[:-1] + edges[1:]) // 2], at[-1:]]
        low += [np.fmin.reduceat(row, edges[:-1]), np.array([np.nan])]
        high += [np.fmax.reduceat(row, edges[:-1]), np.array([np.nan])]
    if all(len(at) == len(edges) - 1 for at, edges in zip(where, cells, strict=True)):
        axis.plot(np.concatenate(x), np.concatenate(low), linewidth=0.8, **look)
    else:
        axis.fill_between(np.concatenate(x), np.concatenate(low), np.concatenate(high), linewidth=0.6, **look)


def strip(
    figure: Figure,
    axis: Axes,
    where: list[np.ndarray],
    times: list[np.ndarray],
    cells: list[np.ndarray],
    scales: Sequence[str],
) -> None:
    """A row of colours for each scale: how many times its usual value its score is."""
    x, found = [], []
    for i, (at, part, edges) in enumerate(zip(where, times, cells, strict=True)):
        step = at[-1] - at[-2] if len(at) > 1 else at[-1] * 0 + 1
        end = at[-1] + step if i + 1 == len(where) else min(at[-1] + step, where[i + 1][0])
        x += [at[edges[:-1]], [end]]
        found += [np.fmax.reduceat(part, edges[:-1], axis=0), np.full((1, len(scales)), np.nan)]
    colours = np.concatenate(found)[:-1].T
    most = max(3.0, float(np.nanmax(colours, initial=0)))
    mesh = axis.pcolormesh(
        np.concatenate(x),
        np.arange(len(scales) + 1) - 0.5,
        np.maximum(colours, 1 / 3),
        norm=LogNorm(1 / 3, most),
        cmap="magma_r",
        rasterized=True,
    )
    axis.set_yticks(range(len(scales)), scales, fontsize=7)
    axis.set_ylim(len(scales) - 0.5, -0.5)
    axis.set_ylabel("scale", fontsize=8)
    figure.colorbar(mesh, ax=axis, label="times usual")


def shade(axes: Sequence[Axes], channels: Sequence[int], event: Event, at: np.ndarray) -> None:
    """Shade an event: by its scores on all axes, by a rule alone on that of its channel and of the score."""
    start, end, scored = at[event.start], at[event.end], not np.isnan(event.score)
    for number, axis in zip([*channels, -1], axes, strict=True):
        if scored or number in (event.channel, -1):
            look = ("tab:red", "event") if scored else ("tab:orange", "event of a rule")
            axis.axvspan(start, end, color=look[0], alpha=0.25, linewidth=1, label=look[1])
        if event.rule and number == event.channel:
            axis.annotate(event.rule, (start, 1), xycoords=("data", "axes fraction"), fontsize=7, va="top")


def normal(axes: Sequence[Axes], channels: Sequence[int], expected: Expected, at: np.ndarray) -> None:
    """Draw what would have been normal as a band on the axis of its channel."""
    if expected.channel in channels:
        axis = axes[list(channels).index(expected.channel)]
        steps = at[expected.start : expected.start + len(expected.values)]
        low, high = expected.values - expected.band, expected.values + expected.band
        axis.fill_between(steps, low, high, color="tab:green", alpha=0.4, linewidth=0)
        axis.plot(steps, expected.values, color="tab:green", linewidth=0.8)
