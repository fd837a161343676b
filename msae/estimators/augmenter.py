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
        strength: the strength of the change, the same for all samples: for `jitter` and `drift` in standard deviations
            of the latent over the samples in `fit`, for `scaling` and `magnitude_warp` as a fraction of the
            difference from their mean, for `mix` as a fraction of the way to the other sample.
        scales: the names of the codes to change, from `model_.codes`; None changes all.
        distance: if given, replaces `strength`: the root mean square difference between new and old sample, in
            standard deviations of the samples in `fit`, or of each sample with `normalize="window"`.
        copies: the number of new samples for each old one.
        model: this and the other arguments are those of `MultiScaleTransformer`.

    Attributes:
        reference_: the statistics in `fit` by which strengths and distances are measured.
        classes_: the labels in `fit`, or None.
        model_: this and the other attributes are those of `MultiScaleTransformer`.

    Raises:
        InputError: see `MultiScaleTransformer`; also for a label that was not in `fit`.

    Examples:
        >>> import numpy as np
        >>> from msae import MultiScaleAugmenter
        >>> rng = np.random.default_rng(0)
        >>> X = np.sin(np.arange(32) / 3 + rng.uniform(0, 6, (40, 1)))  # 40 series of 32 steps
        >>> y = np.repeat(["up", "down"], 20)
        >>> augmenter = MultiScaleAugmenter("jitter", 0.3, latent_dim=4, n_epochs=1, random_state=0, device="cpu")
        >>> X_more, y_more = augmenter.fit_resample(X, y)
        >>> X_more.shape, y_more.shape
        ((80, 32), (80,))
        >>> augmenter.augment(X[:5]).shape
        (5, 32)
    """

    change: str = "jitter"
    strength: float = 0.5
    scales: Sequence[str] | None = None
    distance: float | None = None
    copies: int = 1

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:  # noqa: N803
        """Train on samples `(n, time)` or `(n, channels, time)`; `mix` mixes only samples of one label `y`, `(n,)`."""
        super().fit(X, y)
        x, labels = self._windows(X), None
        self.classes_ = None if y is None else np.unique(column_or_1d(y))
        if y is not None:
            labels = self._labels(x, y)
        self.reference_ = augmentation.Reference.of(self.model_, x, labels)
        return self

    def _check(self, model: Reconstructor) -> None:
        augmentation.check(model, self.change, plain(self.strength), self.scales, plain(self.distance))
        check_int("copies", plain(self.copies))

    def augment(self, X: ArrayLike, y: ArrayLike | None = None) -> NDArray[np.float64]:  # noqa: N803
        """New samples `(copies * n, ...)`: one for each old sample, in their order, then the second of each, and so on.

        Args:
            X: samples, of the shape of those in `fit`.
            y: their labels `(n,)`, which `mix` needs if `fit` had labels.
        """
        x = self._windows(X)
        labels = None if y is None else self._labels(x, y)
        copies = check_int("copies", plain(self.copies))
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        made = augmentation.augment(
            self.model_,
            x.to(self.model_.raw_dtype).repeat(copies, 1, 1),
            self.reference_,
            self.change,
            plain(self.strength),
            y=None if labels is None else labels.repeat(copies),
            scales=self.scales,
            distance=plain(self.distance),
            generator=generator,
        )
        if short := int((~made.reached).sum()):
            warnings.warn(
                f"distance={self.distance}: {short} of {len(made.x)} new samples do not reach it", stacklevel=2
            )
        return self._samples(made.x)

    def fit_resample(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[Any]]:  # noqa: N803
        """Fit; return the old samples followed by the new ones, `((1 + copies) * n, ...)`, and their labels."""
        made = self.fit(X, y).augment(X, y)
        x = self._samples(self._windows(X))
        return np.concatenate([x, made]), np.tile(column_or_1d(y), 1 + self.copies)

    def _labels(self, x: Tensor, y: ArrayLike) -> Tensor:
        """The index in `classes_` of each label."""
        labels = column_or_1d(y)
        check_consistent_length(x, labels)
        known = [] if self.classes_ is None else self.classes_.tolist()
        if unknown := sorted({str(label) for label in labels.tolist() if label not in known}):
            raise InputError(
                f"label {unknown[0]}: expected a label that was in fit: {', '.join(map(str, known)) or 'none'}"
            )
        return torch.tensor([known.index(label) for label in labels.tolist()])
