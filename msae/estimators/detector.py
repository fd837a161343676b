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
"""Of `contamination="auto"`: the folds, and the share of outliers."""


@final
@dataclass(eq=False, repr=False)
class MultiScaleDetector(OutlierMixin, Estimator):  # type: ignore[misc]
    """Outliers among time series: samples that an autoencoder trained on the others reconstructs badly.

    The latent is smaller than a sample, or all samples would be reconstructed: of at most half as many values.

    Args:
        contamination: which share of samples is outliers: above 0 and at most .5, of those in `fit`, which a model
            reconstructs better than new ones; or `auto`, a tenth of new ones, as samples that three folds held out in
            turn show it, for three times the training.
        by: what tells how strange something is: `error`, of the reconstruction; or `scales`, how many times what is
            usual in `fit` the error or the code distance of the strangest scale is, as `score=scales` of `msae.detect`.
        model: this and the other arguments are those of `MultiScaleTransformer`.

    Attributes:
        offset_: of `score_samples`, below which a sample is an outlier.
        reference_: what is usual in `fit`, by `scales`.
        model_: this and the others are those of `MultiScaleTransformer`.

    Raises:
        InputError: as `MultiScaleTransformer`.
    """

    contamination: float | str = "auto"
    by: str = "error"

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803
        """Train on samples `(n, time)` or `(n, channels, time)`, some of which may be outliers; `y` is not used."""
        share = SHARE if self.contamination == "auto" else check_number("contamination", plain(self.contamination), 0.5)
        if not share:
            raise InputError(f"contamination={self.contamination}: expected auto, or a number above 0 and at most .5")
        by = check_choice("by", plain(self.by), ("error", "scales"))
        super().fit(X)
        self.reference_ = anomaly.learn(self.model_, [self._windows(X).float()]) if by == "scales" else None
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
        """Minus how strange each sample is, `(n,)`: its error in scaled units, or by scales, the mean of its steps."""
        windows = self._windows(X)
        if self.reference_ is None:
            return super().score_samples(X)
        scorer, n = anomaly.Scorer(self.model_, self.reference_.codes), windows.shape[2]
        found = [self._strange(scorer.windows(x)).unflatten(0, (-1, n)).mean(1) for x in windows.float().split(BATCH)]
        return -torch.cat(found).double().numpy()

    def _strange(self, found: anomaly.Scores) -> Tensor:
        """How strange steps are."""
        if self.reference_ is None:
            return found.total
        return anomaly.strangest(found.scales, self.reference_.usual)[2]

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """`score_samples` less `offset_`, `(n,)`: below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """-1 for outliers, 1 for others, `(n,)`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def score_series(self, series: ArrayLike) -> NDArray[np.float64]:
        """The score of each time step of a series `(time,)` or `(channels, time)` of at least a sample's length.

        Minus the mean squared error, in scaled units, of all windows of a sample's length that hold the step; or by
        scales minus how many times what is usual in `fit` that of the strangest scale is.

        Returns:
            Scores `(time,)`.
        """
        check_is_fitted(self, "model_")
        x = torch.tensor(check_array(np.atleast_2d(series), dtype=np.float64)).float()
        scorer = anomaly.Scorer(self.model_, self.reference_.codes if self.reference_ else None)
        return -torch.cat([self._strange(part) for part in anomaly.scores(scorer, x)]).double().numpy()
