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

    Training and all results stay in memory; no file is written.

    Args:
        model: `pyramid`, `single`, `ae`, `msae` or `lgta`; the documentation's page of models says when to use which.
        latent_dim: the number of values in the latent. `lgta` may use fewer. `pyramid` and `single` also accept a
            fraction below 1 of the number of values in a sample.
        n_epochs: the number of epochs. An epoch has at least 50 optimizer steps, so that a small data set is passed
            through several times in each.
        lr: Adam's learning rate.
        batch_size: the number of samples in a batch.
        normalize: `standard`, `minmax` or `none`, with the same statistics for all samples, channel by channel; or
            `window`, which normalizes each sample by its own mean and standard deviation and adds both to the latent.
        validation_fraction: the fraction of the samples that is held out to choose the epoch whose weights are kept;
            the weights before training are a candidate too. If it amounts to less than one sample, the weights of the
            last epoch are kept.
        random_state: a seed, a RandomState, or None.
        device: the device to train on: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. The fitted model is on the CPU.
        verbose: 1 prints a line for each epoch.

    Attributes:
        model_: the trained model; `model_.codes` gives the slice of the latent that belongs to each scale.
        history_: a dict for each epoch, with `train/loss` and, if samples were held out, `val/loss`.
        sample_shape_: (time,) or (channels, time).

    Raises:
        InputError: a ValueError, for an invalid parameter or for samples of another shape than in `fit`.

    Examples:
        >>> import numpy as np
        >>> from msae import MultiScaleTransformer
        >>> rng = np.random.default_rng(0)
        >>> X = np.sin(np.arange(32) / 3 + rng.uniform(0, 6, (40, 1)))  # 40 series of 32 steps
        >>> features = MultiScaleTransformer(latent_dim=4, n_epochs=1, random_state=0, device="cpu").fit(X)
        >>> Z = features.transform(X)
        >>> Z.shape
        (40, 4)
        >>> features.inverse_transform(Z).shape
        (40, 32)
    """

    model: str = "pyramid"  # the one argument that may be given by position

    @torch.no_grad()
    def transform(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Encode samples; returns latents `(n, latent)`."""
        windows, model = self._windows(X), self._exact
        return torch.cat([model.encode(x) for x in windows.split(BATCH)]).numpy()

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Decode latents `(n, latent)`; returns reconstructions in the shape and units of the samples in `fit`."""
        check_is_fitted(self, "model_")
        z = torch.tensor(check_array(X, dtype=np.float64))
        model = self._exact
        if z.shape[1] != model.latent_dim:
            raise InputError(f"latents of shape {tuple(z.shape)}: expected (n, {model.latent_dim})")
        return self._samples(torch.cat([model.decode(part) for part in z.split(BATCH)]))

    def score(self, X: ArrayLike, y: Any = None) -> float:  # noqa: N803
        """The mean of `score_samples`, by which a grid search compares transformers; `y` is not used."""
        return float(self.score_samples(X).mean())

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the latent's values, scale and index, such as `1_0`; `input_features` is not used."""
        check_is_fitted(self, "model_")
        codes = self.model_.codes.items()
        names = [f"{scale}_{i}" for scale, code in codes for i in range(code.stop - code.start)]
        return np.array(names, dtype=object)
