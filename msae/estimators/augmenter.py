"""New samples behind scikit-learn's interface."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from msae.errors import InputError, check_int
from msae.estimators.base import Estimator, plain
from msae.models.reconstructor import Reconstructor
from msae.uses import augmentation


@final
@dataclass(eq=False, repr=False)
class MultiScaleAugmenter(Estimator):
    """New samples from old ones, by changes of the latent of an autoencoder that `fit` trains.

    Args:
        change: `jitter`, `scaling`, `magnitude_warp`, `drift` or `mix`; see `msae.uses.augmentation.augment`.
        strength: of the change, the same for all samples: in deviations of the latent over the samples in `fit`, for
            `scaling` and `magnitude_warp` a share of the difference from their mean, for `mix` one of the way.
        scales: names of the codes to change, of `model_.codes`; None for all.
        distance: where given, in place of `strength`, how far each sample is changed: the root mean square, in
            deviations of the samples in `fit`, or with `normalize="window"` of each sample.
        copies: new samples for each old one.
        model: this and the other arguments are those of `MultiScaleTransformer`.

    Attributes:
        reference_: what strengths and distances are measured by.
        classes_: labels in `fit`, where there were any.
        model_: this and the others are those of `MultiScaleTransformer`.

    Raises:
        InputError: as `MultiScaleTransformer`; or a label that was not in `fit`.
    """

    change: str = "jitter"
    strength: float = 0.5
    scales: Sequence[str] | None = None
    distance: float | None = None
    copies: int = 1

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:  # noqa: N803
        """Train on samples `(n, time)` or `(n, channels, time)`, with labels `(n,)` that `mix` keeps apart."""
        super().fit(X)
        x, labels = self._windows(X), None
        self.classes_ = None if y is None else np.unique(column_or_1d(y))
        if y is not None:
            labels = self._labels(x, y)
        self.reference_ = augmentation.Reference.of(self.model_, x.float(), labels)
        return self

    def _check(self, model: Reconstructor) -> None:
        augmentation.check(model, self.change, plain(self.strength), self.scales, plain(self.distance))
        check_int("copies", plain(self.copies))

    def augment(self, X: ArrayLike, y: ArrayLike | None = None) -> NDArray[np.float64]:  # noqa: N803
        """New samples `(copies * n, ...)`: one of each of the samples, in their order, then the next of each.

        Args:
            X: samples, of the shape of those in `fit`.
            y: their labels `(n,)`, for `mix`, where there were any in `fit`.
        """
        x = self._windows(X)
        labels = None if y is None else self._labels(x, y)
        copies = check_int("copies", plain(self.copies))
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        made = augmentation.augment(
            self.model_,
            x.float().repeat(copies, 1, 1),
            self.reference_,
            self.change,
            plain(self.strength),
            y=None if labels is None else labels.repeat(copies),
            scales=self.scales,
            distance=plain(self.distance),
            generator=generator,
        )
        if short := int((~made.reached).sum()):
            warnings.warn(f"distance={self.distance}: {short} of {len(made.x)} new samples miss it", stacklevel=2)
        return self._samples(made.x)

    def fit_resample(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any]]:  # noqa: N803
        """Fit, then the samples and the new ones after them, `((1 + copies) * n, ...)`, with their labels."""
        made = self.fit(X, y).augment(X, y)
        x = self._samples(self._windows(X))
        return np.concatenate([x, made]), np.tile(column_or_1d(y), 1 + self.copies)

    def _labels(self, x: Tensor, y: ArrayLike) -> Tensor:
        """Labels by their numbers in `classes_`."""
        labels = column_or_1d(y)
        check_consistent_length(x, labels)
        known = [] if self.classes_ is None else self.classes_.tolist()
        if unknown := sorted({str(label) for label in labels.tolist() if label not in known}):
            raise InputError(
                f"label {unknown[0]}: expected one of those in fit, {', '.join(map(str, known)) or 'none'}"
            )
        return torch.tensor([known.index(label) for label in labels.tolist()])
