"""What a latent is for, behind scikit-learn's interface: features, how strange samples are, and new samples."""

from __future__ import annotations

import copy
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, final

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin, clone
from sklearn.model_selection import KFold
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from msae.baselines import sample
from msae.data.module import NORMALIZATIONS, DataModule, Windows
from msae.errors import InputError, check_choice, check_int, check_number
from msae.models.ae import AutoEncoder
from msae.models.lgta import LGTA
from msae.models.msae import MultiScaleAutoEncoder
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses import anomaly, augmentation

EPOCH_STEPS = 50
"""Optimizer steps that an epoch has at least."""
BATCH = 2048
"""Samples that go through a fitted model at once."""
FOLDS, SHARE = 3, 0.1
"""Of `contamination="auto"`: the folds, and the share of outliers."""


def _msae(shape: Sequence[int], latent_dim: int, lr: float) -> Reconstructor:
    """The paper's model, its two codes of half of the latent each."""
    small = check_int("latent_dim", latent_dim, 2) // 2
    return MultiScaleAutoEncoder(shape, small_dim=small, large_dim=latent_dim - small, lr=lr)


def _lgta(shape: Sequence[int], latent_dim: int, lr: float) -> Reconstructor:
    """L-GTA, two values a step, with `beta` as in its config; windows of few steps have a smaller latent."""
    return LGTA(shape, steps=check_int("latent_dim", latent_dim, 2) // 2, step_dim=2, lr=lr, beta=0.01)


MODELS: dict[str, Callable[..., Reconstructor]] = {
    "pyramid": partial(PyramidAutoEncoder, schedule="cosine"),
    "single": partial(PyramidAutoEncoder, segments=(1,), schedule="cosine"),
    "ae": AutoEncoder,
    "msae": _msae,
    "lgta": _lgta,
}


class Samples(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Takes samples `(n, time)` or `(n, channels, time)`, all of the shape of those in `fit`."""

    sample_shape_: tuple[int, ...]
    _fitted = "model_"
    """The attribute that `fit` sets last."""

    def _windows(self, X: Any, reset: bool = False) -> Tensor:  # noqa: N803
        """Samples as float64 windows `(n, channels, length)`; ValueError unless they are as in `fit`."""
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
        several = values.ndim == 3 or (not reset and len(self.sample_shape_) == 2)  # else scikit-learn says it
        if not reset and several and values.shape[1:] != self.sample_shape_:
            raise InputError(f"X of shape {values.shape}: fitted to samples of shape {self.sample_shape_}")
        validate_data(self, X, reset=reset, skip_check_array=True)  # number and names of features
        if reset:
            self.sample_shape_ = values.shape[1:]
        x = torch.tensor(values)  # a copy: what is mapped read-only cannot be shared
        return x.unsqueeze(1) if x.ndim == 2 else x

    def _samples(self, windows: Tensor) -> NDArray[np.float64]:
        """Windows in the shape of the samples in `fit`."""
        return windows.double().reshape(-1, *self.sample_shape_).numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


class Estimator(Samples):
    """Trains a model on samples `(n, time)` or `(n, channels, time)`, as `python -m msae.train` does."""

    model: str
    latent_dim: int | float
    n_epochs: int
    lr: float
    batch_size: int
    normalize: str
    validation_fraction: float
    random_state: Any
    device: str
    verbose: int

    def fit(self, X: ArrayLike, y: Any = None) -> Self:  # noqa: N803
        """Train on samples `(n, time)` or `(n, channels, time)`; `y` is not used."""
        windows = Windows(self._windows(X, reset=True).float())
        value = {name: plain(value) for name, value in self.get_params(deep=False).items()}
        build = MODELS[check_choice("model", value["model"], MODELS)]
        device = _device(value["device"])
        check_choice("normalize", value["normalize"], NORMALIZATIONS)
        for name in ("n_epochs", "batch_size"):
            check_int(name, value[name])
        fraction = check_number("validation_fraction", value["validation_fraction"], 1)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        data = DataModule(
            windows,
            windows,  # no test split
            batch_size=value["batch_size"],
            val_size=min(int(fraction * len(windows)), len(windows) - 1),
            val_seed=seed,
            seed=seed,
            normalize=value["normalize"],
            epoch_steps=EPOCH_STEPS,
        )
        with _apart(seed):
            model = build(data.shape, latent_dim=self._latent(value["latent_dim"], data.shape), lr=value["lr"])
            model.set_statistics(**data.statistics)
            model.initialize(lambda: sample(data))
            self._check(model)  # the start may choose which scales there are
            best = _Best(data, bool(value["verbose"]))
            trainer = L.Trainer(
                **device,
                max_epochs=value["n_epochs"],
                callbacks=best,
                plugins=LightningEnvironment(),  # alone, whatever started this process
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            trainer.fit(model, datamodule=data)
        model.trainer = None  # which holds the data
        self.model_ = model.cpu().eval()
        self.history_ = best.history
        return self

    def _latent(self, latent_dim: Any, shape: Sequence[int]) -> Any:
        """The latent's values for samples of a shape."""
        return latent_dim

    def _check(self, model: Reconstructor) -> None:
        """Raise InputError for what cannot be used with a model about to be trained."""

    @property
    def _exact(self) -> Reconstructor:
        """The model in float64: its results do not depend on which samples go through it together."""
        return copy.deepcopy(self.model_).double()

    @torch.no_grad()
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Minus the mean squared error of each sample's reconstruction, `(n,)`, in scaled units."""
        windows, model = self._windows(X), self._exact
        errors = []
        for x in windows.split(BATCH):
            error = (model(x)[0] - x) / model.level(x)[1]
            errors.append(error.square().mean((1, 2)))
        return -torch.cat(errors).numpy()


@final
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

    def __init__(
        self,
        model: str = "pyramid",
        latent_dim: int | float = 16,
        n_epochs: int = 10,
        lr: float = 1e-3,
        batch_size: int = 64,
        normalize: str = "standard",
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.latent_dim = latent_dim
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.normalize = normalize
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

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


@final
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

    def __init__(
        self,
        contamination: float | str = "auto",
        by: str = "error",
        model: str = "pyramid",
        latent_dim: int | float = 16,
        n_epochs: int = 10,
        lr: float = 1e-3,
        batch_size: int = 64,
        normalize: str = "standard",
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.contamination = contamination
        self.by = by
        self.model = model
        self.latent_dim = latent_dim
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.normalize = normalize
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

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


@final
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

    def __init__(
        self,
        change: str = "jitter",
        strength: float = 0.5,
        scales: Sequence[str] | None = None,
        distance: float | None = None,
        copies: int = 1,
        model: str = "pyramid",
        latent_dim: int | float = 16,
        n_epochs: int = 10,
        lr: float = 1e-3,
        batch_size: int = 64,
        normalize: str = "standard",
        validation_fraction: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.change = change
        self.strength = strength
        self.scales = scales
        self.distance = distance
        self.copies = copies
        self.model = model
        self.latent_dim = latent_dim
        self.n_epochs = n_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.normalize = normalize
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

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


class _Best(L.Callback):
    """Keeps, in memory, the weights of the least `val/loss`, the start's among them, where samples are held out.

    Raises:
        InputError: the training loss is not finite.
    """

    def __init__(self, data: DataModule, verbose: bool) -> None:
        self.data = data
        self.verbose = verbose
        self.history: list[dict[str, float]] = []
        self.loss = math.inf
        self.weights: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Reconstructor)
        if len(self.data.val):
            with torch.no_grad():
                self._keep(float(pl_module.judged(self.data.val.x[:].to(pl_module.device))[0]), pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {
            key: float(trainer.callback_metrics[key]) for key in ("train/loss", "val/loss")[: 1 + bool(self.weights)]
        }
        if not math.isfinite(values["train/loss"]):
            raise InputError(f"the training loss is {values['train/loss']}: try an lr below {pl_module.hparams['lr']}")
        self.history.append(values)
        if self.verbose:
            losses = " ".join(f"{key}={value:.4g}" for key, value in values.items())
            print(f"epoch {len(self.history)} of {trainer.max_epochs}: {losses}")
        if self.weights:
            self._keep(values["val/loss"], pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.weights:
            pl_module.load_state_dict(self.weights)

    def _keep(self, loss: float, model: L.LightningModule) -> None:
        if loss < self.loss:
            self.loss, self.weights = loss, copy.deepcopy(model.state_dict())


@contextmanager
def _apart(seed: int) -> Iterator[None]:
    """Draws by a seed, and leaves torch's generators, warnings, loggers and Ctrl-C of the process as they were."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "msae")]
    levels = [logger.level for logger in loggers]
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings(), torch.random.fork_rng(range(torch.cuda.device_count())):
        warnings.simplefilter("ignore", PossibleUserWarning)
        for message in (".*LeafSpec.*is deprecated.*", "Total length of `list` across ranks is zero.*"):
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        torch.manual_seed(seed)
        try:
            yield
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # of which Lightning makes it
                raise KeyboardInterrupt from None
            raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _device(name: Any) -> dict[str, Any]:
    """A Trainer's arguments for a device; InputError where there is no such."""
    if name == "auto":
        return {"accelerator": "auto", "devices": 1}
    try:
        device = torch.device(name)
        there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (device.index or 0) >= there.get(device.type, 0):
            raise InputError(f"device={name}: there is none; expected auto, cpu, cuda, cuda:1 or mps")
    except (RuntimeError, TypeError):
        raise InputError(f"device={name}: expected auto, cpu, cuda, cuda:1 or mps") from None
    return {"accelerator": device.type, "devices": 1 if device.type == "cpu" else [device.index or 0]}


def plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item() if isinstance(value, np.generic) else value
