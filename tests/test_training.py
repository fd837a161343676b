"""A run: what it writes, that it repeats bit for bit, and that an interrupted one ends as an uninterrupted one."""

import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import msae
from msae import baselines
from msae.data.digits import digits
from msae.runs import signals
from msae.runs.callbacks import History


def run_folder(out: str) -> Path:
    [folder] = re.findall(r"^folder: (.+)$", out, re.MULTILINE)
    return Path(folder)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name != "_extra_state"}


def equal(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def test_what_a_run_writes(command: Command) -> None:
    code, out, _ = command(*FAST, "model=msae")
    assert code == 0
    run = run_folder(out)
    assert re.fullmatch(r"[-\d]+_[-\d]+_data=digits,trainer=cpu,trainer.max_epochs=2,model=msae", run.name)
    assert {"config.yaml", "metrics.json", "best.ckpt", "last.ckpt", "train.log"} <= {p.name for p in run.iterdir()}
    result = metrics(run)
    assert result["metrics"].keys() == {f"test/{name}" for name in ("loss", "mse", "psnr")}
    assert f"test MSE {result['metrics']['test/mse']:.4g}   PSNR {result['metrics']['test/psnr']:.2f} dB" in out
    assert f"\n2 epochs of 1,237 windows, 200 more chose epoch {result['epoch']}; " in out
    assert result["val_loss"] == [epoch["val/loss"] for epoch in result["history"]][result["epoch"] - 1]
    assert f"; {result['samples_per_second']:,.0f} samples a second, " in out
    assert f"tensorboard --logdir {run}\n" in out
    expected = {
        "model": "msae",
        "class": "MultiScaleAutoEncoder",
        "data": "digits",
        "seed": 0,
        "latent_dim": 16,
        "epochs": 2,
    }
    assert result.items() >= (expected | {"steps": 2 * 20, "device": "cpu", "threads": 1, "job": 0}).items()
    assert result["parameters"] == sum(p.numel() for p in msae.load(run / "best.ckpt").parameters())
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [sorted(epoch) for epoch in result["history"]] == [
        sorted(
            [f"{split}/{name}" for split in ("train", "val") for name in ("loss", "mse", "psnr")]
            + ["test/loss", "test/mse"]
        )
    ] * 2


def test_the_numbers_are_those_of_the_checkpoint(made: Command) -> None:
    """The test MSE and the curves' last value can be computed again from weights and data alone."""
    run = run_folder(made(*FAST).out)
    data, result = digits(val_size=200), metrics(run)
    for name, value in (
        (result["checkpoint"], result["metrics"]["test/mse"]),
        ("last.ckpt", result["history"][-1]["test/mse"]),
    ):
        x_hat, _ = msae.load(run / name)(data.test.x)
        mse = (x_hat - data.test.x).square().mean()
        assert value == pytest.approx(mse.item(), rel=1e-5)
    psnr = -10 * torch.log10(torch.tensor(result["metrics"]["test/mse"]))
    assert result["metrics"]["test/psnr"] == pytest.approx(psnr.item(), rel=1e-5)


def test_the_best_checkpoint_is_chosen_on_validation_data(command: Command) -> None:
    run = run_folder(command("data=digits", "trainer=cpu", "trainer.max_epochs=8", "model.lr=0.03").out)
    losses = [epoch["val/loss"] for epoch in metrics(run)["history"]]
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == losses.index(min(losses))
    assert metrics(run)["val_loss"] == min(losses)


def test_a_model_that_starts_at_pca_is_not_left_for_a_worse_one(command: Command) -> None:
    """The start counts as an epoch: if training only harms, PCA is tested."""
    args = ("data=digits", "model=single", "model.latent_dim=8", "model.lr=1", "model.schedule=constant")
    result = metrics(run_folder(command(*args, "trainer=cpu", "trainer.max_epochs=2").out))
    [_, clipped] = baselines.pca(digits(val_size=200), [8])
    assert result["history"][-1]["test/mse"] > 2 * clipped["test_mse"]
    assert result["val_loss"] < min(epoch["val/loss"] for epoch in result["history"])
    assert result["metrics"]["test/mse"] == pytest.approx(clipped["test_mse"], rel=1e-3)


@pytest.mark.parametrize("val_size", [200, 0])
def test_the_last_checkpoint_is_of_the_last_epoch(
    val_size: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no epoch is better than the start, or there is no validation; not only when training ends."""
    monkeypatch.setattr("msae.runs.callbacks.Checkpoint.on_train_end", lambda *_: None)
    args = ("data=digits", "model=single", "model.latent_dim=8", "model.lr=1", "model.schedule=constant")
    run = run_folder(command(*args, f"data.val_size={val_size}", "trainer=cpu", "trainer.max_epochs=3").out)
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == metrics(run)["steps"]


def test_shares_chosen_by_the_data_are_kept_on_resuming(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares are not chosen again, since another machine may choose others; other differences are still reported."""
    args = ("model=pyramid", "data=ucr", "data.name=ArrowHead", "model.latent_dim=31", "trainer=cpu")
    run = run_folder(command(*args, "trainer.max_epochs=2").out)
    codes = metrics(run)["codes"]
    assert len(codes) > 1, "the case needs a set whose latent is shared"
    assert sum(codes.values()) == 31
    last = Path("last.ckpt")
    last.write_bytes((run / "last.ckpt").read_bytes())
    monkeypatch.setattr("msae.models.pyramid.choose_shares", lambda *_: [31, 0, 0])
    code, out, err = command(*args, "trainer.max_epochs=3", f"resume={run}")
    assert code == 0, err
    result = metrics(run_folder(out))
    assert (result["epochs"], result["codes"]) == (3, codes)
    assert msae.load(run / "last.ckpt").codes.keys() == codes.keys()
    for other, told in (
        ("model.latent_dim=30", "was made with latent_dim=31, not 30"),
        ("model.code_dims=[31,0,0]", ", not [31, 0, 0]"),
        ("model.gradient_clip_val=1", "was made with gradient_clip_val=None, not 1"),
        ("model.segments=[1,4]", "was made with segments=[1, 4, 16], not [1, 4]"),
    ):
        code, _, err = command(*args, other, "trainer.max_epochs=3", f"resume={last}")
        assert (code, told in err) == (2, True), err


@pytest.mark.usefixtures("pictures")
def test_what_each_scale_adds_is_shown(command: Command) -> None:
    args = ("model=pyramid", "model.segments=[1,4]", "model.latent_dim=12", "model.code_dims=[8,1]")
    run = run_folder(command("data=ucr", "trainer=cpu", *args, "trainer.max_epochs=1").out)
    events = EventAccumulator(str(run)).Reload()
    values = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    assert values["mse_up_to_scale/1"] > values["mse_up_to_scale/4"] > 0
    explained = [values[f"explained_by_scale/{scale}"] for scale in (1, 4)]
    assert sum(explained) == pytest.approx(1, abs=1e-5)
    assert explained[0] > explained[1] > 0
    assert "explained_by_scale" in events.Tensors("tags/text_summary")[0].tensor_proto.string_val[0].decode()


def test_the_history_is_whole_though_an_earlier_epoch_is_tested(command: Command) -> None:
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=6", "model=ae", "data.val_size=2", "model.lr=0.05")
    run = run_folder(command(*args).out)
    result = metrics(run)
    losses = [epoch["val/loss"] for epoch in result["history"]]
    assert losses.index(min(losses)) < 5, "the case needs a best epoch that is not the last"
    assert len(losses) == result["epochs"] == 6
    assert result["seconds"] * result["samples_per_second"] == pytest.approx(6 * len(digits(val_size=2).train))


@pytest.mark.parametrize(("steps", "lr", "best"), [(40, 1e-3, 40), (100, 1e-3, 100), (120, 1e-3, 120), (120, 1, 0)])
def test_steps_that_end_within_an_epoch(steps: int, lr: float, best: int, command: Command) -> None:
    """An epoch is 100 steps in calls of 32: whatever the last steps are, their weights are validated too."""
    args = (*SMALL, "trainer.max_epochs=-1", f"trainer.max_steps={steps}")
    run = run_folder(command(*args, "model=single", "model.latent_dim=8", f"model.lr={lr}").out)
    result, data = metrics(run), digits(val_size=1037)
    assert (result["steps"], result["checkpoint"]) == (steps, "best.ckpt")
    assert result["seconds"] * result["samples_per_second"] == pytest.approx(steps * 4)
    assert torch.load(run / "best.ckpt", weights_only=True)["global_step"] == best
    for path, split, value in (
        ("last.ckpt", data.val, result["history"][-1]["val/mse"]),
        ("best.ckpt", data.val, result["val_loss"]),
        ("best.ckpt", data.test, result["metrics"]["test/mse"]),
    ):
        x_hat, _ = msae.load(run / path)(split.x)
        assert value == pytest.approx((x_hat - split.x).square().mean().item(), rel=1e-5)
    assert result["history"][-1]["val/loss"] == pytest.approx(result["history"][-1]["val/mse"])
    assert ("val/psnr" in result["history"][-1]) == (steps == 100), "a value of the epoch before is left out"
    events = EventAccumulator(str(run)).Reload().Scalars("val/loss")
    assert (events[-1].step, events[-1].value) == (steps, pytest.approx(result["history"][-1]["val/loss"]))


@pytest.mark.parametrize("knobs", [("trainer.max_epochs=-1", "trainer.max_steps=30"), ("trainer.max_epochs=2",)])
def test_a_complete_run_is_finished(knobs: tuple[str, ...], command: Command) -> None:
    """The run was stopped after its last step, before its result."""
    args = ("data=digits", "trainer=cpu", *knobs, "hydra.run.dir=run")
    assert command(*args).code == 0
    run = Path("run")
    before, checkpoint = metrics(run), (run / "last.ckpt").read_bytes()
    (run / "metrics.json").unlink()
    code, _, err = command(*args, "resume=run")
    assert (code, err) == (0, "")
    for key in ("metrics", "val_loss", "history", "steps", "epochs", "checkpoint"):
        assert metrics(run)[key] == before[key]
    assert (run / "last.ckpt").read_bytes() == checkpoint
    code, _, err = command(*args[:-1], "hydra.run.dir=other", "resume=run/last.ckpt")
    assert code == 2
    assert "resume=run/last.ckpt: has nothing left to train; expected the run's folder, with best.ckpt" in err


@pytest.mark.parametrize("more", [[], ["trainer.max_epochs=50"]])
def test_a_run_of_steps_goes_on_where_it_was(more: list[str], command: Command) -> None:
    """After whole epochs: with the epochs, steps and weights of one that was never interrupted, and with its end."""
    args = ("data=digits", "model=ae", "trainer=cpu", "trainer.max_epochs=-1")
    steps = (*more, "trainer.max_steps=100")
    whole = metrics(run_folder(command(*args, *steps, "hydra.run.dir=whole").out))
    assert command(*args, "trainer.max_steps=40", "hydra.run.dir=parts").code == 0
    Path("parts/metrics.json").unlink()
    code, _, err = command(*args, *steps, "resume=parts")
    assert (code, err) == (0, "")
    parts = metrics(Path("parts"))
    for key in ("steps", "epochs", "history", "val_loss", "metrics"):
        assert parts[key] == whole[key]


def test_fewer_steps_than_a_checkpoint_has(command: Command, made: Command) -> None:
    assert made(*FAST, "hydra.run.dir=run").code == 0
    code, _, err = command(*FAST, "trainer.max_steps=20", "resume=run")
    assert (code, err) == (2, "error: trainer.max_steps=20: run/last.ckpt has 40 steps already\n")


@pytest.mark.parametrize("val_size", [200, 0])
def test_the_start_and_the_curves_are_judged_in_the_runs_precision(val_size: int, command: Command) -> None:
    args = ("data=digits", "model=single", "model.latent_dim=8", "model.lr=1", "model.schedule=constant")
    run = run_folder(command(*args, f"data.val_size={val_size}", *FAST[1:], "trainer.precision=bf16-mixed").out)
    result, data = metrics(run), digits(val_size=val_size)
    logged = torch.tensor([epoch["train/mse"] for epoch in result["history"]])
    assert not torch.equal(logged * len(data.train), (logged * len(data.train)).bfloat16().float()), "sums are whole"
    if not val_size:  # the last weights are tested, by Lightning
        assert result["metrics"]["test/mse"] == pytest.approx(result["history"][-1]["test/mse"], rel=1e-6)
        return
    model = msae.load(run / "best.ckpt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = model.errors(data.val.x)[0].item()
    full = model.errors(data.val.x)[0].item()
    assert abs(loss / full - 1) > 1e-4, "the case needs a model whose loss tells the precisions apart"
    assert result["val_loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("model", ["ae", "msae", "pyramid"])
@pytest.mark.parametrize("regularizer", ["kl", "decorrelate"])
def test_every_model_can_be_regularized(model: str, regularizer: str, command: Command) -> None:
    args = (f"model={model}", f"model.regularizer={regularizer}", "model.beta=0.5")
    code, out, err = command(*FAST, *args)
    assert code == 0, err
    run = run_folder(out)
    result, loaded = metrics(run), msae.load(run / "best.ckpt")
    assert loaded.regularizer == regularizer
    assert loaded.beta == 0.5
    assert "train/penalty" in result["history"][0]
    if regularizer == "kl":
        assert 0 <= result["active_units"] <= loaded.latent_dim
        assert f"{result['active_units']} of {loaded.latent_dim} latent values are active" in out + err


def test_the_papers_protocol_evaluates_the_last_epoch(command: Command) -> None:
    run = run_folder(command(*FAST, "data.val_size=0").out)
    result = metrics(run)
    assert result["checkpoint"] == "last.ckpt"
    assert result["val_loss"] is None
    assert not (run / "best.ckpt").exists()
    assert result["metrics"]["test/mse"] == pytest.approx(result["history"][-1]["test/mse"])
    assert all("val/mse" not in epoch for epoch in result["history"])


@pytest.mark.usefixtures("tiny_mnist")
def test_mse_is_reported_in_raw_units_whatever_the_model_works_on(command: Command) -> None:
    run = run_folder(command("data.units=standard", "data.val_size=0", *FAST[1:]).out)
    result = metrics(run)["metrics"]
    assert result["test/loss"] == pytest.approx(result["test/mse"] / 0.3081**2, rel=1e-4)
    x = msae.data.mnist.mnist().test.x
    x_hat, _ = msae.load(run / "last.ckpt")(x)
    assert result["test/mse"] == pytest.approx((x_hat - x).square().mean().item(), rel=1e-4)


@pytest.mark.usefixtures("pictures")
def test_tensorboard(command: Command) -> None:
    run = run_folder(command(*FAST).out)
    tags: dict[str, set[str]] = {}
    points: dict[str, set[int]] = {}
    for path in run.glob("events*"):
        events = EventAccumulator(str(path)).Reload()
        for kind, names in events.Tags().items():
            tags.setdefault(kind, set()).update(names if isinstance(names, list) else [])
        for tag in events.Tags()["scalars"]:
            points.setdefault(tag, set()).update(event.step for event in events.Scalars(tag))
        tags.setdefault("plugins", set()).update(events.summary_metadata)
    names = {f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "mse", "psnr")}
    assert names | {"test/mse_per_epoch"} <= tags["scalars"]
    assert points["train/mse"] == points["val/mse"] == points["test/mse_per_epoch"] == {20, 40}
    assert points["test/mse"] == {40}
    assert "_hparams_/session_start_info" in tags["plugins"]
    assert tags["images"] == {"reconstructions"}
    [sprite] = run.glob("*/latent/sprite.png")
    assert len((sprite.parent / "metadata.tsv").read_text().splitlines()) == 360


def test_the_same_seed_gives_the_same_weights_in_two_processes(command: Command, made: Command, tmp_path: Path) -> None:
    here = run_folder(made(*FAST).out)
    subprocess.run([sys.executable, "-m", "msae.train", *FAST, "hydra.run.dir=there"], check=True, cwd=tmp_path)
    assert equal(here / "last.ckpt", tmp_path / "there" / "last.ckpt")
    other = run_folder(command(*FAST, "seed=1").out)
    assert not equal(here / "last.ckpt", other / "last.ckpt")


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize(
    ("hook", "epoch"), [("on_train_batch_end", 0), ("on_train_epoch_start", 2), ("on_train_batch_end", 3)]
)
def test_an_interrupted_run_goes_on(
    hook: str, epoch: int, command: Command, made: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("data=digits", "trainer=cpu", "trainer.max_epochs=4", "model.lr=0.01")
    whole = run_folder(made(*args).out)
    normal = getattr(History, hook)

    def interrupt(self: History, trainer: Any, *rest: Any) -> None:
        normal(self, trainer, *rest)
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(History, hook, interrupt)
        code, out, _ = command(*args, "hydra.run.dir=run of a day")
    assert code == 130
    [told] = re.findall(r"interrupted. To resume: python -m msae.train (.+)\n", out)
    assert not Path("run of a day/metrics.json").exists()

    code, out, _ = command(*shlex.split(told))
    assert code == 0
    run = run_folder(out)
    assert run == Path("run of a day")
    assert equal(run / "last.ckpt", whole / "last.ckpt")
    assert equal(run / "best.ckpt", whole / "best.ckpt")
    once, twice = metrics(whole), metrics(run)
    for key in ("metrics", "history", "steps", "epochs", "checkpoint"):
        assert twice[key] == once[key]


# 400 windows: an epoch is 100 steps, in calls of 32, 32, 32 and 4
SMALL = ("data=digits", "data.val_size=1037", "data.batch_size=4", "trainer=cpu", "trainer.max_epochs=2")
KL = ("model=single", "model.latent_dim=8", "model.regularizer=kl", "model.schedule=cosine", "model.lr=0.01")


@pytest.mark.parametrize(("number", "code", "epoch"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 1)])
@pytest.mark.usefixtures("sigint")
def test_a_signal_within_an_epoch(
    number: signal.Signals, code: int, epoch: int, command: Command, made: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, curves and random draws of the resumed run are those of an uninterrupted one, to the bit."""
    whole = run_folder(made(*SMALL, *KL).out)
    normal = History.on_train_batch_end

    def signalled(self: History, trainer: Any, *rest: Any) -> None:
        normal(self, trainer, *rest)
        if trainer.current_epoch == epoch and rest[-1] == 1:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_batch_end", signalled)
        ended = command(*SMALL, *KL, "out=part")
    assert (ended.code, ended.err) == (code, "")
    assert ended.out.endswith("\ninterrupted. To resume: python -m msae.train resume=part\n")
    assert torch.load("part/last.ckpt", weights_only=True)["global_step"] == 100 * epoch + 2 * 32
    assert command("resume=part").code == 0
    assert equal(Path("part/last.ckpt"), whole / "last.ckpt")
    assert equal(Path("part/best.ckpt"), whole / "best.ckpt")
    once, twice = metrics(whole), metrics(Path("part"))
    for key in ("metrics", "history", "steps", "epochs", "checkpoint", "val_loss"):
        assert twice[key] == once[key]


def test_a_checkpoint_every_so_many_seconds(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an epoch's length; a run that is killed resumes from the last, and keeps what it has until a newer."""
    normal = History.on_train_batch_end

    def killed(self: History, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 96:
            raise ZeroDivisionError
        normal(self, trainer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_batch_end", killed)
        with pytest.raises(ZeroDivisionError):
            command(*SMALL, "model=ae", "out=part", "trainer.save_seconds=1e-9")
        assert torch.load("part/last.ckpt", weights_only=True)["global_step"] == 64
        with pytest.raises(ZeroDivisionError):
            command("resume=part", "trainer.save_seconds=100")
    assert torch.load("part/last.ckpt", weights_only=True)["global_step"] == 64
    code, _, err = command("resume=part", "trainer.limit_train_batches=20")
    assert (code, "was saved within an epoch; expected the trainer.devices" in err) == (2, True)
    code, _, err = command("resume=part", "trainer.save_seconds=0")
    assert (code, err) == (2, "error: trainer.save_seconds=0: expected a number above 0\n")
    assert command("resume=part").code == 0
    assert metrics(Path("part"))["steps"] == 200


def test_damaged_overrides_can_be_given_again(command: Command) -> None:
    assert command(*FAST, "model=ae", "hydra.run.dir=run").code == 0
    for text in ("", "{", "- [a]", "a: 1", "- model=${"):
        Path("run/overrides.yaml").write_text(text)
        code, _, err = command("resume=run", "trainer.max_epochs=3")
        assert (code, err.startswith("error: run/overrides.yaml: damaged, ")) == (2, True), err
        assert err.endswith("; remove it and give the whole command again, with resume=run\n")
    Path("run/overrides.yaml").unlink()
    assert command(*FAST, "model=ae", "trainer.max_epochs=3", "resume=run").code == 0
    assert metrics(Path("run"))["epochs"] == 3
    assert command("resume=run", "trainer.max_epochs=4").code == 0


def test_damaged_overrides_of_several_seeds(command: Command) -> None:
    args = (*FAST, "model=ae", "seed=[0,1]")
    assert command(*args, "out=seeds").code == 0
    Path("seeds/overrides.yaml").unlink()
    Path("seeds/seed=1/metrics.json").unlink()
    assert command(*args, "resume=seeds").code == 0
    assert Path("seeds/seed=1/metrics.json").exists()
    assert Path("seeds/overrides.yaml").exists()


def test_a_finished_run_can_be_made_longer(command: Command, made: Command) -> None:
    run = run_folder(made(*FAST).out)
    code, out, _ = command("data=digits", "trainer=cpu", "trainer.max_epochs=3", f"resume='{run / 'last.ckpt'}'")
    assert code == 0
    assert run_folder(out) == run
    longer = run_folder(command("data=digits", "trainer=cpu", "trainer.max_epochs=3").out)
    assert equal(run / "last.ckpt", longer / "last.ckpt")


def test_a_run_that_was_moved_goes_on_with_its_best(command: Command) -> None:
    args = ("data=digits", "trainer=cpu", "model=single", "model.latent_dim=8", "model.lr=1", "model.schedule=constant")
    assert command(*args, "trainer.max_epochs=1", "hydra.run.dir=here").code == 0
    before = metrics(Path("here"))
    Path("here").rename("there")
    assert command(*args, "trainer.max_epochs=2", "resume=there").code == 0
    after = metrics(Path("there"))
    assert (len(after["history"]), after["val_loss"], after["metrics"]) == (2, before["val_loss"], before["metrics"])
    assert torch.load("there/best.ckpt", weights_only=True)["global_step"] == 0, "the case needs a start that is best"
    assert not Path("here").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the memory so")
def test_an_import_takes_little_memory() -> None:
    """Neither the package nor a command loads torch before it is used."""
    code = "import msae, msae.train; print(open('/proc/self/status').read())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", ended.stdout)
    assert int(peak) < 100 * 1024


@pytest.mark.usefixtures("sigint")
def test_ctrl_c(tmp_path: Path) -> None:
    """A real signal in the middle of training ends the run within two seconds."""
    args = ["data=digits", "trainer=cpu", "trainer.max_epochs=100000", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "msae.train", *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    log, last = tmp_path / "run" / "train.log", tmp_path / "run" / "last.ckpt"
    while time.monotonic() < deadline and not (
        log.exists() and "epoch 1," in log.read_text() and last.stat().st_mtime_ns > log.stat().st_mtime_ns
    ):
        time.sleep(0.01)
    time.sleep(1)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 2
    assert process.returncode == 130
    assert "interrupted. To resume: python -m msae.train" in out
    assert "KeyboardInterrupt" not in err
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] > 0


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_an_import(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-imported packages drop exceptions, as this one does; before training there is nothing to wait for."""
    (tmp_path / f"greedy{number}.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({number})\n    done = 1\nexcept BaseException:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code = f"from msae.runs import signals\nwith signals.watched(): import greedy{number}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    message = "\ninterrupted: nothing was kept; the same command starts again\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, message, "")
    with signals.watched(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        signals.defer()
        signals.release()
        module = importlib.import_module(f"greedy{number}")
        time.sleep(10)
    assert module.done
    assert signals.code() == 128 + number


def test_a_worker_between_two_runs_waits_for_its_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception there would end the worker, and with it those that still save."""
    monkeypatch.setattr(signals, "_is_worker", lambda: True)
    monkeypatch.setattr(signals, "_follow", lambda _: None)
    with signals.watched():
        with signals.in_worker():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert signals.received() == signal.SIGTERM
    with signals.watched(), signals.in_worker(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("knob", "steps"), [("trainer.max_steps=-1", 40), ("trainer.max_steps=7", 7), ("trainer.limit_train_batches=3", 6)]
)
def test_the_progress_bar_counts_steps(
    knob: str, steps: int, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = command(*FAST, knob)
    assert code == 0
    last = err.split("\r")[-1]
    assert f"| {steps}/{steps} [" in last
    assert re.search(r"train/mse=0\.\d+, val/mse=0\.\d+", last)


def test_no_progress_on_request(command: Command) -> None:
    _, out, err = command(*FAST, "trainer.enable_progress_bar=false")
    assert "epoch" not in out.split("test MSE")[0]
    assert err == ""


TRACED = """
import functools, torch
from msae import train
torch.compile = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
train.main()
"""


def test_compiled_steps(command: Command, tmp_path: Path) -> None:
    """Compiled steps change only the time, and a checkpoint does not depend on them.

    They are traced, forwards and backwards and as one graph; a C++ compiler for the graph would take 20 seconds.
    """
    args = ("data=digits", "trainer=cpu", "model=ae")
    compiled = [*args, "trainer.max_epochs=1", "model.compile=true", "hydra.run.dir=a"]
    # in a process of its own: the check of shapes, which tests put around each function, cannot be compiled
    subprocess.run([sys.executable, "-c", TRACED, *compiled], cwd=tmp_path, check=True, capture_output=True)
    assert command(*args, "trainer.max_epochs=2", "model.compile=false", "resume=a").code == 0
    assert command(*args, "trainer.max_epochs=2", "hydra.run.dir=b").code == 0
    assert metrics(Path("a"))["metrics"] == pytest.approx(metrics(Path("b"))["metrics"], rel=1e-3)
