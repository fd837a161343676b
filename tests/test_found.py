"""A run's folder from elsewhere runs no code."""

import json
import os
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Command

from msae import InputError
from msae.runs import found
from msae.runs.reading import read_runs

DIGITS: dict[str, Any] = {"_target_": "msae.data.digits.digits", "normalize": "standard"}


@pytest.fixture
def owned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that `os.system` was called with."""
    calls: list[str] = []
    monkeypatch.setattr(os, "system", calls.append)
    return calls


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"_target_": "os.system", "command": "x"},
            r"by os\.system, .*; where you trust it, add --allow os\.system, or",
        ),
        ({"_target_": "msae.data.files.tempfile._os.system", "command": "x"}, "which is not run for a file that names"),
        ({"_target_": "msae.data.module.DataModule"}, "which is not run for a file that names it"),
        (DIGITS | {"a": [{"b": {"_target_": "os.system"}}]}, "_target_ within data; expected plain values there"),
        (DIGITS | {"_args_": ["x"]}, "_args_ within data"),
        (DIGITS | {"normalize": "${oc.env:HOME}"}, "within data; expected plain values there"),
        ({"_target_": ["os.system"]}, "does not say which data set it reads"),
        (["os.system"], "does not say which data set it reads"),
    ],
)
def test_data_options_that_are_found(options: Any, said: str, owned: list[str]) -> None:
    with pytest.raises(InputError, match=f"^file: .*{said}"):
        found.data_set("file", options, "add --allow {}")
    assert owned == []


def test_data_sets_of_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed, or registered by their package."""
    options = DIGITS | {"_target_": "msae.data.ucr.digits"}
    monkeypatch.setattr("msae.data.ucr.digits", lambda **given: given, raising=False)
    with pytest.raises(InputError, match="which is not run for a file that names it"):
        found.data_set("file", options, "")
    assert found.data_set("file", options, "", ["msae.data.ucr.digits"]) == {"normalize": "standard"}
    point = EntryPoint("mine", "msae.data.ucr:digits", found.GROUP)
    monkeypatch.setattr(found, "entry_points", lambda group: [point] if group == "msae.data" else [])
    monkeypatch.setattr(found, "known", found.known.__wrapped__)
    assert found.data_set("file", options, "") == {"normalize": "standard"}


@pytest.mark.parametrize(
    "text",
    [
        "+trainer.callbacks={_target_: os.system, command: x}",
        "+trainer.callbacks.x._target_=os.system",
        "data._target_=os.system",
        "data=../../../tmp/evil",
        "data=/tmp/evil",
        "hydra/job_logging=evil",
        "hydra.launcher.setup=[reboot]",
        "hydra.callbacks.x._target_=os.system",
        "hydra.sweep.dir=/etc",
        "model={_target_: os.system},ae",
    ],
)
def test_overrides_that_are_found(text: str) -> None:
    with pytest.raises(InputError, match=r"^resume=run: its files say .*, which may run code; .* type it again$"):
        found.check_overrides("resume=run", ["seed=0", text])


def test_other_overrides_are_used() -> None:
    plain = ["data=series", "data.path=/a/b.csv", "model.lr=interval(1e-4,1e-2)", "seed=0,1", "hydra/launcher=joblib"]
    found.check_overrides("", [*plain, "hydra.launcher.n_jobs=1", "hydra.launcher.partition=main", "+trainer.x=1"])
    with pytest.raises(InputError, match=r"^resume=run: 'a=\{b' in its files is no override; they are damaged"):
        found.check_overrides("resume=run", ["a={b"])


def test_a_folder_from_elsewhere(made: Command, command: Command, owned: list[str]) -> None:
    made(*FAST, "model=ae", "hydra.run.dir=run")
    before = Path("run/config.yaml").read_text()
    start = before.index("data:\n")
    Path("run/config.yaml").write_text(before[:start] + "data:\n  _target_: os.system\n  command: touch owned\n")
    code, _, err = command("run", module="report")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: run/config.yaml: reads its data by os.system, which is not run for a file that names")
    Path("run/overrides.yaml").write_text("- +trainer.callbacks.x._target_=os.system\n")
    code, _, err = command("resume=run", module="train")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "which may run code" in err
    assert owned == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (("metrics.json", "{"), "metrics.json is damaged: "),
        (("metrics.json", "\udcff"), "metrics.json is damaged: "),
        (("metrics.json", "[]"), "metrics.json is damaged: overrides is missing, or of another type"),
        (("metrics.json", {"history": 3}), "metrics.json is damaged: history is missing, or of another type"),
        (("metrics.json", {"metrics": {"test/loss": None}}), "its test error has no value"),
        (("metrics.json", {"checkpoint": "../x"}), "metrics.json is damaged: checkpoint=../x"),
        (("config.yaml", "a: [b"), "config.yaml is missing or damaged: "),
        (("config.yaml", "a: 1"), "config.yaml is missing or damaged: "),
        (("config.yaml", "x"), "config.yaml is missing or damaged: "),
    ],
)
def test_damaged_results_are_missing_runs(damage: tuple[str, Any], said: str, made: Command) -> None:
    made(*FAST, "model=ae", "hydra.run.dir=run")
    shutil.copytree("run", "sweep/one")
    name, text = damage
    path = Path("sweep/one", name)
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text, errors="surrogateescape")
    runs, missing = read_runs(Path("sweep"))
    assert runs == []
    assert missing["one"].startswith(said)


def test_an_empty_error_is_a_missing_run(tmp_path: Path) -> None:
    for name, content in (("one", b""), ("two", b"\xff\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.log").touch()
        (tmp_path / name / "error.txt").write_bytes(content)
    assert read_runs(tmp_path)[1] == {"one": "failed: error.txt is empty", "two": "failed: \ufffd"}
