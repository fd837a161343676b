"""Train one model on one data set: `python -m msae.train model=msae`."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import os
import re
import shlex
import sys
import traceback
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from msae import cli
from msae.errors import InputError, check_choice, check_int, check_ints

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import lightning as L

    from msae.data.module import DataModule
    from msae.models.reconstructor import Reconstructor, Stepper

log = logging.getLogger(__name__)
FREE = ("trainer.", "ckpt_path", "resume", "threads", "data.root", "model.compile")
"""Keys that may change when a run is resumed."""
OWN = ("seed", "data.seed")
"""Keys that differ between the runs of several seeds as one."""
CHOSEN = ("code_dims",)
"""A model's arguments that its training windows choose where the config has null."""


def train(
    cfg: DictConfig,
    run: Path,
    name: str,
    bar: bool = True,
    data: DataModule | None = None,
    stack: Stepper | None = None,
) -> dict[str, Any]:
    """Train, test, and write everything about the run into its folder.

    Args:
        cfg: what `conf/train.yaml` composes.
        run: the run's folder.
        name: of the run, for its progress lines.
        bar: whether a progress bar may be drawn.
        data: what `cfg.data` makes, where it is there already.
        stack: what makes the optimizer steps, together with those of other runs.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: a value of the config that cannot be used, or a checkpoint that does not fit.
    """
    check(cfg)
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    from msae.runs.callbacks import Checkpoint, History, Progress
    from msae.runs.pictures import Pictures

    begin(cfg, stack is None)
    device = accelerator(cfg)
    data = data or instantiate(cfg.data)
    kept = "best" if len(data.val) else "last"
    history, checkpoint = History(data), Checkpoint(run, data)
    callbacks: list[L.Callback] = [history, Pictures(data), checkpoint]
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress(name, bar, data))
    # an interruption can take the wake-up of its writing thread, which then sleeps until it flushes, by default 120 s
    logger = TensorBoardLogger(run, name="", version="", default_hp_metric=False, flush_secs=5)
    trainer = data.trainer = instantiate(cfg.trainer, accelerator=device, logger=logger, callbacks=callbacks)
    check_processes(cfg, trainer)
    model = built(cfg, data, run / f"{kept}.ckpt")
    model.stack = stack
    model.data_options = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    if cli.leads():
        (run / "metrics.json").unlink(missing_ok=True)  # of a shorter run, which this one makes longer
        OmegaConf.save(cfg, run / "config.yaml", resolve=True)
    else:
        torch.manual_seed(cfg.seed + 2**32 * trainer.global_rank)  # noise of its own; the weights are the first's

    trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    epochs, seconds, windows = history.epochs, history.seconds, history.windows  # a test takes back those of `kept`
    val_loss = checkpoint.best_model_score
    best = str(Path(str(checkpoint.dirpath)) / f"{kept}.ckpt")  # of the first process, the one that knows `run`
    [metrics] = trainer.test(model, data, ckpt_path=best, weights_only=True, verbose=False)

    hydra = HydraConfig.get()
    own = [f"seed={cfg.seed}" if re.match(r"\+*seed=", text) else text for text in hydra.overrides.task]
    result = {
        "overrides": own,
        "job": 0 if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num,
        "data": hydra.runtime.choices["data"],
        "model": hydra.runtime.choices["model"],
        "class": type(model).__name__,
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "latent_dim": model.latent_dim,
        "codes": {name: code.stop - code.start for name, code in model.codes.items()},
        "epochs": len(epochs),
        "steps": trainer.global_step,
        "checkpoint": f"{kept}.ckpt",
        "val_loss": None if val_loss is None else float(val_loss),
        "metrics": {key: value for key, value in metrics.items() if "/" in key},
        "samples_per_second": windows / seconds,
        "seconds": seconds,
        "device": device_name(trainer),
        "threads": cfg.threads,
        "versions": {"python": sys.version.split()[0]} | {p: version(p) for p in ("msae", "torch", "lightning")},
        "history": epochs,
    }
    if model.regularizer == "kl":
        from msae.models.reconstructor import active_units

        with torch.no_grad():
            z = model.encode_scaled(model.scaled(data.shown(1000)[0].to(model.device)))
        result["active_units"] = active_units(z)
        told = log.warning if result["active_units"] < z.shape[1] / 2 else log.info
        told("%s: %d of %d latent values are active", name, result["active_units"], z.shape[1])
    flat = cli.flat(OmegaConf.to_container(cfg, resolve=True))
    knobs = {key: value for key, value in flat.items() if "._" not in key and key not in cli.UNNAMED}
    knobs = {key: value if isinstance(value, (int, float)) else str(value) for key, value in knobs.items()}
    table = {"model": result["model"], "data": result["data"]} | knobs  # the HParams tab
    logger.log_hyperparams(table, result["metrics"], trainer.global_step)
    logger.finalize("success")
    if cli.leads():
        cli.write_json(run / "metrics.json", result)
    return result


def check(cfg: DictConfig) -> None:
    """Raise InputError for what neither Hydra nor Lightning tells clearly, before anything is loaded."""
    check_int("seed", cfg.seed, 0, 2**32 - 1)
    check_int("threads", cfg.threads)
    steps = check_int("trainer.max_steps", cfg.trainer.max_steps, -1)
    if steps == -1 or cfg.trainer.max_epochs != -1:
        check_int("trainer.max_epochs", cfg.trainer.max_epochs)
    if steps == 0:
        raise InputError("trainer.max_steps=0: expected a whole number above 0, or -1 for no limit")
    for split in ("train", "val", "test"):
        limit = cfg.trainer[f"limit_{split}_batches"]
        if limit == 0:
            raise InputError(f"trainer.limit_{split}_batches=0: expected a number of batches, or a share such as 1.0")
    check_choice("trainer.precision", str(cfg.trainer.precision), ("32-true", "32", "bf16-mixed"))
    check_choice("trainer.accelerator", cfg.trainer.accelerator, ("auto", "cpu", "gpu", "cuda"))
    check_choice("trainer.strategy", cfg.trainer.strategy, ("auto", "ddp"))
    check_choice("trainer.deterministic", cfg.trainer.deterministic, (True, False, "warn"))
    if cfg.ckpt_path is None:
        return
    if not Path(cfg.ckpt_path).is_file():
        raise InputError(f"ckpt_path={cfg.ckpt_path}: no such file; expected a run's last.ckpt")
    beside = Path(cfg.ckpt_path).parent / "config.yaml"
    if beside.is_file():
        differing(f"ckpt_path={cfg.ckpt_path}", *(kept_keys(c) for c in (OmegaConf.load(beside), cfg)))


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


def device_name(trainer: L.Trainer) -> str:
    """What a run trained on; the model is on the CPU again at its end."""
    import torch

    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def accelerator(cfg: DictConfig) -> str:
    """What a run trains on: a GPU of CUDA or ROCm, or the CPU; metrics want float64, which Apple's GPUs lack."""
    import torch

    there, given = torch.cuda.is_available(), cfg.trainer.accelerator
    if given in ("gpu", "cuda") and not there:
        raise InputError(f"trainer.accelerator={given}: this machine has no GPU of CUDA or ROCm; expected trainer=cpu")
    return ("cuda" if there else "cpu") if given == "auto" else str(given)


def built(cfg: DictConfig, data: DataModule, kept: Path) -> Reconstructor:
    """The model of a run, as it starts or before its checkpoint's weights are loaded.

    Args:
        cfg: of the run.
        data: of the run.
        kept: the checkpoint that the run ends by testing.
    """
    from msae.baselines import sample
    from msae.models.contract import check_model

    model: Reconstructor = instantiate(cfg.model, shape=(data.shape[0], *(data.image_shape or data.shape[1:])))
    if cfg.ckpt_path is not None:
        model = resumed(cfg, model, data, kept)
    model.set_statistics(**data.statistics)
    if cfg.ckpt_path is None:
        model.initialize(lambda: sample(data))
    check_model(model, data.train.x[:2])
    return model


def check_processes(cfg: DictConfig, trainer: L.Trainer) -> None:
    """Raise InputError unless the run's processes are there, or Lightning can start them."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    given = f"trainer.devices={cfg.trainer.devices} trainer.num_nodes={cfg.trainer.num_nodes}"
    wanted, started = trainer.num_devices * trainer.num_nodes, cli.processes()
    if wanted > 1 and cfg.trainer.strategy != "ddp":
        raise InputError(f"{given}: expected 1, or trainer=ddp; runs of a sweep go side by side instead")
    if started not in (1, wanted):
        raise InputError(f"{given}: expected trainer=ddp and as many as processes were started, {started}")
    if wanted > started and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise InputError(f"{given}: {cli.ONE_PROCESS}")
    if wanted > started and SLURMEnvironment.detect():
        raise InputError(f"{given}: in a job of Slurm expected `srun python -m msae.train`, which starts all processes")


def resumed(cfg: DictConfig, model: Reconstructor, data: DataModule, kept: Path) -> Reconstructor:
    """The model of the config's checkpoint, before its weights are loaded; what its windows chose is not chosen again.

    Args:
        cfg: of the run.
        model: as the config alone makes it.
        data: of the run.
        kept: the checkpoint that the run ends by testing.

    Raises:
        InputError: the checkpoint is of another model, or `max_steps` ended it within an epoch and shall not now: which
            windows the epoch had left is not kept.
    """
    from msae.models.checkpoint import read_checkpoint
    from msae.models.reconstructor import class_path

    checkpoint = read_checkpoint(cfg.ckpt_path)
    if checkpoint["model_class"] != class_path(type(model)):
        theirs = checkpoint["model_class"].partition(":")[2]
        raise InputError(f"ckpt_path={cfg.ckpt_path}: of the model {theirs}, not {type(model).__name__}")
    before, now = checkpoint["hyper_parameters"], {k: v for k, v in model.hparams.items() if k != "compile"}
    differing(
        f"ckpt_path={cfg.ckpt_path}", before, now | {key: before.get(key) for key in CHOSEN if now.get(key) is None}
    )
    model = type(model)(**before, compile=model.compiles)
    sizes, expected = (
        {name: getattr(value, "shape", None) for name, value in state.items()}
        for state in (checkpoint["state_dict"], model.state_dict())
    )
    if sizes != expected:
        raise InputError(
            f"ckpt_path={cfg.ckpt_path}: its weights are not those of {type(model).__name__}; is it damaged?"
        )
    steps, epochs = checkpoint["global_step"], checkpoint["epoch"] + bool(checkpoint["global_step"])
    finished = False
    for unit, done in (("steps", steps), ("epochs", epochs)):
        limit = cfg.trainer[f"max_{unit}"]
        if limit != -1 and done > limit:
            raise InputError(f"trainer.max_{unit}={limit}: {cfg.ckpt_path} has {done} {unit} already")
        finished |= done == limit
    whole = data.steps_per_epoch
    if cfg.trainer.limit_train_batches == 1.0 and steps % whole and steps != cfg.trainer.max_steps:
        raise InputError(
            f"ckpt_path={cfg.ckpt_path}: ended at step {steps}, within an epoch of {whole} steps; "
            "expected a checkpoint of whole epochs"
        )
    if finished and not kept.exists():  # Lightning trains no further, and the run is tested
        raise InputError(
            f"ckpt_path={cfg.ckpt_path}: has nothing left to train; expected the run's folder, with {kept.name} to test"
        )
    return model


def kept_keys(cfg: Any) -> dict[str, Any]:
    """A config's values by their dotted keys, of those that may not change when its run is gone on with."""
    return {k: v for k, v in cli.flat(OmegaConf.to_container(cfg, resolve=True)).items() if not k.startswith(FREE)}


def differing(path: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError that names the keys on which the run of a checkpoint or a folder and this one differ."""
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    keys.sort(key=lambda key: not key.endswith("_target_"))  # another data set or model has other keys all over
    if keys:
        listed = ", ".join(f"{key}={before.get(key)}, not {now.get(key)}" for key in keys[:3])
        more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise InputError(f"{path}: was made with {listed}{more}; expected its own overrides again")


def quiet() -> None:
    """Leave out Lightning's tips and the warnings that do not hold here; its log lines once, through Hydra."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        importlib.import_module(name)  # which installs the handler that is removed
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are slices of a tensor
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # so it calls that of the start
        ".*LeafSpec.*is deprecated.*",  # Lightning's own call
        "The `srun` command is available.*",  # a run need not be one of Slurm's
        "Checkpoint directory .* exists and is not empty.*",  # the run's folder
        "Total length of `list` across ranks is zero.*",  # no validation split
        "The number of training batches .* is smaller than the logging interval.*",  # logged once an epoch
    ):
        warnings.filterwarnings("ignore", message)


def summary(result: dict[str, Any], run: Path) -> str:
    """What the command ends with."""
    run = Path(os.path.relpath(run))
    metrics, epochs = result["metrics"], result["epochs"]
    scaled = metrics["test/loss"]
    both = "" if math.isclose(metrics["test/mse"], scaled, rel_tol=1e-3) else f" in raw units, {scaled:.4g} scaled"
    return (
        f"\ntest MSE {metrics['test/mse']:.4g}{both}   PSNR {metrics['test/psnr']:.2f} dB   ({result['checkpoint']})\n"
        f"{epochs} epoch{'s' * (epochs != 1)}, {result['samples_per_second']:,.0f} samples a second, "
        f"{result['seconds']:.0f} s\n"
        f"folder: {run}\n"
        f"look:   tensorboard --logdir '{run}'"
    )


def job(cfg: DictConfig) -> None:
    """One run, alone or in a sweep."""
    hydra = HydraConfig.get()
    run = Path(hydra.runtime.output_dir)
    if not cli.leads():
        logging.disable()
    if OmegaConf.is_list(cfg.seed):
        together(cfg, run, hydra.mode == RunMode.RUN)
    elif hydra.mode == RunMode.RUN:
        alone(cfg, run)
    else:
        in_sweep(cfg, run)


def alone(cfg: DictConfig, run: Path) -> None:
    """A single run: one that never started leaves no folder behind, an interrupted one tells how to go on."""
    try:
        if cfg.resume:
            raise InputError(
                "resume=true: goes on with a sweep (-m); a single run goes on with ckpt_path=RUN/last.ckpt"
            )
        if (
            cli.leads()
            and (run / "config.yaml").exists()
            and (cfg.ckpt_path is None or Path(cfg.ckpt_path).resolve().parent != run.resolve())
        ):
            raise InputError(f"hydra.run.dir={run}: holds a run already; go on with it by ckpt_path={run}/last.ckpt")
        result = train(cfg, run, run.name)
        if cli.leads():
            print(summary(result, run))
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        if cli.leads() and (run / "last.ckpt").exists():
            given = [text for text in HydraConfig.get().overrides.task if not text.startswith("ckpt_path=")]
            command = shlex.join([*given, f"ckpt_path={os.path.relpath(run / 'last.ckpt')}"])
            print(f"\ninterrupted; go on with\n  python -m msae.train {command}")
        sys.exit(130)
    finally:
        if cli.leads() and not (run / "config.yaml").exists():
            tidy(run)


def tidy(run: Path) -> None:
    """Remove the folder of what never started, unless there is more in it than the log."""
    (run / "train.log").unlink(missing_ok=True)
    if run.exists() and not any(run.iterdir()):  # what else is in it is not ours
        run.rmdir()


def check_seeds(cfg: DictConfig) -> list[int]:
    """The seeds of runs as one; raises InputError unless they differ, and their runs start on one device."""
    seeds = check_ints("seed", OmegaConf.to_container(cfg.seed), 0, 2**32 - 1)
    if not seeds:
        raise InputError("seed=[]: expected a seed at least")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seed={list(seeds)}: expected each seed once")
    if cfg.ckpt_path is not None:
        raise InputError(
            f"ckpt_path={cfg.ckpt_path}: of one run; several seeds go on with hydra.run.dir=RUN resume=true"
        )
    if (
        cfg.trainer.strategy == "ddp"
        or cli.processes() > 1
        or not cli.is_one(cfg.trainer.devices, cfg.trainer.num_nodes)
    ):
        sizes = f"trainer.devices={cfg.trainer.devices} trainer.num_nodes={cfg.trainer.num_nodes}"
        raise InputError(f"seed={list(seeds)} {sizes}: seeds train as one in one process; expected 1, or a sweep, -m")
    return seeds


def configs_of_seeds(cfg: DictConfig, run: Path, reports: bool) -> dict[str, DictConfig]:
    """The config of each seed's run, by its folder's name.

    Raises:
        InputError: seeds that cannot be trained as one, runs that differ in more, or a folder with runs not to be
            gone on with, or are of another config.
    """
    seeds, there = check_seeds(cfg), any(run.glob("seed=*/train.log"))
    if reports and there != cfg.resume:
        state = (
            "these runs already; resume=true goes on with them" if there else "no runs to go on with; expected theirs"
        )
        raise InputError(f"hydra.run.dir={os.path.relpath(run)}: holds {state}")
    configs = {f"seed={seed}": cfg.copy() for seed in seeds}
    for seed, one in zip(seeds, configs.values(), strict=True):
        one.seed = seed
    first, *others = ({k: v for k, v in kept_keys(one).items() if k not in OWN} for one in configs.values())
    if keys := [key for key in first if any(other[key] != first[key] for other in others)]:
        sweep = f"-m seed={','.join(map(str, seeds))}"
        raise InputError(f"seed={list(seeds)}: {', '.join(keys)} would differ too; expected a sweep, {sweep}")
    for name, one in configs.items():
        if (before := run / name / "config.yaml").is_file():
            differing(os.path.relpath(run / name), kept_keys(OmegaConf.load(before)), kept_keys(one))
            check_longer(run / name, one)
    return configs


def together(cfg: DictConfig, run: Path, reports: bool) -> None:
    """Runs of several seeds as one, each with a folder in `run` as if it had been alone; then their report."""
    try:
        configs = configs_of_seeds(cfg, run, reports)
        first = next(iter(configs.values()))
        check(first)
        from msae.report import end_of_sweep
        from msae.runs.stack import Run, Stack

        accelerator(first)
        begin(first, first=True)  # also of this thread, which makes the steps of all
        shared = instantiate(first.data)
        if reports:  # else the sweep goes on with its other runs
            built(first, shared, run)  # a mistake in the model is told once
    except BaseException:
        if reports and not any(run.glob("seed=*")):
            tidy(run)
        raise

    def alone_in(folder: Path, one: DictConfig, stack: Run) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = logging.FileHandler(folder / "train.log")
        lines.setFormatter(logging.Formatter("%(message)s"))
        lines.addFilter(lambda record: record.threadName == stack.name)
        logging.getLogger().addHandler(lines)
        data = copy.copy(shared)  # its order apart, which the seed gives, it is the same for all
        data.seed = one.data.get("seed", data.seed)
        try:
            in_sweep(one, folder, data, stack)
        finally:
            logging.getLogger().removeHandler(lines)
            lines.close()

    try:
        Stack({name: partial(alone_in, run / name, one) for name, one in configs.items()}).run()
    except KeyboardInterrupt:
        if not reports:  # the sweep tells
            raise
        free = ("hydra.run.dir=", "resume=")
        given = [text for text in HydraConfig.get().overrides.task if not text.startswith(free)]
        command = shlex.join([*given, f"hydra.run.dir={os.path.relpath(run)}", "resume=true"])
        print(f"\ninterrupted; go on with\n  python -m msae.train {command}")
        sys.exit(130)
    if reports:
        end_of_sweep(run)


def check_longer(run: Path, cfg: DictConfig) -> None:
    """Raise InputError where a folder holds the result of a run longer than the config's."""
    result = json.loads(path.read_text()) if (path := run / "metrics.json").exists() else {}
    for unit in ("epochs", "steps"):
        limit, done = cfg.trainer[f"max_{unit}"], result.get(unit, 0)
        if limit != -1 and done > limit:
            raise InputError(f"trainer.max_{unit}={limit}: {os.path.relpath(run)} has {done} {unit} already")


def finished(run: Path, cfg: DictConfig) -> bool:
    """Whether a folder holds the result of a run as long as the config's; a shorter one is gone on with."""
    if not (run / "metrics.json").exists():
        return False
    before = OmegaConf.load(run / "config.yaml").trainer
    return all(before[limit] == cfg.trainer[limit] for limit in ("max_epochs", "max_steps"))


def in_sweep(cfg: DictConfig, run: Path, data: DataModule | None = None, stack: Stepper | None = None) -> None:
    """A run of a sweep: an error is written into its folder, and the other runs go on."""
    failure, last = run / "error.txt", run / "last.ckpt"
    if finished(run, cfg):
        log.info("%s: finished before", run.name)
        return
    if cli.leads():
        failure.unlink(missing_ok=True)
    if cfg.resume and last.exists():
        cfg.ckpt_path = str(last)
    try:
        result = train(cfg, run, run.name, bar=False, data=data, stack=stack)
        log.info("%s: test MSE %.4g", run.name, result["metrics"]["test/mse"])
    except Exception as error:  # whatever it is, the other runs go on, and the sweep ends with exit code 2
        if not cli.leads():
            raise
        reason = cli.explain(error, "train")
        failure.write_text(f"{reason}\n\n{traceback.format_exc()}")
        log.error("%s: failed: %s", run.name, reason)  # noqa: TRY400  (the traceback is in the file)


def main() -> None:
    """The command."""
    from msae.report import SweepReport

    try:
        cli.run(job, "train")
    except Exception as error:  # noqa: BLE001  (it is raised again, but for a launcher's)
        SweepReport.given_up(error)
    finally:
        SweepReport.running = None


if __name__ == "__main__":
    importlib.import_module("msae.train").main()  # by its name, under which the launcher's processes can import `job`
