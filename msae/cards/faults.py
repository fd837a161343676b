"""Faults of sensors that are put into normal series, of sizes that are told, to compare detectors without labels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

KINDS = {
    "spike": "a step, 2 to 4 deviations up or down",
    "drop-out": "a quarter of a period to a period at the least value of training",
    "flat line": "half a period to one and a half at the value before",
    "drift": "one to two periods that move away, up to a deviation",
    "noise burst": "half a period to one and a half of noise, 0.4 deviations",
    "changed frequency": "half a period to two periods 1.6 times as fast",
}
"""The faults and their sizes: a deviation is that of the channel in training."""
SHARES = {"drop-out": (0.25, 1.0), "drift": (1.0, 2.0), "changed frequency": (0.5, 2.0)}
"""The least and the greatest number of periods; of the others half a period to one and a half."""
PACE = 1.6


def inject(
    x: Float[np.ndarray, "channels time"],
    kind: str,
    period: int,
    deviation: Float[np.ndarray, " channels"],
    least: Float[np.ndarray, " channels"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "channels time"], Bool[np.ndarray, " time"], int]:
    """The series with a fault at a random place of a random channel, a quarter of it away from both ends at least.

    Args:
        x: a normal series.
        kind: one of `KINDS`.
        period: in steps, by which lengths are measured.
        deviation: of each channel in training.
        least: value of each channel in training.
        rng: chooses channel, place, length, size and sign.

    Returns:
        The new series, which steps are faulty, and the number of the channel.

    Examples:
        >>> x = np.sin(np.arange(400) / 8)[None]
        >>> made, faulty, _ = inject(x, "flat line", 50, x.std(1), x.min(1), np.random.default_rng(0))
        >>> made.shape, bool(25 <= faulty.sum() <= 75), bool((made != x)[0, ~faulty].any())
        ((1, 400), True, False)
    """
    time, channel = x.shape[1], int(rng.integers(len(x)))
    size, sign = deviation[channel], rng.choice([-1, 1])
    steps = int(rng.uniform(*SHARES.get(kind, (0.5, 1.5))) * period)
    steps = 1 if kind == "spike" else min(max(3, steps), max(3, int(time / 4)))
    start = int(rng.integers(max(1, time // 4), max(2, time - time // 4 - steps) + 1))
    stop, made = start + steps, x.copy()
    old = x[channel, start:stop]
    if kind == "spike":
        new = old + sign * size * rng.uniform(2, 4)
    elif kind == "drop-out":
        new = np.full_like(old, least[channel])
    elif kind == "flat line":
        new = np.full_like(old, x[channel, start - 1])
    elif kind == "drift":
        new = old + sign * size * np.linspace(0, 1, steps)
    elif kind == "noise burst":
        new = old + rng.normal(0, 0.4 * size, steps)
    else:
        new = np.interp(start + PACE * np.arange(steps), np.arange(time), x[channel])
    made[channel, start:stop] = new
    return made, (np.arange(time) >= start) & (np.arange(time) < stop), channel
