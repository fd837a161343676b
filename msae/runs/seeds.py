"""Several seeds as one run: `seed=[0,1,2]`. Each has a folder as if it had run alone; `stack.py` makes the steps."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from msae.errors import InputError, check_ints
from msae.runs import folder, signals
from msae.runs.model import built, data_of
from msae.runs.processes import is_one, processes
from msae.runs.stack import Run, Stack
from msae.runs.sweeps import end_of_sweep, in_sweep
from msae.runs.trainer import accelerator, begin, check

OWN = ("seed", "data.seed")
"""Keys that differ between the runs."""


def together(cfg: DictConfig, run: Path, alone: bool, train: Callable[..., dict[str, Any]]) -> None:
    """Train the runs of `cfg.seed` as one, each in a folder within `run`; then report them.

    Args:
        cfg: of all runs.
        run: their folder.
        alone: whether they are not part of a sweep, which reports them itself.
        train: `msae.train.train`, which trains one run.
    """
    ours = False
    try:
        with folder.claimed(run) if alone else contextlib.nullcontext():  # a sweep holds its folder itself
            ours = alone
            stacked(cfg, run, alone, train)
    except KeyboardInterrupt:
        if not alone:  # the sweep says how to resume
            raise
        print(f"\n{folder.interrupted(run)}")
        sys.exit(signals.code())
    finally:
        if ours and not any(run.glob("seed=*")):
            folder.tidy(run)
    if alone:
        end_of_sweep(run)


def stacked(cfg: DictConfig, run: Path, alone: bool, train: Callable[..., dict[str, Any]]) -> None:
    """Train the runs, as `together`, without their report."""
    configs = configs_of_seeds(cfg, run, alone)
    first = next(iter(configs.values()))
    check(first)
    accelerator(first)
    begin(first, first=True)  # also of this thread, which makes the steps of all
    shared = data_of(first)
    if alone:  # else the sweep continues with its other runs
        built(first, shared, None, run)  # a mistake in the model is reported once
        folder.keep_overrides(run, cfg)

    def of_seed(place: Path, one: DictConfig, stack: Run) -> None:
        place.mkdir(parents=True, exist_ok=True)
        lines = logging.FileHandler(place / "train.log", encoding="utf-8")
        lines.setFormatter(logging.Formatter("%(message)s"))
        lines.addFilter(lambda record: record.threadName == stack.name)
        logging.getLogger().addHandler(lines)
        data = copy.copy(shared)  # the same for all but for its order, which the seed gives
        data.seed = one.data.get("seed", data.seed)
        try:
            in_sweep(train, one, place, data=data, stack=stack)
        finally:
            logging.getLogger().removeHandler(lines)
            lines.close()

    stack = Stack({name: partial(of_seed, run / name, one) for name, one in configs.items()}, cfg.trainer.save_seconds)
    stack.run()


def configs_of_seeds(cfg: DictConfig, run: Path, alone: bool) -> dict[str, DictConfig]:
    """The config of each seed's run, by its folder's name.

    Raises:
        InputError: seeds that cannot be trained as one, runs that differ in more than the seed, or a folder that
            contains other runs, or these without `resume=`.
    """
    seeds = check_seeds(cfg)
    if alone and any(folder.saved(run)) and not cfg.resume:
        raise InputError(f"{os.path.relpath(run)}: already contains runs. To resume them: {folder.resuming(run)}")
    if alone and (run / "config.yaml").exists():
        raise InputError(f"{os.path.relpath(run)}: the folder of a single run; expected a new one, or that of seeds")
    configs = {f"seed={seed}": cfg.copy() for seed in seeds}
    for seed, one in zip(seeds, configs.values(), strict=True):
        one.seed = seed
    first, *others = ({k: v for k, v in folder.kept_keys(one).items() if k not in OWN} for one in configs.values())
    if keys := [key for key in first if any(other[key] != first[key] for other in others)]:
        sweep = f"-m seed={','.join(map(str, seeds))}"
        raise InputError(f"seed={list(seeds)}: {', '.join(keys)} would differ too; expected a sweep, {sweep}")
    for name, one in configs.items():
        if (before := run / name / "config.yaml").is_file():
            kept = folder.kept_keys(folder.config_in(before))
            folder.check_same(os.path.relpath(run / name), kept, folder.kept_keys(one))
            folder.finished(run / name, one)
    return configs


def check_seeds(cfg: DictConfig) -> list[int]:
    """The seeds of runs as one; raises InputError unless they differ, and their runs use one device."""
    seeds = check_ints("seed", OmegaConf.to_container(cfg.seed), 0, 2**32 - 1)
    if not seeds:
        raise InputError("seed=[]: expected at least one seed")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seed={list(seeds)}: expected each seed once")
    if cfg.resume and Path(cfg.resume).expanduser().is_file():
        raise InputError(f"resume={cfg.resume}: the checkpoint of one run; expected the folder of the runs")
    trainer = cfg.trainer
    if trainer.strategy == "ddp" or processes() > 1 or not is_one(trainer.devices, trainer.num_nodes):
        sizes = f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes}"
        raise InputError(f"seed={list(seeds)} {sizes}: seeds train as one in one process; expected 1, or a sweep, -m")
    return seeds
