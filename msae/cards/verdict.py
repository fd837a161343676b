"""What to take for a use: the rows are chosen by validation, and the gain is told on test with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np

from msae.cards.state import Row
from msae.runs.comparison import interval

MEASURES: dict[str, tuple[str, bool]] = {
    "reconstruction": ("test error", False),
    "detection": ("average precision", True),
    "forecast": ("test error", False),
    "features": ("accuracy", True),
    "augmentation": ("accuracy", True),
}
"""The measure of each use, and whether more of it is better."""
OVER = {
    "reconstruction": "parts of the test split",
    "detection": "anomalies",
    "forecast": "parts of the test split",
    "features": "test samples",
    "augmentation": "test samples",
}
"""What the interval of a use's gain is over."""


def gain(use: str, row: Row, base: Row) -> tuple[float, float, float]:
    """The gain of a row over another on test, and its 95 % t-interval over the parts of the test, paired.

    Of errors it is the share by which the row's is smaller, else the difference.

    Examples:
        >>> gain("forecast", {"parts": [1.0, 2.0]}, {"parts": [2.0, 4.0]})[0]
        0.5
    """
    ours, theirs = np.asarray(row["parts"]), np.asarray(base["parts"])
    more = MEASURES[use][1]
    apart = ours - theirs if more else (theirs - ours) / (theirs.mean() or 1.0)
    low, high = interval(apart.tolist()) or (float("-inf"), float("inf"))
    return float(apart.mean()), low, high


def best(use: str, rows: list[Row]) -> Row | None:
    """The best row by validation."""
    sign = -1 if MEASURES[use][1] else 1
    return min(rows, key=lambda row: sign * row["val"], default=None)


def verdict(use: str, rows: list[Row]) -> dict[str, Any]:
    """What to take: `take`, the name of a row; `against`; `gain` and `interval`; `sentence`.

    It is the best row by validation where its gain over the best baseline is clear of 0 on test, else that baseline.

    Examples:
        >>> rows = [{"name": "PCA", "simple": True, "val": 2, "test": [2], "parts": [2, 2.1, 2]}]
        >>> rows += [{"name": "ae", "simple": False, "val": 1, "test": [1], "parts": [1, 1.1, 1]}]
        >>> verdict("reconstruction", rows)["take"]
        'ae'
    """
    base, other = best(use, [row for row in rows if row["simple"]]), best(use, [r for r in rows if not r["simple"]])
    if base is None or other is None:
        only = base or other
        sentence = "nothing could be compared" if only is None else f"only {only['name']} could be measured"
        return {"take": only and only["name"], "sentence": f"{sentence}; see its section"}
    middle, low, high = gain(use, other, base)
    measure, more = MEASURES[use]
    chosen = best(use, [base, other])
    wins = low > 0 and chosen is other
    seeds = f"n = {len(other['test'])} seed{'s' * (len(other['test']) > 1)}"
    between = "none" if len(other["parts"]) < 2 else interval_of(low, high, more)
    value, against = (number(float(np.mean(row["test"])), more) for row in (other, base))
    told = (
        f"{measure} {value} against {against}, a gain of {spelled(middle, more)} (95 % interval {between} over "
        f"{len(other['parts'])} {OVER[use]}; {seeds})"
    )
    if wins:
        sentence = f"take {other['name']}, which beats {base['name']}: {told}"
    elif chosen is base:
        sentence = f"take {base['name']}, a simple baseline that nothing beats on validation; {other['name']}: {told}"
    else:
        sentence = f"take {base['name']}, a simple baseline that {other['name']} does not clearly beat: {told}"
    return {
        "take": other["name"] if wins else base["name"],
        "best": other["name"],
        "against": base["name"],
        "gain": middle,
        "interval": [low, high],
        "sentence": sentence,
    }


def spelled(value: float, more: bool) -> str:
    """A gain: a difference in three digits, or of errors a percentage."""
    return f"{round(value, 3) + 0.0:.3f}" if more else f"{round(100 * value, 1) + 0.0:.1f} %"  # without -0


def interval_of(low: float, high: float, more: bool) -> str:
    """The ends of an interval of gains.

    Examples:
        >>> interval_of(-0.0001, 0.034, more=False)
        '0.0 to 3.4 %'
    """
    return f"{spelled(low, more).removesuffix(' %')} to {spelled(high, more)}"


def number(value: float, more: bool) -> str:
    """A value in three digits."""
    return f"{value:.3f}" if more else f"{value:.3g}"
