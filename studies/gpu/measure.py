"""What a GPU does with this project, a step at a time; `run.sh` calls all of them.

    python studies/gpu/measure.py STEP --out FOLDER

writes FOLDER/STEP.json. Without a GPU, or with `DEVICE=cpu`, each step runs in a small form, to try the script.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity

from msae.data.mnist import mnist
from msae.data.module import DataModule, Windows
from msae.data.windows import Views
from msae.models.msae import MultiScaleAutoEncoder
from msae.models.nested import NestedAutoEncoder
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses.anomaly import Scorer, scores
from msae.uses.reference import learn

GPU = torch.cuda.is_available() and os.environ.get("DEVICE") != "cpu"
KIND = "cuda" if GPU else "cpu"
QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
MODELS: dict[str, Callable[..., Reconstructor]] = {
    "msae": MultiScaleAutoEncoder,
    "pyramid": lambda shape, **knobs: PyramidAutoEncoder(shape, latent_dim=64, **knobs),
    "nested": NestedAutoEncoder,
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy HtoD", "Memcpy DtoH")


def now() -> float:
    """Seconds, after the device has finished all queued work."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def digits_of(n: int, batch: int) -> DataModule:
    """MNIST's first n training images, and 2,048 test images."""
    full = mnist()
    return DataModule(full.train[:n], full.test[:2048], batch, value_range=(0.0, 1.0))


def machine() -> dict[str, Any]:
    """The card and the versions."""
    found = {"device": torch.cuda.get_device_name() if GPU else "cpu", "torch": torch.__version__}
    found |= {"lightning": L.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    print(found)
    return found


def tests() -> dict[str, Any]:
    """`pytest tests/test_gpu.py`."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests/test_gpu.py"], check=False
    )
    return {"status": ended.returncode}


def speed(model: str, batch: int) -> dict[str, Any]:
    """Training's samples a second against a bare loop and against its step as one CUDA graph."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = ["studies/speed/train_speed.py", "--model", model, "--batch", str(batch), "--device", KIND]
        command += ["--json", file.name, "--rounds", "3" if GPU else "1"]
        command += ["--epochs", str(3 if batch < 1000 else 12)] if GPU else ["--windows", "4096"]
        subprocess.run([sys.executable, *command], check=True, stderr=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
    return found


def seeds(turns: int) -> dict[str, Any]:
    """Seconds of whole commands in turns: one seed, and many as one run."""
    many, source = (64, "mnist") if GPU else (3, "digits")
    found: dict[str, list[float]] = {"one": [], "many": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for name, seed in (("one", "0"), ("many", f"[{','.join(map(str, range(many)))}]")):
                command = [sys.executable, "-m", "msae.train", "model=msae", f"trainer={'gpu' if GPU else 'cpu'}"]
                command += [f"data={source}", "trainer.max_epochs=3", f"seed={seed}", f"out={folder}/{name}{turn}"]
                started = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                found[name].append(round(time.perf_counter() - started, 2))
                print(name, found[name][-1], flush=True)
        told = sorted(Path(folder).glob("many0/seed=*/metrics.json"))
        if len(told) != many:
            raise RuntimeError(f"{len(told)} of {many} runs ended")
        seconds = [json.loads(one.read_text())["seconds"] for one in told]
    return found | {"seeds": many, "steps of one of many": median(seconds)}


def trained(model: Reconstructor, data: DataModule, epochs: int, **knobs: Any) -> tuple[float, float]:
    """Seconds an epoch, without the first, and the test MSE."""
    starts: list[float] = []

    class Clock(L.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            starts.append(now())

        def on_train_end(self, *_: Any) -> None:
            starts.append(now())

    trainer = L.Trainer(accelerator=KIND, devices=1, max_epochs=epochs, callbacks=[Clock()], **QUIET, **knobs)
    model.set_statistics(**data.statistics)
    trainer.fit(model, datamodule=data)
    [result] = trainer.test(model, data, verbose=False)
    return (starts[-1] - starts[1]) / (epochs - 1), result["test/mse"]


def precision() -> dict[str, Any]:
    """bf16-mixed against 32-true: the ratio of speed, and the difference of the test MSE; three seeds, in turns."""
    found: dict[str, Any] = {}
    for name in ("msae", "pyramid"):
        for batch in (64, 1024):
            data, rows = digits_of(60_000 if GPU else 2048, batch), []
            for seed in range(3):
                row = {}
                for kind in ("32-true", "bf16-mixed"):
                    L.seed_everything(seed, verbose=False)
                    data.seed = seed
                    row[kind] = trained(MODELS[name]((1, 784)), data, 3, precision=kind)
                rows.append(row)
            ratios = [row["32-true"][0] / row["bf16-mixed"][0] for row in rows]
            errors = {kind: [row[kind][1] for row in rows] for kind in rows[0]}
            found[f"{name} {batch}"] = {"speed of bf16-mixed": ratios, "test mse": errors}
            print(name, batch, [round(r, 2) for r in ratios], errors, flush=True)
    return found


class Profiled(L.Callback):
    """Profiles the second epoch."""

    def __init__(self, profiler: torch.profiler.profile) -> None:
        self.profiler, self.steps = profiler, 0

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            now()
            self.steps = -trainer.global_step
            self.profiler.start()

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            now()
            self.profiler.stop()
            self.steps += trainer.global_step


def profile() -> dict[str, Any]:
    """The kernels and host synchronisations of a training step, and where the time goes."""
    found: dict[str, Any] = {}
    for name in ("msae", "pyramid", "nested"):
        data = digits_of(64 * 256 * 2 if GPU else 64 * 8, 64)
        profiler = torch.profiler.profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * GPU, acc_events=True
        )
        profiled = Profiled(profiler)
        trainer = L.Trainer(accelerator=KIND, devices=1, max_epochs=2, callbacks=[profiled], **QUIET)
        model = MODELS[name]((1, 784))
        model.set_statistics(**data.statistics)
        trainer.fit(model, datamodule=data)
        averages, n = profiler.key_averages(), profiled.steps
        sort = "self_device_time_total" if GPU else "self_cpu_time_total"
        print(f"{name}: {n} steps\n{averages.table(sort_by=sort, row_limit=12, max_name_column_width=60)}", flush=True)
        kernels = [e for e in averages if e.device_type == torch.autograd.DeviceType.CUDA and "Mem" not in e.key]
        found[name] = {
            "steps": n,
            "kernels a step": round(sum(e.count for e in kernels) / n, 1),
            "microseconds of kernels a step": round(sum(e.self_device_time_total for e in kernels) / n, 1),
            "launches of graphs": sum(e.count for e in averages if "cudaGraphLaunch" in e.key),
            "launches of kernels": sum(e.count for e in averages if "LaunchKernel" in e.key),
            "waits": {key: sum(e.count for e in averages if key in e.key) for key in WAITS},
        }
        print(found[name], flush=True)
    return found


def memory() -> dict[str, Any]:
    """What windows of 2 GB take on the device, and windows a second of embedding and detection on it."""
    n = (1 << 29) // 1024 if GPU else 2048  # of 1,024 float32 values: 2 GiB
    found: dict[str, Any] = {}
    x = torch.rand(n, 1, 1024)
    series = Views([x.reshape(-1, 1)], [(0, 0, n * 1024)], length=1024, stride=1024)
    for name, windows in (("windows", x), ("one series", series)):
        data = DataModule(Windows(windows), Windows(x[:256]), 1024)
        if GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds, _ = trained(MultiScaleAutoEncoder((1, 1024)), data, 2)
        found[name] = {
            "GiB of windows": x.nbytes / 2**30,
            "GiB on the device at most": torch.cuda.max_memory_allocated() / 2**30 if GPU else None,
            "windows a second": round(n / seconds),
        }
        print(name, found[name], flush=True)
        del data
    time_of: dict[str, dict[str, float]] = {}
    wave = torch.sin(torch.arange(200_000 if GPU else 4000) / 10) + 0.1 * torch.randn(200_000 if GPU else 4000)
    model = NestedAutoEncoder((1, 128))
    windows = wave.unfold(0, 128, 1)[:, None]
    data = DataModule(Windows(windows[: len(wave) // 4].contiguous()), Windows(windows[-512:].contiguous()), 64)
    trained(model, data, 2)
    for device in ["cpu"] + ["cuda"] * GPU:
        model.to(device).eval()
        part = windows[:65_536].contiguous().to(device)
        with torch.no_grad():
            model.encode(part[:1024])
            started = now()
            model.encode(part)
            embedded = len(part) / (now() - started)
            scorer = Scorer(model, learn(model, [wave[None, : len(wave) // 4]]))
            started = now()
            for _ in scores(scorer, wave[None]):
                pass
            scored = len(wave) / (now() - started)
        time_of[device] = {"embedding, windows a second": round(embedded), "detection, steps a second": round(scored)}
        print(device, time_of[device], flush=True)
    return found | time_of


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    step.__name__: step for step in (machine, tests, speed, seeds, precision, profile, memory)
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"model": given.model, "batch": given.batch} if given.step == "speed" else {}
    options |= {"turns": given.turns} if given.step == "seeds" else {}
    found = STEPS[given.step](**options)
    name = "_".join([given.step, *map(str, options.values())] if given.step == "speed" else [given.step])
    (given.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
