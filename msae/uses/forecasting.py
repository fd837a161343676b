"""Forecasts by ridge regression on the codes of all scales, each channel by itself.

The protocol is TS2Vec's (arXiv 2106.10466, section 4.2): a forecast at step t sees only the window that ends with t,
each horizon has a ridge regression to the steps after it, and the validation split chooses its penalty. Unlike there,
features and futures are differences from the last value of their channel (as in NLinear, arXiv 2205.13504), and the
validation split also chooses how far to look back, and whether one regression serves all channels or each has its own.
Sums for the regressions are added up batch by batch, so that memory does not grow with the series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from msae.errors import InputError, check_choice, check_ints, check_number, repeated
from msae.uses.look_back import Features
from msae.uses.ridge import Sums, candidates, with_one

USES = ("best", "latent", "raw")
HORIZONS = (24, 48, 96, 168, 336)
ALPHAS = tuple(10 ** (i / 2) for i in range(-2, 17))
"""The candidates for the penalty, from 0.1 to 100,000,000."""
LEVEL = 0.95
"""The share of future values that an interval is meant to hold."""
PIECE = 1 << 22
"""The number of future values that are held in memory at once, and of those whose errors make the intervals."""
LARGE = 1 << 25
"""Where the sums of a horizon would hold more products of features than this, only one regression is tried."""
Part = tuple[Shaped[Tensor, "channels _"], int]
"""A part of a series, and its first step that belongs to the split; earlier steps are never forecast."""


@dataclass(frozen=True)
class Forecaster:
    """The regression of one horizon.

    Attributes:
        use: the name of the features that it sees.
        features: how these are computed.
        look_back: the steps that they see.
        each: whether each channel has weights of its own.
        alpha: the penalty.
        weights: of 1 and of the features, for futures as differences from the last value, in normalized units.
        deviation: the standard deviation of each channel over the training split; 1 if the channel is constant.
        half: half the width of the interval of each step, in units of the window's `spread`: the quantile of the
            absolute errors on the validation split (locally weighted split conformal prediction, Lei et al. 2018).
        errors: the least mean squared error on the validation split, in normalized units, by the names of all features.
    """

    use: str
    features: Features
    look_back: int
    each: bool
    alpha: float
    weights: Float64[Tensor, "groups features_and_1 horizon"]
    deviation: Float64[Tensor, "channels 1"]
    half: Float64[Tensor, "channels horizon"]
    errors: dict[str, float]

    def changes(self, z: Float[Tensor, "n channels features"]) -> Float64[Tensor, "n channels horizon"]:
        """Forecasts for windows with these features, as differences from the last value; all in normalized units."""
        seen = with_one(z[..., : self.weights.shape[1] - 1])
        found: Tensor = (seen.transpose(0, 1) @ self.weights).transpose(0, 1)
        return found

    def __call__(self, x: Float[Tensor, "n channels length"]) -> Float64[Tensor, "n channels horizon"]:
        """Forecasts, in raw units, of the steps after windows in raw units."""
        return self.changes(self.features.compute(x) / self.deviation) * self.deviation + x[..., -1:]

    def margins(self, x: Float[Tensor, "n channels length"]) -> Float64[Tensor, "n channels horizon"]:
        """Half the widths of the intervals around forecasts, in raw units."""
        return spread(x, self.deviation) * self.half * self.deviation


@dataclass(frozen=True)
class Errors:
    """Errors of each channel over the windows of a split, in normalized units, by the training split's deviation.

    Attributes:
        n: the number of windows.
        mse: the mean squared error; times `deviation ** 2` it is in raw units.
        mae: the mean absolute error; times `deviation` it is in raw units.
        coverage: the share of future values within the intervals.
    """

    n: int
    mse: Float64[Tensor, " channels"]
    mae: Float64[Tensor, " channels"]
    coverage: Float64[Tensor, " channels"]


def fit(
    features: Mapping[str, Features],
    training: Sequence[Part],
    validation: Sequence[Part],
    length: int,
    horizons: Sequence[int] = HORIZONS,
    stride: int = 1,
    use: str = "best",
    level: float = LEVEL,
    alphas: Sequence[float] = ALPHAS,
) -> dict[int, Forecaster]:
    """A forecaster for each horizon.

    Args:
        features: what regressions may see, by name.
        training: the parts from which deviations and weights are computed.
        validation: the parts on which the rest is chosen: penalty, look-back, and one regression or one each.
        length: time steps of a window.
        horizons: numbers of steps to forecast.
        stride: time steps from the start of one window to the next.
        use: the name of the features to use; `best` for those with the least error on the validation split.
        level: the share of future values that intervals are meant to hold.
        alphas: the candidates for the penalty, for standardized features.

    Raises:
        InputError: a split without a window that has a horizon's steps after it; a `use` or `level` that is none.

    Examples:
        >>> import torch
        >>> from msae.uses.forecasting import evaluate, fit
        >>> from msae.uses.look_back import raw
        >>> series = torch.sin(torch.arange(600.0).double() / 7)[None]
        >>> training, validation, test = (series[:, :400], 0), (series[:, 400:500], 0), (series[:, 500:], 0)
        >>> found = fit({"raw": raw([8, 32])}, [training], [validation], length=32, horizons=[8])
        >>> bool(evaluate(found, [test], length=32)[8].mse < 1e-6)
        True
    """
    check_choice("use", use, ("best", *features))
    check_level(level)
    check_horizons("training", training, length, horizons)
    check_horizons("validation", validation, length, horizons)
    deviation = deviations(training)
    train, val = (sums(features, parts, length, horizons, stride, deviation) for parts in (training, validation))
    found = {}
    for horizon in horizons:
        choices = {
            name: min(
                candidates(its.sizes, its.alike, train[name, horizon], val[name, horizon], alphas),
                key=lambda choice: choice[0],
            )
            for name, its in features.items()
        }
        errors = {name: choice[0] for name, choice in choices.items()}
        name = min(errors, key=errors.__getitem__) if use == "best" else use
        _, look_back, each, alpha, weights = choices[name]
        none = torch.zeros(len(deviation), horizon, dtype=torch.float64)
        found[horizon] = Forecaster(name, features[name], look_back, each, alpha, weights, deviation, none, errors)
    half = halves(found, validation, length, stride, level)
    return {horizon: replace(its, half=half[horizon]) for horizon, its in found.items()}


def evaluate(
    forecasters: Mapping[int, Forecaster], parts: Sequence[Part], length: int, stride: int = 1
) -> dict[int, Errors]:
    """The errors of each horizon's forecaster on the windows of a split; InputError if there are none."""
    check_horizons("test", parts, length, list(forecasters))
    n = dict.fromkeys(forecasters, 0)
    totals = {h: torch.zeros(3, len(parts[0][0]), dtype=torch.float64) for h in forecasters}
    for horizon, error, width in residuals(forecasters, parts, length, stride):
        size = error.abs()
        inside = (size <= width * forecasters[horizon].half).double()
        totals[horizon] += torch.stack([kind.mean(2).sum(0) for kind in (error.square(), size, inside)])
        n[horizon] += len(error)
    return {h: Errors(n[h], *(total / n[h])) for h, total in totals.items()}


def residuals(
    forecasters: Mapping[int, Forecaster], parts: Sequence[Part], length: int, stride: int
) -> Iterator[tuple[int, Float64[Tensor, "n channels horizon"], Float64[Tensor, "n channels 1"]]]:
    """Horizons, their forecasters' errors on windows, in normalized units, and the windows' spread, in batches."""
    deviation = next(iter(forecasters.values())).deviation
    computes = {its.use: its.features.compute for its in forecasters.values()}
    for x, futures in pairs(parts, length, list(forecasters), stride):
        seen = {name: compute(x) / deviation for name, compute in computes.items()}
        width = spread(x, deviation)
        for horizon, y in futures.items():
            its = forecasters[horizon]
            yield horizon, its.changes(seen[its.use][: len(y)]) - y / deviation, width[: len(y)]


def spread(
    x: Float[Tensor, "n channels length"], deviation: Float64[Tensor, "channels 1"]
) -> Float64[Tensor, "n channels 1"]:
    """What intervals grow with: each window's deviation in units of the training split's, plus a half."""
    return (x.double() - x[..., -1:]).std(2, keepdim=True, correction=0) / deviation + 0.5


def halves(
    forecasters: Mapping[int, Forecaster], parts: Sequence[Part], length: int, stride: int, level: float
) -> dict[int, Float64[Tensor, "channels horizon"]]:
    """The `half` of each forecaster: the least that covers the share `level` of new errors, or all errors if few."""
    kept: dict[int, list[Tensor]] = {}
    steps = sum(series.numel() for series, _ in parts) // stride
    for horizon, error, width in residuals(forecasters, parts, length, stride):
        thin = max(1, steps * horizon // (8 * PIECE))  # neighbours are nearly the same
        kept.setdefault(horizon, []).append((error[::thin].abs() / width[::thin]).float())
    found = {}
    for horizon, errors in kept.items():
        size = torch.cat(errors)
        rank = min(len(size), math.ceil((len(size) + 1) * level))
        found[horizon] = size.kthvalue(rank, dim=0).values.double()
    return found


def pairs(
    parts: Sequence[Part], length: int, horizons: Sequence[int], stride: int = 1
) -> Iterator[tuple[Float[Tensor, "n channels length"], dict[int, Float[Tensor, "m channels horizon"]]]]:
    """Windows, in batches, and for each horizon the steps after the first m of them, less their last value."""
    for series, first in parts:
        size = max(1, min(2048, PIECE // (len(series) * max(length, *horizons))))
        for start in torch.arange(*bounds(series, first, length, min(horizons)), stride).split(size):
            x = series.unfold(1, length, 1)[:, start].movedim(0, 1)
            x = x if x.is_floating_point() else x.double()
            futures = {}
            for horizon in horizons:
                after = start[start + length + horizon <= series.shape[1]] + length
                if len(after):
                    y = series.unfold(1, horizon, 1)[:, after].movedim(0, 1)
                    futures[horizon] = y.double() - x[: len(y), :, -1:]
            yield x, futures


def bounds(series: Shaped[Tensor, "channels time"], first: int, length: int, horizon: int) -> tuple[int, int]:
    """The first start of a window with `horizon` steps of the split after it, and the last such start plus 1."""
    low = max(0, first - length)
    return low, max(low, series.shape[1] - length - horizon + 1)


def check_horizons(split: str, parts: Sequence[Part], length: int, horizons: Sequence[int]) -> None:
    """Raise InputError for a horizon given twice, or with too few steps after every window of a split."""
    if not check_ints("horizons", horizons):
        raise InputError("horizons=[]: expected steps to forecast, such as [24,48]")
    if twice := repeated(horizons):
        raise InputError(f"horizons={list(horizons)}: {twice[0]} is given twice; expected each horizon once")
    for horizon in horizons:
        if not any(low < high for low, high in (bounds(*part, length, horizon) for part in parts)):
            longest = max((series.shape[1] - first for series, first in parts), default=0)
            raise InputError(
                f"horizons: {horizon}: no window of {length} steps has {horizon} steps after it in the {split} split, "
                f"whose longest stretch has {longest} steps; expected a shorter horizon, or other shares of the splits"
            )


def check_level(level: Any) -> None:
    """Raise InputError unless `level` is a share between 0 and 1."""
    if not 0 < check_number("level", level, 1) < 1:
        raise InputError(f"level={level}: expected a share between 0 and 1, such as 0.95")


def deviations(parts: Sequence[Part]) -> Float64[Tensor, "channels 1"]:
    """The standard deviation of each channel over the steps of the split; that of a constant channel is 1."""
    own = [series[:, first:] for series, first in parts]
    steps = max(1, PIECE // len(own[0]))

    def mean(value: Callable[[Tensor], Tensor]) -> Tensor:
        total = sum(value(piece.double()).sum(1, keepdim=True) for x in own for piece in x.split(steps, 1))
        assert isinstance(total, Tensor)
        return total / sum(x.shape[1] for x in own)

    center = mean(lambda x: x)
    deviation = mean(lambda x: (x - center).square()).sqrt()
    return deviation.where(deviation > 1e-12 * center.abs(), 1.0)


def sums(
    features: Mapping[str, Features],
    parts: Sequence[Part],
    length: int,
    horizons: Sequence[int],
    stride: int,
    deviation: Float64[Tensor, "channels 1"],
) -> dict[tuple[str, int], Sums]:
    """The sums over a split that the regressions need, by the name of the features and the horizon."""
    found: dict[tuple[str, int], Sums] = {}
    for x, futures in pairs(parts, length, horizons, stride):
        for name, its in features.items():
            every = with_one(its.compute(x) / deviation).transpose(0, 1)
            pooled = its.alike and every.shape[0] * every.shape[2] ** 2 > LARGE
            squares = dict[int, Tensor]()  # by the number of windows, which is the same for most horizons
            for horizon, future in futures.items():
                z, y = every[:, : len(future)], (future / deviation).transpose(0, 1)
                if pooled:
                    z, y = z.flatten(0, 1)[None], y.flatten(0, 1)[None]
                if len(future) not in squares:
                    squares[len(future)] = z.mT @ z
                own = found.setdefault((name, horizon), Sums.none(len(z), z.shape[2], horizon))
                own.zz += squares[len(future)]
                own.zy += z.mT @ y
                own.yy += y.square().sum((1, 2))
    return found
