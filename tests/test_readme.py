"""Every command, example and link of README.md, CONTRIBUTING.md and the guide works."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import types
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import FAST, Command
from hydra.utils import instantiate
from omegaconf import OmegaConf

from msae.cli import CONF
from msae.models.contract import check_model

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/uses/*.md")),
]
BLOCKS = [
    (path.relative_to(ROOT).as_posix(), kind, block)
    for path in PAGES
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
]
LINES = list(
    dict.fromkeys(
        line.partition("  #")[0].strip() for _, kind, block in BLOCKS if kind == "bash" for line in block.splitlines()
    )
)
SET_UP = "python3 -m venv .venv && .venv/bin/pip install uv && .venv/bin/uv run python -m msae.train model=msae"
TESTS = ".venv/bin/uv run --extra dev pytest -n 2"
ELSEWHERE = {SET_UP, TESTS, "source .venv/bin/activate", "ruff check && ruff format --check && mypy"}
"""What `.ci/run` does."""


def of(command: str) -> list[str]:
    """The lines of a command, without `python -m msae.COMMAND`."""
    start = f"python -m msae.{command} "
    return [line.removeprefix(start) for line in LINES if line.startswith(start)]


CLUSTER = [line for line in LINES if re.search(r"msae\.train .*(trainer=ddp|hydra/launcher=)", line)]
RESUMED = [line for line in of("train") if "resume=" in line]
NEW = [line for line in of("train") if re.search("=(halves|waves)", line)]
TRAIN = [line for line in of("train") if not {line, f"python -m msae.train {line}"} & {*RESUMED, *NEW, *CLUSTER}]
USES = [line for line in LINES if re.match(r"python -m msae\.(embed|detect|augment|forecast|reconstruct) ", line)]
[FOLLOW] = [line for line in USES if "follow=true" in line]
USES.remove(FOLLOW)
PYTHON = list(dict.fromkeys(block for page, kind, block in BLOCKS if kind == "python" and page != "docs/developing.md"))
[FILES] = [block for block in PYTHON if "good.csv" in block and "msae" not in block]
PYTHON.remove(FILES)
PYTEST = [line for line in LINES if line.startswith("pytest ")]


def test_the_first_two_commands_do_all_set_up() -> None:
    """Their parts after the installation; `.ci/run` goes through the installation itself."""
    assert LINES[:2] == [SET_UP, TESTS]
    assert "uv run --extra dev pytest -n 2" in (ROOT / ".ci" / "run").read_text()
    assert "dev" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_no_command_is_left_out() -> None:
    tested = {f"python -m msae.train {line}" for line in (*TRAIN, *RESUMED, *NEW)} | {*CLUSTER, *USES, FOLLOW, *PYTEST}
    tested |= {f"python -m msae.{name} {line}" for name in ("report", "search", "export", "card") for line in of(name)}
    assert set(LINES) - tested == ELSEWHERE | {"tensorboard --logdir runs"}


def one_run(line: str) -> list[str]:
    """The first run of a sweep's command line."""
    words = [word for word in shlex.split(line) if word != "-m"]
    return [re.sub(r"^([^=\[]+=[^,\[({'\"]+),.*", r"\1", word) for word in words]


@pytest.mark.parametrize("line", [*TRAIN, *CLUSTER])
def test_training_commands_compose(line: str, command: Command) -> None:
    """All of them; other tests start sweeps, several processes and jobs of a cluster."""
    line = line.partition("-m msae.train ")[2] or line
    for launcher in re.findall(r"hydra/launcher=(\w+)", line):
        pytest.importorskip(f"hydra_plugins.hydra_{'ray' if launcher == 'ray' else 'submitit'}_launcher")
    code, out, err = command(*one_run(line), *([] if "--help" in line else ["--cfg", "all"]))
    assert (code, err) == (0, "")
    if "trainer=ddp" in line:
        assert "strategy: ddp" in out
    if "hydra/launcher=" in line:
        assert "SlurmLauncher" in out or "RayLauncher" in out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name."""
    folder, t = tmp_path_factory.mktemp("guide"), np.arange(3000)
    for name, column in (("good", "temperature"), ("new", "temperature"), ("readings", "a")):
        times = np.datetime64("2024-01-01T00:00") + t * np.timedelta64(5, "m")
        x = 80 + 10 * np.sin(t / 46) + np.random.default_rng(len(name)).normal(size=len(t))
        rows = [f"{stamp},{value:.3f}" for stamp, value in zip(times, x, strict=True)]
        if name == "readings":  # without times
            rows = [f"{value:.3f},{i % 50}" for i, value in enumerate(x)]
        header = f"timestamp,{column}" if name != "readings" else "a,b"
        (folder / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


SMALL = {"machine": ("trainer.max_epochs=-1", "trainer.max_steps=4"), "digits": ("trainer.max_epochs=1",)}


@pytest.fixture
def at(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in the folder where the pages' models are trained as they say, but for a few steps."""
    monkeypatch.chdir(folder)
    for name in ("machine", "digits", "readings"):
        if not Path("runs", name).exists():
            [line] = [line for line in TRAIN if line.endswith(f" out=runs/{name}")]
            result = command(*shlex.split(line), "trainer=cpu", *SMALL.get(name, SMALL["machine"]))
            assert result.code == 0, result.err
    return command


@pytest.mark.parametrize("line", USES)
def test_uses(line: str, at: Command) -> None:
    _, _, module, *arguments = shlex.split(line)
    result = at(*arguments, "overwrite=true", module=module.removeprefix("msae."))
    assert result.code == 0, result.err
    outputs = [Path(text.removeprefix("out=")) for text in arguments if text.startswith("out=")]
    for out in outputs or [Path("runs/machine/reconstruction/new.csv")]:
        assert out.exists()
        assert Path(f"{out}.png").exists()


def test_a_file_is_followed(at: Command) -> None:
    """Until SIGTERM, which comes once its rows are scored."""
    shutil.copy("new.csv", "live.csv")

    def end() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and "\n" not in Path("alarms.csv").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    Path("alarms.csv").write_text("")
    thread = threading.Thread(target=end)
    thread.start()
    code, _, err = at(*shlex.split(FOLLOW)[3:], "overwrite=true", module="detect")
    thread.join()
    assert (code, err) == (143, "")
    assert Path("alarms.csv").read_text().count("\n") == 3001


def test_the_files_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the days that the page names, of a file with the stamps of the original."""
    monkeypatch.chdir(tmp_path)
    stamps = pd.date_range("2013-12-02 21:15", "2014-02-19 15:25", freq="5min").strftime("%Y-%m-%d %H:%M:%S")
    table = pd.DataFrame({"timestamp": stamps, "value": 80.0})
    table.to_csv("machine_temperature_system_failure.csv", index=False)
    exec(FILES)
    assert [len(pd.read_csv(name)) for name in ("good.csv", "new.csv")] == [5760, 12282]


def test_events_have_the_columns_that_readme_shows(at: Command) -> None:
    [line] = [line for line in USES if line.endswith("out=alarms.csv")]
    assert at(*shlex.split(line)[3:], "overwrite=true", module="detect").code == 0
    header = Path("alarms.csv.events.csv").read_text().splitlines()[0].replace('"', "").split(",")
    [shown] = [row for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| start_time |")]
    assert set(shown.strip("| ").split(" | ")) <= set(header)


def test_sweeps_reports_and_resuming(at: Command) -> None:
    [sweep] = [line for line in TRAIN if line.endswith(" out=runs/compare")]
    [report] = of("report")
    result = at(*shlex.split(sweep), *FAST[1:], "trainer.max_epochs=1", "seed=0", "hydra.launcher.n_jobs=1")
    assert result.code == 0, result.err
    assert at(*shlex.split(report), module="report").code == 0
    assert {"report.md", "report.json", "curves.png"} <= {path.name for path in Path("runs/compare").iterdir()}
    for line in RESUMED:
        args = [re.sub("max_epochs=.*", "max_epochs=2", word) for word in shlex.split(line)]
        code, out, err = at(*args)
        assert code == 0, err
        assert "runs/compare" not in line or out.count("finished before") == 2


@pytest.mark.parametrize("line", of("card"))
def test_cards_compose(line: str, command: Command) -> None:
    """`test_card.py` makes cards."""
    code, out, err = command(*shlex.split(line), "--cfg", "job", module="card")
    assert (code, err) == (0, "")
    assert "budget: 5m" in out


def test_searches(at: Command) -> None:
    """As they stand, but for an epoch and few trials; the command at the end trains the best."""
    new, resumed = of("search")
    args = [*shlex.split(new)[:-2], *FAST[1:], "trainer.max_epochs=1", "n_trials=2", "out=runs/study"]
    code, out, err = at(*args, module="search")
    assert (code, err) == (0, "")
    best = out.splitlines()[-1].removeprefix("  python -m msae.train ")
    assert at(*shlex.split(best), "--cfg", "job").code == 0
    code, out, err = at(*shlex.split(resumed)[:-1], "n_trials=3", module="search")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.split("\n")[-2][:40])
def test_python(block: str, at: Command) -> None:
    """Each example runs; that of the export needs neither torch nor msae. New files have a test of their own."""
    if "onnxruntime" not in block:
        found: dict[str, Any] = {}
        exec(block.replace("n_epochs=5", "n_epochs=1"), found)
        shapes = {name: found[name].shape for name in ("scores", "inliers", "outliers", "z") if name in found}
        assert shapes or found.get("accuracy", 0) > 0.7 or len(found.get("low", [])) == 3 or more_samples(found)
        assert all(shape[0] in (8, 360, 3000) for shape in shapes.values())
        return
    assert len(of("export")) == 2
    for line in of("export"):
        assert at(*shlex.split(line), module="export").code == 0
    after = "import sys; print(x_hat.shape, codes, {'torch', 'msae'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", f"{block}\n{after}"], capture_output=True, text=True, check=True)
    assert result.stdout == "(8, 1, 64) {'small': [0, 8], 'large': [8, 16]} set()\n"


def more_samples(found: dict[str, Any]) -> bool:
    """Whether an example doubled its samples."""
    return len(found["more_x"]) == 2 * len(found["x"])


def test_the_new_model_and_the_new_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of `docs/developing.md` fit each other, and an odd length of several channels."""
    blocks = [(kind, block) for page, kind, block in BLOCKS if page == "docs/developing.md"]
    modules, configs = ([block for k, block in blocks if k == kind] for kind in ("python", "yaml"))
    for name, source in zip(("msae.models.halves", "msae.data.waves"), modules, strict=True):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(source, module.__dict__)
        monkeypatch.setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module, raising=False)
    model, data = (OmegaConf.create(config.replace("${seed}", "0")) for config in configs)
    model = OmegaConf.merge(OmegaConf.load(CONF / "model" / f"{model.pop('defaults')[0]}.yaml"), model)
    windows = instantiate(data)
    for x in (windows.train.x[:4], windows.train.x[:4].expand(4, 3, 25)):
        halves = instantiate(model, shape=x.shape[1:])
        check_model(halves, x)
        assert halves(x)[0].shape == x.shape
    assert [len(windows.train), len(windows.val), len(windows.test)] == [380, 100, 120]
    assert [line.split()[0] for line in NEW] == ["model=halves", "model=single"]


@pytest.mark.parametrize("line", PYTEST)
def test_the_tests_that_are_named_are_there(line: str) -> None:
    files = [word for word in shlex.split(line) if word.endswith(".py")]
    assert files
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link
        if link.endswith(".png"):
            assert 10_000 < (path.parent / link).stat().st_size < 150_000


@pytest.mark.usefixtures("at")
def test_tensorboard_serves_a_run() -> None:
    arguments = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", "0", "--load_fast", "false"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next(match[0] for line in process.stderr if (match := re.search(r"http://\S+/", line)))
        runs: Any = []
        deadline = time.monotonic() + 30
        while "digits" not in runs and time.monotonic() < deadline:
            runs = json.load(urllib.request.urlopen(f"{url}data/runs"))
            time.sleep(0.2)
        assert {"digits", "machine", "readings"} <= set(runs)
    finally:
        process.terminate()
        process.communicate()
