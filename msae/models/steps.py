"""Several optimizer steps in one call of `training_step`.

A call of `training_step` through Lightning's loop (hooks of all callbacks, logging, the progress bar) costs 1.6 to
2.7 ms on two CPU cores, about half as much as an optimizer step of a model as small as the ones here. The DataModule
therefore hands many batches to one call (`DataModule.steps_per_call`), and `MultiStepModule.make_steps` makes an
optimizer step on each of them, in order. The training is the same as with one batch a call, at .75 to 1.07 of the speed
of a bare PyTorch loop in place of .5 to .6.

This is Lightning's "manual optimization", in which the module has to do what Lightning does otherwise: clip gradients,
count steps, step the schedulers, and weight the gradients of several processes. That, and nothing about autoencoders,
is in this file.

Three things hook in here:

- Seeds as one: `MultiStepModule.stack` is a `Stepper` that collects the batches of several runs, which differ by their
  seed alone, and makes the steps of all of them at once with `torch.vmap` (`msae/runs/stack.py`). It calls
  `objective`, `penalty_weights` and `count_step`.
- `compile=True`: `objective` goes through `torch.compile`.
- On a GPU, a step is recorded once and then replayed as one CUDA graph (`msae/models/recording.py`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from msae.errors import InputError, check_choice, check_number, check_positive
from msae.models.recording import Recorder

Terms = dict[str, Tensor]
"""The terms of a loss by their names, and as `weight` what the batch counts in a mean over batches."""


class Stepper(Protocol):
    """Makes the optimizer steps of a model in the model's place.

    Attributes:
        waited: seconds in which the model's run waited for other runs.
        asked: what the run has to do after these steps: `save`, `stop`, which includes it, or nothing.
        pictures: whether the run draws pictures; one of several runs that differ by their seed is enough.
    """

    pictures: bool
    waited: float
    asked: str

    def make_steps(
        self, model: MultiStepModule, batches: list[Tensor], noise: list[Tensor | None]
    ) -> dict[str, Float[Tensor, " steps"]]:
        """See `MultiStepModule.make_steps`."""


class MultiStepModule(L.LightningModule, ABC):
    """A LightningModule that makes several optimizer steps in a call of `training_step`.

    Args:
        lr: Adam's learning rate.
        gradient_clip_val: greatest norm of the gradient, or None.
        schedule: of the learning rate: `constant`, or `cosine`, a rise in 200 steps times a fall to 0 at the end.
        beta: weight of the penalty in the loss.
        anneal: share of the run's steps in which the weight rises linearly from 0 to `beta`.
        compile: whether the loss goes through `torch.compile`.

    Attributes:
        missing: whether batches may hold NaN; the weight of a batch is then its number of values.
        stack: makes the steps of this module and of others together; None to make them alone.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self,
        lr: float,
        gradient_clip_val: float | None,
        schedule: str,
        beta: float,
        anneal: float,
        compile: bool,  # noqa: A002  (torch's name)
    ) -> None:
        super().__init__()
        self.lr = check_positive("lr", lr)
        self.gradient_clip_val = (
            None if gradient_clip_val is None else check_positive("gradient_clip_val", gradient_clip_val)
        )
        self.schedule = check_choice("schedule", schedule, ("constant", "cosine"))
        self.beta, self.anneal = check_number("beta", beta), check_number("anneal", anneal, 1)
        self.compiles = check_choice("compile", compile, (True, False))
        self.missing = False
        self.stack: Stepper | None = None
        self.automatic_optimization = False
        self._recorder: Recorder | None = None
        self._share: Tensor | None = None

    @abstractmethod
    def objective(self, x: Tensor, noise: Tensor | None, weight: float | Tensor) -> tuple[Float[Tensor, ""], Terms]:
        """The loss of a batch, and its terms to log.

        Args:
            x: the batch.
            noise: random numbers that the loss needs, if any.
            weight: of the penalty.
        """

    def make_steps(self, batches: list[Tensor], noise: list[Tensor | None]) -> dict[str, Float[Tensor, " steps"]]:
        """Make an optimizer step on each batch; returns the terms of `objective` at each step."""
        # Lightning's wrapped optimizer runs the hooks of all callbacks at every step, the bare one does not
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        if self._recorder is None or self._recorder.optimizer is not optimizer:
            objective = torch.compile(self.objective, dynamic=False) if self.compiles else self.objective
            step = partial(self._step, optimizer, objective)
            self._recorder = Recorder(step, optimizer, record=self.trainer.world_size == 1)
        found = []
        weights = self.penalty_weights(len(batches))
        for x, drawn, weight, share in zip(batches, noise, weights, self._shares(batches), strict=True):
            self._share = share
            names, terms = self._recorder(x, drawn, weight)
            self.count_step()
            found.append(terms)
        optimizer.zero_grad()
        return dict(zip(names, torch.stack(found, dim=1), strict=True))

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        objective: Callable[..., tuple[Tensor, Terms]],
        x: Tensor,
        noise: Tensor | None,
        weight: float | Tensor,
    ) -> Terms:
        optimizer.zero_grad()
        loss, terms = objective(x, noise, weight)
        self.manual_backward(loss if self._share is None else loss * self._share)
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, "norm")
        optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def means(
        self, terms: dict[str, Float[Tensor, " steps"]]
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
        """The means of terms over the windows of all steps and processes, and the weight of all of these."""
        weight = terms["weight"]
        others = {name: values for name, values in terms.items() if name != "weight"}
        # elementwise products: precision=bf16-mixed would round those of matrices
        sums = torch.stack([weight.sum(), *((weight * values).sum() for values in others.values())])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return dict(zip(others, sums[1:] / sums[0], strict=True)), sums[0]

    def penalty_weights(self, n: int) -> Sequence[float | Tensor]:
        """The weight of the penalty at each of the next n steps; a tensor where it changes, to compile only once."""
        if not self.anneal:
            return [self.beta] * n
        steps = torch.arange(self.global_step, self.global_step + n)
        risen = steps / (self.anneal * self._total_steps("anneal"))
        return (self.beta * risen.clamp(max=1)).to(self.device).unbind()

    def count_step(self) -> None:
        """Count an optimizer step for Lightning, which does not see it, and step the schedulers that count steps."""
        steps = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        steps.increment_ready()
        steps.increment_completed()
        self._step_schedulers("step", self.global_step)

    def on_train_epoch_end(self) -> None:
        """Step the schedulers that count epochs."""
        self._step_schedulers("epoch", self.current_epoch + 1)

    def on_train_end(self) -> None:
        """Let go of the recorded step, whose memory is that of training."""
        self._recorder = None

    def configure_optimizers(self) -> Any:
        """Adam (paper III-C), all parameters in one fused update where the device supports it, and the schedule."""
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

    def _shares(self, batches: list[Tensor]) -> Sequence[Tensor | None]:
        """What each batch's gradient is multiplied by before the mean over processes; 1 on average.

        The mean is then that of one greater batch, also where the processes' batches are of unequal sizes.
        """
        if self.trainer.world_size == 1:
            return [None] * len(batches)
        if self.missing:
            weights = torch.stack([(~x.isnan()).sum() for x in batches]).float()
        else:
            weights = torch.tensor([len(x) for x in batches], dtype=torch.float32).to(self.device)
        mean = self.trainer.strategy.reduce(weights.clone(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return list(weights / mean)

    def _total_steps(self, knob: str) -> int:
        """Optimizer steps of the whole run; InputError that names `knob`, which needs them, where they are unknown."""
        total: int | None = getattr(self.trainer, "datamodule").total_steps  # noqa: B009  (Lightning's types lack it)
        if total is None:
            raise InputError(
                f"{knob}={getattr(self, knob)}: needs to know when training ends; set trainer.max_epochs or "
                "trainer.max_steps"
            )
        return total

    def _step_schedulers(self, interval: str, count: int) -> None:
        """Step the schedulers of an interval; those that wait for a plateau watch val/loss, or else train/loss."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and count % config.frequency == 0:
                if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                    metrics = self.trainer.callback_metrics
                    config.scheduler.step(metrics.get("val/loss", metrics["train/loss"]).item())
                else:
                    config.scheduler.step()
