"""Checkpoints within an epoch, from which training resumes to the same bits, and the end of a run at a signal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric

from msae.models.reconstructor import Reconstructor
from msae.runs import signals
from msae.runs.callbacks import WITHIN, Checkpoint, History


class Within(Callback):
    """Saves `last.ckpt` within an epoch: every so many seconds, and when the run is to end.

    A checkpoint within an epoch holds the means and the metrics so far, and how many calls of `training_step` the epoch
    has behind it. Every checkpoint holds the state of the random generators of all processes.

    Args:
        seconds: between two checkpoints, at least.
        checkpoint: saves whole epochs, and knows the folder.
        history: whose times and counts go on.
        renewed: called once, after the first checkpoint that this process saved.
    """

    def __init__(self, seconds: float, checkpoint: Checkpoint, history: History, renewed: Callable[[], None]) -> None:
        self.seconds, self.checkpoint, self.history = seconds, checkpoint, history
        self._renewed: Callable[[], None] | None = renewed
        self._saved: float | None = None
        self._state: dict[str, Any] | None = None
        self._generators: list[Tensor] = []
        self._means: dict[str, dict[str, Tensor]] = {}
        self._now = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.watch()  # Lightning's own handler of SIGTERM, installed just before, ends a run only with its epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Reconstructor)
        self._began = time.monotonic()
        if len(self._generators) == trainer.world_size:
            set_generators(self._generators[trainer.global_rank], pl_module.device)
        if self._state is not None:
            self._means = self._state["means"]
            for name, saved in self._state["metrics"].items():
                metric = pl_module.get_submodule(name)
                for key, value in saved.items():
                    setattr(metric, key, value.to(pl_module.device))
            self.history.resume_within(trainer, pl_module, self._state["calls"], self._state["seconds"])
        if pl_module.stack is None:
            signals.defer()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._renew()
        if self._asked(trainer, pl_module) == "stop":  # whole epochs are saved
            raise SystemExit(signals.code())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: list[Tensor], batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        for name, saved in self._means.items():  # 0 + x is x: the sums have the bits of an uninterrupted run's
            result = loop._results[name]  # noqa: SLF001  (Lightning does not save its means)
            combined = torch.maximum if result.meta.is_max_reduction else torch.add
            for key, value in saved.items():
                setattr(result, key, combined(value.to(pl_module.device), getattr(result, key).to(pl_module.device)))
        self._means = {}
        asked = self._asked(trainer, pl_module)
        ended = loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
        if not asked or ended or trainer.val_check_interval != 1.0:  # the end of an epoch is saved anyway
            return
        self._now = True
        try:
            trainer.save_checkpoint(Path(str(self.checkpoint.dirpath)) / "last.ckpt")
        finally:
            self._now = False
        self._renew()
        if asked == "stop":
            raise SystemExit(signals.code())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._renew()
        assert isinstance(pl_module, Reconstructor)
        if pl_module.stack is None:
            signals.release()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._saved = time.monotonic()
        state = generators(pl_module.device)
        if trainer.world_size > 1:
            gathered = trainer.strategy.all_gather(state.to(pl_module.device))
            checkpoint["generators"] = list(gathered.cpu())
        else:
            checkpoint["generators"] = [state]
        if not self._now:
            return
        results = trainer.fit_loop.epoch_loop._results  # noqa: SLF001
        metrics = {name: module for name, module in pl_module.named_modules() if isinstance(module, Metric)}
        checkpoint[WITHIN] = {
            "calls": trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            "per_call": per_call(trainer),
            "seconds": self.history.epoch_seconds,
            "means": {name: states(result) for name, result in results.items() if result.is_tensor},
            "metrics": {name: states(metric) for name, metric in metrics.items()},
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._state, self._generators = checkpoint.get(WITHIN), checkpoint.get("generators", [])

    def _asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """`stop`, `save`, or nothing; the same in all processes of a run, and in all runs of a stack."""
        assert isinstance(pl_module, Reconstructor)
        if pl_module.stack is not None:
            return pl_module.stack.asked
        stop = bool(signals.received())
        due = time.monotonic() - (self._saved or self._began) >= self.seconds
        if trainer.world_size > 1:
            stop, due = (trainer.strategy.reduce_boolean_decision(each, all=False) for each in (stop, due))
        return "stop" if stop else "save" if due else ""

    def _renew(self) -> None:
        if self._saved is not None and self._renewed is not None:
            self._renewed()
            self._renewed = None


def states(metric: Metric) -> dict[str, Tensor]:
    """The states of a metric, sums of tensors, on the CPU."""
    return {key: getattr(metric, key).cpu() for key in metric._defaults}  # noqa: SLF001


def per_call(trainer: L.Trainer) -> list[int]:
    """How many batches a call has, of how many processes."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return [data.steps_per_call, data.processes]


def generators(device: torch.device) -> Tensor:
    """The state of the random generators of this process, as bytes."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_generators(state: Tensor, device: torch.device) -> None:
    """Restore what `generators` gave; a device of another kind starts from its seed."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())  # torch crashes on a part of a larger storage
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)
