"""Outliers behind scikit-learn's interface."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OutlierMixin, clone
from sklearn.model_selection import KFold
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from msae.errors import InputError, check_choice, check_number
from msae.estimators.base import BATCH, Estimator, plain
from msae.uses import anomaly

FOLDS, SHARE = 3, 0.1
"""For `contamination="auto"`: the number of folds, and the fraction of outliers."""


@final
@dataclass(eq=False, repr=False)
class MultiScaleDetector(OutlierMixin, Estimator):  # type: ignore[misc]
    """Outliers among time series: samples that an autoencoder reconstructs badly.

    As everywhere in scikit-learn, low scores are anomalous: `score_samples`, `decision_function` and `score_series`
    return *minus* an error. The command `python -m msae.detect` writes scores whose *high* values are anomalous.

    The latent has at most half as many values as a sample, because a larger one reconstructs outliers as well.

    Args:
        contamination: the fraction of outliers, above 0 and at most 0.5, which sets the threshold. A number refers to
            the samples in `fit`; the model reconstructs them better than new samples, so that more of those are
            outliers. `auto` refers to new samples, a tenth of which become outliers: three folds are held out in
            turn, which takes three more trainings.
        by: `error` scores the reconstruction. `scales` compares the error and the code distance of each scale to their
            usual values in `fit` and takes the largest ratio, as `score=scales` of `python -m msae.detect` does.
        model: this and the other arguments are those of `MultiScaleTransformer`.

    Attributes:
        offset_: the threshold of `score_samples`, below which a sample is an outlier.
        reference_: with `by="scales"`, the codes and usual scores in `fit`; otherwise None.
        model_: this and the other attributes are those of `MultiScaleTransformer`.

    Raises:
        InputError: see `MultiScaleTransformer`.

    Examples:
        >>> import numpy as np
        >>> from msae import MultiScaleDetector
        >>> rng = np.random.default_rng(0)
        >>> X = np.sin(np.arange(32) / 3 + rng.uniform(0, 6, (40, 1)))  # 40 series of 32 steps
        >>> X[7, 10:20] = 0  # a sensor that stops
        >>> detector = MultiScaleDetector(0.05, latent_dim=4, n_epochs=1, random_state=0, device="cpu").fit(X)
        >>> int(detector.score_samples(X).argmin())  # low is anomalous
        7
        >>> int(detector.predict(X)[7])  # -1 for outliers
        -1
        >>> detector.score_series(np.sin(np.arange(100) / 3)).shape  # a score for each step of a longer series
        (100,)
    """

    contamination: float | str = "auto"
    by: str = "error"

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803
        """Train on samples `(n, time)` or `(n, channels, time)`, some of which may be outliers; `y` is not used."""
        share = SHARE if self.contamination == "auto" else check_number("contamination", plain(self.contamination), 0.5)
        if not share:
            raise InputError(f"contamination={self.contamination}: expected auto, or a number above 0 and at most 0.5")
        by = check_choice("by", plain(self.by), ("error", "scales"))
        super().fit(X, y)
        self.reference_ = anomaly.learn(self.model_, [self._windows(X)]) if by == "scales" else None
        x = self._samples(self._windows(X))
        scores = self.score_samples(X)
        if self.contamination == "auto" and len(x) >= FOLDS:
            alone = clone(self).set_params(contamination=share)
            folds = KFold(FOLDS, shuffle=True, random_state=0).split(x)
            scores = np.concatenate([alone.fit(x[kept]).score_samples(x[held_out]) for kept, held_out in folds])
        self.offset_ = float(np.quantile(scores, share))
        return self

    def _latent(self, latent_dim: Any, shape: Sequence[int]) -> Any:
        most = max(1, math.prod(shape) // 2)
        return most if isinstance(latent_dim, int) and latent_dim > most else latent_dim

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """The score of each sample, `(n,)`, low for outliers.

        It is minus the mean squared error of the reconstruction, in normalized units; with `by="scales"`, the mean of
        the sample's `score_series`.
        """
        windows = self._windows(X)
        if self.reference_ is None:
            return super().score_samples(X)
        scorer, n = anomaly.Scorer(self.model_, self.reference_.codes), windows.shape[2]
        found = [self._strange(scorer.windows(x)).unflatten(0, (-1, n)).mean(1) for x in windows.split(BATCH)]
        return -torch.cat(found).double().numpy()

    def _strange(self, found: anomaly.Scores) -> Tensor:
        """The anomaly score of each step, high where it is anomalous."""
        if self.reference_ is None:
            return found.total
        return anomaly.strangest(found.scales, self.reference_.usual)[2]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """`score_samples` minus `offset_`, `(n,)`: below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """-1 for outliers and 1 for inliers, `(n,)`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def score_series(self, series: ArrayLike) -> NDArray[np.float64]:
        """The score of each time step of one series, low where it is anomalous.

        It is minus the mean squared error, in normalized units, over all windows that contain the step; with
        `by="scales"`, minus the largest ratio of a scale's score to its usual value in `fit`.

        Args:
            series: `(time,)` or `(channels, time)`, at least as long as a sample in `fit`.

        Returns:
            Scores `(time,)`.
        """
        check_is_fitted(self, "model_")
        x = torch.tensor(check_array(np.atleast_2d(series), dtype=np.float64))
        scorer = anomaly.Scorer(self.model_, self.reference_.codes if self.reference_ else None)
        return -torch.cat([self._strange(part) for part in anomaly.scores(scorer, x)]).double().numpy()
