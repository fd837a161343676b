"""The base class of every model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import Metric

from msae.errors import InputError, check_choice, check_int, check_ints, check_number, check_positive
from msae.models.layers import window_level


class Stepper(Protocol):
    """What makes a model's optimizer steps.

    Attributes:
        waited: seconds in which the model's run waited for others.
    """

    waited: float

    def make_steps(
        self, model: Reconstructor, batches: list[Tensor], noise: list[Tensor | None]
    ) -> dict[str, Float[Tensor, " steps"]]:
        """As `Reconstructor.make_steps`."""


class MeanPSNR(Metric):
    """Peak signal-to-noise ratio in dB of the mean MSE of all windows; the mean of PSNRs would be another number."""

    full_state_update = False
    squared_error: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("squared_error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("data_range", torch.tensor(1.0), dist_reduce_fx="max")

    def update(self, mse: Float[Tensor, ""], weight: Float[Tensor, ""], data_range: Float[Tensor, ""]) -> None:
        """Add the MSE of `weight` windows or values, in the units of `data_range`, the width of the data's range."""
        self.squared_error += mse.double() * weight
        self.weight += weight
        self.data_range = data_range

    def compute(self) -> Float[Tensor, ""]:
        """10 log10(range^2 / MSE)."""
        mse = self.squared_error / self.weight
        return 10 * torch.log10(self.data_range**2 / mse).float()


class Reconstructor(L.LightningModule, ABC):
    """A model that encodes a window to a latent and decodes the latent to the window.

    A model is one final class: its constructor takes `shape`, the (channels, length) of a window, or (channels, rows,
    columns) of one that is an image read row by row, and plain scalars, calls `super().__init__`, then
    `self.save_hyperparameters(logger=False)`, builds its nets and fills `codes`; it defines `encode_scaled` and
    `decode_scaled`, `initialize` where it starts from data, `stages_scaled` where scales add up, and `penalties` where
    its loss has terms of its own. Everything else is here.

    Args:
        lr: Adam's learning rate.
        gradient_clip_val: greatest norm of the gradient, or None.
        schedule: of the learning rate: `constant`; or `cosine`, from 0 in 200 steps, then falling to 0 at the last.
        regularizer: of the latent: `none`; `kl`, which makes a model a variational autoencoder (arXiv 1312.6114), whose
            latent is a Gaussian's mean and whose log variance is linear in it; or `decorrelate`, the mean squared
            correlation, within a batch, of values in different codes, or of all values where there is but one code.
        beta: weight of the regularizer beside the MSE. For `kl` the divergence is divided by the values of a window, so
            that beta is twice the variance of a Gaussian observation model.
        free_bits: nats of each latent value's divergence that are free, as a mean over a batch (arXiv 1606.04934).
        anneal: share of the run's steps in which beta rises from 0, linearly.
        compile: whether training steps go through `torch.compile`, on a GPU with CUDA graphs; no part of what a model
            is, and not kept in checkpoints.

    Attributes:
        grid: (length,), or (rows, columns).
        bounded: whether `value_range` is one that no value of the data can leave.
        per_window: whether each channel of each window is scaled by its own mean and deviation, not by statistics of
            the training split; these are then a code of the latent, `level`, since raw units cannot be had without.
        missing: whether windows may hold NaN, which is encoded as the value that scales to 0, and left out of the loss
            and the metrics.
        names: of the channels it was trained on, where these have any.
        data_options: the config of the data it was trained on, plain values by name, `_target_` among them; a use reads
            new files by it. None where it was trained without a config.
        stack: what makes its optimizer steps, together with those of other runs; by default it makes them itself.

    Raises:
        InputError: a shape, learning rate or clipping value that is not positive.
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
        compile: bool = False,  # noqa: A002  (as torch calls it)
    ) -> None:
        super().__init__()
        self.compiles = check_choice("compile", compile, (True, False))
        self.channels = check_int("channels of shape", shape[0])
        self.grid = tuple(check_ints("length of shape", shape[1:]))
        self.length = math.prod(self.grid)
        self.schedule = check_choice("schedule", schedule, ("constant", "cosine"))
        self.regularizer = check_choice("regularizer", regularizer, ("none", "kl", "decorrelate"))
        self.beta, self.free_bits = check_number("beta", beta), check_number("free_bits", free_bits)
        self.anneal = check_number("anneal", anneal, 1)
        self.lr = check_positive("lr", lr)
        self.gradient_clip_val = (
            None if gradient_clip_val is None else check_positive("gradient_clip_val", gradient_clip_val)
        )
        # training_step makes several optimizer steps: a call through Lightning's loop costs half as much as a step
        self.automatic_optimization = False
        self.register_buffer("offset", torch.zeros(self.channels, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1))
        self.register_buffer("value_range", torch.tensor([0.0, 1.0]))
        self.per_window = False
        self.missing = False
        self.bounded = False
        self.stack: Stepper | None = None
        self.names: Sequence[str] | None = None
        self.data_options: dict[str, Any] | None = None
        self.psnr = nn.ModuleDict({f"{split}/psnr": MeanPSNR() for split in ("train", "val", "test")})

    @abstractmethod
    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of scaled windows."""

    @abstractmethod
    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Scaled reconstructions of latents."""

    def stages_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Scaled reconstructions of latents, by as many of the scales as a model can tell apart, the last by all."""
        return {"all": self.decode_scaled(z)}

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
        """Values in a latent, all codes together."""
        return sum(code.stop - code.start for code in self.codes.values())

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
        """Store what brings raw windows in, (x - offset) / scale, and the training split's least and greatest value."""
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        self.value_range.copy_(value_range)
        self.per_window, self.missing, self.bounded, self.names = per_window, missing, bounded, names

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and buffers."""
        return {key: getattr(self, key) for key in ("per_window", "missing", "bounded", "names", "data_options")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from a checkpoint."""
        self.__dict__.update(state)

    def initialize(self, windows: Callable[[], Float[Tensor, "n channels length"]]) -> None:
        """Start from scaled training windows, where a model starts from anything but chance."""

    def clip(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        """Scaled values within the data's range, where it has one."""
        if not self.bounded:
            return x
        low, high = ((self.value_range[i] - self.offset) / self.scale for i in (0, 1))
        sides = (-1, *[1] * (x.ndim - 2))
        return x.clamp(low.view(sides), high.view(sides))

    def level(
        self, x: Float[Tensor, "batch channels length"]
    ) -> tuple[Float[Tensor, "levels channels 1"], Float[Tensor, "levels channels 1"]]:
        """Offset and scale of raw windows: one for all, or one for each."""
        return window_level(x) if self.per_window else (self.offset[None], self.scale[None])

    def encode(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of windows in raw units; InputError where they are not of the model's shape and type."""
        if x.ndim != 3 or x.shape[1:] != (self.channels, self.length):
            raise InputError(f"x of shape {tuple(x.shape)}: expected (batch, {self.channels}, {self.length})")
        if x.dtype != self.offset.dtype:
            raise InputError(f"x of {x.dtype}: expected {self.offset.dtype}")
        offset, scale = self.level(x)
        z = self.encode_scaled(((x - offset) / scale).where(~x.isnan(), 0.0))
        return torch.cat([z, offset.squeeze(2), scale.squeeze(2)], dim=1) if self.per_window else z

    def decode(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Reconstructions, in raw units, of latents."""
        return list(self.stages(z).values())[-1]

    def stages(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Reconstructions, in raw units, by the coarsest scale alone and so on to all, by the finest scale's name."""
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

    def regularized(
        self, z: Float[Tensor, "batch latent"], noise: Float[Tensor, "batch latent"] | None = None
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, ""]]:
        """The latents to decode in training, for `kl` a sample, and the regularizer's penalty, before its weight.

        Args:
            z: what was encoded.
            noise: of `kl`, standard normal; by default drawn anew.
        """
        penalty = self.penalty(z)
        if self.regularizer == "kl":
            z = z + (torch.randn_like(z) if noise is None else noise) * (self.log_variance(z) / 2).exp()
        return z, penalty

    def penalty(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, ""]:
        """The regularizer's penalty of a batch of latents, before its weight."""
        if self.regularizer == "kl":
            log_variance = self.log_variance(z)
            divergence = 0.5 * (z.square() + log_variance.exp() - 1 - log_variance).mean(0)
            penalty: Tensor = divergence.clamp(min=self.free_bits).sum() / (self.channels * self.length)
            return penalty
        if self.regularizer == "decorrelate":
            centered = z - z.mean(0)
            centered = centered / (centered.square().sum(0) + 1e-12).sqrt()
            code = torch.zeros(z.shape[1], device=z.device)
            for number, part in enumerate(self._codes.values()):
                code[part] = number
            if len(self._codes) == 1:
                code = torch.arange(z.shape[1], device=z.device)
            apart = (code[:, None] != code).float()
            return ((centered.T @ centered).square() * apart).sum() / apart.sum().clamp(min=1)
        return z.new_zeros(())

    def judged(
        self, x: Float[Tensor, "batch channels length"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """`errors` of a batch, but as loss what training minimises, of one draw, the regularizer at its whole weight.

        By it epochs are chosen: the MSE alone would choose a `kl` model whose variance is not learned yet.
        """
        z = self.encode_scaled(self.scaled(x))
        loss, mse, weight = self.errors(x, z)
        if self.regularizer != "none":
            noise = torch.randn(z.shape, generator=torch.Generator(z.device).manual_seed(0), device=z.device)
            drawn, penalty = self.regularized(z, noise)
            loss = (self.errors(x, drawn)[0] if self.regularizer == "kl" else loss) + self.beta * penalty
        return loss, mse, weight

    def penalties(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, ""]]:
        """Terms of a model's own that are added to the loss of latents as decoded in training, by the names to log."""
        return {}

    def scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch channels length"]:
        """What the nets see of raw windows: 0 where a value is missing."""
        offset, scale = self.level(x)
        scaled = (x - offset) / scale
        return scaled.where(~x.isnan(), 0.0) if self.missing else scaled

    def errors(
        self, x: Float[Tensor, "batch channels length"], z: Float[Tensor, "batch latent"] | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """MSE of a batch in raw units: in scaled units, which is the loss (paper III-C), in raw units, and its weight.

        The weight makes means over batches exact: the number of windows, or of values where some may be missing.

        Args:
            x: the batch.
            z: what is decoded, without `level`; by default what is encoded of the batch.
        """
        scaled, (_, scale) = self.scaled(x), self.level(x)
        x_hat = self.decode_scaled(self.encode_scaled(scaled) if z is None else z)
        if not self.missing:
            error = F.mse_loss(x_hat, scaled, reduction="none").mean(2)
            return error.mean(), (error * scale.squeeze(2) ** 2).mean(), error.new_full((), len(x), dtype=torch.float64)
        present = ~x.isnan()
        x_hat = x_hat.where(present, 0.0)
        error = F.mse_loss(x_hat, scaled, reduction="none").sum(2)
        count = present.sum().clamp(min=1)
        return error.sum() / count, (error * scale.squeeze(2) ** 2).sum() / count, count.double()

    def objective(
        self,
        x: Float[Tensor, "batch channels length"],
        noise: Float[Tensor, "batch latent"] | None,
        weight: float | Tensor,
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """What an optimizer step minimises, and the terms of it to log, beside them `weight`, the batch's own.

        Args:
            x: windows in raw units.
            noise: for `regularized`.
            weight: of the regularizer's penalty.
        """
        z, penalty = self.regularized(self.encode_scaled(self.scaled(x)), noise)
        loss, mse, n = self.errors(x, z)
        own = self.penalties(z)
        terms = {"loss": loss, "mse": mse, "penalty": penalty, **own, "weight": n.to(loss.dtype)}
        return sum(own.values(), loss + weight * penalty), terms

    def training_step(self, batches: list[Tensor], batch_idx: int) -> None:
        """One optimizer step for each of `batches`, windows in raw units, each `(batch, channels, length)`."""
        if self.trainer.max_steps != -1:
            batches = batches[: self.trainer.max_steps - self.global_step]
        noise: list[Tensor | None] = [None] * len(batches)
        if self.regularizer == "kl":
            size = self.log_variance.out_features
            noise = [torch.randn(len(x), size, device=self.device) for x in batches]
        terms = self.stack.make_steps(self, batches, noise) if self.stack else self.make_steps(batches, noise)
        weight = terms.pop("weight")
        # no product of matrices, which precision=bf16-mixed would round
        sums = torch.stack([weight.sum(), *((weight * values).sum() for values in terms.values())])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        means = dict(zip(terms, sums[1:] / sums[0], strict=True))
        total = int(sums[0])
        self._log("train", means.pop("loss"), means.pop("mse"), sums[0])
        for name, mean in means.items():
            if name != "penalty" or self.regularizer != "none":
                self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=total, sync_dist=True)

    def make_steps(self, batches: list[Tensor], noise: list[Tensor | None]) -> dict[str, Float[Tensor, " steps"]]:
        """Make an optimizer step on each batch; `objective`'s terms of each."""
        # Lightning's wrapped optimizer runs all callbacks' hooks at every step; the bare one leaves the counting to us
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        objective, found = self._compiled() if self.compiles else self.objective, []
        weights = self.penalty_weights(len(batches))
        for x, drawn, weight, share in zip(batches, noise, weights, self._shares(batches), strict=True):
            optimizer.zero_grad()  # before the forward: gradients may lie in memory of the CUDA graph it replays
            loss, terms = objective(x, drawn, weight)
            self.manual_backward(loss if share is None else loss * share)
            if self.gradient_clip_val is not None:
                self.clip_gradients(optimizer, self.gradient_clip_val, "norm")
            optimizer.step()
            self.count_step()
            found.append(torch.stack(list(terms.values())).detach())
        optimizer.zero_grad()
        return dict(zip(terms, torch.stack(found, dim=1), strict=True))

    def _compiled(self) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        """`objective`, compiled once."""
        if "_objective" not in self.__dict__:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            # not dynamic: an epoch's last batch is smaller, and kernels for all sizes would serve the whole ones too
            self.__dict__["_objective"] = torch.compile(self.objective, mode=mode, dynamic=False)
        compiled: Callable[..., tuple[Tensor, dict[str, Tensor]]] = self.__dict__["_objective"]
        return compiled

    def _shares(self, batches: list[Tensor]) -> Sequence[Tensor | None]:
        """What each batch counts, 1 on average, in the mean of gradients over processes that share a greater batch."""
        if self.trainer.world_size == 1:
            return [None] * len(batches)
        if self.missing:
            weights = torch.stack([(~x.isnan()).sum() for x in batches]).float()
        else:
            weights = torch.tensor([len(x) for x in batches], dtype=torch.float32).to(self.device)
        mean = self.trainer.strategy.reduce(weights.clone(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return list(weights / mean)

    def count_step(self) -> None:
        """What follows an optimizer step: Lightning's count, and schedules."""
        steps = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        steps.increment_ready()
        steps.increment_completed()
        self._step_schedulers("step", self.global_step)

    def penalty_weights(self, n: int) -> Sequence[float | Tensor]:
        """The regularizer's weight at each of the next n steps; those that change are tensors, compiled but once."""
        if not self.anneal or self.regularizer == "none":
            return [self.beta] * n
        steps = torch.arange(self.global_step, self.global_step + n)
        risen = steps / (self.anneal * self._total_steps("anneal"))
        return (self.beta * risen.clamp(max=1)).to(self.device).unbind()

    def _total_steps(self, knob: str) -> int:
        """Optimizer steps of the whole run, which `knob` needs."""
        total: int | None = getattr(self.trainer, "datamodule").total_steps  # noqa: B009  (Lightning's types lack it)
        if total is None:
            raise InputError(
                f"{knob}={getattr(self, knob)}: expected trainer.max_epochs or trainer.max_steps beside it"
            )
        return total

    def on_train_epoch_end(self) -> None:
        """Step the schedulers that count epochs."""
        self._step_schedulers("epoch", self.current_epoch + 1)

    def _step_schedulers(self, interval: str, count: int) -> None:
        """What Lightning leaves out in manual optimization; plateaus are of val/loss, or of train/loss without it."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and count % config.frequency == 0:
                if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                    metrics = self.trainer.callback_metrics
                    config.scheduler.step(metrics.get("val/loss", metrics["train/loss"]).item())
                else:
                    config.scheduler.step()

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

    def configure_optimizers(self) -> Any:
        """Adam (paper III-C), all parameters in one fused update where the device has it, and the schedule."""
        if self.trainer.precision == "16-mixed":
            raise InputError("trainer.precision=16-mixed: not supported; use bf16-mixed or 32-true")
        fused = self.device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=fused)
        if self.schedule == "constant":
            return optimizer
        total = self._total_steps("schedule")

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that `load` needs nothing but the file."""
        checkpoint["model_class"] = class_path(type(self))
        checkpoint["hyper_parameters"] = {k: v for k, v in checkpoint["hyper_parameters"].items() if k != "compile"}


def active_units(z: Float[Tensor, "n latent"]) -> int:
    """Latent values whose variance over windows is above .01 (arXiv 1509.00519); few mean posterior collapse."""
    return int((z.var(0) > 0.01).sum())


def class_path(cls: type) -> str:
    """`module:class`, as a checkpoint keeps it."""
    return f"{cls.__module__}:{cls.__qualname__}"
