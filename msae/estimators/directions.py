"""What `MultiScalePooler` learns at each scale: directions in the space of whitened windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

DRAWN = 2000
"""The number of training windows, drawn at random, from which the directions of a scale are learned."""
FLOOR = 0.01
"""What whitening adds to each variance, as a share of their mean."""


@dataclass(frozen=True, eq=False)
class Directions:
    """What is learned for the windows of one dilation, in a group of channels.

    Attributes:
        differences: whether the windows are of first differences.
        dilation: the number of steps from one value of a window to the next.
        channels: the channels that a window contains.
        weights: `(directions, channels * taps)`; a response is their product with a window in normalized units.
        shapes: `(directions, channels, taps)`: what each direction looks for, as weights are not what they respond to.
        thresholds: `(directions, thresholds)`.
    """

    differences: bool
    dilation: int
    channels: list[int]
    weights: Tensor
    shapes: NDArray[np.float64]
    thresholds: Tensor


def drawn(batches: list[Tensor], taps: int, dilation: int, random: np.random.RandomState) -> NDArray[np.float64]:
    """Windows `(m, channels, taps)` without NaN, drawn from samples `(n, channels, time)`, less their means."""
    reach = (taps - 1) * dilation
    counts = [len(x) * max(0, x.shape[2] - reach) for x in batches]
    chosen = np.sort(random.randint(0, max(1, sum(counts)), min(DRAWN, sum(counts))))
    found, before = [np.empty((0, batches[0].shape[1], taps))], 0
    for x, count in zip(batches, counts, strict=True):
        own = chosen[(chosen >= before) & (chosen < before + count)] - before
        if len(own):
            sample, position = np.divmod(own, x.shape[2] - reach)
            steps = position[:, None] + np.arange(taps) * dilation
            found.append(x.numpy()[sample[:, None], :, steps].transpose(0, 2, 1).astype(np.float64))
        before += count
    windows = np.concatenate(found)
    windows = windows[~np.isnan(windows).any((1, 2))]
    centred: NDArray[np.float64] = windows - windows.mean(2, keepdims=True)
    return centred


def learn(
    windows: NDArray[np.float64], count: int, random: np.random.RandomState
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights `(directions, channels * taps)` of length 1 and shapes `(directions, channels, taps)`."""
    x = windows.reshape(len(windows), -1)
    variances, axes = np.linalg.eigh(x.T @ x / len(x))
    kept = variances > max(1e-6 * variances[-1], 1e-14)  # not the mean of a window, nor rounding
    variances, axes = variances[kept], axes[:, kept]
    spread = np.sqrt(variances + FLOOR * variances.mean()) if len(variances) else variances
    centres = choose(x @ axes / spread, count, random)
    weights = (centres / spread) @ axes.T
    weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    return weights, ((centres * spread) @ axes.T).reshape(-1, *windows.shape[1:])


def choose(codes: NDArray[np.float64], count: int, random: np.random.RandomState) -> NDArray[np.float64]:
    """At most `count` directions `(directions, values)` of length 1: centres of k-means of codes of length 1."""
    lengths = np.linalg.norm(codes, axis=1)
    codes = codes[lengths > 1e-6] / lengths[lengths > 1e-6, None]
    if not len(codes):
        return np.zeros((1, codes.shape[1]))  # all windows are flat
    count = min(count, len(np.unique(codes, axis=0)))
    means = KMeans(count, init="random", n_init=1, max_iter=10, random_state=random).fit(codes).cluster_centers_
    found: NDArray[np.float64] = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return found
