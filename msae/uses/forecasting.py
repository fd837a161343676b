"""Forecasts by ridge regression on latents, after TS2Vec's protocol (arXiv 2106.10466, section 4.2).

A forecast at step t sees only the latent of the window that ends with t. For each horizon one ridge regression maps it
to the next steps of all channels at once. The sums for the regression are added up batch by batch, so that memory does
not grow with the series. Unlike in the paper, latents are standardized by the training windows, so that a penalty means
the same for each latent value, and the penalty is chosen by the MSE alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from msae.errors import InputError, repeated

HORIZONS = (24, 48, 96, 168, 336)
ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""The candidates for the penalty; the validation split chooses one."""
PIECE = 1 << 22
"""The number of future values that are held in memory at once."""
Encode = Callable[[Float[Tensor, "n channels length"]], Float[Tensor, "n latent"]]
"""Computes features of windows in raw units: a model's `encode`, or for comparison `lambda x: x.flatten(1)`."""
Part = tuple[Shaped[Tensor, "channels _"], int]
"""A part of a series, and its first step that belongs to the split; earlier steps are never forecast."""


@dataclass(frozen=True)
class Forecaster:
    """A fitted regression.

    Attributes:
        alpha: the chosen penalty.
        weights: the weights of 1 and of the latent values, for futures in normalized units, channel by channel.
        mean: the mean of each channel over the training split.
        deviation: the standard deviation of each channel over the training split; 1 if the channel is constant.
    """

    alpha: float
    weights: Float64[Tensor, "latent_and_1 outputs"]
    mean: Float64[Tensor, "channels 1"]
    deviation: Float64[Tensor, "channels 1"]

    def scaled(self, z: Float[Tensor, "n latent"]) -> Float64[Tensor, "n channels horizon"]:
        """Forecasts in normalized units, by the training split's mean and deviation."""
        y_hat: Tensor = (with_one(z) @ self.weights).unflatten(1, (len(self.mean), -1))
        return y_hat

    def __call__(self, z: Float[Tensor, "n latent"]) -> Float64[Tensor, "n channels horizon"]:
        """Forecasts, in raw units, of the steps after the windows with these latents."""
        return self.scaled(z) * self.deviation + self.mean


@dataclass(frozen=True)
class Errors:
    """Errors of each channel over the windows of a split, in normalized units, by the training split's deviation.

    Attributes:
        n: the number of windows.
        mse: the mean squared error; times `deviation ** 2` it is in raw units.
        mae: the mean absolute error; times `deviation` it is in raw units.
    """

    n: int
    mse: Float64[Tensor, " channels"]
    mae: Float64[Tensor, " channels"]


def fit(
    encode: Encode,
    training: Sequence[Part],
    validation: Sequence[Part],
    length: int,
    horizons: Sequence[int] = HORIZONS,
    stride: int = 1,
) -> dict[int, Forecaster]:
    """A forecaster for each horizon.

    Args:
        encode: latents of windows `(n, channels, length)`.
        training: the parts from which statistics and weights are computed.
        validation: the parts on which the penalty is chosen.
        length: time steps of a window.
        horizons: numbers of steps to forecast.
        stride: time steps from the start of one window to the next.

    Raises:
        InputError: a split without a window that has a horizon's steps after it.

    Examples:
        >>> import torch
        >>> from msae.uses.forecasting import evaluate, fit
        >>> series = torch.sin(torch.arange(600.0).double() / 7)[None]
        >>> training, validation, test = (series[:, :400], 0), (series[:, 400:500], 0), (series[:, 500:], 0)
        >>> found = fit(lambda x: x.flatten(1), [training], [validation], length=32, horizons=[8])
        >>> bool(evaluate(lambda x: x.flatten(1), found, [test], length=32)[8].mse < 1e-6)
        True
    """
    check_horizons("training", training, length, horizons)
    check_horizons("validation", validation, length, horizons)
    mean, deviation = statistics(training)
    train, val = (sums(encode, parts, length, horizons, stride, mean, deviation) for parts in (training, validation))
    found = {}
    for horizon in horizons:
        solutions = [(train[horizon].solve(alpha), alpha) for alpha in ALPHAS]
        weights, alpha = min(solutions, key=lambda solution: val[horizon].squared_error(solution[0]))
        found[horizon] = Forecaster(alpha, weights, mean, deviation)
    return found


def evaluate(
    encode: Encode, forecasters: dict[int, Forecaster], parts: Sequence[Part], length: int, stride: int = 1
) -> dict[int, Errors]:
    """The errors of each horizon's forecaster on the windows of a split; InputError if there are none.

    Examples:
        >>> import torch
        >>> from msae.uses.forecasting import evaluate, fit
        >>> part = (torch.sin(torch.arange(200.0).double() / 7)[None], 0)
        >>> found = fit(lambda x: x.flatten(1), [part], [part], length=32, horizons=[8])
        >>> evaluate(lambda x: x.flatten(1), found, [part], length=32)[8].n
        161
    """
    check_horizons("test", parts, length, list(forecasters))
    n = dict.fromkeys(forecasters, 0)
    channels = len(parts[0][0])
    squares, sizes = ({h: torch.zeros(channels, dtype=torch.float64) for h in forecasters} for _ in range(2))
    for z, futures in pairs(encode, parts, length, list(forecasters), stride):
        for horizon, y in futures.items():
            its = forecasters[horizon]
            error = its.scaled(z[: len(y)]) - (y - its.mean) / its.deviation
            squares[horizon] += error.square().mean(2).sum(0)
            sizes[horizon] += error.abs().mean(2).sum(0)
            n[horizon] += len(y)
    return {h: Errors(n[h], squares[h] / n[h], sizes[h] / n[h]) for h in forecasters}


def pairs(
    encode: Encode, parts: Sequence[Part], length: int, horizons: Sequence[int], stride: int = 1
) -> Iterator[tuple[Float[Tensor, "n latent"], dict[int, Shaped[Tensor, "m channels horizon"]]]]:
    """Latents of windows, in batches, and for each horizon the steps after the first m windows, within the split."""
    for series, first in parts:
        size = max(1, min(2048, PIECE // (len(series) * max(horizons))))
        for start in torch.arange(*bounds(series, first, length, min(horizons)), stride).split(size):
            x = series.unfold(1, length, 1)[:, start].movedim(0, 1)
            futures = {}
            for horizon in horizons:
                after = start[start + length + horizon <= series.shape[1]] + length
                if len(after):
                    futures[horizon] = series.unfold(1, horizon, 1)[:, after].movedim(0, 1)
            yield encode(x if x.is_floating_point() else x.double()), futures


def bounds(series: Shaped[Tensor, "channels time"], first: int, length: int, horizon: int) -> tuple[int, int]:
    """The first start of a window with `horizon` steps of the split after it, and the last such start plus 1."""
    low = max(0, first - length)
    return low, max(low, series.shape[1] - length - horizon + 1)


def check_horizons(split: str, parts: Sequence[Part], length: int, horizons: Sequence[int]) -> None:
    """Raise InputError for a horizon given twice, or with too few steps after every window of a split."""
    if twice := repeated(horizons):
        raise InputError(f"horizons={list(horizons)}: {twice[0]} is given twice; expected each horizon once")
    for horizon in horizons:
        if not any(low < high for low, high in (bounds(*part, length, horizon) for part in parts)):
            longest = max((series.shape[1] - first for series, first in parts), default=0)
            raise InputError(
                f"horizons: {horizon}: no window of {length} steps has {horizon} steps after it in the {split} split, "
                f"whose longest stretch has {longest} steps; expected a shorter horizon, or other shares of the splits"
            )


def statistics(parts: Sequence[Part]) -> tuple[Float64[Tensor, "channels 1"], Float64[Tensor, "channels 1"]]:
    """Mean and deviation of each channel over the steps of the split; the deviation of a constant channel is 1."""
    own = [series[:, first:] for series, first in parts]
    steps = max(1, PIECE // len(own[0]))

    def mean(value: Callable[[Tensor], Tensor]) -> Tensor:
        total = sum(value(piece.double()).sum(1, keepdim=True) for x in own for piece in x.split(steps, 1))
        assert isinstance(total, Tensor)
        return total / sum(x.shape[1] for x in own)

    center = mean(lambda x: x)
    deviation = mean(lambda x: (x - center).square()).sqrt()
    return center, deviation.where(deviation > 1e-12 * center.abs(), 1.0)


def with_one(z: Float[Tensor, "n latent"]) -> Float64[Tensor, "n latent_and_1"]:
    """Latents with a column of ones before them."""
    return torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z.double()], 1)


def sums(
    encode: Encode,
    parts: Sequence[Part],
    length: int,
    horizons: Sequence[int],
    stride: int,
    mean: Float64[Tensor, "channels 1"],
    deviation: Float64[Tensor, "channels 1"],
) -> dict[int, Sums]:
    """The sums over a split that the regression of each horizon needs."""
    found: dict[int, Sums] = {}
    for z, futures in pairs(encode, parts, length, horizons, stride):
        for horizon, y in futures.items():
            scaled = ((y - mean) / deviation).flatten(1)
            if horizon not in found:
                found[horizon] = Sums(z.shape[1], scaled.shape[1])
            found[horizon].add(z[: len(y)], scaled)
    return found


class Sums:
    """Sums of products of latents, with a column of ones before them, and of futures in normalized units."""

    def __init__(self, latent: int, outputs: int) -> None:
        self.zz = torch.zeros(latent + 1, latent + 1, dtype=torch.float64)
        self.zy = torch.zeros(latent + 1, outputs, dtype=torch.float64)
        self.yy = 0.0

    def add(self, z: Float[Tensor, "n latent"], y: Float64[Tensor, "n outputs"]) -> None:
        """Add a batch."""
        one = with_one(z)
        self.zz += one.T @ one
        self.zy += one.T @ y
        self.yy += float(y.square().sum())

    def solve(self, alpha: float) -> Float64[Tensor, "latent_and_1 outputs"]:
        """The weights of a ridge regression on the latents, penalized as if the latents were standardized."""
        n, center = self.zz[0, 0], self.zz[0, 1:] / self.zz[0, 0]
        covariance = self.zz[1:, 1:] / n - center.outer(center)
        seen = covariance.diag() > 1e-12 * self.zz.diag()[1:] / n  # the others are constant up to rounding
        width = covariance.diag().where(seen, 1.0).sqrt()
        gram = n * covariance / width.outer(width) * seen.outer(seen)
        right = (self.zy[1:] - center[:, None] * self.zy[0]) / width[:, None] * seen[:, None]
        slopes = torch.linalg.solve(gram + alpha * torch.eye(len(gram), dtype=gram.dtype), right) / width[:, None]
        return torch.cat([(self.zy[0] / n - center @ slopes)[None], slopes])

    def squared_error(self, weights: Float64[Tensor, "latent_and_1 outputs"]) -> float:
        """The sum of the squared errors that weights have on these windows."""
        return self.yy - float((weights * (2 * self.zy - self.zz @ weights)).sum())
