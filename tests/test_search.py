"""Searches for hyperparameters."""

import errno
import json
import math
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from conftest import FAST, Command
from omegaconf import OmegaConf
from test_cli import error_line

from msae import train
from msae.runs.callbacks import History

TRIED = ("model.lr=tag(log,interval(1e-4,1e-2))", "model.latent_dim=interval(2,9)")
SEARCH = (*FAST[:2], "trainer.max_epochs=1", "model=ae", *TRIED)
Result = dict[str, Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """Runs that train nothing and whose val/loss is lr; the fixture lists what each was asked to do."""
    asked: list[Result] = []

    def run(cfg: Any, run: Path, name: str, ckpt: Path | None = None, bar: bool = True) -> Result:
        values = {
            "lr": cfg.model.lr,
            "latent_dim": cfg.model.latent_dim,
            "run": run,
            "name": name,
            "bar": bar,
            "ckpt": ckpt,
        }
        asked.append(values | {"progress": cfg.trainer.enable_progress_bar})
        (run / "config.yaml").touch()
        return {"val_loss": cfg.model.lr, "metrics": {"test/mse": -1.0}}

    monkeypatch.setattr(train, "train", run)
    return asked


def study(folder: str) -> optuna.Study:
    return optuna.load_study(study_name="msae", storage=f"sqlite:///{folder}/study.db")


def states(folder: str) -> list[str]:
    return [trial.state.name for trial in study(folder).trials]


def test_a_search_and_its_best(command: Command) -> None:
    """A trial's value is the kept val/loss, its folder is like any run's, and the last line trains the best again."""
    code, out, err = command(*SEARCH, "n_trials=3", "out=s", module="search")
    assert (code, err) == (0, "")
    assert "0 of 3 trials are done\n  s\n" in out
    trials = study("s").trials
    assert states("s") == ["COMPLETE"] * 3
    for trial in trials:
        result = json.loads(Path("s", str(trial.number), "metrics.json").read_text())
        assert trial.value == result["val_loss"] == min(epoch["val/loss"] for epoch in result["history"])
        config = OmegaConf.load(f"s/{trial.number}/config.yaml")
        assert trial.params == {"model.lr": config.model.lr, "model.latent_dim": config.model.latent_dim}
        assert Path("s", str(trial.number), "best.ckpt").exists()
        assert Path("s", str(trial.number), "train.log").exists()
    best = min(trials, key=lambda trial: trial.value or 0)
    rows = re.findall(r"^\| (\d+) \| (\S+) \|", out, re.MULTILINE)
    assert [(int(number), float(value)) for number, value in rows] == [
        (t.number, float(f"{t.value:.5g}")) for t in sorted(trials, key=lambda t: t.value or 0)
    ]
    assert "test" not in out
    line = out.splitlines()[-1].removeprefix("  python -m msae.train ")
    assert command(*shlex.split(line), "hydra.run.dir=again").code == 0
    assert json.loads(Path("again/metrics.json").read_text())["val_loss"] == best.value


def test_goes_on_as_if_it_had_not_stopped(quick: list[Result], command: Command) -> None:
    """n_trials counts all trials; a study that was stopped tries the same values as one that was not."""
    assert command(*SEARCH, "n_trials=13", "out=whole", module="search").code == 0
    whole = [run.pop("run") and run for run in quick]
    quick.clear()
    assert command(*SEARCH, "n_trials=5", "out=parts", module="search").code == 0
    code, out, _ = command(*SEARCH, "n_trials=13", "threads=2", "out=parts", module="search")
    assert (code, "5 of 13 trials are done" in out) == (0, True)
    assert [run.pop("run") and run for run in quick] == whole
    assert [run["name"] for run in whole] == [f"trial {i}" for i in range(13)]
    assert not any(run["progress"] for run in whole)
    quick.clear()
    code, out, _ = command(*SEARCH, "n_trials=13", "out=parts", module="search")
    assert (code, quick, out.count("\n| ")) == (0, [], 12)
    assert all(1e-4 <= run["lr"] <= 1e-2 and 2 <= run["latent_dim"] <= 9 for run in whole)
    assert all(isinstance(run["latent_dim"], int) for run in whole)


def test_its_folder_is_that_of_the_command(quick: list[Result], command: Command) -> None:
    for n in (1, 2):
        assert command(*SEARCH[:2], *SEARCH[:1:-1], f"n_trials={n}", module="search").code == 0
        assert command(*SEARCH, f"n_trials={n}", module="search").code == 0
    assert [run["name"] for run in quick] == ["trial 0", "trial 1"]
    [folder] = Path("runs").iterdir()
    assert folder.name.startswith("search+data=digits+")


@pytest.mark.usefixtures("quick")
def test_any_sign_in_its_folder(command: Command) -> None:
    folder = "it's [a], é=1?b#%20{c}"
    assert command(*SEARCH, "n_trials=1", f"out={folder}", module="search").code == 0
    assert (Path(folder) / "study.db").exists()
    code, out, err = command("n_trials=2", f"resume={folder}", module="search")
    assert (code, err) == (0, "")
    assert "1 of 2 trials are done" in out


@pytest.mark.usefixtures("quick")
def test_options_ranges_and_yaml(command: Command) -> None:
    """The command line overrides an experiment's `hydra.sweeper.params`."""
    args = ("experiment=fair_search", "data=digits", "model=single,pyramid", "model.segments=[1],[1,4]", "out=s")
    assert command(*args, "model.passes=range(1,6,2)", "n_trials=12", module="search").code == 0
    tried = {key: {trial.params[key] for trial in study("s").trials} for key in study("s").trials[0].params}
    assert tried == {
        "model": {"single", "pyramid"},
        "model.segments": {"[1]", "[1,4]"},
        "model.passes": {1, 3, 5},
        "model.latent_dim": {"16", "64", "128"},
    }
    code, out, _ = command(*args[:-1], "model.latent_dim=16", "out=t", "n_trials=1", module="search")
    assert code == 0
    assert set(study("t").trials[0].params) == {"model", "model.segments"}
    assert out.splitlines()[-1].endswith("hydra.mode=RUN")


def test_the_same_values_are_trained_once(quick: list[Result], command: Command) -> None:
    code, out, _ = command("data=digits", "model=ae,ae16", "n_trials=9", "out=s", module="search")
    assert (code, len(quick), states("s")) == (0, 2, ["COMPLETE"] * 9)
    assert re.search(r"trial \d: val/loss 0.001 as trial [01], best 0.001 ", out)
    assert out.count("\n| ") == 4


def test_a_trial_that_fails(quick: list[Result], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is reported and kept with its reason, and the others continue."""
    once = train.train

    def fails(*args: Any, **options: Any) -> Result:
        result = once(*args, **options)
        if len(quick) == 2:
            raise ZeroDivisionError("by chance")
        return result | {"val_loss": math.nan} if len(quick) == 3 else result

    monkeypatch.setattr(train, "train", fails)
    code, out, err = command(*SEARCH, "n_trials=4", "out=s", module="search")
    assert (code, err) == (0, "")
    assert states("s") == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert "trial 1: failed: by chance" in out
    assert "trial 2: failed: val/loss is nan" in out
    assert "2 trials, 2 failed, 0 running elsewhere" in out
    assert study("s").trials[1].user_attrs["error"] == "by chance"
    text = Path("s/1/error.txt").read_text()
    assert text.startswith("by chance\n")
    assert "ZeroDivisionError" in text


def test_all_fail(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Result:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(train, "train", fails)
    code, _, err = command(*SEARCH[:3], "model=ae", "model.lr=1,2", "n_trials=2", "out=s", module="search")
    assert (code, error_line(err)) == (2, "s: 0 trials, 2 failed, 0 running elsewhere; by chance")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption(
    kind: type[BaseException], quick: list[Result], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption ends the trial, which does not count; the study can continue."""
    once = train.train

    def interrupted(*args: Any, **options: Any) -> Result:
        if len(quick) == 2:
            raise kind
        return once(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", interrupted)
        code, out, _ = command(*SEARCH, "n_trials=4", "out=s", module="search")
    assert (code, states("s")) == (130, ["COMPLETE", "COMPLETE", "FAIL"])
    assert out.endswith("\ninterrupted. To resume: python -m msae.search resume=s\n")
    code, out, _ = command(*SEARCH, "n_trials=4", "out=s", module="search")
    assert (code, states("s")) == (0, ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"])
    assert "2 of 4 trials are done" in out
    assert "4 trials, 0 failed, 0 running elsewhere" in out


def test_several_processes_and_one_that_is_killed(tmp_path: Path) -> None:
    """Together they run `n_trials` trials; the trial of a killed process is resumed."""
    search = [*SEARCH[:2], "trainer.max_epochs=10", *SEARCH[3:]]
    args = [sys.executable, "-m", "msae.search", *search, "n_trials=4", "out=s"]
    first = subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "s/0/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    database = tmp_path / "s/study.db"
    others = [
        subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    for process in others:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        assert "failed: " not in out
    trials = optuna.load_study(study_name="msae", storage=f"sqlite:///{database}").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert all((tmp_path / "s" / str(trial.number) / "metrics.json").exists() for trial in trials)
    assert not list(tmp_path.glob("s/*/running.lock"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("model=ae", "nothing to search; expected values to try, such as 'model.lr=tag(log,interval(1e-4,1e-2))'"),
        ("model=ae model.lr=1e-3", "nothing to search"),
        ("model=ae,msea", "model=msea: no such option; nearest: msae"),
        ("model=msea model.lr=1e-3,2e-3", "model=msea: no such option; nearest: msae"),
        ("model.lrr=interval(1,2)", "model.lrr: no such key; nearest: model.lr"),
        ("model.lr=interval(2,1)", "model.lr=interval(2,1): expected the lower bound first, and above 0 for log"),
        ("model.lr=interval(-1,1)", "model.lr=-1.0: expected a number above 0"),
        ("model.lr=interval(1e-3,nan)", "model.lr=interval(1e-3,nan): expected finite bounds"),
        ("model.lr=tag(log,interval(0,1))", "model.lr=tag(log,interval(0,1)): expected the lower bound first"),
        ("model.lr=tag(lg,interval(1,2))", "model.lr=tag(lg,interval(1,2)): tag lg; expected none, or log"),
        ("model.passes=range(3,1)", "model.passes=range(3,1): expected the lower bound first"),
        ("seed=0,1", "seed=0,1: cannot be searched; expected one value"),
        ("seed=[0,1] model.lr=1,2", "seed=[0, 1]: expected one seed for all trials; train the best"),
        ("data.val_size=0 model.lr=1,2", "data: no validation split, on which trials are compared; expected"),
        ("model.lr=1,2 n_trials=0", "n_trials=0: expected a whole number, at least 1"),
        ("model.lr=1,2 n_trails=3", "n_trails: no such key; nearest: n_trials"),
        ("model.lr=1,2 resume=a.ckpt", "resume=a.ckpt: no such file or folder"),
        ("model.lr=1,2 trainer.max_steps=0", "trainer.max_steps=0: expected a whole number above 0"),
        ("model.lr=1,2 trainer=ddp", "trainer=ddp trainer.devices=2 trainer.num_nodes=1: a run of several processes"),
        ("model.lr=1,2 hydra/launcher=joblib", "hydra/launcher=joblib: a search has none; start the same command"),
        ("-m model.lr=1,2", "-m: a search is a sweep by itself; leave it out"),
        ("model.lr=interval(1", "model.lr=interval(1: cannot be read; expected key=value"),
        ("out=mine model.lr=1,2", "out=mine: contains other files; expected a new folder, or that of a study"),
    ],
)  # fmt: skip
def test_mistakes(args: str, message: str, command: Command) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    given = ["data=digits", *([] if "model=" in args else ["model=pyramid"]), *args.split()]
    code, out, err = command(*given, module="search")
    assert (code, out) == (2, "")
    assert error_line(err).startswith(message)
    assert [path.name for path in Path().iterdir()] == ["mine"]
    assert {path.name for path in Path("mine").iterdir()} <= {"thesis.txt", "study.lock"}


def test_a_damaged_study(command: Command) -> None:
    Path("s").mkdir()
    Path("s/study.db").write_text("not a database, but long enough to be taken for one\n" * 99)
    code, _, err = command(*SEARCH, "out=s", module="search")
    assert (code, error_line(err)) == (2, "s/study.db: damaged, or not a study of Optuna (DatabaseError)")


@pytest.mark.usefixtures("sigint")
def test_a_trial_is_resumed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever resumes the study, at the step at which a signal ended it."""
    normal = History.on_train_batch_end

    def signalled(self: History, trainer: Any, *rest: Any) -> None:
        normal(self, trainer, *rest)
        signal.raise_signal(signal.SIGTERM)

    args = (*SEARCH, "data.batch_size=4", "n_trials=1", "out=s")
    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_batch_end", signalled)
        code, out, _ = command(*args, module="search")
    assert (code, states("s")) == (143, ["RUNNING"])
    assert out.endswith("\ninterrupted. To resume: python -m msae.search resume=s\n")
    assert torch.load("s/0/last.ckpt", weights_only=True)["global_step"] == 32
    assert command("resume=s", module="search").code == 0
    assert states("s") == ["COMPLETE"]


def test_a_full_disk_costs_no_trial(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a run writes nor where Optuna does; the same command goes on once there is room."""
    args = (*SEARCH, "n_trials=2", "out=s")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", full)
        code, _, err = command(*args, module="search")
    assert (code, states("s")) == (2, ["RUNNING"])
    assert re.match(r"No space left on device: [\d.]+ .B free in ", error_line(err))

    def told(*_: Any, **__: Any) -> None:
        raise optuna.exceptions.StorageInternalError from sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", told)
        code, _, err = command(*args, module="search")
    assert (code, states("s")[-1]) == (2, "RUNNING")
    assert re.fullmatch(
        r"s/study\.db: database or disk is full, [\d.]+ .B free in s; the same command goes on once that is mended",
        error_line(err),
    )
    code, out, _ = command(*args, module="search")
    assert (code, "2 trials, 0 failed" in out) == (0, True)
    assert states("s").count("COMPLETE") == 2


@pytest.mark.usefixtures("quick")
def test_another_search_in_its_folder(command: Command) -> None:
    assert command(*SEARCH, "n_trials=1", "out=s", module="search").code == 0
    other = [text.replace("interval(2,9)", "interval(2,8)") for text in SEARCH]
    code, _, err = command(*other, "data.batch_size=8", "out=s", module="search")
    assert code == 2
    assert error_line(err) == (
        "out=s: a study of model.latent_dim=interval(2,9); not data.batch_size=8 model.latent_dim=interval(2,8)"
    )


def test_without_optuna(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    code, _, err = command(*SEARCH, module="search")
    assert (code, err) == (2, "error: msae.search needs optuna: pip install optuna (or msae's extra [search])\n")


def test_help(tmp_path: Path) -> None:
    code = "import sys, msae.search\ntry: msae.search.main()\nfinally: print({'torch', 'optuna'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert result.stdout.endswith("set()\n")
    assert "n_trials=30" in result.stdout
    assert not list(tmp_path.iterdir())
