"""Search for hyperparameters: `python -m msae.search model=single 'model.lr=tag(log,interval(1e-4,1e-2))'`."""

from __future__ import annotations

from msae.runs import signals

if __name__ == "__main__":
    signals.early()

import contextlib
import math
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import run_job
from hydra.errors import OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from msae import cli, train
from msae.errors import InputError, check_int, one_line
from msae.runs.folder import checkpoint_of, folder_name, resumed, resuming, write_error
from msae.runs.mistakes import causes, explain, fail, full_disk
from msae.runs.overrides import as_typed, key_of
from msae.runs.space import FREE, composed, overrides, spaces, to_try
from msae.whole import free, write_text

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from filelock import BaseFileLock
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

SHOWN = 10
"""The greatest number of trials in the table."""


def search(cfg: DictConfig, swept: Sequence[Override]) -> None:
    """Run trials until the study has `cfg.n_trials`, together with other processes, and print the best.

    Args:
        cfg: the config of `conf/search.yaml`.
        swept: the overrides of the command line with values to try.

    Raises:
        InputError: an invalid value, nothing to search, data without a validation split, a folder with another study,
            or no trial that finished.
    """
    check_int("n_trials", cfg.n_trials)
    given, tried = to_try(swept)
    space = spaces(given, tried)
    kept = [text for text in given if key_of(text) not in FREE]
    texts = sorted(str(override.input_line) for override in swept)
    folder = Path(cfg.out or cfg.resume or Path("runs", folder_name(["search", *sorted(kept), *texts], "+")))
    with stored(folder):
        study, lock = opened(folder, sorted([*kept, *(str(override.input_line) for override in tried)]))
    write_text(
        folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create([*kept, *texts, f"n_trials={cfg.n_trials}"]))
    )
    with stored(folder):
        trials(cfg, study, lock, space, given, folder)
        end(study, given, folder)


@contextlib.contextmanager
def stored(folder: Path) -> Iterator[None]:
    """Turn an error of sqlite, such as of a full disk, into an InputError that names the study."""
    try:
        yield
    except Exception as error:
        found = next((cause for cause in causes(error) if isinstance(cause, sqlite3.Error)), None)
        if found is None or isinstance(error, InputError):
            raise
        reason = f"{one_line(found)}, {free(folder)}"
        raise InputError(f"{folder / 'study.db'}: {reason}; the same command goes on once that is mended") from error


def trials(
    cfg: DictConfig,
    study: Study,
    lock: BaseFileLock,
    space: dict[str, BaseDistribution],
    given: Sequence[str],
    folder: Path,
) -> None:
    """Run trials until the study has enough."""
    print(f"{len(counted(study))} of {cfg.n_trials} trials are done\n  {folder}", flush=True)
    while True:
        with lock:
            begun = next_trial(study, space, folder, cfg)
        if begun is None:
            break
        trial, running = begun
        try:
            text = run_trial(study, trial, given, folder, lock)
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
            if not checkpoint_of(str(folder / str(trial.number))):  # else who resumes the study resumes the trial
                with lock:
                    lose(study, trial.number)
            print(f"\ninterrupted. To resume: {resuming(folder, 'search')}")
            sys.exit(signals.code())
        finally:
            running.release()
            Path(running.lock_file).unlink(missing_ok=True)
        print(f"trial {trial.number}: {text}   {' '.join(overrides(trial.params))}", flush=True)


def opened(folder: Path, about: list[str]) -> tuple[Study, BaseFileLock]:
    """The folder's study, a new one if there is none, and the lock that a process holds while it uses the study.

    Raises:
        InputError: the folder contains other files, or a study of other overrides than `about`.
    """
    import optuna
    from filelock import FileLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock, file = FileLock(folder / "study.lock"), folder / "study.db"
    if not file.exists() and {path.name for path in folder.glob("*")} - {"study.lock"}:
        raise InputError(f"out={folder}: contains other files; expected a new folder, or that of a study")
    folder.mkdir(parents=True, exist_ok=True)
    with lock:
        # the path is no part of the address, in which ? and % have a meaning
        opening = {"creator": partial(sqlite3.connect, file, check_same_thread=False)}
        try:
            storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=opening)
            study = optuna.create_study(storage=storage, study_name="msae", load_if_exists=True)
            before = study.user_attrs.get("about")
        except Exception as error:  # SQLAlchemy's and Optuna's own
            if any(isinstance(cause, sqlite3.OperationalError) for cause in causes(error)):  # such as of a full disk
                raise
            raise InputError(f"{file}: damaged, or not a study of Optuna ({type(error).__name__})") from error
        if before is None:
            study.set_user_attr("about", about)
        elif before != about:
            differing = "; not ".join(
                " ".join(t for t in a if t not in b) for a, b in ((before, about), (about, before))
            )
            raise InputError(f"out={folder}: a study of {differing}")
    return study, lock


def counted(study: Study) -> list[FrozenTrial]:
    """The trials of a study, except those that were lost because their process ended first."""
    lost = study.user_attrs.get("lost", [])
    return [trial for trial in study.trials if trial.number not in lost]


def lose(study: Study, number: int) -> None:
    """Record that the process of a trial ended before the trial."""
    from optuna.trial import TrialState

    study.set_user_attr("lost", [*study.user_attrs.get("lost", []), number])
    study.tell(number, state=TrialState.FAIL)


def next_trial(
    study: Study, space: dict[str, BaseDistribution], folder: Path, cfg: DictConfig
) -> tuple[Trial, BaseFileLock] | None:
    """A new trial, and the lock that its process holds while it runs; None if there are enough trials.

    Of the trials that are recorded as running, but whose lock no process holds, one that has a checkpoint is resumed;
    the others are lost.
    """
    from filelock import FileLock, Timeout
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    for said in study.get_trials(states=(TrialState.RUNNING,)):
        file = folder / str(said.number) / "running.lock"
        try:
            with FileLock(file, blocking=False):
                resumable = checkpoint_of(str(file.parent))
                if not resumable:
                    lose(study, said.number)
                    file.unlink()
        except Timeout:
            continue
        if resumable:
            return Trial(study, said._trial_id), held(file)  # noqa: SLF001  (Optuna names trials so)
    if len(counted(study)) >= cfg.n_trials:
        return None
    study.sampler = TPESampler(
        seed=cfg.seed + len(study.trials)
    )  # a resumed study tries what an uninterrupted one would
    trial = study.ask(space)
    (folder / str(trial.number)).mkdir(exist_ok=True)
    return trial, held(folder / str(trial.number) / "running.lock")


def held(file: Path) -> BaseFileLock:
    """A lock that this process holds from now on."""
    from filelock import FileLock

    lock = FileLock(file)
    lock.acquire()
    return lock


def run_trial(study: Study, trial: Trial, given: Sequence[str], folder: Path, lock: BaseFileLock) -> str:
    """Train the model of a trial, report its result to the study, and return the text to print."""
    from optuna.trial import TrialState

    run = folder / str(trial.number)
    done = study.get_trials(states=(TrialState.COMPLETE,))
    same = next((other for other in done if other.params == trial.params), None)
    value: float | None
    try:
        value = same.value if same else val_loss([*given, *overrides(trial.params)], run)
    except Exception as error:  # whatever it is, the other trials continue
        if full_disk(error):  # who resumes the study resumes the trial
            raise
        reason = explain(error, "train")
        write_error(run, reason)
        with lock:
            trial.set_user_attr("error", reason)
            study.tell(trial, state=TrialState.FAIL)
        return f"failed: {reason}"
    with lock:
        trial.set_user_attr("same_as", same and same.number)
        study.tell(trial, value)
        best = study.best_trial
    return (
        f"val/loss {value:.5g}{f' as trial {same.number}' if same else ''}, best {best.value:.5g} (trial {best.number})"
    )


def val_loss(texts: Sequence[str], run: Path) -> float:
    """Train a run in its folder, and return the validation loss of the weights that it kept.

    Raises:
        InputError: there is no validation loss, or it is not finite; also every error that a run raises.
    """
    own = ["hydra.job.name=train", f"hydra.job.num={run.name}", "trainer.enable_progress_bar=false"]
    cfg = composed([*own, *texts])
    cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir, cfg.hydra.mode = str(run.parent), run.name, RunMode.MULTIRUN

    def task(cfg: DictConfig) -> Any:
        try:
            ckpt = checkpoint_of(str(run))
            return train.train(cfg, run, f"trial {run.name}", ckpt, bar=False)["val_loss"]
        except Exception as error:  # noqa: BLE001  (which Hydra would print)
            return error

    context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
    value = run_job(task, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", context).return_value
    if isinstance(value, Exception):
        raise value
    if value is None or not math.isfinite(value):
        raise InputError(f"val/loss is {value}")
    return float(value)


def end(study: Study, given: Sequence[str], folder: Path) -> None:
    """Print the best trials, and the command that trains the best.

    Raises:
        InputError: no trial finished.
    """
    from optuna.trial import TrialState

    trials = counted(study)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    counts = f"{len(done)} trials, {len(failed)} failed, {len(trials) - len(done) - len(failed)} running elsewhere"
    if not done:
        errors = {trial.user_attrs.get("error", "no reason was kept") for trial in failed}
        raise InputError(f"{folder}: {counts}; {'; '.join(sorted(errors)[:3])}")
    done.sort(key=lambda trial: (trial.value, trial.number))
    keys = list(done[0].params)
    print(f"\n{counts}\n\n| trial | val/loss | {' | '.join(keys)} |\n| ---: | ---: |{' ---: |' * len(keys)}")
    for trial in [trial for trial in done if trial.user_attrs["same_as"] is None][:SHOWN]:
        values = (f"{value:.4g}" if isinstance(value, float) else f"{value}" for value in trial.params.values())
        print(f"| {trial.number} | {trial.value:.5g} | {' | '.join(values)} |")
    mode = ["hydra.mode=RUN"] if HydraConfig.get().sweeper.get("params") else []
    command = shlex.join([*given, *overrides(done[0].params), *mode])
    print(f"\nthe best: {folder / str(done[0].number) / 'best.ckpt'}\n  python -m msae.train {command}")


def main() -> None:
    """The command."""
    swept, others = [], []
    try:
        texts = resumed(sys.argv[1:], "search")
    except InputError as error:
        fail(str(error))
    for text in texts:
        override = parsed(text) if cli.is_override(text) else None
        if text in ("-m", "--multirun"):
            fail(f"{text}: a search is a sweep by itself; leave it out")
        if override is not None and override.is_sweep_override():
            swept.append(override)
            if override.is_choice_sweep():  # so that the keys of the first option exist
                others.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
        else:
            others.append(text)
    sys.argv[1:] = others

    def task(cfg: DictConfig) -> None:
        search(cfg, swept)

    cli.run(task, "search")


def parsed(text: str) -> Override | None:
    """An override, or None if it cannot be read, which Hydra reports."""
    try:
        return OverridesParser.create().parse_overrides([as_typed(text)])[0]
    except OverrideParseException:
        return None


if __name__ == "__main__":
    cli.start("search")
