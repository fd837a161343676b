"""The Trainer of a run: checks of its knobs, its device, loggers and callbacks, and which warnings are shown."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError, check_choice, check_int, check_positive, check_threads

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

    from msae.data.module import DataModule
    from msae.runs.callbacks import Checkpoint, History


def check(cfg: DictConfig) -> None:
    """Raise InputError for values that neither Hydra nor Lightning reports clearly, before anything is loaded."""
    check_int("seed", cfg.seed, 0, 2**32 - 1)
    check_threads(cfg.threads)
    for key, value in (("accumulate_grad_batches", 1), ("overfit_batches", 0), ("fast_dev_run", False)):
        if cfg.trainer.get(key, value) != value:
            raise InputError(f"trainer.{key}={cfg.trainer[key]}: not supported; expected it left out")
    steps = check_int("trainer.max_steps", cfg.trainer.max_steps, -1)
    if steps == -1 or cfg.trainer.max_epochs != -1:
        check_int("trainer.max_epochs", cfg.trainer.max_epochs)
    if steps == 0:
        raise InputError("trainer.max_steps=0: expected a whole number above 0, or -1 for no limit")
    for split in ("train", "val", "test"):
        limit = cfg.trainer[f"limit_{split}_batches"]
        share = isinstance(limit, float) and 0 < limit <= 1
        if not share and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            expected = "expected a number of batches, or a share such as 1.0"
            raise InputError(f"trainer.limit_{split}_batches={limit}: {expected}")
    check_positive("trainer.save_seconds", cfg.trainer.save_seconds)
    check_choice("trainer.precision", str(cfg.trainer.precision), ("32-true", "32", "bf16-mixed"))
    check_choice("trainer.accelerator", cfg.trainer.accelerator, ("auto", "cpu", "gpu", "cuda"))
    check_choice("trainer.strategy", cfg.trainer.strategy, ("auto", "ddp"))
    check_choice("trainer.deterministic", cfg.trainer.deterministic, (True, False, "warn"))


def check_shares(trainer: L.Trainer, data: DataModule) -> None:
    """Raise InputError where a share of a split's batches is not one batch."""
    data.trainer = trainer
    for split in ("train", "val", "test"):
        limit, batches = getattr(trainer, f"limit_{split}_batches"), len(getattr(data, f"{split}_dataloader")())
        if isinstance(limit, float) and batches and int(limit * batches) < 1:
            raise InputError(
                f"trainer.limit_{split}_batches={limit}: less than one of {batches} batches; expected more"
            )


def begin(cfg: DictConfig, first: bool) -> None:
    """Prepare torch and Lightning for a run; `first`, unless it is one of several seeds."""
    quiet()
    import lightning as L
    import torch

    torch.set_num_threads(cfg.threads)
    if cfg.trainer.strategy == "ddp":
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # else Lightning divides the cores by the processes
    if first and cfg.model.get("compile"):
        torch.compiler.reset()  # of earlier runs' models: beyond eight variants of a function torch compiles no more
    L.seed_everything(cfg.seed, workers=True, verbose=False)


def accelerator(cfg: DictConfig) -> str:
    """The device of a run: a GPU of CUDA or ROCm, or the CPU; metrics need float64, which Apple's GPUs lack."""
    import torch

    there, given = torch.cuda.is_available(), cfg.trainer.accelerator
    if given in ("gpu", "cuda") and not there:
        raise InputError(f"trainer.accelerator={given}: this machine has no GPU of CUDA or ROCm; expected trainer=cpu")
    return ("cuda" if there else "cpu") if given == "auto" else str(given)


def device_name(trainer: L.Trainer) -> str:
    """The device that a run trained on; the model is on the CPU again at its end."""
    import torch

    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def trainer_of(
    cfg: DictConfig, run: Path, name: str, bar: bool, data: DataModule, renewed: Callable[[], None], pictures: bool
) -> tuple[L.Trainer, History, Checkpoint, TensorBoardLogger]:
    """The Trainer of a run with the project's logger and callbacks, and the user's beside them.

    Args:
        cfg: of the run; `trainer.logger` and `trainer.callbacks` may each be a node with `_target_`, a list of such, or
            a dict of such by names.
        run: its folder.
        name: of the run, for its progress lines.
        bar: whether a progress bar may be drawn.
        data: of the run.
        renewed: called once, after the first checkpoint.
        pictures: whether TensorBoard gets pictures, and not numbers alone.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    from msae.models.archive import WholeCheckpoints
    from msae.runs.callbacks import Checkpoint, History, Progress
    from msae.runs.pictures import Pictures
    from msae.runs.within import Within

    device = accelerator(cfg)
    history, checkpoint = History(data), Checkpoint(run, data)
    callbacks: list[L.Callback] = [history, Pictures(data, pictures), checkpoint]
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress(name, bar, data))
    for node in nodes(cfg, "callbacks"):
        if str(node.get("monitor", "")).startswith("val/") and not len(data.val):
            raise InputError(
                f"trainer.callbacks: {node['_target_']} monitors {node['monitor']}, and there is no validation split; "
                "expected data.val_size above 0, or monitor: train/loss"
            )
        callbacks.append(instantiate(node))
    callbacks.append(Within(cfg.trainer.save_seconds, checkpoint, history, renewed))
    # an interruption can take the wake-up of its writing thread, which then sleeps until it flushes, by default 120 s
    board = TensorBoardLogger(run, name="", version="", default_hp_metric=False, flush_secs=1)
    loggers = [
        board,
        *(instantiate(node | {"save_dir": node.get("save_dir") or str(run)}) for node in nodes(cfg, "logger")),
    ]
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    assert isinstance(settings, dict)
    del settings["save_seconds"]
    settings |= {"accelerator": device, "logger": loggers, "callbacks": callbacks, "plugins": [WholeCheckpoints()]}
    trainer: L.Trainer = instantiate(settings)
    check_shares(trainer, data)
    return trainer, history, checkpoint, board


def nodes(cfg: DictConfig, key: str) -> list[dict[str, Any]]:
    """The user's nodes of `trainer.logger` or `trainer.callbacks`, each with a `_target_`."""
    given = OmegaConf.to_container(cfg.trainer, resolve=True).get(key)  # type: ignore[union-attr]
    if not given:  # null, or false
        return []
    found = [given] if "_target_" in given else list(given.values() if isinstance(given, dict) else given)
    for node in found:
        if not isinstance(node, dict) or "_target_" not in node:
            raise InputError(f"trainer.{key}: {node}; expected a class by `_target_: module.Class`, or a list of such")
    return found


def quiet() -> None:
    """Leave out Lightning's tips and the warnings that do not apply here; show its log lines once, through Hydra."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        importlib.import_module(name)  # which installs the handler that is removed
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are slices of a tensor
        "GPU available but not used.*",  # trainer=cpu says so
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # so it calls that of the start
        ".*LeafSpec.*is deprecated.*",  # Lightning's own call
        ".*functional.all_gather is deprecated.*",  # the same
        "The `srun` command is available.*",  # a run need not be one of Slurm's
        "Checkpoint directory .* exists and is not empty.*",  # the run's folder
        "Total length of `list` across ranks is zero.*",  # no validation split
        "The number of training batches .* is smaller than the logging interval.*",  # logged once an epoch
    ):
        warnings.filterwarnings("ignore", message)
