"""The base class of every model: what a model has to define, and what all models have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from msae.errors import InputError, check_choice, check_int, check_ints, check_number
from msae.models.layers import window_level
from msae.models.metrics import MeanPSNR, squared_error
from msae.models.regularizers import REGULARIZERS, kl_divergence, squared_correlation
from msae.models.steps import MultiStepModule

Scalar = Float[Tensor, ""]


class Reconstructor(MultiStepModule):
    """A model that encodes a window to a latent and decodes the latent to the window.

    A model is one final class. Its constructor takes `shape` and plain scalars, calls `super().__init__`, then
    `self.save_hyperparameters(logger=False)`, builds its nets and sets `codes`. It defines `encode_scaled` and
    `decode_scaled`; also `initialize` where its weights start from data, `stages_scaled` where its scales add up, and
    `penalties` where its loss has further terms. Everything else is defined here.

    Args:
        shape: (channels, length) of a window, or (channels, rows, columns) of an image that is read row by row.
        lr, gradient_clip_val, schedule: see `MultiStepModule`.
        regularizer: of the latent: `none`; `kl`, which makes the model a variational autoencoder (arXiv 1312.6114):
            the encoder gives the mean of a Gaussian, whose log variance is linear in it; or `decorrelate`, the mean
            squared correlation of latent values in different codes (of all latent values where there is one code).
        beta: weight of the regularizer relative to the MSE. The divergence of `kl` is divided by the number of values
            in a window, so that beta is twice the variance of a Gaussian observation model.
        free_bits: nats below which `kl` does not reduce the divergence of a latent value (arXiv 1606.04934).
        anneal: share of the run's steps in which the weight rises linearly from 0 to `beta`.
        compile: whether training steps go through `torch.compile`, on a GPU with CUDA graphs; not saved in checkpoints.

    Attributes:
        grid: (length,), or (rows, columns).
        value_range: least and greatest value of the training data, or with `bounded` the limits of all data.
        bounded: whether no value of the data can leave `value_range`, so that reconstructions may be clipped to it.
        per_window: whether each channel of each window is normalized by its own mean and deviation. Since raw units
            cannot be restored without these, they are appended to the latent, as the code `level`.
        missing: whether windows may hold NaN, which is encoded as a normalized 0 and left out of loss and metrics.
        names: names of the channels of the training data, or None.
        data_options: the config of the training data as plain values by name, `_target_` among them, by which a use
            reads new files; None after training without a config.

    Raises:
        InputError: an argument out of range.

    Examples:
        The smallest model:

        >>> class Linear(Reconstructor):
        ...     def __init__(self, shape, latent_dim=3, **training):
        ...         super().__init__(shape, **training)
        ...         self.save_hyperparameters(logger=False)
        ...         self.down = nn.Linear(self.channels * self.length, latent_dim)
        ...         self.up = nn.Linear(latent_dim, self.channels * self.length)
        ...         self.codes = {"whole": slice(0, latent_dim)}
        ...
        ...     def encode_scaled(self, x):
        ...         return self.down(x.flatten(1))
        ...
        ...     def decode_scaled(self, z):
        ...         return self.up(z).unflatten(1, (self.channels, self.length))
        >>> x_hat, z = Linear(shape=(2, 8))(torch.zeros(5, 2, 8))
        >>> x_hat.shape, z.shape
        (torch.Size([5, 2, 8]), torch.Size([5, 3]))
    """

    offset: Tensor
    scale: Tensor
    value_range: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        lr: float = 1e-3,
        gradient_clip_val: float | None = None,
        schedule: str = "constant",
        regularizer: str = "none",
        beta: float = 1.0,
        free_bits: float = 0.0,
        anneal: float = 0.0,
        compile: bool = False,  # noqa: A002  (torch's name)
    ) -> None:
        super().__init__(lr, gradient_clip_val, schedule, beta, anneal, compile)
        self.channels = check_int("channels of shape", shape[0])
        self.grid = tuple(check_ints("length of shape", shape[1:]))
        self.length = math.prod(self.grid)
        self.regularizer = check_choice("regularizer", regularizer, REGULARIZERS)
        self.free_bits = check_number("free_bits", free_bits)
        if self.regularizer == "none":
            self.anneal = 0.0
        self.register_buffer("offset", torch.zeros(self.channels, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1))
        self.register_buffer("value_range", torch.tensor([0.0, 1.0]))
        self.per_window = False
        self.bounded = False
        self.names: Sequence[str] | None = None
        self.data_options: dict[str, Any] | None = None
        self.psnr = nn.ModuleDict({f"{split}/psnr": MeanPSNR() for split in ("train", "val", "test")})

    # What a model defines

    @abstractmethod
    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of normalized windows."""

    @abstractmethod
    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Normalized reconstructions of latents."""

    def stages_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Normalized reconstructions by more and more of the scales; the last one is `decode_scaled(z)`."""
        return {"all": self.decode_scaled(z)}

    def penalties(self, z: Float[Tensor, "batch latent"]) -> dict[str, Scalar]:
        """Further terms of the loss, by the names under which they are logged, of the latents decoded in training."""
        return {}

    def initialize(self, windows: Callable[[], Float[Tensor, "n channels length"]]) -> None:
        """Set the weights before training by normalized training windows, which `windows()` gives."""

    @property
    def codes(self) -> dict[str, slice]:
        """The slice of the latent that each scale wrote, by the scale's name, in order and without gaps."""
        stop = max(code.stop for code in self._codes.values())
        return self._codes | ({"level": slice(stop, stop + 2 * self.channels)} if self.per_window else {})

    @codes.setter
    def codes(self, codes: dict[str, slice]) -> None:
        self._codes = codes
        if self.regularizer == "kl":
            size = max(code.stop for code in codes.values())
            self.log_variance = nn.Linear(size, size)
            nn.init.zeros_(self.log_variance.weight)
            nn.init.zeros_(self.log_variance.bias)

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent, all codes together."""
        return sum(code.stop - code.start for code in self.codes.values())

    # Raw units

    def set_statistics(
        self,
        offset: Float[Tensor, "channels 1"],
        scale: Float[Tensor, "channels 1"],
        value_range: Float[Tensor, " 2"],
        per_window: bool = False,
        missing: bool = False,
        bounded: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        """Store facts about the training data: windows are normalized as (x - offset) / scale; see `Attributes`."""
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        self.value_range.copy_(value_range)
        self.per_window, self.missing, self.bounded, self.names = per_window, missing, bounded, names

    def clip(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        """Normalized values, clipped to the range of the data where it is bounded."""
        if not self.bounded:
            return x
        low, high = ((self.value_range[i] - self.offset) / self.scale for i in (0, 1))
        sides = (-1, *[1] * (x.ndim - 2))
        return x.clamp(low.view(sides), high.view(sides))

    def level(
        self, x: Float[Tensor, "batch channels length"]
    ) -> tuple[Float[Tensor, "levels channels 1"], Float[Tensor, "levels channels 1"]]:
        """Offset and scale of raw windows: one pair for all windows, or with `per_window` one for each."""
        return window_level(x) if self.per_window else (self.offset[None], self.scale[None])

    def scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch channels length"]:
        """Raw windows, normalized as the nets see them, with 0 where a value is missing."""
        offset, scale = self.level(x)
        scaled = (x - offset) / scale
        return scaled.where(~x.isnan(), 0.0) if self.missing else scaled

    def encode(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of windows in raw units; InputError where the windows' shape or type is not the model's."""
        if x.ndim != 3 or x.shape[1:] != (self.channels, self.length):
            raise InputError(f"x of shape {tuple(x.shape)}: expected (batch, {self.channels}, {self.length})")
        if x.dtype != self.offset.dtype:
            raise InputError(f"x of {x.dtype}: expected {self.offset.dtype}")
        offset, scale = self.level(x)
        z = self.encode_scaled(((x - offset) / scale).where(~x.isnan(), 0.0))
        return torch.cat([z, offset.squeeze(2), scale.squeeze(2)], dim=1) if self.per_window else z

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Reconstructions of latents, in raw units."""
        return list(self.stages(z).values())[-1]

    def stages(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Reconstructions in raw units: by the coarsest scale alone, by the two coarsest, and so on to all scales.

        Each has the name of the finest scale that contributes to it.
        """
        offset, scale = self.offset[None], self.scale[None]
        if self.per_window:
            z, offset, scale = z.split([z.shape[1] - 2 * self.channels, self.channels, self.channels], dim=1)
            offset, scale = offset.unsqueeze(2), scale.unsqueeze(2)
        return {name: x_hat * scale + offset for name, x_hat in self.stages_scaled(z).items()}

    def forward(
        self, x: Float[Tensor, "batch channels length"]
    ) -> tuple[Float[Tensor, "batch channels length"], Float[Tensor, "batch latent"]]:
        """Reconstruction and latent, `(x_hat, z)`, of windows in raw units (paper, appendix)."""
        z = self.encode(x)
        return self.decode(z), z

    # The loss

    def errors(
        self, x: Float[Tensor, "batch channels length"], z: Float[Tensor, "batch latent"] | None = None
    ) -> tuple[Scalar, Scalar, Scalar]:
        """MSE of a batch in normalized units, the loss (paper III-C), and in raw units, and the batch's weight.

        Args:
            x: the batch, in raw units.
            z: latents to decode, without the code `level`; by default the batch is encoded.
        """
        scaled, (_, scale) = self.scaled(x), self.level(x)
        x_hat = self.decode_scaled(self.encode_scaled(scaled) if z is None else z)
        return squared_error(x_hat, scaled, scale, ~x.isnan() if self.missing else None)

    def regularized(
        self, z: Float[Tensor, "batch latent"], noise: Float[Tensor, "batch latent"] | None = None
    ) -> tuple[Float[Tensor, "batch latent"], Scalar]:
        """The latents to decode in training, which `kl` samples, and the regularizer's penalty, without its weight.

        Args:
            z: latents.
            noise: standard normal numbers for `kl`; by default they are drawn.
        """
        if self.regularizer == "kl":
            penalty = kl_divergence(z, self.log_variance(z), self.free_bits) / (self.channels * self.length)
            deviation = (
                self.log_variance(z) / 2
            ).exp()  # computed anew, since another order of sums rounds differently
            return z + (torch.randn_like(z) if noise is None else noise) * deviation, penalty
        if self.regularizer == "decorrelate":
            return z, squared_correlation(z, list(self._codes.values()))
        return z, z.new_zeros(())

    def objective(
        self,
        x: Float[Tensor, "batch channels length"],
        noise: Float[Tensor, "batch latent"] | None,
        weight: float | Tensor,
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """What an optimizer step minimizes, and the terms of it to log, with the batch's `weight` among them.

        Args:
            x: windows in raw units.
            noise: see `regularized`.
            weight: of the regularizer's penalty.
        """
        z, penalty = self.regularized(self.encode_scaled(self.scaled(x)), noise)
        loss, mse, n = self.errors(x, z)
        own = self.penalties(z)
        terms = {"loss": loss, "mse": mse, "penalty": penalty, **own, "weight": n.to(loss.dtype)}
        return sum(own.values(), loss + weight * penalty), terms

    def judged(self, x: Float[Tensor, "batch channels length"]) -> tuple[Scalar, Scalar, Scalar]:
        """`errors` of a batch, with the regularizer in the loss: always the same sample, and the whole weight `beta`.

        The best epoch is chosen by this loss. By the MSE alone it would be an early one of a `kl` model, whose variance
        is not learned yet.
        """
        z = self.encode_scaled(self.scaled(x))
        loss, mse, weight = self.errors(x, z)
        if self.regularizer != "none":
            noise = torch.randn(z.shape, generator=torch.Generator(z.device).manual_seed(0), device=z.device)
            drawn, penalty = self.regularized(z, noise)
            loss = (self.errors(x, drawn)[0] if self.regularizer == "kl" else loss) + self.beta * penalty
        return loss, mse, weight

    # Lightning's steps

    def training_step(self, batches: list[Tensor], batch_idx: int) -> None:
        """Make an optimizer step on each of `batches`, windows in raw units `(batch, channels, length)`."""
        if self.trainer.max_steps != -1:
            batches = batches[: self.trainer.max_steps - self.global_step]
        noise: list[Tensor | None] = [None] * len(batches)
        if self.regularizer == "kl":
            size = self.log_variance.out_features
            noise = [torch.randn(len(x), size, device=self.device) for x in batches]
        terms = self.stack.make_steps(self, batches, noise) if self.stack else self.make_steps(batches, noise)
        means, weight = self.means(terms)
        self._log("train", means.pop("loss"), means.pop("mse"), weight)
        for name, mean in means.items():
            if name != "penalty" or self.regularizer != "none":
                self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=int(weight), sync_dist=True)

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the metrics of a batch of the validation split, in raw units."""
        self._log("val", *self.judged(x))

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the metrics of a batch of the test split, in raw units."""
        self._log("test", *self.errors(x))

    def predict_step(self, x: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """`(x_hat, z)` of a batch in raw units."""
        x_hat, z = self(x)
        return x_hat, z

    def _log(self, split: str, loss: Tensor, mse: Tensor, weight: Tensor) -> None:
        psnr = self.psnr[f"{split}/psnr"]
        assert isinstance(psnr, MeanPSNR)
        psnr.update(mse, weight, self.value_range[1] - self.value_range[0])
        values: dict[str, Metric | Tensor | float] = {f"{split}/loss": loss, f"{split}/mse": mse, f"{split}/psnr": psnr}
        size = int(weight)
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        # "step" sets the x axis of the loggers, which would otherwise count calls of training_step
        step = torch.tensor(float(self.global_step))
        self.log("step", step, on_step=False, on_epoch=True, batch_size=size, reduce_fx="max", sync_dist=True)

    # What a checkpoint holds; see msae/models/checkpoint.py

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the training data, beside weights and buffers."""
        return {key: getattr(self, key) for key in ("per_window", "missing", "bounded", "names", "data_options")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` gave; keys that an older checkpoint lacks keep their values."""
        self.__dict__.update(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that `msae.load` needs nothing but the file."""
        checkpoint["model_class"] = class_path(type(self))
        checkpoint["hyper_parameters"] = {k: v for k, v in checkpoint["hyper_parameters"].items() if k != "compile"}


def class_path(cls: type) -> str:
    """`module:class`, as a checkpoint names the class of its model."""
    return f"{cls.__module__}:{cls.__qualname__}"
