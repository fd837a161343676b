"""The base class of every model: what a model has to define, and what all models have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from msae.errors import InputError, check_choice, check_int, check_ints, check_number
from msae.models.layers import nested
from msae.models.metrics import MeanPSNR, squared_error
from msae.models.regularizers import REGULARIZERS, kl_divergence, squared_correlation
from msae.models.units import RawUnits

Scalar = Float[Tensor, ""]


class Reconstructor(RawUnits):
    """A model that encodes a window to a latent and decodes the latent to the window.

    A model is one final class. Its constructor takes `shape` and plain scalars, calls `super().__init__`, then
    `self.save_hyperparameters(logger=False)`, builds its nets and sets `codes`. It defines `encode_scaled` and
    `decode_scaled`; also `initialize` where its weights start from data, `stages_scaled` where its scales add up,
    `penalties` where its loss has further terms, and `parts_scaled` where its codes are of the window's last steps.
    Everything else is defined here.

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
        compile: whether the loss of training steps goes through `torch.compile`; not saved in checkpoints.

    Attributes:
        separate: whether each code consists of equal parts, one for each channel, in order.
        grid: (length,), or (rows, columns); further ones, of the data's units, are those of `RawUnits`.

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
        channels = check_int("channels of shape", shape[0])
        super().__init__(channels, lr, gradient_clip_val, schedule, beta, anneal, compile)
        self.channels = channels
        self.grid = tuple(check_ints("length of shape", shape[1:]))
        self.length = math.prod(self.grid)
        self.separate = False
        self.regularizer = check_choice("regularizer", regularizer, REGULARIZERS)
        self.free_bits = check_number("free_bits", free_bits)
        if self.regularizer == "none":
            self.anneal = 0.0
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

    def parts_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels _"]]:
        """Normalized reconstructions by one code alone of the last steps of the window, for models of such codes.

        By the codes' names, from the longest part, the whole window, to the shortest. The loss is then the mean of the
        errors of these parts, and `decode_scaled(z)` is `nested(parts)`.
        """
        return {}

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
    def own_codes(self) -> dict[str, slice]:
        """`codes` without the code `level`."""
        return self._codes

    @property
    def latent_dim(self) -> int:
        """Number of values in a latent, all codes together."""
        return sum(code.stop - code.start for code in self.codes.values())

    # Raw units

    def encode(
        self, x: Float[Tensor, "batch channels length"] | Float[np.ndarray, "batch channels length"]
    ) -> Float[Tensor, "batch latent"]:
        """Latents of windows in raw units, float32 or float64; InputError where the windows are not the model's."""
        x = windows_of(x)
        if x.ndim != 3 or x.shape[1:] != (self.channels, self.length):
            raise InputError(f"x of shape {tuple(x.shape)}: expected (batch, {self.channels}, {self.length})")
        if not x.is_floating_point():
            raise InputError(f"x of {x.dtype}: expected torch.float32 or torch.float64")
        if not torch.compiler.is_compiling() and not len(x):
            raise InputError(f"x of shape {tuple(x.shape)}: expected at least one window")
        scaled, offset, scale = self.normalized(x)
        z = self.encode_scaled(scaled.where(~x.isnan(), 0.0))
        return torch.cat([z, offset.squeeze(2), scale.squeeze(2)], dim=1) if self.per_window else z

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Reconstructions of latents, in raw units; float64 where the model has a `base`."""
        return list(self.stages(z).values())[-1]

    def stages(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Reconstructions in raw units: by the coarsest scale alone, by the two coarsest, and so on to all scales.

        Each has the name of the finest scale that contributes to it. InputError where the latents are not the model's.
        """
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise InputError(f"z of shape {tuple(z.shape)}: expected (batch, {self.latent_dim})")
        if not torch.compiler.is_compiling() and not len(z):
            raise InputError(f"z of shape {tuple(z.shape)}: expected at least one latent")
        offset, scale = self.offset[None], self.scale[None]
        if self.per_window:
            z, offset, scale = z.split([z.shape[1] - 2 * self.channels, self.channels, self.channels], dim=1)
            offset, scale = offset.unsqueeze(2), scale.unsqueeze(2)
        return {name: self.raw(x_hat * scale + offset) for name, x_hat in self.stages_scaled(z).items()}

    def forward(
        self, x: Float[Tensor, "batch channels length"] | Float[np.ndarray, "batch channels length"]
    ) -> tuple[Float[Tensor, "batch channels length"], Float[Tensor, "batch latent"]]:
        """Reconstruction and latent, `(x_hat, z)`, of windows in raw units (paper, appendix).

        The reconstruction is float64 where the windows are, or where the model has a `base`.
        """
        x = windows_of(x)
        z = self.encode(x)
        x_hat = self.decode(z)
        return x_hat.to(torch.promote_types(x_hat.dtype, x.dtype)), z

    # The loss

    def errors(
        self, x: Float[Tensor, "batch channels length"], z: Float[Tensor, "batch latent"] | None = None
    ) -> tuple[Scalar, Scalar, Scalar]:
        """MSE of a batch in normalized units, the loss (paper III-C), and in raw units, and the batch's weight.

        Args:
            x: the batch, in raw units.
            z: latents to decode, without the code `level`; by default the batch is encoded.
        """
        present = ~x.isnan() if self.missing else None
        scaled, _, scale = self.normalized(x)
        scaled = scaled if present is None else scaled.where(present, 0.0)
        z = self.encode_scaled(scaled) if z is None else z
        parts = list(self.parts_scaled(z).values())
        x_hat = nested(parts) if parts else self.decode_scaled(z)
        loss, mse, weight = squared_error(x_hat, scaled, scale / self.unit, present)
        if parts:
            loss = torch.stack(
                [
                    squared_error(part, scaled[..., -n:], scale, present if present is None else present[..., -n:])[0]
                    for part, n in ((part, part.shape[2]) for part in parts)
                ]
            ).mean()
        return loss, mse if self.unit == 1 else mse.double() * self.unit**2, weight

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
        known = not self.missing and self.trainer.world_size == 1  # else the host has to wait for the GPU
        size = sum(map(len, batches)) if known else int(weight)
        self._log("train", means.pop("loss"), means.pop("mse"), weight, size)
        for name, mean in means.items():
            if name != "penalty" or self.regularizer != "none":
                self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the metrics of a batch of the validation split, in raw units."""
        loss, mse, weight = self.judged(x)
        self._log("val", loss, mse, weight, int(weight))

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the metrics of a batch of the test split, in raw units."""
        loss, mse, weight = self.errors(x)
        self._log("test", loss, mse, weight, int(weight))

    def predict_step(self, x: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """`(x_hat, z)` of a batch in raw units."""
        x_hat, z = self(x)
        return x_hat, z

    def _log(self, split: str, loss: Tensor, mse: Tensor, weight: Tensor, size: int) -> None:
        psnr = self.psnr[f"{split}/psnr"]
        assert isinstance(psnr, MeanPSNR)
        psnr.update(mse, weight, self.value_range[1] - self.value_range[0])
        values: dict[str, Metric | Tensor | float] = {f"{split}/loss": loss, f"{split}/mse": mse, f"{split}/psnr": psnr}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        # "step" sets the x axis of the loggers, which would otherwise count calls of training_step
        step = torch.full((), float(self.global_step), device=self.device)  # on a GPU without waiting for it
        self.log("step", step, on_step=False, on_epoch=True, batch_size=size, reduce_fx="max", sync_dist=True)

    # What a checkpoint holds; see msae/models/checkpoint.py

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that `msae.load` needs nothing but the file."""
        checkpoint["model_class"] = class_path(type(self))
        checkpoint["hyper_parameters"] = {k: v for k, v in checkpoint["hyper_parameters"].items() if k != "compile"}


def windows_of(x: Tensor | np.ndarray) -> Tensor:
    """Windows as a tensor; an array is copied, as it may be read-only."""
    return x if isinstance(x, Tensor) else torch.tensor(np.asarray(x))


def class_path(cls: type) -> str:
    """`module:class`, as a checkpoint names the class of its model."""
    return f"{cls.__module__}:{cls.__qualname__}"
