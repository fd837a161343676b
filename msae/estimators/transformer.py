"""Features behind scikit-learn's interface."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from msae.errors import InputError
from msae.estimators.base import BATCH, Estimator


@final
@dataclass(eq=False, repr=False)
class MultiScaleTransformer(TransformerMixin, Estimator):  # type: ignore[misc]
    """Features of time series: the latent of a multi-scale autoencoder that `fit` trains.

    Training and all results are in memory; no file is written.

    Args:
        model: `pyramid`, `single`, `ae`, `msae` or `lgta`; see the README's "When to use which".
        latent_dim: values in the latent, of `lgta` at most; of `pyramid` and `single` also a share of a sample's values
            below 1.
        n_epochs: epochs of at least 50 optimizer steps: few samples are gone through several times in each.
        lr: Adam's learning rate.
        batch_size: samples in a batch.
        normalize: what samples are scaled by: `standard`, `minmax` or `none`, each channel alike in all samples; or
            `window`, each sample by itself, whose mean and deviation are then values of the latent.
        validation_fraction: share of the samples that only chooses the epoch whose weights are kept, the start among
            them; of so few that it is less than one sample, or for 0, the last epoch's are kept.
        random_state: a seed, a RandomState, or None.
        device: to train on: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; a fitted model is on the CPU.
        verbose: 1 prints a line for each epoch.

    Attributes:
        model_: the trained model; `model_.codes` are the slices of the latent that each scale wrote.
        history_: a dict for each epoch, with `train/loss` and, where samples were held out, `val/loss`.
        sample_shape_: (time,) or (channels, time).

    Raises:
        InputError: a ValueError, of a parameter that cannot be used or samples that are not of the shape of those in
            `fit`.
    """

    model: str = "pyramid"  # also by position

    @torch.no_grad()
    def transform(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Latents `(n, latent)` of samples."""
        windows, model = self._windows(X), self._exact
        return torch.cat([model.encode(x) for x in windows.split(BATCH)]).numpy()

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Reconstructions, in the shape and the units of the samples in `fit`, of latents `(n, latent)`."""
        check_is_fitted(self, "model_")
        z = torch.tensor(check_array(X, dtype=np.float64))
        model = self._exact
        if z.shape[1] != model.latent_dim:
            raise InputError(f"latents of shape {tuple(z.shape)}: expected (n, {model.latent_dim})")
        return self._samples(torch.cat([model.decode(part) for part in z.split(BATCH)]))

    def score(self, X: ArrayLike, y: Any = None) -> float:  # noqa: N803
        """Mean of `score_samples`, by which a grid search can compare transformers; `y` is not used."""
        return float(self.score_samples(X).mean())

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the latent's values, by scale and index, such as `1_0`; `input_features` is not used."""
        check_is_fitted(self, "model_")
        codes = self.model_.codes.items()
        names = [f"{scale}_{i}" for scale, code in codes for i in range(code.stop - code.start)]
        return np.array(names, dtype=object)
