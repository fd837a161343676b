"""What the estimators share: samples of one shape, and a model trained on them in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from msae.baselines import sample
from msae.data.module import NORMALIZATIONS, DataModule, Windows
from msae.errors import InputError, check_choice, check_each, check_int, check_number
from msae.estimators.training import isolated, train, trainer_options
from msae.models.ae import AutoEncoder
from msae.models.lgta import LGTA
from msae.models.msae import MultiScaleAutoEncoder
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses.ranges import warn_of_far

EPOCH_STEPS = 50
"""The least number of optimizer steps in an epoch."""
BATCH = 2048
"""The number of samples that a fitted model takes at once."""


def _msae(shape: Sequence[int], latent_dim: int, lr: float) -> Reconstructor:
    """The paper's model, with half of the latent for each of its two codes."""
    small = check_int("latent_dim", latent_dim, 2) // 2
    return MultiScaleAutoEncoder(shape, small_dim=small, large_dim=latent_dim - small, lr=lr)


def _lgta(shape: Sequence[int], latent_dim: int, lr: float) -> Reconstructor:
    """L-GTA with two values a step and the `beta` of its config; short windows have a smaller latent."""
    return LGTA(shape, steps=check_int("latent_dim", latent_dim, 2) // 2, step_dim=2, lr=lr, beta=0.01)


MODELS: dict[str, Callable[..., Reconstructor]] = {
    "pyramid": partial(PyramidAutoEncoder, schedule="cosine"),
    "single": partial(PyramidAutoEncoder, segments=(1,), schedule="cosine"),
    "ae": AutoEncoder,
    "msae": _msae,
    "lgta": _lgta,
}


class Samples(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Checks samples, `(n, time)` or `(n, channels, time)`, which all have the shape of those in `fit`."""

    sample_shape_: tuple[int, ...]
    _fitted = "model_"
    """The attribute that `fit` sets at its end."""

    def _windows(self, X: Any, reset: bool = False) -> Tensor:  # noqa: N803
        """Samples as float64 windows `(n, channels, length)`; ValueError if their shape is not that in `fit`."""
        if not reset:
            check_is_fitted(self, self._fitted)
        values = check_array(
            X,
            dtype=np.float64,
            allow_nd=True,
            ensure_min_samples=2 if reset else 1,
            estimator=self,
            input_name="X",
        )
        if values.ndim > 3 or 0 in values.shape:
            raise InputError(f"X of shape {values.shape}: expected (n, time) or (n, channels, time)")
        several = values.ndim == 3 or (not reset and len(self.sample_shape_) == 2)  # otherwise scikit-learn raises
        if not reset and several and values.shape[1:] != self.sample_shape_:
            raise InputError(f"X of shape {values.shape}: expected samples of shape {self.sample_shape_}, as in fit")
        validate_data(self, X, reset=reset, skip_check_array=True)  # number and names of features
        if reset:
            self.sample_shape_ = values.shape[1:]
        x = torch.from_numpy(np.array(values, order="C"))  # a copy, as a read-only memory map cannot be shared
        return x.unsqueeze(1) if x.ndim == 2 else x

    def _samples(self, windows: Tensor) -> NDArray[np.float64]:
        """Windows as an array in the shape of the samples in `fit`."""
        return windows.double().reshape(-1, *self.sample_shape_).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


@dataclass(kw_only=True, eq=False, repr=False)
class Estimator(Samples):
    """Trains a model on samples `(n, time)` or `(n, channels, time)`, as `python -m msae.train` does.

    The fields are the arguments that all estimators share: `dataclass` writes `__init__`, whose signature
    scikit-learn's `get_params` and `clone` read.
    """

    _models: ClassVar[dict[str, Callable[..., Reconstructor]]] = MODELS

    model: str = "pyramid"
    latent_dim: int | float = 16
    n_epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 64
    normalize: str = "standard"
    validation_fraction: float = 0.1
    random_state: Any = None
    device: str = "auto"
    verbose: int = 0

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803
        """Train on samples `(n, time)` or `(n, channels, time)`; `y` is not used."""
        windows = Windows(self._windows(X, reset=True))
        check_each("y", windows if y is None else np.asarray(y), len(windows), "samples")
        fraction = check_number("validation_fraction", plain(self.validation_fraction), 1)
        return self._train(windows, val_size=min(int(fraction * len(windows)), len(windows) - 1))

    def _train(self, windows: Windows, **facts: Any) -> Self:
        """Train on windows; `facts` are the arguments of `DataModule` about validation, missing values and names."""
        value = {name: plain(value) for name, value in self.get_params(deep=False).items()}
        build = self._models[check_choice("model", self._model, self._models)]
        device = trainer_options(value["device"])
        check_choice("normalize", value["normalize"], NORMALIZATIONS)
        for name in ("n_epochs", "batch_size"):
            check_int(name, value[name])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        data = DataModule(
            windows,
            windows,  # no test split
            batch_size=value["batch_size"],
            val_seed=seed,
            seed=seed,
            normalize=value["normalize"],
            epoch_steps=EPOCH_STEPS,
            **facts,
        )
        with isolated(seed):
            model = build(data.shape, latent_dim=self._latent(value["latent_dim"], data.shape), lr=value["lr"])
            model.set_statistics(**data.statistics)
            model.initialize(lambda: sample(data))
            self._check(model)  # after the initialization, which may choose the scales
            self.history_ = train(model, data, value["n_epochs"], device, bool(value["verbose"]))
        self.model_ = model.cpu().eval()
        return self

    @property
    def _model(self) -> Any:
        """The name of the model to train."""
        return plain(self.model)

    def _latent(self, latent_dim: Any, shape: Sequence[int]) -> Any:
        """The `latent_dim` to use for samples of a shape."""
        return latent_dim

    def _check(self, model: Reconstructor) -> None:
        """Raise InputError for an argument that does not fit the model, before it is trained."""

    @property
    def _exact(self) -> Reconstructor:
        """The model in float64, whose results do not depend on which samples share a batch."""
        return copy.deepcopy(self.model_).double()

    @torch.no_grad()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Minus the mean squared error of each sample's reconstruction, `(n,)`, in normalized units."""
        windows, model = self._windows(X), self._exact
        warn_of_far(model, windows, set())
        errors = []
        for x in windows.split(BATCH):
            scaled = model.scaled(x)
            errors.append((model.decode_scaled(model.encode_scaled(scaled)) - scaled).square().mean((1, 2)))
        return -torch.cat(errors).numpy()


def plain(value: Any) -> Any:
    """A NumPy number as a Python number; other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value
