"""The dominant period of series, and the window that it suggests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.signal import detrend, find_peaks

from msae.data.rows import Table

log = logging.getLogger(__name__)
STEPS = 20_000
"""Steps of the training split by which the period is measured."""
LEAST = 32
"""Steps of a window that is chosen."""
CLEAR = 0.1
"""The least height of a period's peak of the autocorrelation above the valleys beside it."""
ALIKE = 0.7
"""The first peak of this share of the greatest height is the period: it is the day, where weeks differ little."""


def dominant_period(x: Float[np.ndarray, "time channels"]) -> int | None:
    """The lag of the first high peak of the autocorrelation, averaged over channels; None without a clear one.

    The straight line of each channel is removed first; missing values count as its mean. The height of a peak is that
    above the valleys beside it, so that a slow wave does not hide a period. A lag is at least 3 steps and at most a
    fifth of the series, and the autocorrelation at twice the lag is at least half of that at the lag.

    Examples:
        >>> t = np.arange(1000)
        >>> noise = np.random.default_rng(0).normal(size=(1000, 2))
        >>> dominant_period(np.stack([np.sin(2 * np.pi * t / 25), 1e3 * np.cos(2 * np.pi * t / 25)], 1) + noise)
        25
        >>> dominant_period(noise), dominant_period(noise.cumsum(0))
        (None, None)
    """
    n = len(x)
    x = np.asarray(x, dtype=np.float64)
    there = ~np.isnan(x)
    mean = np.nansum(x, axis=0) / np.maximum(there.sum(0), 1)
    x = detrend(np.where(there, x, mean), axis=0)
    power = np.square(x).sum(0)
    x = x[:, power > 1e-20 * n * np.maximum(np.square(mean), 1e-300)]
    if n < 8 or not x.shape[1]:
        return None
    spectrum = np.abs(np.fft.rfft(x, 2 * n, axis=0)) ** 2
    sums = np.fft.irfft(spectrum, axis=0)[:n]
    curve = (sums / sums[0]).mean(1) * n / np.arange(n, 0, -1)
    peaks, found = find_peaks(curve[: n // 5 + 2], prominence=max(CLEAR, 2 / n**0.5))
    good = (peaks > 2) & (curve[peaks] > 0) & (curve[np.minimum(2 * peaks, n - 1)] > curve[peaks] / 2)
    peaks, heights = peaks[good], found["prominences"][good]
    return int(peaks[heights >= ALIKE * heights.max()][0]) if len(peaks) else None


def window_of(tables: Sequence[Table], spans: Mapping[str, Sequence[tuple[int, int, int]]]) -> int:
    """Twice the dominant period of the longest training stretch, at least `LEAST` steps, and told in one line.

    It is at most half the longest stretch of each split, or `LEAST` steps where that is more, so that there are
    windows.

    Args:
        tables: of the files.
        spans: the stretches of each split: number of the table, first row, row after the last.
    """
    number, start, stop = max(spans["training"], key=lambda span: span[2] - span[1], default=(0, 0, 0))
    period = dominant_period(np.asarray(tables[number].values[start : min(stop, start + STEPS)]))
    longest = min(max(stop - start for _, start, stop in parts) for parts in spans.values() if parts)
    window = max(2, min(max(LEAST, 2 * (period or 0)), max(min(LEAST, longest), longest // 2)))
    found = "no clear period" if period is None else f"a period of {period} steps"
    log.info("window: %d steps, by %s of the training split; data.window=%d sets another", window, found, 2 * window)
    return window
