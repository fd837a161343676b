"""Every command in the README works, and its table is the report's."""

import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, Command

import msae

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
TRAIN = [line.removeprefix("python -m msae.train ") for line in LINES if line.startswith("python -m msae.train")]


def test_the_first_two_commands_do_all_set_up() -> None:
    """Their parts after the installation; `.ci/run` goes through the installation itself."""
    first, second = LINES[:2]
    assert first.endswith("&& .venv/bin/uv run python -m msae.train model=msae")
    assert second == ".venv/bin/uv run --extra dev pytest -n 2"
    assert "uv run --extra dev pytest -n 2" in (ROOT / ".ci" / "run").read_text()
    assert "dev" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("line", [*TRAIN, "model=msae"])
def test_training_commands(line: str, command: Command) -> None:
    """As they stand, but on digits, for an epoch, and with two seeds; one that resumes finds its sweep."""
    small = () if "--help" in line else (*FAST, "trainer.max_epochs=1", "hydra.launcher.n_jobs=1")
    if "seed=" in line or "experiment=" in line:
        small += ("seed=0,1",)
    args = [arg for arg in shlex.split(line) if arg != "resume=true"]
    code, out, err = command(*args, *small)
    assert code == 0, err
    if "resume=true" in line:
        code, out, err = command(*args, "resume=true", *small)
        assert (code, out.count(": finished before")) == (0, 4), err


def test_other_commands() -> None:
    """No command of the README is left out here."""
    others = [line for line in LINES[2:] if not line.startswith("python -m msae.train")]
    assert others == ["tensorboard --logdir runs", "python benchmarks/train_speed.py"]


@pytest.mark.usefixtures("tiny_mnist")
def test_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_speed.py", "--rounds", "1", "--windows", "128"])
    runpy.run_path(str(ROOT / "benchmarks" / "train_speed.py"), run_name="__main__")
    rows = capsys.readouterr().out.strip().splitlines()[-4:]
    names = ["bare PyTorch loop", "this project", "Lightning, torchvision, DataLoader", "appendix's loop"]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == names
    assert "| 1.00 (1.00 to 1.00) |" in rows[0]


def test_tensorboard_serves_a_run(command: Command, tmp_path: Path) -> None:
    assert command(*FAST, "hydra.run.dir=runs/a").code == 0
    arguments = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", "0", "--load_fast", "false"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next(match[0] for line in process.stderr if (match := re.search(r"http://\S+/", line)))
        runs: Any = []
        deadline = time.monotonic() + 30
        while not runs and time.monotonic() < deadline:
            runs = json.load(urllib.request.urlopen(f"{url}data/runs"))
            time.sleep(0.2)
        assert runs == ["a"]
    finally:
        process.terminate()
        process.communicate()


def test_python(command: Command) -> None:
    assert command(*FAST, "hydra.run.dir=runs/msae").code == 0
    [block] = [block for kind, block in BLOCKS if kind == "python"]
    found: dict[str, Any] = {}
    exec(textwrap.dedent(block).replace("784", "64"), found)
    assert found["x_hat"].shape == (8, 1, 64)
    assert {scale: code.shape for scale, code in found["codes"].items()} == {"small": (8, 64), "large": (8, 64)}
    assert found["msae"] is msae


def decimals(value: float) -> str:
    return f"{value:.6f}".replace("0.", ".", 1)


def test_the_table_is_the_reports() -> None:
    """`docs/table1.json` is what `experiment=table1` wrote."""
    result = json.loads((ROOT / "docs" / "table1.json").read_text())["data"]["mnist"]
    table = [line for line in README.splitlines() if line.startswith("|")]
    for row in result["rows"]:
        [line] = [line for line in table if line.startswith(f"| `{row['model']}`:")]
        assert f"| {decimals(row['test_mse'])} ± {decimals(row['test_mse_sd'])} | {row['psnr']:.2f} |" in line
        assert f"| {row['parameters']:,} |" in line
        assert row["n"] == 5
    for row in result["pca"]:
        name = row["model"].replace("clipped", "clipped to [0, 1]")
        assert f"| {name} | {row['latent']} | | {decimals(row['test_mse'])} | {row['psnr']:.2f} | |" in table
    shown = [d for d in result["differences"] if d["model"] == "msae"]
    assert len(shown) == 3
    for d in shown:
        low, high = map(decimals, d["interval"])
        assert f"| `msae` - `{d['against']}` | {decimals(d['mean'])} | {low} to {high} |" in table


def test_pictures_are_there_and_small() -> None:
    for path in re.findall(r"!\[[^]]+\]\((.+?)\)", README):
        assert 10_000 < (ROOT / path).stat().st_size < 150_000
