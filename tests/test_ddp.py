"""Runs of several processes, and the sweeps that are refused since they would start them wrongly."""

import itertools
import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAST, Command
from test_cli import error_line

from msae.data.module import DataModule, Windows
from msae.errors import InputError
from msae.runs import processes

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "data.batch_size=16")
ONE = ("trainer=cpu", "trainer.max_epochs=2", "data.batch_size=32")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def same(one: Path, two: Path) -> None:
    """The run of two processes has the epochs, weights and files of the run of one."""
    mine, theirs = (json.loads((run / "metrics.json").read_text()) for run in (two, one))
    assert mine["steps"] == theirs["steps"]
    for epoch, expected in zip(mine["history"], theirs["history"], strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5)
    assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5)
    states = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (two, one)]
    for name, value in states[1].items():
        if name != "_extra_state":
            torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-6)
    files = [{path.name.split(".")[0] for path in run.iterdir()} for run in (two, one)]
    assert files[0] == files[1]
    assert [len(list(run.glob("events*"))) for run in (two, one)] == [3, 3]


def in_shell(*args: str) -> str:
    """What a command prints."""
    result = subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_are_one_with_the_doubled_batch(command: Command) -> None:
    """With 1,237 windows the last batch is shared unequally."""
    assert command("data=digits", *ONE, "hydra.run.dir=one").code == 0
    out = in_shell("msae.train", "data=digits", *TWO)
    [run] = Path("runs").iterdir()
    same(Path("one"), run)
    assert (out.count("epoch 1, step 39 of 78"), out.count("test MSE")) == (1, 1)
    assert (run / "train.log").read_text().count("epoch 1, step 39") == 1
    assert {path.name for path in Path().iterdir()} == {"one", "runs"}


def test_under_torchrun_with_missing_values(command: Command) -> None:
    """Each process has as much weight as its batch has values."""
    values = np.sin(np.arange(2995) / 9) * np.linspace(1, 3, 2995)
    values[np.random.default_rng(0).random(2995) < np.linspace(0, 0.6, 2995)] = np.nan
    np.savetxt("gaps.csv", values, delimiter=",", header="a", comments="", fmt="%.4f")
    data = ("data=series", "data.path=gaps.csv", "data.window=20", "data.missing=mask", "model.gradient_clip_val=0.01")
    assert command(*data, *ONE, "hydra.run.dir=one").code == 0
    in_shell(*TORCHRUN, "msae.train", *data, *TWO)
    [run] = Path("runs").iterdir()
    same(Path("one"), run)
    assert {path.name for path in Path().iterdir()} == {"gaps.csv", "one", "runs"}


def test_resumed_within_an_epoch_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint that a run left on its way; each process draws noise of its own."""
    monkeypatch.chdir(tmp_path)
    kl = ("model=single", "model.latent_dim=8", "model.regularizer=kl", "model.schedule=cosine")
    few = ("data.val_size=925", "data.batch_size=2")  # an epoch of 128 steps, in four calls
    knobs = (*few, "trainer.max_epochs=1", "trainer.save_seconds=1e-9", "out=whole")
    args = [sys.executable, "-m", "msae.train", "data=digits", *TWO[:2], *kl, *knobs]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: set[int] = set()  # the first is that of the start
    while len(seen) < 2 and process.poll() is None:
        seen |= {path.stat().st_mtime_ns for path in Path("whole").glob("last.ckpt")}
        time.sleep(0.01)
    Path("part").mkdir()
    for name in ("config.yaml", "overrides.yaml", "best.ckpt", "last.ckpt"):
        shutil.copy(f"whole/{name}", "part")
    assert process.wait(120) == 0
    assert 0 < torch.load("part/last.ckpt", weights_only=True)["global_step"] < 128
    in_shell("msae.train", "resume=part", "trainer.save_seconds=100")
    whole, part = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("whole", "part"))
    assert whole["global_step"] == part["global_step"] == 128
    assert all(torch.equal(part["state_dict"][k], v) for k, v in whole["state_dict"].items() if k != "_extra_state")
    once, twice = (json.loads(Path(run, "metrics.json").read_text()) for run in ("whole", "part"))
    for key in ("metrics", "history", "steps", "val_loss"):
        assert twice[key] == once[key]


class _Trainer:
    """What a DataModule asks of a Trainer."""

    limit_train_batches = val_check_interval = 1.0
    num_nodes = 1
    strategy = SimpleNamespace(root_device=torch.device("cpu"))

    def __init__(self, process: int, processes: int) -> None:
        self.global_rank, self.num_devices = process, processes


@pytest.mark.parametrize(("windows", "batch_size", "epoch_steps"), [(41, 4, 1), (97, 1, 1), (10, 2, 9), (3, 8, 1)])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(windows: int, batch_size: int, epoch_steps: int, processes: int) -> None:
    def batches(process: int, of: int, size: int) -> list[list[float]]:
        x = torch.arange(windows, dtype=torch.float32).view(-1, 1, 1)
        data = DataModule(Windows(x), Windows(x), batch_size=size, epoch_steps=epoch_steps)
        data.trainer = _Trainer(process, of)  # type: ignore[assignment]
        found = [batch.flatten().tolist() for call in data.train_dataloader() for batch in call]
        assert len(found) == data.steps_per_epoch >= epoch_steps - 1
        return found

    whole = batches(0, 1, batch_size * processes)
    shares = [batches(process, processes, batch_size) for process in range(processes)]
    if len(whole[-1]) < processes:
        whole.pop()
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert min(map(len, parts)) > 0


def test_fewer_windows_than_processes() -> None:
    data = DataModule(Windows(torch.zeros(2, 1, 4)), Windows(torch.zeros(2, 1, 4)))
    data.trainer = _Trainer(0, 3)  # type: ignore[assignment]
    with pytest.raises(InputError, match="2 training windows: expected at least one for each of 3 processes"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "-m seed=0,1 trainer=ddp",
            "trainer=ddp trainer.devices=2 trainer.num_nodes=1: a run of several processes in a",
        ),
        ("-m seed=0,1 trainer=ddp hydra/launcher=basic", "trainer=ddp trainer.devices=2 trainer.num_nodes=1: a run of"),
        ("-m trainer=cpu,ddp", "trainer=ddp trainer.devices=1 trainer.num_nodes=1: a run of several processes in a"),
        ("-m seed=0,1 trainer.devices=2", "trainer.devices=2 trainer.num_nodes=1: a run of several processes in a"),
        ("-m trainer.devices=1,2", "trainer.devices=1,2 trainer.num_nodes=1: a run of several processes in a sweep"),
        ("-m trainer.num_nodes=2 seed=0,1", "trainer.devices=1 trainer.num_nodes=2: a run of several processes in a"),
        ("experiment=table1 trainer=ddp", "trainer=ddp trainer.devices=2 trainer.num_nodes=1: a run of several"),
        (
            "-m seed=0,1 resume=run/last.ckpt",
            "resume=run/last.ckpt: no such file or folder",
        ),
        ("seed=[0,1] trainer.devices=2", "seed=[0, 1] trainer.devices=2 trainer.num_nodes=1: seeds train as one in"),
        ("trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn: expected one of auto, ddp"),
    ],
)
def test_refused(args: str, message: str, command: Command) -> None:
    """The error comes before anything starts: no run has a folder."""
    code, out, err = command("data=digits", *args.split())
    assert code == 2
    assert error_line(err).startswith(message)
    assert out == ""
    assert not list(Path().glob("**/*.*"))


@pytest.mark.parametrize("sizes", ["trainer=cpu,ddp", "trainer.devices=1,2", "hydra.launcher.nodes=3"])
def test_runs_on_slurm_have_one_size(sizes: str, command: Command) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    code, _, err = command("data=digits", "-m", "seed=0,1", "hydra/launcher=slurm", sizes)
    assert code == 2
    assert "the values of hydra.launcher.tasks_per_node and hydra.launcher.nodes" in error_line(err)


def test_several_seeds_as_one(command: Command) -> None:
    code, _, err = command("data=digits", "seed=[0,1]", "trainer=ddp")
    assert code == 2
    assert error_line(err).startswith("seed=[0, 1] trainer.devices=2 trainer.num_nodes=1: seeds train as one in")


def test_slurms_launcher_is_not_installed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda _: None)
    code, _, err = command("data=digits", "-m", "seed=0,1", "hydra/launcher=slurm")
    package = "hydra-submitit-launcher"
    message = f"hydra/launcher=slurm needs {package}: pip install {package} (or msae's extra [slurm])"
    assert (code, error_line(err)) == (2, message)


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is None, reason="msae[ray] is not installed")
def test_a_sweep_over_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps a token
    ray = (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    )
    out = in_shell("msae.train", *FAST, "trainer.max_epochs=1", "-m", "model=ae,msae", "seed=0,1", *ray)
    assert "| ae | 2 | 16 |" in out
    assert "| msae | 2 | 16 |" in out


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="it is installed")
def test_rays_launcher_is_not_installed(command: Command) -> None:
    code, _, err = command("data=digits", "-m", "seed=0,1", "hydra/launcher=ray")
    assert (code, error_line(err)) == (
        2,
        "hydra/launcher=ray needs hydra-ray-launcher: pip install hydra-ray-launcher (or msae's extra [ray])",
    )


class TestStartedAsSeveral:
    """Under torchrun or srun, which tell by the environment."""

    def test_without_ddp(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each process would train alone, and all would write to one folder."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, _, err = command(*FAST)
        assert code == 2
        assert error_line(err) == (
            "trainer.devices=1 trainer.num_nodes=1: expected trainer=ddp and as many processes as were started, 2"
        )

    def test_a_sweep(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        code, _, err = command(*FAST, "-m", "seed=0,1")
        assert (code, error_line(err)) == (2, "a sweep starts its runs itself; expected -m without torchrun or srun")

    def test_a_job_without_srun(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its only process would wait forever for the others."""
        for key, value in {"NTASKS": "2", "NTASKS_PER_NODE": "2", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{key}", value)
        monkeypatch.setenv("SLURM_NODEID", "0")
        code, _, err = command("data=digits", *TWO)
        assert code == 2
        assert "in a job of Slurm expected `srun python -m msae.train`" in error_line(err)

    def test_only_the_first_tells_and_writes(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "1")
        assert command(*FAST, "model.lr=-1") == (2, "", "")
        assert not list(Path().iterdir())
