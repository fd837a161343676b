"""The result of a run: `metrics.json`, TensorBoard's HParams, and the lines that the command prints."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from msae.models.metrics import active_units
from msae.runs.folder import UNNAMED, flat, own_overrides
from msae.runs.trainer import device_name

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

    from msae.data.module import DataModule
    from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)


def result_of(
    cfg: DictConfig, name: str, trainer: L.Trainer, model: Reconstructor, data: DataModule, trained: dict[str, Any]
) -> dict[str, Any]:
    """The content of `metrics.json` for a run that was trained and tested.

    Args:
        cfg: the config of the run.
        name: the name of the run, for its log line.
        trainer: the Trainer that has just tested the model.
        model: the model with the weights that were tested.
        data: the data of the run.
        trained: `epochs`, `seconds` and `windows` of its training, as `History` has them, `val_loss` and `checkpoint`.
    """
    hydra = HydraConfig.get()
    result = {
        "overrides": own_overrides(cfg),
        "job": 0 if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num,
        "data": hydra.runtime.choices["data"],
        "model": hydra.runtime.choices["model"],
        "class": type(model).__name__,
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "latent_dim": model.latent_dim,
        "codes": {name: code.stop - code.start for name, code in model.codes.items()},
        "epochs": len(trained["epochs"]),
        "steps": trainer.global_step,
        "checkpoint": trained["checkpoint"],
        "epoch": epoch_kept(trained),
        "val_loss": trained["val_loss"],
        "metrics": with_value(name, trainer.callback_metrics, "test/"),
        "samples_per_second": trained["windows"] / trained["seconds"],
        "seconds": trained["seconds"],
        "device": device_name(trainer),
        "threads": cfg.threads,
        "versions": {"python": sys.version.split()[0]} | {p: version(p) for p in ("msae", "torch", "lightning")},
        "history": [with_value(None, epoch) for epoch in trained["epochs"]],
    }
    if model.channels > 1:
        result["rmse"] = channel_rmse(trainer, model, data)
    if model.regularizer == "kl":
        with torch.no_grad():
            z = model.encode_scaled(model.scaled(data.shown(1000)[0].to(model.device)))
        result["active_units"] = active_units(z)
        say = log.warning if result["active_units"] < z.shape[1] / 2 else log.info
        say("%s: %d of %d latent values are active", name, result["active_units"], z.shape[1])
    return result


def epoch_kept(trained: dict[str, Any]) -> int:
    """The number of epochs before the checkpoint that was tested; 0 is the start."""
    losses = [epoch.get("val/loss") for epoch in trained["epochs"]]
    if trained["checkpoint"] == "last.ckpt":
        return len(losses)
    return losses.index(trained["val_loss"]) + 1 if trained["val_loss"] in losses else 0


def with_value(run: str | None, metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite ones of the metrics whose names begin with `prefix`; a log line of the run names the others."""
    found = {key: float(value) for key, value in metrics.items() if key.startswith(prefix)}
    if (left := [key for key, value in found.items() if not math.isfinite(value)]) and run is not None:
        log.warning(
            "%s: %s left out: no value, as the error, or the range of the training data, is 0 or not finite",
            run,
            ", ".join(left),
        )
    return {key: value for key, value in found.items() if math.isfinite(value)}


@torch.no_grad()
def channel_rmse(trainer: L.Trainer, model: Reconstructor, data: DataModule) -> dict[str, float]:
    """The root mean squared error of each channel on the test split, in the channel's own unit; NaN is left out."""
    squares = torch.zeros(model.channels, dtype=torch.float64)
    counts = torch.zeros(model.channels, dtype=torch.float64)
    model = model.eval()
    limit = trainer.limit_test_batches
    loader = data.test_dataloader()
    for x in islice(loader, limit if isinstance(limit, int) else max(1, int(limit * len(loader)))):
        windows = x.to(model.device)
        error = (model(windows)[0] - windows).double().square().cpu()
        squares += error.nansum((0, 2))
        counts += (~error.isnan()).sum((0, 2))
    names = data.names or [str(number) for number in range(model.channels)]
    rmse = dict(zip(names, (squares / counts).sqrt().tolist(), strict=True))
    return {name: value for name, value in rmse.items() if math.isfinite(value)}  # others have no value in the split


def log_hyperparameters(board: TensorBoardLogger, cfg: DictConfig, result: dict[str, Any]) -> None:
    """Fill TensorBoard's HParams tab: model, data and metrics first, then the knobs of the run."""
    container = OmegaConf.to_container(cfg, resolve=True)
    knobs = {key: value for key, value in flat(container).items() if "._" not in key and key not in UNNAMED}
    knobs = {key: value if isinstance(value, (int, float)) else str(value) for key, value in knobs.items()}
    table = {"model": result["model"], "data": result["data"]} | knobs
    board.log_hyperparams(table, result["metrics"], result["steps"])


def summary(result: dict[str, Any], run: Path, data: DataModule) -> str:
    """The lines that the command prints at the end."""
    folder = Path(os.path.relpath(run))
    metrics, epochs = result["metrics"], result["epochs"]
    scaled = metrics["test/loss"]
    if "rmse" in result:
        listed = ", ".join(f"{name} {value:.4g}" for name, value in list(result["rmse"].items())[:8])
        more = f", and {len(result['rmse']) - 8} more in metrics.json" if len(result["rmse"]) > 8 else ""
        error = f"test MSE {scaled:.4g} in normalized units   RMSE by channel: {listed}{more}"
    else:
        same = math.isclose(metrics["test/mse"], scaled, rel_tol=1e-3)
        both = "" if same else f" in raw units, {scaled:.4g} in normalized units"
        error = f"test MSE {metrics['test/mse']:.4g}{both}"
        error += f"   PSNR {metrics['test/psnr']:.2f} dB" if "test/psnr" in metrics else ""
    held = f", {len(data.val):,} more chose epoch {result['epoch']}" if len(data.val) else ""
    return (
        f"\n{error}   ({result['checkpoint']})\n"
        f"{epochs} epoch{'s' * (epochs != 1)} of {len(data.train):,} windows{held}; "
        f"{result['samples_per_second']:,.0f} samples a second, {result['seconds']:.0f} s\n"
        f"folder: {folder}\n"
        f"look:   tensorboard --logdir {shlex.quote(str(folder))}"
    )
