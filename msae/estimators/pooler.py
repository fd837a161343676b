"""Features of whole series at several scales, behind scikit-learn's interface."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _check_feature_names, check_is_fitted
from torch import Tensor
from torch.nn.functional import pad

from msae.errors import InputError, check_each, check_int
from msae.estimators.base import plain
from msae.estimators.directions import Directions, drawn, learn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAPS = 9
"""The number of values in a window, fewer if all samples are shorter."""
GROUPS = 8
"""The number of random groups of channels of each scale, where there are several channels."""
MARGIN = 1e-5
"""What is added to thresholds, so that rounding does not decide where responses equal them, as in flat series."""
BATCH = 1 << 18
"""The number of responses that are computed at once, but at least those of one sample."""


@final
class MultiScalePooler(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Features for classification of time series: how often short windows, at several scales, look like learned shapes.

    A window is 9 values, `dilation` steps apart. Each scale is a dilation: 1, 2, 4, ... up to the longest window that a
    series holds. The windows of the training series, less their mean, are coded by whitened PCA, the linear autoencoder
    of least error with codes of equal variance. The directions of a scale are the centres of k-means of these codes,
    brought to length 1 (Coates and Ng 2012). A feature is the share of a series' windows whose product with a
    direction is above a quantile of the products in training, as in MiniRocket (arXiv:2012.08791), whose directions are
    fixed. Every second direction also sees windows that overlap the ends, where the first and last value are repeated.
    Windows of first differences have directions of their own. With several channels, directions are learned in 8 random
    groups of channels.

    Series may be of any length, in `transform` too: give a list of arrays `(time,)` or `(channels, time)`, an array
    `(n, channels, time)`, or pad them by NaN at either end. Windows that contain NaN do not count. If none is left, a
    feature has its mean in training.

    Args:
        directions: the number of directions of each scale, fewer where there are fewer different windows.
        thresholds: the number of quantiles of the responses to a direction.
        parts: 1 pools the windows of a whole series, 2 those of each half, and so on.
        dilations: None for 1, 2, 4, ...
        random_state: for the windows that are learned from, k-means and groups of channels: a seed, a RandomState, or
            None.

    Attributes:
        scales_: the learned `Directions`.
        mean_, deviation_: of the training values of each channel; series are normalized by them.

    Raises:
        InputError: a ValueError, for an invalid parameter or for samples that have other channels than in `fit`.

    Examples:
        >>> import numpy as np
        >>> from sklearn.linear_model import RidgeClassifierCV
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from msae import MultiScalePooler
        >>> rng = np.random.default_rng(0)
        >>> X, y = rng.normal(size=(40, 48)), np.arange(40) % 2  # 40 series of 48 steps
        >>> X[y == 1] = X[y == 1].cumsum(1)
        >>> pooler = MultiScalePooler(random_state=0).fit(X)
        >>> pooler.transform(X).shape  # dilations 1, 2 and 4 of values and of differences, 64 directions, 8 thresholds
        (40, 3072)
        >>> pooler.transform([X[0], X[1, :30]]).shape  # of other lengths
        (2, 3072)
        >>> str(pooler.get_feature_names_out()[-1])
        'difference_window33_dilation4_direction63_q0.9375_part1of1'
        >>> make_pipeline(pooler, StandardScaler(), RidgeClassifierCV()).fit(X, y).score(X, y)
        1.0
    """

    def __init__(
        self,
        directions: int = 64,
        thresholds: int = 8,
        parts: Sequence[int] = (1,),
        dilations: Sequence[int] | None = None,
        random_state: Any = None,
    ) -> None:
        self.directions = directions
        self.thresholds = thresholds
        self.parts = parts
        self.dilations = dilations
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803
        """Learn from samples `(n, time)` or `(n, channels, time)`, or a list of series; `y` is not used."""
        series = self._series(X, reset=True)
        check_each("y", series if y is None else np.asarray(y), len(series), "samples")
        check_int("directions", plain(self.directions))
        check_int("thresholds", plain(self.thresholds))
        for name in ("parts", "dilations") if self.dilations is not None else ("parts",):
            values = getattr(self, name)
            if np.ndim(values) != 1 or not len(values):
                raise InputError(f"{name}={values}: expected a sequence of one or more whole numbers")
            for value in values:
                check_int(name, plain(value))
        every = np.concatenate(series, axis=1)
        there = ~np.isnan(every)
        if not there.any(1).all():
            raise InputError(f"X: no value in channel {np.flatnonzero(~there.any(1))[0]}")
        self.mean_, deviation = np.nanmean(every, axis=1), np.nanstd(every, axis=1)
        self.deviation_ = np.where(deviation > 0, deviation, 1.0)
        longest = max(each.shape[1] for each in series)
        self.taps_ = min(TAPS, longest)
        random, scales = check_random_state(self.random_state), []
        batches = [x for _, x in self._batches(series)]
        for differences in (False, True):
            values = [x.diff(dim=2) if differences else x for x in batches]
            for dilation in self._dilations(longest - differences):
                for channels, count in self._groups(random):
                    windows = drawn([x[:, channels] for x in values], self.taps_, dilation, random)
                    if len(windows):
                        weights, shapes = learn(windows, count, random)
                        levels = np.quantile(windows.reshape(len(windows), -1) @ weights.T, self._levels(), axis=0)
                        made = [torch.from_numpy(of.astype(np.float32)) for of in (weights, levels.T + MARGIN)]
                        scales.append(Directions(differences, dilation, channels, made[0], shapes, made[1]))
        if not scales:
            raise InputError(f"X: no window of {self.taps_} steps without NaN")
        self.scales_ = scales
        return self

    def _dilations(self, time: int) -> list[int]:
        """The dilations whose windows series of this length hold."""
        if self.dilations is not None:
            return [int(dilation) for dilation in self.dilations if (self.taps_ - 1) * dilation < time]
        most = (time - 1) // (self.taps_ - 1) if self.taps_ > 1 else time
        return [2**i for i in range(max(most, 0).bit_length())]

    def _groups(self, random: np.random.RandomState) -> Iterator[tuple[list[int], int]]:
        """Groups of channels, most of them small as in MiniRocket, and how many directions are learned for each."""
        count, groups = len(self.mean_), 1 if len(self.mean_) == 1 else min(GROUPS, int(self.directions))
        for i in range(groups):
            size = int(2 ** random.uniform(0, math.log2(min(count, TAPS) + 1))) if count > 1 else 1
            channels = np.sort(random.permutation(count)[:size]).tolist()
            yield channels, (i + 1) * self.directions // groups - i * self.directions // groups

    def _levels(self) -> NDArray[np.float64]:
        """The quantiles of training responses that are thresholds."""
        return (np.arange(self.thresholds) + 0.5) / self.thresholds

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:  # noqa: N803
        """Compute the features `(n, features)`, shares from 0 to 1, of samples or a list of series."""
        check_is_fitted(self, "scales_")
        series = self._series(X)
        found = np.empty((len(series), len(self._places())), np.float32)
        for which, x in self._batches(series):
            differences = x.diff(dim=2)
            pooled = [self._pooled(differences if its.differences else x, its) for its in self.scales_]
            found[which] = torch.cat(pooled, dim=1).numpy()
        return found

    def _pooled(self, x: Tensor, its: Directions) -> Tensor:
        """The features `(n, directions * thresholds * parts)` of samples `(n, channels, time)` in one scale."""
        n, directions = len(x), len(its.weights)
        expected = torch.from_numpy(1 - self._levels()).float()[:, None]
        found = expected.expand(n, directions, -1, sum(self.parts)).clone()
        reach = (self.taps_ - 1) * its.dilation
        for padded in (False, True):
            own, thresholds = its.weights[padded::2].contiguous(), its.thresholds[padded::2, :, None]
            some = x[:, its.channels]
            if padded and some.shape[2]:
                some = pad(some, (reach // 2, reach - reach // 2), mode="replicate")
            positions = some.shape[2] - reach
            if positions < 1 or not len(own):
                continue
            for first in range(0, n, step := max(1, BATCH // (len(own) * positions))):
                windows = some[first : first + step].unfold(2, positions, its.dilation).flatten(1, 2)
                responses = own @ windows  # (step, directions, positions)
                above, seen = torch.empty_like(responses), ~responses[:, :1].isnan()
                for i, (start, stop) in enumerate(bounds(positions, self.parts)):
                    there = seen[..., start:stop].sum(2)
                    for j in range(self.thresholds):
                        torch.sub(responses, thresholds[:, j], out=above).gt_(0)  # NaN is not above
                        share = above[..., start:stop].sum(2) / there
                        found[first : first + step, padded::2, j, i] = share.where(there > 0, expected[j])
        return found.flatten(1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names such as `value_window33_dilation4_direction7_q0.9375_part1of1`; `input_features` is not used.

        They tell the number of steps that a window spans, its dilation, with several channels its channels, the
        direction, the quantile of training responses that is the threshold, and the part of the series.
        """
        check_is_fitted(self, "scales_")
        names = []
        for its, direction, threshold, part in self._places():
            where = f"window{(self.taps_ - 1) * its.dilation + 1}_dilation{its.dilation}"
            if len(self.mean_) > 1:
                where += f"_channel{'+'.join(map(str, its.channels))}"
            kind = "difference" if its.differences else "value"
            names.append(f"{kind}_{where}_direction{direction}_q{self._levels()[threshold]:g}_{part}")
        return np.array(names, dtype=object)

    def _places(self) -> list[tuple[Directions, int, int, str]]:
        """Scale, direction, threshold and part of each feature; directions count through the groups of a scale."""
        names = [f"part{i + 1}of{parts}" for parts in self.parts for i in range(parts)]
        places, before, first = [], None, 0
        for its in self.scales_:
            first = first if (its.differences, its.dilation) == before else 0
            places += [
                (its, first + i, j, part)
                for i in range(len(its.weights))
                for j in range(self.thresholds)
                for part in names
            ]
            before, first = (its.differences, its.dilation), first + len(its.weights)
        return places

    def explain(self, feature: str, ax: Axes | None = None) -> dict[str, Any]:
        """The shape that a feature looks for, drawn into `ax` if given.

        Args:
            feature: a name of `get_feature_names_out`.
            ax: matplotlib's axes.

        Returns:
            `steps (taps,)` from the start of a window; `shape (channels, taps)`, the values there less their mean, in
            raw units (or their differences), as large as `sqrt(values)` times less than a typical window;
            `channels`; `dilation`; `differences`; and the `threshold` of the response, in normalized units.
        """
        check_is_fitted(self, "scales_")
        names = list(self.get_feature_names_out())
        if feature not in names:
            raise InputError(f"feature={feature}: expected a name of get_feature_names_out(), such as {names[0]}")
        its, direction, threshold, _ = self._places()[names.index(feature)]
        same = [s for s in self.scales_ if (s.differences, s.dilation) == (its.differences, its.dilation)]
        own = direction - sum(len(s.weights) for s in same[: same.index(its)])
        steps = np.arange(self.taps_) * its.dilation
        shape = its.shapes[own] * self.deviation_[its.channels, None]
        if ax is not None:
            for channel, values in zip(its.channels, shape, strict=True):
                ax.plot(steps, values, marker="o", label=f"channel {channel}")
            ax.set(title=feature, xlabel="step", ylabel="difference" if its.differences else "value less its mean")
            if len(its.channels) > 1:
                ax.legend()
        return {
            "steps": steps,
            "shape": shape,
            "channels": its.channels,
            "dilation": its.dilation,
            "differences": its.differences,
            "threshold": float(its.thresholds[own, threshold]),
        }

    def _series(self, X: Any, reset: bool = False) -> list[NDArray[np.float64]]:  # noqa: N803
        """Samples as series `(channels, time)` without the NaN at their ends."""
        if isinstance(X, (list, tuple)) and len({np.shape(x)[-1:] for x in X}) > 1:
            arrays = [self._array(np.asarray(x)[None]) for x in X]
            if len({x.shape[1] for x in arrays}) > 1:
                raise InputError("X: series with different numbers of channels")
            each = [x[0] for x in arrays]
        else:
            each = list(self._array(X, reset, same=not reset and not isinstance(X, (list, tuple))))
            _check_feature_names(self, X, reset=reset)
        channels = len(each[0])
        if reset:
            self.n_features_in_ = each[0].shape[1]
        elif channels != len(self.mean_):
            raise InputError(f"X: {channels} channels; expected {len(self.mean_)}, as in fit")
        found = []
        for i, x in enumerate(each):
            there = np.flatnonzero(~np.isnan(x).all(0))
            if not len(there):
                raise InputError(f"X: no value in sample {i}")
            found.append(x[:, there[0] : there[-1] + 1])
        return found

    def _array(self, X: Any, reset: bool = False, same: bool = False) -> NDArray[np.float64]:  # noqa: N803
        """Samples `(n, channels, time)`; with `same`, columns have to be as many as in fit."""
        least = 2 if reset else 1
        options: dict[str, Any] = {"allow_nd": True, "ensure_all_finite": "allow-nan", "ensure_min_samples": least}
        values: NDArray[np.float64] = check_array(X, dtype=np.float64, estimator=self, input_name="X", **options)
        if values.ndim > 3 or 0 in values.shape:
            raise InputError(f"X of shape {values.shape}: expected (n, time) or (n, channels, time)")
        if same and values.ndim == 2 and values.shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {values.shape[1]} features, but MultiScalePooler is expecting {self.n_features_in_} features "
                "as input; give series of another length as a list, or as (n, channels, time)"
            )
        return values[:, None] if values.ndim == 2 else values

    def _batches(self, series: list[NDArray[np.float64]]) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """The numbers of the series of each length, and these series `(n, channels, time)`, normalized."""
        lengths = np.array([x.shape[1] for x in series])
        for length in np.unique(lengths):
            which = np.flatnonzero(lengths == length)
            x = (np.stack([series[i] for i in which]) - self.mean_[:, None]) / self.deviation_[:, None]
            yield which, torch.from_numpy(x.astype(np.float32))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def bounds(positions: int, parts: Sequence[int]) -> list[tuple[int, int]]:
    """The positions of each part; neighbouring parts share one if there are fewer positions than parts."""
    cuts = [(i * positions // k, (i + 1) * positions // k) for k in parts for i in range(k)]
    return [(start, max(start + 1, stop)) for start, stop in cuts]
