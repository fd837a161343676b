"""Which processes make a run, and which of them writes: one, those of `trainer=ddp`, or those of a sweep."""

from __future__ import annotations

import itertools
import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from msae.errors import InputError, needs

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import lightning as L

ONE_PROCESS = "a run of several processes in a sweep needs hydra/launcher=slurm; expected trainer.devices=1"
"""Other launchers would start the whole sweep again in each process of a run."""


def leads() -> bool:
    """Whether this process writes: the first of those that Lightning, torchrun or Slurm started."""
    return not any(int(os.environ.get(key, "0")) for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def processes() -> int:
    """The number of processes that Lightning, torchrun or Slurm's srun started for this run."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def n_jobs(accelerator: str) -> int:
    """The number of runs of a sweep at a time: one on a GPU, else -1, one on each core."""
    if accelerator == "cpu":
        return -1
    import torch

    return 1 if torch.cuda.is_available() else -1


def on_slurm(config: DictConfig) -> bool:
    """Whether the runs of a sweep are jobs of Slurm."""
    target: str = config.hydra.launcher._target_
    return target.endswith("SlurmLauncher")


def is_one(*sizes: Any) -> bool:
    """Whether numbers, or lists, of devices and nodes mean one process."""
    return all(re.fullmatch(r"1|auto|\[[^,]*\]", str(size)) for size in sizes)


def check_processes(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Raise InputError unless the run's processes are running, or Lightning can start them."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    given = f"trainer.devices={cfg.trainer.devices} trainer.num_nodes={cfg.trainer.num_nodes}"
    wanted, started = trainer.num_devices * trainer.num_nodes, processes()
    if wanted > 1 and cfg.trainer.strategy != "ddp":
        raise InputError(f"{given}: expected 1, or trainer=ddp; the runs of a sweep use several cores instead")
    if started not in (1, wanted):
        raise InputError(f"{given}: expected trainer=ddp and as many processes as were started, {started}")
    if wanted > started and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise InputError(f"{given}: {ONE_PROCESS}")
    if wanted > started and SLURMEnvironment.detect():
        raise InputError(f"{given}: in a job of Slurm expected `srun python -m msae.train`, which starts all processes")


def swept_values(config: DictConfig) -> dict[str, list[str]]:
    """The values of each key that a sweep varies."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    return {o.key_or_group: [*o.sweep_string_iterator()] for o in overrides if o.is_sweep_override()}


def check_sweep(config: DictConfig) -> None:
    """Raise InputError for a sweep that would hang, or split the processes of a run, before anything starts.

    Args:
        config: of the sweep, without the overrides that differ from run to run.
    """
    if processes() > 1:
        raise InputError("a sweep starts its runs itself; expected -m without torchrun or srun")
    launcher = config.hydra.launcher
    if on_slurm(config) and find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise needs("hydra/launcher=slurm", "hydra-submitit-launcher", "slurm")
    swept = swept_values(config)
    sizes = {key: swept.get(f"trainer.{key}", [str(config.trainer[key])]) for key in ("devices", "num_nodes")}
    told = " ".join(f"trainer.{key}={','.join(values)}" for key, values in sizes.items())
    ddp = "ddp" in (config.trainer.strategy, *swept.get("trainer", []))
    if not on_slurm(config):
        if ddp or not is_one(*itertools.chain(*sizes.values())):
            raise InputError(f"{'trainer=ddp ' * ddp}{told}: {ONE_PROCESS}")
    elif (ddp and "trainer" in swept) or [*sizes.values()] != [[f"{launcher.tasks_per_node}"], [f"{launcher.nodes}"]]:
        raise InputError(
            f"{told}: expected, for all runs of the sweep, {launcher.tasks_per_node} and {launcher.nodes}, the values "
            "of hydra.launcher.tasks_per_node and hydra.launcher.nodes"
        )
