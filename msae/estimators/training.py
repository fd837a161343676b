"""Training in memory: nothing is written, and the process is left as it was."""

import copy
import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning

from msae.data.module import DataModule
from msae.errors import InputError
from msae.models.reconstructor import Reconstructor


def train(
    model: Reconstructor, data: DataModule, n_epochs: int, device: dict[str, Any], verbose: bool
) -> list[dict[str, float]]:
    """Train a model and give it the weights of its best epoch; returns the losses of each epoch."""
    best = _Best(data, verbose)
    trainer = L.Trainer(
        **device,
        max_epochs=n_epochs,
        callbacks=best,
        plugins=LightningEnvironment(),  # one process, even inside a cluster job
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    model.trainer = None  # it refers to the data
    return best.history


class _Best(L.Callback):
    """Keeps the weights with the lowest `val/loss` in memory, if samples are held out; the initial ones count too.

    Raises:
        InputError: for a training loss that is not finite.
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
            raise InputError(f"the training loss is {values['train/loss']}; try an lr below {pl_module.hparams['lr']}")
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
def isolated(seed: int) -> Iterator[None]:
    """Seed torch inside the block; restore its generators, warnings, loggers and the SIGINT handler after it."""
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
            if isinstance(end.__context__, KeyboardInterrupt):  # which Lightning turns into SystemExit
                raise KeyboardInterrupt from None
            raise
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def trainer_options(name: Any) -> dict[str, Any]:
    """The Trainer's arguments for a device; InputError if the device does not exist."""
    if name == "auto":
        return {"accelerator": "auto", "devices": 1}
    try:
        device = torch.device(name)
        there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        if (device.index or 0) >= there.get(device.type, 0):
            raise InputError(f"device={name}: this machine has no such device; expected auto, cpu, cuda, cuda:1 or mps")
    except (RuntimeError, TypeError):
        raise InputError(f"device={name}: expected auto, cpu, cuda, cuda:1 or mps") from None
    return {"accelerator": device.type, "devices": 1 if device.type == "cpu" else [device.index or 0]}
