"""Ridge regressions for all penalties, look-backs and channels, from sums of products that are added up in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def with_one(z: Float[Tensor, "n channels features"]) -> Float64[Tensor, "n channels features_and_1"]:
    """Features with a column of ones before them."""
    return torch.cat([torch.ones(*z.shape[:2], 1, dtype=torch.float64), z.double()], 2)


@dataclass
class Sums:
    """Sums of products of features, with a one before them, and of futures, for each channel or for all together."""

    zz: Float64[Tensor, "groups features_and_1 features_and_1"]
    zy: Float64[Tensor, "groups features_and_1 horizon"]
    yy: Float64[Tensor, " groups"]

    @classmethod
    def none(cls, groups: int, features: int, horizon: int) -> Sums:
        """Sums over no windows."""
        return cls(
            *(torch.zeros(groups, *shape, dtype=torch.float64) for shape in ((features,) * 2, (features, horizon), ()))
        )

    def together(self) -> Sums:
        """The sums over all channels."""
        return Sums(*(value.sum(0, keepdim=True) for value in (self.zz, self.zy, self.yy)))


def candidates(
    sizes: Mapping[int, int], alike: bool, train: Sums, val: Sums, alphas: Sequence[float]
) -> Iterator[tuple[float, int, bool, float, Float64[Tensor, "groups features_and_1 horizon"]]]:
    """What the validation split chooses from.

    Args:
        sizes: the look-backs, and the number of features that each sees.
        alike: whether one regression can serve all channels.
        train: the sums of the windows that regressions are fitted to.
        val: those of the windows that choose the penalty.
        alphas: the candidates for the penalty.

    Yields:
        The mean squared error on the validation split, look-back, whether each channel has a regression, penalty and
        weights.
    """
    ways = [(False, train.together(), val.together())] if alike else []
    ways += [(True, train, val)] if len(train.zz) > 1 or not alike else []
    for each, fitted, judged in ways:
        for look_back, size in sizes.items():
            found = [Ridge(fitted, judged, group, size) for group in range(len(fitted.zz))]
            errors, alpha = min((sum(its.error(alpha) for its in found), alpha) for alpha in alphas)
            n = float(judged.zz[:, 0, 0].sum()) * judged.zy.shape[2]
            yield errors / n, look_back, each, alpha, torch.stack([its.weights(alpha) for its in found])


class Ridge:
    """Ridge regressions of one group on a one and its first features, penalized as if their mean squares were 1.

    The one is penalized too: with a great penalty the forecast is the last value. In the axes of the products of the
    features the regressions of all penalties, and their errors on other windows, cost little more than one.
    """

    def __init__(self, train: Sums, val: Sums, group: int, size: int) -> None:
        zz, zy = train.zz[group, : size + 1, : size + 1], train.zy[group, : size + 1]
        squares = zz.diag() / zz[0, 0]
        width = (squares > 0) / squares.where(squares > 0, 1.0).sqrt()
        self.values, axes = torch.linalg.eigh(zz * width.outer(width))
        self.values = self.values.clamp_min(0)
        self.axes = width[:, None] * axes
        self.right = self.axes.mT @ zy
        zz, zy = val.zz[group, : size + 1, : size + 1], val.zy[group, : size + 1]
        self.yy = val.yy[group]
        self.cross = (self.right * (self.axes.mT @ zy)).sum(1)
        self.products = (self.axes.mT @ zz @ self.axes) * (self.right @ self.right.mT)

    def error(self, alpha: float) -> float:
        """The sum of the squared errors on the windows of the other split."""
        shrunk = 1 / (self.values + alpha)
        return float(self.yy - 2 * shrunk @ self.cross + shrunk @ self.products @ shrunk)

    def weights(self, alpha: float) -> Float64[Tensor, "features_and_1 horizon"]:
        """The weights of 1 and of the features."""
        found: Tensor = self.axes @ (self.right / (self.values + alpha)[:, None])
        return found
