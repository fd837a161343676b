"""The runs of a sweep: one that fails does not stop the others, and they are reported at the end."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from msae.errors import InputError
from msae.runs import signals
from msae.runs.folder import checkpoint_of, claimed, finished, interrupted, resuming, saved, write_error
from msae.runs.mistakes import MISTAKES, explain, fail
from msae.runs.processes import check_sweep, leads, on_slurm, swept_values

log = logging.getLogger(__name__)
ELSEWHERE = ("SlurmLauncher", "RayLauncher")
"""Launchers whose runs are not processes of this machine that end with the sweep."""


def in_sweep(train: Callable[..., dict[str, Any]], cfg: DictConfig, run: Path, **shared: Any) -> None:
    """Train a run of a sweep, unless it is finished; write an error into its folder, so that the others continue.

    Args:
        train: `msae.train.train`.
        cfg: the config of the run.
        run: the folder of the run.
        shared: further arguments of `train`.
    """
    try:
        if finished(run, cfg):
            log.info("%s: finished before", run.name)
            return
        ckpt = checkpoint_of(str(run)) if cfg.resume else None
        with claimed(run, signals.GRACE):  # in which a worker of a sweep that was killed saves and ends
            result = train(cfg, run, run.name, ckpt, bar=False, **shared)
        if leads():
            (run / "error.txt").unlink(missing_ok=True)
        error = ("loss", " in normalized units") if "rmse" in result else ("mse", "")
        log.info("%s: test MSE %.4g%s", run.name, result["metrics"][f"test/{error[0]}"], error[1])
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        if "stack" in shared or not signals.received():
            raise
        # the sweep ends when all of its runs have returned: a launcher would kill those that still save
    except Exception as error:  # whatever it is, the other runs continue, and the sweep ends with exit code 2
        if not leads():
            raise
        reason = explain(error, "train")
        log.error("%s: failed: %s", run.name, reason)  # noqa: TRY400  (the traceback is in the file)
        with contextlib.suppress(InputError):  # on a full disk, which is the reason
            write_error(run, reason)


class SweepReport(Callback):
    """Refuses a folder that contains a sweep already or that another process fills, and reports when the sweep ends.

    Attributes:
        running: the config of this process's sweep, while its launcher runs.
        held: what is undone at the end of the command: the claim of the sweep's folder.
    """

    running: ClassVar[DictConfig | None] = None
    held: ClassVar[contextlib.ExitStack] = contextlib.ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            check_sweep(config)
            self.held.enter_context(claimed(folder))
        except InputError as error:  # Hydra would turn it into a warning
            fail(str(error))
        if not config.resume and any(saved(folder)):
            fail(f"{folder}: already contains this sweep. To resume it: {resuming(folder)}; out=FOLDER starts anew")
        SweepReport.running = config
        if not config.hydra.launcher._target_.endswith(ELSEWHERE):
            signals.defer()  # until all runs have saved
        count = math.prod(map(len, swept_values(config).values()))
        print(f"{count} run{'s' * (count != 1)} in {folder}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        SweepReport.running = None
        if signals.received():
            raise KeyboardInterrupt
        signals.release()
        end_of_sweep(Path(config.hydra.sweep.dir))

    @classmethod
    def given_up(cls, error: Exception) -> NoReturn:
        """Report a sweep whose launcher failed because one of its processes was killed; raise other errors again.

        On Slurm the other runs continue, and this waits for them.
        """
        config, cls.running = cls.running, None
        if config is None:
            raise error
        if signals.received():  # which also ended a worker that could not handle it yet
            print("\n" + interrupted(Path(config.hydra.sweep.dir)))
            sys.exit(signals.code())
        print(*traceback.format_exception_only(error), sep="", file=sys.stderr)
        folder = Path(config.hydra.sweep.dir)
        if on_slurm(config):
            wait_for_jobs(Path(config.hydra.launcher.submitit_folder).parent)
        if any(folder.glob("*/train.log")):
            end_of_sweep(folder)
        fail(f"the launcher of {folder} gave up")


def wait_for_jobs(folder: Path) -> None:
    """Wait for the last job array of submitit, which has a folder for each job, named by its number, in `folder`."""
    from submitit import SlurmJob

    arrays: dict[int, list[Path]] = {}
    for path in folder.glob("*/*_submitted.pkl"):
        arrays.setdefault(int(path.name.partition("_")[0]), []).append(path.parent)
    for path in arrays[max(arrays)] if arrays else []:
        SlurmJob(path, path.name).wait()


def end_of_sweep(folder: Path) -> None:
    """Write the report and print it; exit with code 2 if a run did not finish."""
    from msae.runs.comparison import report, shown

    try:
        text, missing = report(folder)
    except Exception as error:  # noqa: BLE001  (Hydra would turn it into a warning)
        if not isinstance(error, MISTAKES):
            traceback.print_exc()
        fail(f"no report of {folder}: {explain(error, 'train')}")
    print(f"\n{shown(text)}\nreport: {folder / 'report.md'}\nlook:   tensorboard --logdir {shlex.quote(str(folder))}")
    if missing:
        fail(f"{len(missing)} of the runs did not finish: {', '.join(missing)}")
