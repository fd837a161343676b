"""Features of whole series at several scales, behind scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from msae.errors import InputError, check_each, check_int
from msae.estimators.base import Samples, plain
from msae.estimators.transformer import MultiScaleTransformer

SHORTEST = 8
"""The least number of steps in a window, unless samples are shorter."""
OVERLAP = 8
"""The number of windows of one length that contain a step, away from the ends of a sample."""
WINDOWS = 5000
"""The greatest number of windows that a coder is fitted to; if there are more, they are drawn at random."""
BATCH = 1 << 16
"""The number of windows that are encoded at once, but at least those of one sample."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
STATISTICS = (*(f"q{quantile:g}" for quantile in QUANTILES), "mean", "std")


@final
class MultiScalePooler(TransformerMixin, Samples):  # type: ignore[misc]
    """Features for classification of time series: the distribution of the codes of short windows, at several scales.

    The latent of a whole sample depends on when something happens: two samples with the same events at other times are
    far apart in it. Here, each scale has overlapping windows of its own length, and a coder that is trained on
    them. A feature is a quantile, the mean or the standard deviation of one value of their codes, over the windows of
    the whole sample, of a half of it, or of a quarter. Each scale has the same number of features. (Features from the
    distribution of window codes are a bag of features, Baydogan et al. 2013; pooling parts too is spatial pyramid
    matching, Lazebnik et al. 2006.)

    Args:
        coder: a transformer that turns windows into codes `(n, values)`, as `MultiScaleTransformer` does; a clone is
            fitted for each scale. None is `MultiScaleTransformer("single", latent_dim=8, n_epochs=5)`.
        scales: the length of a sample is divided by each of these to give the length of a window, which is at least 8
            steps; a length that occurs twice is used once.
        parts: 1 pools the windows of a whole sample, 2 those of each half, and so on.
        random_state: for the coders and for the 5,000 windows that each is fitted to if there are more: a seed, a
            RandomState, or None.

    Attributes:
        coders_: the fitted coders, by the length of their windows.
        sample_shape_: (time,) or (channels, time).

    Raises:
        InputError: a ValueError, for an invalid parameter or for samples of another shape than in `fit`.

    Examples:
        >>> import numpy as np
        >>> from msae import MultiScalePooler, MultiScaleTransformer
        >>> X = np.random.default_rng(0).normal(size=(20, 48))  # 20 series of 48 steps
        >>> coder = MultiScaleTransformer("single", latent_dim=2, n_epochs=1, device="cpu")
        >>> pooler = MultiScalePooler(coder, scales=(1, 4), parts=(1, 2), random_state=0).fit(X)
        >>> list(pooler.coders_)  # the lengths of the windows
        [48, 12]
        >>> pooler.transform(X).shape  # 2 scales, 1 whole and 2 halves, 9 statistics of 2 values
        (20, 108)
        >>> str(pooler.get_feature_names_out()[-1])
        'window12_part2of2_std_1_1'
    """

    _fitted = "coders_"

    def __init__(
        self,
        coder: BaseEstimator | None = None,
        scales: Sequence[int] = (1, 2, 4, 8, 16, 32),
        parts: Sequence[int] = (1, 2, 4),
        random_state: Any = None,
    ) -> None:
        self.coder = coder
        self.scales = scales
        self.parts = parts
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803
        """Train a coder for each scale on samples `(n, time)` or `(n, channels, time)`; `y` is not used."""
        x = self._windows(X, reset=True).numpy()
        check_each("y", x if y is None else np.asarray(y), len(x), "samples")
        for name in ("scales", "parts"):
            values = getattr(self, name)
            if np.ndim(values) != 1 or not len(values):
                raise InputError(f"{name}={values}: expected a sequence of one or more whole numbers")
            for value in values:
                check_int(name, plain(value))
        coder = MultiScaleTransformer("single", latent_dim=8, n_epochs=5) if self.coder is None else self.coder
        random, time, coders = check_random_state(self.random_state), x.shape[2], {}
        for length in dict.fromkeys(min(time, max(SHORTEST, time // scale)) for scale in self.scales):
            own = clone(coder)
            if "random_state" in own.get_params():
                own.set_params(random_state=random.randint(2**31 - 1))
            windows = cut(x, length)
            n, positions = windows.shape[:2]
            drawn = np.sort(random.permutation(n * positions)[:WINDOWS])
            coders[length] = own.fit(windows[drawn // positions, drawn % positions])
        self.coders_ = coders
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Compute the features `(n, features)` of samples."""
        x = self._windows(X).numpy()
        return np.concatenate([self._pooled(x, length) for length in self.coders_], axis=1)

    def _pooled(self, x: NDArray[np.float64], length: int) -> NDArray[np.float64]:
        """The features of one scale, `(n, parts * statistics * values)`."""
        windows, found = cut(x, length), []
        positions = windows.shape[1]
        for some in np.array_split(windows, np.arange(step := max(1, BATCH // positions), len(x), step)):
            codes = self.coders_[length].transform(some.reshape(-1, *windows.shape[2:]))
            codes = np.asarray(codes).reshape(len(some), positions, -1)
            pooled = np.concatenate([statistics(part) for part in self._parts(codes)])
            found.append(pooled.transpose(1, 0, 2).reshape(len(some), -1))
        return np.concatenate(found)

    def _parts(self, codes: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """The codes of each part; neighbouring parts share a window if there are fewer windows than parts."""
        n = codes.shape[1]
        bounds = [
            (i * n // parts, max(i * n // parts + 1, (i + 1) * n // parts))
            for parts in self.parts
            for i in range(parts)
        ]
        return [codes[:, start:stop] for start, stop in bounds]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names such as `window24_part2of4_q0.5_1_0`; `input_features` is not used."""
        check_is_fitted(self, self._fitted)
        names = []
        for length, coder in self.coders_.items():
            parts = [f"part{i + 1}of{parts}" for parts in self.parts for i in range(parts)]
            values = coder.get_feature_names_out()
            names += [f"window{length}_{p}_{s}_{v}" for p, s, v in product(parts, STATISTICS, values)]
        return np.array(names, dtype=object)


def statistics(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """`STATISTICS` `(statistics, n, values)` over the positions of codes `(n, positions, values)`."""
    quantiles = np.quantile(codes, QUANTILES, axis=1)
    return np.concatenate([quantiles, codes.mean(1)[None], codes.std(1)[None]])


def cut(x: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """A view of samples `(n, channels, time)` as overlapping windows `(n, positions, channels, length)`."""
    views = np.lib.stride_tricks.sliding_window_view(x, length, axis=2)[:, :, :: max(1, length // OVERLAP)]
    return views.transpose(0, 2, 1, 3)
