"""Several seeds as one run: each gives the results of a run alone."""

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Result
from test_configs import CLASSES
from torch import Tensor, nn

from msae import load
from msae.data.digits import digits
from msae.models.ae import AutoEncoder
from msae.runs.callbacks import History
from msae.runs.stack import Stacked

FIFTY = ("data=digits", "trainer=cpu", "trainer.max_epochs=-1", "trainer.max_steps=50")  # two epochs and a half


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def assert_same(one: Path, other: Path, tolerance: float = 1e-3) -> None:
    """Two runs' folders agree up to rounding, which Adam enlarges where a gradient is near 0."""
    mine, theirs = told(one), told(other)
    for key in ("seed", "class", "parameters", "latent_dim", "codes", "epochs", "steps", "checkpoint", "data", "model"):
        assert mine[key] == theirs[key]
    assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=tolerance)
    for epoch, same in zip(mine["history"], theirs["history"], strict=True):
        assert epoch == pytest.approx(same, rel=tolerance)
    x = digits().test.x
    for name in {mine["checkpoint"], "last.ckpt"}:
        with torch.no_grad():
            x_hat, same_x_hat = (load(folder / name)(x)[0] for folder in (one, other))
        assert (x_hat - same_x_hat).abs().mean() < tolerance * x.std()
        kept, same = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        assert kept.keys() == same.keys()
        assert kept["state_dict"].keys() == same["state_dict"].keys()
        assert kept["lr_schedulers"] == same["lr_schedulers"]
        [mine_adam], [their_adam] = kept["optimizer_states"], same["optimizer_states"]
        assert mine_adam["param_groups"] == their_adam["param_groups"]
        assert [state["step"] for state in mine_adam["state"].values()] == [
            state["step"] for state in their_adam["state"].values()
        ]


def weights(path: str) -> dict[str, Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("model", CLASSES)
def test_each_seed_is_the_run_that_it_would_be_alone(model: str, command: Command) -> None:
    code, out, _ = command(*FIFTY, f"model={model}", "seed=[3,1]", "hydra.run.dir=both")
    assert code == 0
    assert ("cannot be stacked" in out) == (model == "lgta")  # vmap has no LSTM
    assert command(*FIFTY, f"model={model}", "seed=1", "hydra.run.dir=alone").code == 0
    assert_same(Path("both/seed=1"), Path("alone"))
    one, other = weights("both/seed=1/last.ckpt"), weights("both/seed=3/last.ckpt")
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert Path("both/report.md").read_text().count(f"| {told(Path('alone'))['model']} | 2 |") == 1
    assert Path("both/seed=1/train.log").read_text().count("seed=1: epoch") == 3
    assert "seed=3" not in Path("both/seed=1/train.log").read_text()


@pytest.mark.parametrize(
    "knobs",
    [
        ("model.regularizer=kl", "model.beta=0.1", "model.anneal=0.5"),
        ("model.regularizer=decorrelate",),
        ("model.schedule=cosine", "model.gradient_clip_val=0.01"),
        ("trainer.precision=bf16-mixed",),
        ("trainer.limit_train_batches=7",),
        ("data.val_size=0",),
    ],
)
def test_what_a_step_may_hold(knobs: tuple[str, ...], command: Command) -> None:
    tolerance = 0.02 if "precision" in knobs[0] else 1e-3
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=2", "model=ae", *knobs)
    code, out, _ = command(*args, "seed=[0,1]", "hydra.run.dir=both")
    assert code == 0
    assert "cannot be stacked" not in out
    assert command(*args, "seed=1", "hydra.run.dir=alone").code == 0
    assert_same(Path("both/seed=1"), Path("alone"), tolerance)


def test_missing_values(command: Command) -> None:
    rows = [f"{i % 7},{'' if i % 11 == 0 else i % 5}" for i in range(400)]
    Path("gaps.csv").write_text("\n".join(["a,b", *rows]))
    args = ("data=series", "data.path=gaps.csv", "data.window=16", "data.missing=mask", "model=ae", "trainer=cpu")
    code, out, _ = command(*args, "trainer.max_epochs=3", "seed=[0,1]", "hydra.run.dir=both")
    assert (code, "cannot be stacked" in out) == (0, False)
    assert command(*args, "trainer.max_epochs=3", "seed=1", "hydra.run.dir=alone").code == 0
    assert told(Path("both/seed=1"))["metrics"] == pytest.approx(told(Path("alone"))["metrics"], rel=1e-3)


def test_a_sweep_of_several_seeds_as_one(command: Command) -> None:
    code, out, _ = command("-m", "model=ae128,msae", "data=digits", "trainer=cpu", "trainer.max_epochs=1", "seed=[0,1]")
    assert code == 0
    assert "| 2 | 128 |" in out
    assert "| 2 | 16 |" in out
    assert "not finished" not in out


def signalled(number: signal.Signals) -> Callable[..., Any]:
    """`Stacked.make_steps`, whose third call raises a signal first."""
    normal, calls = Stacked.make_steps, []

    def make_steps(self: Stacked, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return normal(self, *rest)

    return make_steps


@pytest.mark.usefixtures("sigint")
def test_an_interrupted_stack_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that were interrupted at different epochs catch up."""
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=4", "model=ae", "model.schedule=cosine")
    with monkeypatch.context() as patch:
        patch.setattr(Stacked, "make_steps", signalled(signal.SIGINT))
        code, out, err = command(*args, "seed=[0,1]", "hydra.run.dir=both")
    assert (code, err) == (130, "")
    [told_command] = re.findall(r"interrupted. To resume: python -m msae.train (.+)\n", out)
    assert command(*args, "seed=1", "resume=both/seed=1").code == 0
    code, _, err = command(*args, "seed=[0,1]", "hydra.run.dir=both")
    assert (code, err) == (2, "error: both: already contains runs. To resume them: python -m msae.train resume=both\n")
    more = [*shlex.split(told_command), "seed=[0,1,2]"]
    made = "error: both/seed=0: was made with model.lr=0.001, not 0.01; expected no other value of it"
    assert command(*more, "model.lr=0.01") == (2, "", f"{made}\n")
    code, out, _ = command(*more)
    assert code == 0
    assert "seed=1: finished before" in out
    for seed in range(3):
        assert command(*args, f"seed={seed}", f"hydra.run.dir=alone{seed}").code == 0
        assert_same(Path(f"both/seed={seed}"), Path(f"alone{seed}"))


@pytest.mark.usefixtures("sigint")
def test_a_signal_within_an_epoch(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """All seeds save at the same step, and resume to the bits of an uninterrupted stack."""
    few = ("data.val_size=837", "data.batch_size=4", "trainer.max_epochs=2")  # epochs of 150 steps, in five calls
    args = ("data=digits", *few, "trainer=cpu", "model=ae", "seed=[0,1]")
    assert command(*args, "out=whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Stacked, "make_steps", signalled(signal.SIGTERM))
        code, out, err = command(*args, "out=part")
    assert (code, err) == (143, "")
    assert out.endswith("\ninterrupted. To resume: python -m msae.train resume=part\n")
    steps = [torch.load(f"part/seed={seed}/last.ckpt", weights_only=True)["global_step"] for seed in (0, 1)]
    assert steps == [128, 128]
    assert command("resume=part").code == 0
    for seed in (0, 1):
        one, other = weights(f"part/seed={seed}/last.ckpt"), weights(f"whole/seed={seed}/last.ckpt")
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert told(Path(f"part/seed={seed}"))["history"] == told(Path(f"whole/seed={seed}"))["history"]


@pytest.mark.usefixtures("sigint")
def test_finished_seeds_are_as_long_as_the_command_says(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeds(epochs: int) -> Result:
        args = ("data=digits", "trainer=cpu", f"trainer.max_epochs={epochs}", "model=ae", "seed=[0,1]", "out=both")
        return command(*args, *["resume=both"] * (epochs != 2))

    assert seeds(2).code == 0
    kept = [path.read_bytes() for path in sorted(Path("both").glob("*/metrics.json"))]
    code, _, err = seeds(1)
    assert (code, err) == (2, "error: trainer.max_epochs=1: both/seed=0 has 2 epochs already\n")
    assert [path.read_bytes() for path in sorted(Path("both").glob("*/metrics.json"))] == kept
    assert not list(Path("both").glob("*/error.txt"))
    normal = History.on_train_epoch_end

    def interrupted(self: History, trainer: Any, *rest: Any) -> None:
        normal(self, trainer, *rest)
        if trainer.current_epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", interrupted)
        assert seeds(4).code == 130
    for _ in range(2):  # what a shorter run gave is not taken for it
        assert seeds(4).code == 0
        assert [len(told(Path(f"both/seed={seed}"))["history"]) for seed in (0, 1)] == [4, 4]


def test_threads_are_those_of_the_steps(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread makes the steps."""
    normal, threads = Stacked.make_steps, torch.get_num_threads()
    seen: list[int] = []

    def counted(self: Stacked, *rest: Any) -> Any:
        seen.append(torch.get_num_threads())
        return normal(self, *rest)

    monkeypatch.setattr(Stacked, "make_steps", counted)
    torch.set_num_threads(2)
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=1", "model=ae16", "threads=1", "seed=[0,1]")
    assert command(*args, "hydra.run.dir=two").code == 0
    assert set(seen) == {1}
    torch.set_num_threads(threads)


def test_a_run_that_fails_leaves_the_others(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:

    normal = History.on_train_epoch_end

    def failing(self: History, trainer: Any, model: Any) -> None:
        normal(self, trainer, model)
        if self.data.seed == 1:
            raise RuntimeError("the disk is gone")

    monkeypatch.setattr(History, "on_train_epoch_end", failing)
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=2", "model=ae")
    code, out, err = command(*args, "seed=[0,1,2]", "hydra.run.dir=three")
    assert code == 2
    assert "- seed=1: failed: the disk is gone" in out
    assert err.endswith("error: 1 of the runs did not finish: seed=1\n")
    assert Path("three/seed=1/error.txt").read_text().startswith("the disk is gone")
    assert [told(Path(f"three/seed={seed}"))["epochs"] for seed in (0, 2)] == [2, 2]


def test_an_error_in_the_steps_is_that_of_each_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Stacked, "make_steps", failing)
    code, out, _ = command("data=digits", "trainer=cpu", "model=ae", "seed=[0,1]", "hydra.run.dir=two")
    assert code == 2
    assert out.count(": failed: out of memory") == 4  # as they end, and in the report


class Normed(AutoEncoder):
    """A state that training changes."""

    def __init__(self, shape: Any, latent_dim: int, **knobs: Any) -> None:
        super().__init__(shape, latent_dim, **knobs)
        self.norm = nn.BatchNorm1d(latent_dim)

    def encode_scaled(self, x: Tensor) -> Tensor:
        return self.norm(super().encode_scaled(x))


class Dropping(AutoEncoder):
    """A draw of its own in each step."""

    def encode_scaled(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().encode_scaled(x), 0.2, self.training)


class Descending(AutoEncoder):
    """Another optimizer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Waiting(AutoEncoder):
    """A learning rate that falls with the loss."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)}


class Sized(AutoEncoder):
    """Its width depends on the seed."""

    def __init__(self, shape: Any, latent_dim: int, size: int | None = None, **knobs: Any) -> None:
        super().__init__(shape, latent_dim, **knobs)
        self.hparams["size"] = size or 10 + torch.initial_seed() % 2
        self.more = nn.Linear(latent_dim, self.hparams["size"])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("Sized", "equal size"),
        ("Normed", "its buffers change in training"),
        ("Dropping", "random"),
        ("Waiting", "its learning rate depends on its loss"),
        ("Descending", "its optimizer is not Adam with one group of parameters, but SGD"),
    ],
)
def test_what_cannot_be_stacked_goes_in_turn(model: str, reason: str, command: Command) -> None:
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=2", "model=ae", f"model._target_=test_stack.{model}")
    code, out, _ = command(*args, "seed=[0,1]", "hydra.run.dir=both")
    assert code == 0
    [line] = [line for line in out.splitlines() if "cannot be stacked" in line]
    assert line.startswith(f"{model} cannot be stacked, so runs take turns: ")
    assert reason in line
    assert command(*args, "seed=1", "hydra.run.dir=alone").code == 0
    assert told(Path("both/seed=1"))["history"] == told(Path("alone"))["history"]


def test_compiled_steps_are_not_stacked(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda objective, **_: objective)
    code, out, _ = command(*FIFTY, "model=ae", "model.compile=true", "seed=[0,1]")
    assert code == 0
    assert "AutoEncoder cannot be stacked, so runs take turns: its steps are compiled, one run at a time" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["seed=[]"], "seed=[]: expected at least one seed"),
        (["seed=[1,a]"], "seed=a: expected a whole number, from 0 to 4294967295"),
        (["seed=[1,1]"], "seed=[1, 1]: expected each seed once"),
        (["seed=[1,2]", "resume=last.ckpt"], "resume=last.ckpt: no such file or folder"),
        (
            ["seed=[1,2]", "trainer=ddp"],
            "seed=[1, 2] trainer.devices=2 trainer.num_nodes=1: seeds train as one in",
        ),
    ],
)
def test_bad_seeds(args: list[str], message: str, command: Command) -> None:
    code, _, err = command("data=digits", "trainer=cpu", *args)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert not any(Path("runs").glob("*/seed=*")) if Path("runs").exists() else True
