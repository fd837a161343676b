"""Every command in the README works, and its table is the report's."""

import datetime
import importlib.util
import itertools
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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from aeon import datasets
from conftest import FAST, Command
from omegaconf import OmegaConf

import msae

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
CLUSTER = [line for line in LINES if re.search(r"msae\.train .*(trainer=ddp|hydra/launcher=)", line)]
LINES = [line for line in LINES if line not in CLUSTER]
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
    if "data=" in line and "digits" not in line:  # as they stand, on a file that takes the place of theirs
        small = ("trainer=cpu", "trainer.max_epochs=1", "trainer.max_steps=-1", "hydra.launcher.n_jobs=1")
        for name in re.findall(r"data.path=(\S+)", line):
            Path("nab").mkdir(exist_ok=True)
            times = [
                f"{datetime.date(2020, 1, 1) + datetime.timedelta(days=i)},{i % 9}.5,{i % 50}" for i in range(2600)
            ]
            header = "date,value,b" if "date" in line else "a,value,b"
            lines = times if "date" in line else [f"{i % 7},{text.partition(',')[2]}" for i, text in enumerate(times)]
            if name.endswith(".npy"):
                np.save(name, np.random.default_rng(0).normal(size=(2600, 2)))
            else:
                Path(name if name != "nab" else "nab/a.csv").write_text("\n".join([header, *lines]) + "\n")
        small += ("data.name=GunPoint,ItalyPowerDemand",) if "data.name=GunPoint," in line else ()
    if ("seed=" in line and "seed=[" not in line) or "experiment=" in line:
        small += ("model.latent_dim=16",) if "experiment=fair_search" in line else ("seed=0,1",)
    args = [arg for arg in shlex.split(line) if arg != "resume=true"]
    code, out, err = command(*args, *small)
    assert code == 0, err
    if "resume=true" in line:
        code, out, err = command(*args, "resume=true", *small)
        assert (code, out.count(": finished before")) == (0, 4), err


@pytest.mark.parametrize("line", CLUSTER)
def test_commands_of_clusters(line: str, command: Command) -> None:
    """They compose; `tests/test_ddp.py` and `tests/slurm` start such."""
    pytest.importorskip(f"hydra_plugins.hydra_{'ray' if 'ray' in line else 'submitit'}_launcher")
    _, _, args = line.partition("-m msae.train ")
    of_one_run = [arg for arg in shlex.split(args) if arg != "-m" and "," not in arg]
    code, out, err = command(*of_one_run, "--cfg", "all")
    assert (code, err) == (0, "")
    assert "strategy: ddp" in out or "SlurmLauncher" in out or "RayLauncher" in out


LATENT = [line for line in LINES if re.match(r"python -m msae\.(embed|detect|augment|forecast)", line)]
SEARCHES = [line for line in LINES if line.startswith("python -m msae.search")]
EXPORTS = [line for line in LINES if line.startswith("python -m msae.export")]
ECG = "runs/series/ecg/model=ae16,seed=0,experiment=series,data=ecg,data.path=100.npy"


def test_other_commands() -> None:
    """No command of the README is left out here."""
    others = [line for line in LINES[2:] if not line.startswith("python -m msae.train")]
    memory = "python benchmarks/memory.py"
    assert others == [
        "python -m msae.report runs/fair_search",
        "python benchmarks/ucr_study.py UCR",
        "python -m msae.report runs/scales",
        "python benchmarks/scale_cost.py --rounds 7 --steps 20",
        "tensorboard --logdir runs",
        "python -m msae.reconstruct ckpt=runs/readings/best.ckpt data=series data.path=readings.csv",
        "python -m msae.report runs/series",
        f"python -m msae.reconstruct ckpt={ECG}/best.ckpt data=ecg data.path=100.npy",
        *LATENT,
        "python benchmarks/features.py UCR",
        "uv run --extra dev --with stumpy --with wfdb python benchmarks/anomaly.py nab 100",
        *[line for line in others if line.startswith("python benchmarks/augmentation.py")],
        "python -m msae.report runs/lgta",
        "python benchmarks/forecasting.py ETTh1.csv exchange_rate.csv --rows 14400",
        *SEARCHES,
        *EXPORTS,
        "python benchmarks/train_speed.py",
        "python benchmarks/stack_speed.py --seeds 1 --threads 1 2",
        "python benchmarks/stack_speed.py --seeds 5 --threads 1 2",
        "python benchmarks/stack_speed.py --seeds 20 --threads 1 2 --rounds 1",
        "python benchmarks/growth.py",
        "python benchmarks/window_speed.py",
        *(memory, f"{memory} --values 1000000000 --stride 64 --cap 2"),
        f"{memory} --values 1000000000 --stride 64 --cap 2 --suffix .parquet",
    ]


def test_reconstruct_and_report(command: Command) -> None:
    write_readings("readings.csv", 500)
    [train] = [line for line in TRAIN if line.endswith("hydra.run.dir=runs/readings")]
    assert command(*shlex.split(train), "data.window=24", *FAST[1:]).code == 0
    readings, ecg = [line for line in LINES if line.startswith("python -m msae.reconstruct")]
    assert command(*shlex.split(readings)[3:], module="reconstruct").code == 0
    assert Path("runs/readings/reconstruction/readings.csv").exists()
    np.save("100.npy", np.random.default_rng(0).normal(size=(2600, 2)))
    args = ("model=ae16", "data=ecg", "data.path=100.npy", *FAST[1:])
    assert command(*args, f"hydra.run.dir='{ECG}'").code == 0
    assert command(*shlex.split(ecg)[3:], module="reconstruct").code == 0
    assert Path(ECG, "reconstruction", "100.npy.png").exists()
    assert command("runs", module="report").code == 0


def test_scale_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scale_cost.py", "--rounds", "1", "--steps", "2"])
    runpy.run_path(str(ROOT / "studies" / "speed" / "scale_cost.py"), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    assert [row.split(" | ")[1] for row in rows] == ["16", "64", "128", "64", "64", "64"]


def test_ucr_study(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Two sets, ten steps; started again, it trains nothing; runs of another study do not count."""
    study, told = module("ucr_study"), []

    def in_this_process(arguments: list[str], check: bool) -> Any:
        result = command(*arguments[3:])
        told.append(result.out)
        return SimpleNamespace(returncode=result.code, check=check)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=in_this_process))
    tried = [len(list(itertools.product(*space.values()))) for space in study.SPACE.values()]
    assert tried == [6, 3, 6]
    fewer = {"single": {"model.lr": ("0.001", "0.002")}, "pyramid": {"model.segments": ("[1]", "[1,4]")}}
    monkeypatch.setattr(study, "SPACE", fewer)
    archive = Path(datasets.__file__).parent / "data"
    limits = ["data.epoch_steps=5", "hydra.launcher.n_jobs=1"]

    def run(*options: str) -> int:
        told.clear()
        monkeypatch.setattr(sys, "argv", ["ucr_study.py", str(archive), "--out", "ucr", *options, *limits])
        study.main()
        return "".join(told).count("finished before")

    both = ["--sets", "GunPoint", "ItalyPowerDemand", "trainer.max_steps=10"]
    assert [run(*both), run(*both)] == [0, 16]
    trials = json.loads(Path("ucr/search.json").read_text())
    assert len(trials) == 8
    found = json.loads(Path("ucr/study.json").read_text())
    for name, result in found["sets"].items():
        single, pyramid = result["rows"]
        assert [(row["model"], row["n"]) for row in (single, pyramid)] == [("single", 3), ("pyramid", 3)]
        assert abs(pyramid["parameters"] / single["parameters"] - 1) < 0.02
        for row in (single, pyramid):
            own = [trial for trial in trials if (trial["set"], trial["model"]) == (name, row["model"])]
            assert row["setting"].items() <= min(own, key=lambda trial: trial["validation"]).items()
    assert {"ranks.png", "scales.png", "study.md"} <= {path.name for path in Path("ucr").iterdir()}
    other = Path("ucr/search/other")  # of another set, and unfinished
    other.mkdir()
    (other / "train.log").touch()
    OmegaConf.save({"data": {"name": "Coffee"}, "trainer": {"max_steps": 5}}, other / "config.yaml")
    run("--sets", "GunPoint", "trainer.max_steps=5")
    config = OmegaConf.load(next(Path("ucr").glob("**/*max_steps=5*/config.yaml")))
    OmegaConf.save(config, other / "config.yaml")
    with pytest.raises(SystemExit, match="not finished: "):
        run("--sets", "GunPoint", "trainer.max_steps=5")
    assert len(json.loads(Path("ucr/search.json").read_text())) == 4


def module(name: str) -> Any:
    """A study's script as a module."""
    specification = importlib.util.spec_from_file_location(name, next((ROOT / "studies").glob(f"*/{name}.py")))
    assert specification is not None
    assert specification.loader is not None
    found = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    return found


def test_forecasting_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Waves are forecast by the linear map, and all ways have a row for each horizon."""
    study = module("forecasting")
    monkeypatch.setattr(study, "MODELS", ("ae",))
    monkeypatch.chdir(tmp_path)
    write_readings("waves.csv", 2400)
    options = ["--rows", "2300", "trainer.max_steps=2", "hydra.launcher.n_jobs=1"]
    monkeypatch.setattr(sys, "argv", ["forecasting.py", "waves.csv", *options])
    study.main()
    assert "## waves" in capfd.readouterr().out
    rows = json.loads(Path("runs/forecasting/forecasting.json").read_text())
    assert [(row["features"], row["n"]) for row in rows[::5]] == [("ridge on raw values", 1), ("linear", 1), ("ae", 3)]
    assert [row["horizon"] for row in rows[:5]] == [24, 48, 96, 168, 336]
    assert rows[5]["mse"] < 0.1


def test_features_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of few ways, on two sets; started again, it trains nothing."""
    study = module("features")
    ways = {
        "OTHERS": ("raw values", "PCA"),
        "MODELS": ("pyramid",),
        "POOLED": ("pooled PCA",),
        "Parallel": lambda **_: list,
    }
    for name, value in ways.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "delayed", lambda function: function)
    monkeypatch.chdir(tmp_path)
    archive = str(Path(datasets.__file__).parent / "data")
    options = ["--sets", "GunPoint", "ItalyPowerDemand", "--epochs", "1"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["features.py", archive, *options])
        study.main()
        monkeypatch.setattr(study, "accuracy", None)
    assert "| pyramid |" in capfd.readouterr().out
    found = json.loads(Path("runs/features/features.json").read_text())
    assert found["sets"]["GunPoint"]["accuracy"]["raw values"][0] > 0.8
    assert [len(values) for values in found["sets"]["ItalyPowerDemand"]["accuracy"].values()] == [1, 1, 3, 3]
    assert [row["features"] for row in found["methods"]] == ["raw values", "PCA", "pyramid", "pooled PCA"]


@pytest.mark.parametrize("part", ["control", "realism", "use"])
def test_augmentation_study(
    part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = module("augmentation")
    monkeypatch.setattr(study, "Parallel", lambda **_: list)
    monkeypatch.setattr(study, "delayed", lambda function: function)
    monkeypatch.setattr(study, "GRID", study.GRID[:1])
    monkeypatch.setattr(study, "accuracy", lambda x, *_: len(x) / 100)
    monkeypatch.setattr(study, "CLASSIFIER_STEPS", 5)
    monkeypatch.chdir(tmp_path)
    write_readings("readings.csv", 500)
    source = "GunPoint" if part == "use" else "readings.csv,window=24"
    options = ["--models", "pyramid", "direct", "--seeds", "1", "--steps", "2", "--windows", "20"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["augmentation.py", part, source, *options])
        study.main()
        monkeypatch.setitem(study.PARTS, part, None)  # started again, it trains nothing
    text = capfd.readouterr().out
    rows = json.loads(Path(f"runs/augmentation/{part}.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"pyramid", "direct"}
    if part == "control":
        assert [row["same draw"] for row in rows if row["model"] == "direct"] == pytest.approx([1.0] * 3)
        assert "| direct, scaling | 1.000 |" in text
    elif part == "realism":
        assert len(rows) == 8 + 4
        assert all(row["wasserstein"] > 0 for row in rows)
        assert "| pyramid, decoded |" in text
    else:  # five times as many samples: the count stands in for an accuracy
        assert [(row["none"], row["accuracy"]) for row in rows] == [(0.05, 0.25), (0.05, 0.25)]
        assert "pyramid: gain 20.00 points over 1 sets; 0 lose more than 2." in text


def test_anomaly_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A burst in a wave is found by the error of what was trained on the wave."""
    study = module("anomaly")
    monkeypatch.setattr(study, "MODELS", ("pyramid",))
    monkeypatch.setattr(study, "NAMES", ("pyramid", "pyramid, scales", "PCA", "matrix profile", "isolation forest"))
    monkeypatch.setattr(study, "matrix_profile", lambda _, test, __: np.arange(len(test)))
    monkeypatch.setattr(study, "SEEDS", (0,))
    monkeypatch.chdir(tmp_path)
    Path("nab").mkdir()
    t = np.arange(2000)
    x = np.sin(t / 8) + 0.05 * np.random.default_rng(0).normal(size=2000)
    x[1500:1540] += np.random.default_rng(1).normal(size=40)
    times = np.datetime64("2020-01-01") + t * np.timedelta64(1, "h")
    lines = [f"{str(time).replace('T', ' ')}:00:00,{value}" for time, value in zip(times, x, strict=True)]
    Path("nab/wave.csv").write_text("\n".join(["timestamp,value", *lines]))
    Path("nab/windows.json").write_text(json.dumps({"wave.csv": [[str(times[1500]), str(times[1539])]]}))
    options = ["--sets", "wave", "trainer.max_steps=20", "hydra.launcher.n_jobs=1"]
    monkeypatch.setattr(sys, "argv", ["anomaly.py", "nab", "100", *options])
    study.main()
    assert "| 300 | 1700 | 2.4% |" in capfd.readouterr().out
    found = json.loads(Path("runs/anomaly/anomaly.json").read_text())["wave"]["vus_pr"]
    assert [len(values) for values in found.values()] == [1, 1, 1, 1, 1]
    assert min(found["PCA"] + found["pyramid, scales"]) > 0.5
    assert found["matrix profile"][0] < 0.1


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_memory_benchmark(
    suffix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["memory.py", "--values", "50000", "--suffix", suffix, "--stride", "8"])
    runpy.run_path(str(ROOT / "studies" / "speed" / "memory.py"), run_name="__main__")
    assert "50,000 values, 0.00 GiB (0.00 on disk): peak " in capfd.readouterr().out


def test_window_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["window_speed.py", "--rounds", "1", "--time", "2000"])
    runpy.run_path(str(ROOT / "studies" / "speed" / "window_speed.py"), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    assert [row[2] for row in rows] == ["1", "7"]


def test_stack_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--rounds", "1", "--seeds", "1", "--threads", "1", "trainer.max_epochs=1"]
    monkeypatch.setattr(sys, "argv", ["stack_speed.py", *small])
    runpy.run_path(str(ROOT / "studies" / "speed" / "stack_speed.py"), run_name="__main__")
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1 | 1 |")]
    assert all(0 < float(cell.split()[0]) < 10 for cell in row.split(" | ")[3:7])


def test_growth_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        sys, "argv", ["growth.py", "--steps", "32", "--rounds", "1", "--only", "length", "--most", "64"]
    )
    runpy.run_path(str(ROOT / "studies" / "speed" / "growth.py"), run_name="__main__")
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 10,000 | 64 | 1 | 1 |")]
    ms, peak, windows = map(float, row.removesuffix(" |").split(" | ")[4:])
    assert ms > 0
    assert peak > windows == 0.0


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_benchmark(device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "1", "--windows", "160", "--device", device]
    monkeypatch.setattr(sys, "argv", ["train_speed.py", *arguments])
    runpy.run_path(str(ROOT / "studies" / "speed" / "train_speed.py"), run_name="__main__")
    rows = capsys.readouterr().out.split("| ---: |\n")[-1].strip().splitlines()
    names = ["bare PyTorch loop", "this project", "Lightning, torchvision, DataLoader", "appendix's loop"]
    if device == "cuda":
        names = ["bare PyTorch loop, CUDA graph", *names[:2], "this project, model.compile=true", names[2]]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == names
    assert "| 1.00 (1.00 to 1.00) |" in rows[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
def test_benchmark_of_a_gpu_without_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_speed.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "studies" / "speed" / "train_speed.py"), run_name="__main__")
    assert capsys.readouterr().err.endswith("--device cuda: this machine has no CUDA device; use --device cpu\n")


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
    [train] = [line for line in TRAIN if "runs/digits" in line]
    assert command(*shlex.split(train), *FAST[1:]).code == 0
    block, estimators, _ = [block for kind, block in BLOCKS if kind == "python"]
    found: dict[str, Any] = {}
    exec(textwrap.dedent(block), found)
    assert found["x_hat"].shape == (8, 1, 64)
    assert {scale: code.shape for scale, code in found["codes"].items()} == {"small": (8, 64), "large": (8, 64)}
    assert found["msae"] is msae
    exec(textwrap.dedent(estimators).replace("n_epochs=5", "n_epochs=1"), found)
    assert found["probe"].score(found["x"], found["y"]) > 0.7
    assert found["more_x"].shape == (2 * len(found["x"]), 1, 64)
    assert [len(found[name]) for name in ("scores", "more_y")] == [len(found["x"]), 2 * len(found["x"])]


def test_exports(command: Command, tmp_path: Path) -> None:
    """The snippet needs neither torch nor msae."""
    [train] = [line for line in TRAIN if "runs/digits" in line]
    assert command(*shlex.split(train), *FAST[1:]).code == 0
    assert len(EXPORTS) == 2
    for line in EXPORTS:
        assert command(*shlex.split(line)[3:], module="export").code == 0
    [*_, snippet] = [block for kind, block in BLOCKS if kind == "python"]
    after = "import sys; print(x_hat.shape, codes, {'torch', 'msae'} & {*sys.modules})"
    arguments = [sys.executable, "-c", f"{textwrap.dedent(snippet)}\n{after}"]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "(8, 1, 64) {'small': [0, 64], 'large': [64, 128]} set()\n"


def test_searches(command: Command) -> None:
    """As it stands, but for an epoch and two trials; the command it ends with works."""
    [line] = SEARCHES
    code, out, err = command(*shlex.split(line)[3:], *FAST[1:], "trainer.max_epochs=1", "n_trials=2", module="search")
    assert (code, err) == (0, "")
    best = out.splitlines()[-1].removeprefix("  python -m msae.train ")
    assert command(*shlex.split(best)).code == 0


def test_commands_of_the_latent(command: Command) -> None:
    write_readings("readings.csv", 3000)
    for name in ("readings", "digits"):
        [train] = [line for line in TRAIN if line.endswith(f"hydra.run.dir=runs/{name}")]
        assert command(*shlex.split(train), "trainer=cpu", "trainer.max_epochs=1").code == 0
    assert len(LATENT) == 5
    for line in LATENT:
        _, _, module, *arguments = shlex.split(line)
        result = command(*arguments, module=module.removeprefix("msae."))
        assert result.code == 0, result
        [out] = [Path(text.removeprefix("out=")) for text in arguments if text.startswith("out=")]
        assert out.exists()
        assert Path(f"{out}.png").exists()


def write_readings(path: str, rows: int) -> None:
    """A table of two columns, as a user may have."""
    t = np.arange(rows)
    np.savetxt(path, np.stack([np.sin(t / 9), t % 50], 1), delimiter=",", header="a,b", comments="", fmt="%.4f")


def test_pictures_are_there_and_small() -> None:
    for path in re.findall(r"!\[[^]]+\]\((.+?)\)", README):
        assert 10_000 < (ROOT / path).stat().st_size < 150_000
