"""Train one model on one data set: `python -m msae.train model=msae`."""

from __future__ import annotations

from msae.runs import signals

if __name__ == "__main__":
    signals.early()

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from msae import cli
from msae.errors import InputError
from msae.runs import folder, processes

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from msae.data.module import DataModule
    from msae.models.steps import Stepper

log = logging.getLogger(__name__)


def train(
    cfg: DictConfig,
    run: Path,
    name: str,
    ckpt: Path | None = None,
    bar: bool = True,
    data: DataModule | None = None,
    stack: Stepper | None = None,
) -> dict[str, Any]:
    """Train, test, and write everything about the run into its folder.

    Args:
        cfg: what `conf/train.yaml` composes.
        run: the run's folder.
        name: of the run, for its progress lines.
        ckpt: the checkpoint to resume from.
        bar: whether a progress bar may be drawn, and the result be printed.
        data: what `cfg.data` makes, where it exists already.
        stack: makes the optimizer steps, together with those of other runs.

    Returns:
        The content of `metrics.json`.

    Raises:
        InputError: a value of the config that cannot be used, or a checkpoint that does not fit.
    """
    from msae.runs import model as of_model
    from msae.runs import trainer as of_run

    of_run.check(cfg)
    of_run.begin(cfg, first=stack is None)
    data = data or of_model.data_of(cfg)

    def renewed() -> None:
        """The folder is that of a resumed run from its first checkpoint on; until then it stays what it was."""
        if processes.leads() and ckpt is not None:
            (run / "metrics.json").unlink(missing_ok=True)  # of a shorter run, which this one makes longer
            folder.keep(run, cfg)

    pictures = stack is None or stack.pictures
    trainer, history, checkpoint, board = of_run.trainer_of(cfg, run, name, bar, data, renewed, pictures)
    processes.check_processes(cfg, trainer)
    kept = "best.ckpt" if len(data.val) else "last.ckpt"
    model = of_model.built(cfg, data, ckpt, run / kept)
    model.stack = stack
    if processes.leads():
        if ckpt is None or not (run / "config.yaml").exists():
            folder.keep(run, cfg)
    else:
        import torch

        torch.manual_seed(cfg.seed + 2**32 * trainer.global_rank)  # noise of its own; the weights are the first's

    with of_model.restoring(ckpt):
        trainer.fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    best = checkpoint.best_model_score
    trained = history.state_dict() | {"checkpoint": kept, "val_loss": None if best is None else float(best)}
    # the folder of the first process, the one that knows `run`
    trainer.test(model, data, ckpt_path=Path(str(checkpoint.dirpath)) / kept, weights_only=True, verbose=False)

    from msae.runs import result as of_end

    result = of_end.result_of(cfg, name, trainer, model, data, trained)
    of_end.log_hyperparameters(board, cfg, result)
    for logger in trainer.loggers:
        logger.finalize("success")
    if processes.leads():
        folder.keep(run, cfg)
        folder.write_json(run / "metrics.json", result)
        if bar:
            print(of_end.summary(result, run, data))
    return result


def job(cfg: DictConfig) -> None:
    """One run, alone or in a sweep, or several seeds as one."""
    hydra = HydraConfig.get()
    run, alone = Path(hydra.runtime.output_dir), hydra.mode == RunMode.RUN
    if not processes.leads():
        logging.disable()
    with signals.in_worker():
        if not alone and signals.received():  # the sweep is to end
            return
        if OmegaConf.is_list(cfg.seed):
            from msae.runs.seeds import together

            together(cfg, run, alone, train)
        elif alone:
            single(cfg, run)
        else:
            from msae.runs.sweeps import in_sweep

            in_sweep(train, cfg, run)


def single(cfg: DictConfig, run: Path) -> None:
    """A single run: one that never started leaves no folder behind; one that is interrupted says how to resume it."""
    first, ours = processes.leads(), False
    try:
        ckpt = folder.checkpoint_of(cfg.resume) if cfg.resume else None
        with folder.claimed(run):
            ours = first
            if first and not cfg.resume and (run / "config.yaml").exists() and folder.checkpoint_of(str(run)):
                there = os.path.relpath(run)
                raise InputError(f"{there}: already contains a run. To resume it: {folder.resuming(run)}")
            train(cfg, run, run.name, ckpt)
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        if first:
            print(f"\n{folder.interrupted(run)}")
        sys.exit(signals.code())
    finally:
        if ours and not (run / "config.yaml").exists():
            folder.tidy(run)


def main() -> None:
    """The command."""
    from msae.runs.sweeps import SweepReport

    try:
        cli.run(job, "train")
    except Exception as error:  # noqa: BLE001  (it is raised again, but for a launcher's)
        SweepReport.given_up(error)
    finally:
        SweepReport.running = None
        SweepReport.held.close()


if __name__ == "__main__":
    cli.start("train")
