"""A data frame as even steps: rows with time stamps are put on a grid, as `data.freq=auto` does with those of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from msae.data.clock import AUTO, Clock
from msae.data.grid import on_grid
from msae.data.rows import Table, interpolate, stretches
from msae.data.tables import Format
from msae.errors import InputError
from msae.uses.events import Event


@dataclass(frozen=True)
class Steps:
    """A series at even steps.

    Attributes:
        x: the values, interpolated in rows that were missing, and NaN where they were.
        spans: the first step and the one after the last of each stretch; no window crosses the gap between two.
        place: the step of each row.
        freq: the length of a step, as `data.freq` takes it; None where rows count as even.
    """

    x: Float[Tensor, "channels time"]
    spans: list[tuple[int, int]]
    place: np.ndarray
    freq: Any = None

    def parted(self, n: int, length: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The stretches before and after step n, those of at least `length` steps; step n parts the one it is in."""
        before = [(start, min(stop, n)) for start, stop in self.spans]
        after = [(max(start, n), stop) for start, stop in self.spans]
        first, second = ([span for span in some if span[1] - span[0] >= length] for some in (before, after))
        return first, second

    def labels(self, steps: list[int], index: Any, side: Literal["left", "right"] = "right") -> Any:
        """The labels of the last rows until steps or, on the left, of the first ones from there."""
        order = np.argsort(self.place, kind="stable")
        at = np.searchsorted(self.place[order], np.array(steps, dtype=int), side) - (side == "right")
        return index.take(order[at.clip(0, len(order) - 1)])

    def table(self, runs: Sequence[Event], index: Any, names: Sequence[str], scales: Sequence[str]) -> pd.DataFrame:
        """Events as a table, whose places are labels of the index."""
        return pd.DataFrame(
            {
                "start": self.labels([run.start for run in runs], index, "left"),
                "end": self.labels([run.end for run in runs], index),
                "peak": self.labels([run.peak for run in runs], index),
                "known_at": self.labels([run.known for run in runs], index),
                "score": np.array([-run.score for run in runs], dtype=float),
                "channel": np.array([names[run.channel] for run in runs], dtype=object),
                "scale": np.array([scales[run.scale] if run.scale >= 0 else "" for run in runs], dtype=object),
                "rule": np.array([run.rule for run in runs], dtype=object),
            }
        )


def steps_of(values: Float[Tensor, "channels time"], index: Any, freq: Any = AUTO) -> Steps:
    """The steps of rows with an index: of time stamps, on a grid of `freq`; otherwise, and without it, the rows.

    Raises:
        InputError: time stamps that no grid fits: many that go back or repeat, or no even step.

    Examples:
        >>> index = pd.to_datetime(["2026-01-01 00:00", "2026-01-01 00:05", "2026-01-01 00:15", "2026-01-01 00:20"])
        >>> steps = steps_of(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), index)
        >>> steps.x.tolist(), steps.place.tolist(), steps.freq
        ([[1.0, 2.0, 2.5, 3.0, 4.0]], [0, 1, 3, 4], '5min')
    """
    n = values.shape[1]
    if not isinstance(index, pd.DatetimeIndex) or freq is None:
        return Steps(values, [(0, n)], np.arange(n))
    names = list(map(str, range(len(values))))
    table = Table(Path("X"), names, values.T.contiguous().numpy(), groups=[("", 0, n)])
    form = Format(time_column="index", freq=freq)
    clock = Clock(table, form)
    try:
        times = clock.read(pa.array(index), 0)
        table = on_grid(Table(**vars(table) | {"times": times} | clock.of()), form)
    except InputError as error:
        raise InputError(f"{str(error).partition(';')[0]}; expected X.sort_index(), or X.asfreq(...)") from None
    place = np.arange(n) if table.place is None else table.place
    x, filled = (np.array(table.values, order="C") for _ in range(2))
    interpolate(filled)
    lacking = table.lacking(0, len(x))
    x[lacking] = filled[lacking]
    return Steps(torch.from_numpy(x).T, [(start, stop) for _, start, stop in stretches(table)], place, table.freq)
