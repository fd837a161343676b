"""Models that a card compares: trained as `python -m msae.train` trains them, three seeds as one, in its folder."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from msae.cards.state import SEEDS, Card
from msae.errors import InputError
from msae.runs.folder import saved
from msae.runs.reading import read_run
from msae.runs.space import composed

if TYPE_CHECKING:
    from jaxtyping import Float

    from msae.data.module import DataModule, Windows
    from msae.models.reconstructor import Reconstructor

MODELS = ("single", "pyramid", "nested", "ae", "msae", "segmented")
"""From the most to the least wanted where time is short; the last is slow where an image has many segments."""
PROBE, MOST = 20, 2000
"""Optimizer steps of the small piece that is measured, the least that are planned, and the most."""
WINDOWS = 10_000
"""Windows of a split on which errors are measured, evenly spread."""
BEGIN = 5.0
"""Seconds before the first step, at most, of a model whose code is chosen already."""
SLACK = 0.8
"""The share of the time that is planned; the rest is for what the small piece does not show."""


def latent_of(data: DataModule) -> int:
    """The latent size at which models are compared: an eighth of a window's values, at most 64.

    It is a multiple of the number of segments of `segmented`, and at least 8 values a channel, so that each scale of
    `nested` has a code of a value beside its mean.
    """
    channels, length = data.shape
    segments = 16 if data.image_shape else 4
    least = max(segments, 8 * channels)
    return max(least, min(64, channels * length // 8)) // segments * segments


def sizes(data: DataModule, latent: int) -> dict[str, list[str]]:
    """The overrides that give each model this latent size; that of `nested` may be a little smaller."""
    from msae.models.nested import NestedAutoEncoder

    coded = data.shape[0] * len(NestedAutoEncoder(data.shape).lengths)
    found = {name: [f"model={name}", f"model.latent_dim={latent}"] for name in MODELS}
    found["msae"] = ["model=msae", f"model.small_dim={latent // 2}", f"model.large_dim={latent - latent // 2}"]
    found["nested"] = ["model=nested", f"model.code_dim={max(1, latent // coded - 1)}"]
    return found


def overrides(given: Sequence[str], steps: int, seeds: Sequence[int] = SEEDS) -> list[str]:
    """The overrides of a training."""
    return [*given, f"seed=[{','.join(map(str, seeds))}]", "trainer.max_epochs=-1", f"trainer.max_steps={steps}"]


def trained(card: Card, name: str, given: Sequence[str], steps: int, seeds: Sequence[int] | None = None) -> list[Path]:
    """Train the seeds of a model, `SEEDS` by default, or go on with it; return the folders of its runs.

    Raises:
        InputError: a run that failed.
    """
    from msae.runs.seeds import stacked
    from msae.train import train

    place = card.folder / "runs" / name
    seeds = seeds or SEEDS
    runs = [place / f"seed={seed}" for seed in seeds]
    if all((run / "metrics.json").exists() for run in runs):
        return runs
    quiet = ["trainer.enable_progress_bar=false", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    own = ["hydra.job.name=train", "hydra.job.num=0", f"threads={card.threads}", *quiet]
    cfg = composed([*own, *card.given, *overrides(given, steps, seeds)])
    cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir, cfg.hydra.mode = str(place.parent), name, RunMode.MULTIRUN
    cfg.resume = str(place) if any(saved(place)) else None

    def task(cfg: DictConfig) -> Any:
        try:
            stacked(cfg, place, False, train)
        except Exception as error:  # noqa: BLE001  (which Hydra would print)
            return error

    logger = logging.getLogger("msae")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what runs say of the data was said when these were read
    try:
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        error = run_job(task, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", context).return_value
    finally:
        logger.setLevel(level)
    if isinstance(error, Exception):
        raise error
    for run in runs:
        if not (run / "metrics.json").exists():
            lines = (run / "error.txt").read_text(encoding="utf-8").splitlines()
            raise InputError(lines[0] if lines else f"{run}: failed")
    return runs


def planned(card: Card, use: str, name: str, given: Sequence[str], seconds: float) -> tuple[int, list[str]]:
    """Optimizer steps for which a model is trained, by the time that a small piece takes, and its overrides.

    What the small piece chose by the training windows, as `pyramid` does at its start, is among the overrides, as to
    choose it again would take as long for each seed.

    Args:
        card: which keeps the plan.
        use: whose time it is.
        name: of the model, under which the plan is kept.
        given: its overrides.
        seconds: that it may take, the small piece included.
    """
    known: dict[str, int] = card.of(use).setdefault("steps", {})
    chosen: dict[str, list[int]] = card.of(use).setdefault("code_dims", {})
    if card.steps is not None:
        known.setdefault(name, card.steps)
    if name not in known:
        from msae.models.checkpoint import read_checkpoint

        begun = time.monotonic()
        [run] = trained(card, f"probe_{name}", given, PROBE, SEEDS[:1])
        wall, step = time.monotonic() - begun, read_run(run)["seconds"] / PROBE
        if dims := read_checkpoint(run)["hyper_parameters"].get("code_dims"):
            chosen[name] = dims
        shutil.rmtree(run.parent)
        once = min(max(0.0, wall - step * PROBE), BEGIN if name in chosen else math.inf)
        steps = int((SLACK * (seconds - wall) - once) / max(len(SEEDS) * step, 1e-9))
        known[name] = min(MOST, max(steps, PROBE))
        card.keep()
    dims = [f"model.code_dims=[{','.join(map(str, chosen[name]))}]"] if name in chosen else []
    return known[name], [*given, *dims]


def errors(model: Reconstructor, windows: Windows) -> Float[np.ndarray, " n"]:
    """The mean squared error of each window's reconstruction, in normalized units, of at most `WINDOWS` windows."""
    import torch

    from msae.data.batches import spread

    found = []
    with torch.no_grad():
        for index in spread(len(windows), WINDOWS).split(2048):
            scaled = model.normalized(windows.x[index])[0]
            x_hat = model.decode_scaled(model.encode_scaled(scaled.nan_to_num(0.0)))
            found.append((x_hat - scaled).square().nanmean((1, 2)).double())
    return torch.cat(found).nan_to_num(0.0).numpy()
