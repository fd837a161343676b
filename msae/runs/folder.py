"""A run's folder: its name, what lies in it, and what `resume=` finds there.

config.yaml     the resolved config
overrides.yaml  the command line's overrides, which `resume=RUN` uses again
last.ckpt       the weights and the optimizer after the last epoch; best.ckpt, those of the least validation loss
metrics.json    the result, once the run has finished
train.log, events.out.tfevents.*
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import traceback
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from msae.errors import InputError, one_line
from msae.runs.found import check_overrides
from msae.runs.overrides import key_of, quoted, value_of
from msae.runs.processes import leads
from msae.whole import to_json, write_text

UNNAMED = ("resume", "out", "trainer.enable_progress_bar")
"""Keys that do not change the result, only where a run is kept, how it resumes or what it displays."""
FREE = ("trainer.", "resume", "out", "threads", "data.root", "model.compile")
"""Keys that may change when a run is resumed."""
WHOLE = ("last.ckpt", "seed=*/last.ckpt", "study.db")
"""What is resumed by the whole command where `overrides.yaml` is lost."""


def folder_name(overrides: Iterable[str], separator: str) -> str:
    """A folder's name made of overrides: readable, without slashes, at most 150 characters."""
    kept = [text for text in overrides if key_of(text) not in UNNAMED]
    name = re.sub(r"[^\w=.,+~\-\[\]]+", "_", separator.join(kept)) or "default"
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_dir(resume: str | None, out: str | None, now: str, overrides: Sequence[str]) -> str:
    """The folder of a single run: `out`, that of the run it resumes, or a new one under `runs`."""
    if out:
        return out
    if resume and (Path(resume).expanduser().is_dir() or (folder_of(resume) / "overrides.yaml").is_file()):
        return str(folder_of(resume))
    if not leads():  # which writes nothing, and may have another clock
        return "."
    return f"runs/{now}_{folder_name(overrides, ',')}"


def sweep_dir(overrides: Sequence[str]) -> str:
    """The folder of a sweep, the same for the same overrides, so that it can be resumed."""
    return f"runs/{folder_name((text for text in overrides if '=' in text and not re.search(r'hydra[./]', text)), '+')}"


def run_name(overrides: Sequence[str], sweep: str, resume: str | None) -> str:
    """The folder of a run in that of its sweep: the overrides that the sweep's own name does not contain.

    A resumed run keeps its folder, also where keys that may change have other values now, such as trainer.max_epochs.
    """
    if resume:
        same = [run for run, before in runs_in(Path(sweep).resolve()).items() if fixed(before) == fixed(overrides)]
        if len(same) == 1:
            return same[0]
    known = Path(sweep).name.split("+")
    return folder_name([text for text in overrides if folder_name([text], "") not in known] or overrides, ",")


def fixed(overrides: Iterable[str]) -> set[str]:
    """The overrides that may not change when a run is resumed."""
    return {text for text in overrides if not key_of(text).startswith(FREE)}


@cache
def runs_in(sweep: Path) -> dict[str, list[str]]:
    """The overrides of each run in a sweep's folder, by the run's name."""
    files = sweep.glob("*/overrides.yaml")
    return {file.parent.name: overrides_in(file, "remove it: its run writes it again") for file in files}


def folder_of(resume: str) -> Path:
    """The folder that `resume=` means: itself, or that of a checkpoint."""
    path = Path(resume).expanduser()
    return path.parent if path.is_file() else path


def loaded(path: Path, way: str = "remove it: its run writes it again") -> DictConfig | ListConfig:
    """A file of yaml that a command wrote; InputError where it is damaged, with what to do then."""
    try:
        config = OmegaConf.load(path)
    except (YAMLError, UnicodeError, OSError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: damaged, {one_line(error)[:100]}; {way}") from None
    if not len(config):
        raise InputError(f"{path}: damaged, it is empty; {way}")
    return config


def config_in(path: Path) -> DictConfig:
    """A run's `config.yaml`; InputError where it is damaged."""
    config = loaded(path)
    if not isinstance(config, DictConfig) or not isinstance(config.get("trainer"), DictConfig):
        raise InputError(f"{path}: damaged, it is no config; remove it: its run writes it again")
    return config


def overrides_in(path: Path, way: str, *keys: str) -> list[str]:
    """The overrides in a file, under these keys; InputError where it is damaged, with what to do then."""
    found: Any = OmegaConf.to_container(loaded(path, way))
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{path}: damaged, it has no list of overrides; {way}")
    return found


def checkpoint_of(resume: str) -> Path | None:
    """The checkpoint that `resume=` means: itself, or a folder's `last.ckpt`; None where the folder has none yet."""
    path = Path(resume).expanduser()
    if path.is_dir():
        path = path / "last.ckpt"
    return path if path.is_file() else None


def resumed(texts: Sequence[str], command: str = "train") -> list[str]:
    """A command line's arguments, where `resume=PATH` is one of them with the overrides of what it resumes.

    Args:
        texts: the arguments; an override among them replaces that of the same key. With `-m` they are used as they are.
        command: `train`, or `search` for the folder of a study.

    Raises:
        InputError: the path is missing, or is neither a run, a sweep, a study nor a checkpoint.
    """
    given = [value_of(text) for text in texts if key_of(text) == "resume"]
    if not given or given[-1] is None:
        return list(texts)
    if not given[-1]:  # an unset variable of the shell would start another run
        raise InputError("resume: no value; expected the folder of a run, such as resume=runs/machine")
    path = Path(given[-1]).expanduser()
    if not path.exists():
        raise InputError(f"resume={path}: no such file or folder; expected the folder of a run, or its last.ckpt")
    folder = folder_of(str(path))
    if (folder / "study.db").is_file() != (command == "search"):
        hint = "a study; expected python -m msae.search" if command == "train" else "expected the folder of a study"
        raise InputError(f"resume={path}: {hint}")
    sweep, way = [], f"give the whole command again, with resume={shlex.quote(str(path))}"
    if (folder / "overrides.yaml").is_file():
        saved = overrides_in(folder / "overrides.yaml", f"remove it and {way}")
    elif (folder / "multirun.yaml").is_file():
        place = f"hydra.sweep.dir={quoted([str(folder)])}"
        if {"-m", "--multirun"} & set(texts):  # the whole command is given again
            return [*(text for text in texts if key_of(text) != "hydra.sweep.dir"), place]
        saved = [
            text
            for key in ("hydra", "task")
            for text in overrides_in(folder / "multirun.yaml", f"{way} and -m", "hydra", "overrides", key)
        ]
        sweep = ["--multirun", place]
    elif path.is_file() or any(any(folder.glob(name)) for name in WHOLE):  # its overrides are given
        return list(texts)
    else:
        raise InputError(f"resume={path}: no run in it; expected the folder of a run, of several seeds, or of a sweep")
    own = {"hydra.mode", "hydra.sweep.dir", "resume", "out"} | set(map(key_of, texts))
    kept = [text for text in saved if key_of(text) not in own]
    check_overrides(f"resume={path}", kept)
    return [*kept, *texts, *sweep]


def own_overrides(cfg: DictConfig) -> list[str]:
    """The command line's overrides that define a run, with its own seed where several seeds train as one."""
    given = [text for text in HydraConfig.get().overrides.task if key_of(text) not in UNNAMED]
    one = not OmegaConf.is_list(cfg.seed)
    return [f"seed={cfg.seed}" if one and key_of(text) == "seed" else text for text in given]


def keep(run: Path, cfg: DictConfig) -> None:
    """Write `config.yaml` and `overrides.yaml` of a run into its folder."""
    keep_overrides(run, cfg)
    write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))


def keep_overrides(folder: Path, cfg: DictConfig) -> None:
    """Write `overrides.yaml`, by which `resume=` finds again what a folder was made with."""
    write_text(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(own_overrides(cfg))))


def resuming(folder: Path, command: str = "train") -> str:
    """The command that resumes the run, or the runs, in a folder."""
    return f"python -m msae.{command} resume={shlex.quote(os.path.relpath(folder))}"


@contextlib.contextmanager
def claimed(run: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the folder of a run for this process; InputError where another process holds it, after so many seconds."""
    if not leads():
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / "running.lock", timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{os.path.relpath(run)}: another process is running in it; wait until it ends, or give another out=FOLDER"
        ) from None
    try:
        yield
    finally:
        (run / "running.lock").unlink(missing_ok=True)  # before others can hold it
        lock.release()


def interrupted(folder: Path, command: str = "train") -> str:
    """What an interrupted run, or the runs in a folder, say at their end."""
    if any(saved(folder)):
        return f"interrupted. To resume: {resuming(folder, command)}"
    return "interrupted: nothing was kept; the same command starts again"


def saved(folder: Path) -> Iterator[Path]:
    """The checkpoints and results of the run in a folder, of the runs of several seeds, or of those of a sweep."""
    for depth in ("", "*/", "*/*/"):
        for name in ("last.ckpt", "metrics.json"):
            yield from folder.glob(f"{depth}{name}")


def write_error(run: Path, reason: str) -> None:
    """Write `error.txt` while an exception is handled: the reason in a line, and its traceback."""
    write_text(run / "error.txt", f"{reason}\n\n{traceback.format_exc()}")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; a number that is not finite is null."""
    write_text(path, to_json(value, indent=1) + "\n")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


BY_FILES = ("data.window", "data.time_column", "data.freq")
"""Keys that the files of a run choose where the config has null or auto; the run keeps the choice."""


def kept_keys(cfg: Any) -> dict[str, Any]:
    """A config's values by their dotted keys, without those that may change when its run is resumed."""
    return {k: v for k, v in flat(OmegaConf.to_container(cfg, resolve=True)).items() if not k.startswith(FREE)}


def check_same(path: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError that names the keys on which an existing run and this one differ; files choose `BY_FILES`."""
    open_ = [key for key in BY_FILES if now.get(key) in (None, "auto")]
    keys = [key for key in before | now if before.get(key) != now.get(key) and key not in open_]
    keys.sort(key=lambda key: not key.endswith("_target_"))  # another data set or model has other keys all over
    if keys:
        listed = ", ".join(f"{key}={before.get(key)}, not {now.get(key)}" for key in keys[:3])
        more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise InputError(f"{path}: was made with {listed}{more}; expected no other value of it")


def check_limits(name: str, cfg: DictConfig, done: dict[str, int]) -> bool:
    """Whether a run of so many steps and epochs is as long as the config says; InputError where it is longer."""
    for unit, count in done.items():
        limit = cfg.trainer[f"max_{unit}"]
        if limit != -1 and count > limit:
            raise InputError(f"trainer.max_{unit}={limit}: {name} has {count} {unit} already")
    return any(count == cfg.trainer[f"max_{unit}"] for unit, count in done.items())


def finished(run: Path, cfg: DictConfig) -> bool:
    """Whether a folder holds the result of a run as long as the config's.

    Raises:
        InputError: it holds the result of a longer run.
    """
    if not (run / "metrics.json").exists():
        return False
    try:
        result = dict(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
        before = config_in(run / "config.yaml").trainer
    except (ValueError, TypeError, AttributeError, OSError):
        return False  # damaged: what is missing is made again
    check_limits(os.path.relpath(run), cfg, {unit: result.get(unit, 0) for unit in ("steps", "epochs")})
    return all(before.get(limit) == cfg.trainer[limit] for limit in ("max_epochs", "max_steps"))


def tidy(run: Path) -> None:
    """Remove the folder of a run that never started, unless there is more in it than the log."""
    (run / "train.log").unlink(missing_ok=True)
    if run.exists() and not any(run.iterdir()):  # what else is in it is not ours
        run.rmdir()
