"""What only a GPU shows; without one these are skipped, but for the part that a CPU shows too."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Command
from torch.autograd import DeviceType

from msae.data.digits import digits
from msae.data.module import DataModule, Windows
from msae.data.windows import Views
from msae.models.ae import AutoEncoder
from msae.models.lgta import LGTA
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
STEP = "Optimizer.step#Adam.step"
REPLAY = "cudaGraphLaunch"
WAITS = ("HtoD", "DtoH", "Synchronize", "aten::item")
GPU = ("data=digits", "trainer=gpu", "trainer.max_epochs=2", "model=ae")


def metrics(folder: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((Path(folder) / "metrics.json").read_text())["metrics"]
    return found


@on_gpu
@pytest.mark.parametrize("knobs", [(), ("trainer.precision=bf16-mixed",), ("model.compile=true",)])
def test_a_run_is_that_of_the_cpu(knobs: tuple[str, ...], command: Command) -> None:
    # in a process of its own: the check of shapes, which tests put around each function, cannot be compiled
    subprocess.run([sys.executable, "-m", "msae.train", *GPU, *knobs, "hydra.run.dir=gpu"], check=True)
    assert command(*GPU, "trainer=cpu", "hydra.run.dir=cpu").code == 0
    assert metrics("gpu") == pytest.approx(metrics("cpu"), rel=0.05)
    assert json.loads(Path("gpu/metrics.json").read_text())["device"] == torch.cuda.get_device_name()


@on_gpu
def test_several_seeds_as_one(command: Command) -> None:
    code, out, _ = command(*GPU, "seed=[0,1]", "hydra.run.dir=both")
    assert (code, "cannot be stacked" in out) == (0, False)
    assert command(*GPU, "seed=1", "hydra.run.dir=alone").code == 0
    assert metrics("both/seed=1") == pytest.approx(metrics("alone"), rel=1e-2)


@on_gpu
def test_a_model_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One that waits for the host trains as it is, and says why it is slower."""

    def plain(_: AutoEncoder, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"norm": z.square().mean()}

    def waits(_: AutoEncoder, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"norm": z.square().mean() * float(z.abs().max().item() > 0)}

    data = digits()
    losses = []
    for penalties in (waits, plain):
        torch.manual_seed(0)
        monkeypatch.setattr(AutoEncoder, "penalties", penalties, raising=False)
        model = AutoEncoder((1, 64), regularizer="kl")  # which draws noise after the recording that failed
        model.set_statistics(**data.statistics)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(accelerator="gpu", devices=1, max_epochs=2, **quiet)  # type: ignore[arg-type]
        trainer.fit(model, datamodule=data)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert sum("not recorded as a CUDA graph" in line for line in caplog.messages) == 1


def many_series() -> DataModule:
    """Windows of several series, with holes."""
    blocks = [torch.rand(1, 400).T.contiguous() for _ in range(5)]
    blocks[0][::7] = torch.nan
    train, test = ([(i, start, stop) for i in range(5)] for start, stop in ((0, 320), (320, 400)))
    return DataModule(Windows(Views(blocks, train, 64)), Windows(Views(blocks, test, 64)), missing=True)


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=on_gpu)])
@pytest.mark.parametrize(
    ("model", "knobs", "source"),
    [
        (AutoEncoder, {}, digits),
        (AutoEncoder, {"regularizer": "kl", "anneal": 0.5, "gradient_clip_val": 1.0, "schedule": "cosine"}, digits),
        (AutoEncoder, {"regularizer": "decorrelate"}, many_series),
        (PyramidAutoEncoder, {"latent_dim": 16}, digits),
        (LGTA, {}, digits),
    ],
)
def test_no_step_waits_for_the_host(
    model: type[Reconstructor], knobs: dict[str, Any], source: Callable[[], DataModule], accelerator: str
) -> None:
    """From the second epoch's start to its last step the profiler sees no transfer or synchronisation for each step.

    On a GPU all steps but those on a smaller batch are replayed.
    """
    data = source()
    counted: list[list[int]] = []
    replayed: list[int] = []

    class Profiled(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                self.profile = torch.profiler.profile(acc_events=True)
                self.profile.__enter__()

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                self.profile.__exit__(None, None, None)
                events = [
                    e for e in self.profile.events() or [] if any(name in e.name for name in (STEP, REPLAY, *WAITS))
                ]
                by_host = [event.name for event in events if event.device_type == DeviceType.CPU]
                replayed.append(sum(REPLAY in name for name in by_host))
                counted.append([by_host.count(STEP) + replayed[0]])
                events = [e for e in events if accelerator == "gpu" or not in_adam(e)]
                counted[-1] += [sum(name in event.name for event in events) for name in WAITS]

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator=accelerator, devices=1, max_epochs=2, callbacks=[Profiled()], **quiet)  # type: ignore[arg-type]
    made = model((1, 64), **knobs)
    made.set_statistics(**data.statistics)
    trainer.fit(made, datamodule=data)
    [[steps, *waits]] = counted
    assert steps == data.steps_per_epoch > 15
    assert replayed == [steps - 1 if accelerator == "gpu" else 0]
    assert all(count < 10 for count in waits), dict(zip(WAITS, waits, strict=True))


def in_adam(event: Any) -> bool:
    """Whether it is within the optimizer's step, which reads counts on a CPU; a GPU's fused one does not."""
    parent = event.cpu_parent
    return parent is not None and (parent.name == STEP or in_adam(parent))
