"""Samples a second of several ways to train a model on MNIST, as ratios: `python studies/speed/train_speed.py`.

All ways have the same model, batch size, Adam and number of windows. They take turns in one process, so that other
work on the machine slows all of them. Time runs from the start of the first epoch that counts to the end of training.
`--device cuda` compares with a bare loop whose step is one CUDA graph, which the host cannot slow down; an epoch before
the first that counts, with compilation and recording, is not timed.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from msae.data.mnist import cache_folder, mnist
from msae.data.module import DataModule, Windows
from msae.models.msae import MultiScaleAutoEncoder
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.runs.callbacks import Progress

MODELS: dict[str, Callable[..., Reconstructor]] = {
    "msae": MultiScaleAutoEncoder,
    "pyramid": partial(PyramidAutoEncoder, latent_dim=64),
}


class Clock(L.Callback):
    """Seconds from the start of an epoch to the end of training, including the logging at its end."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.first:
            self.start = now(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = now(pl_module.device) - self.start


def now(device: torch.device) -> float:
    """Seconds, after the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def project(model: Reconstructor, data: DataModule, device: torch.device, folder: Path, epochs: int) -> float:
    """This project's training with its logging, TensorBoard and progress bar, but without evaluation and pictures.

    On a GPU an epoch comes first that is not timed: in it steps are compiled and recorded.
    """
    progress = Progress("benchmark", bar=True, data=data)
    progress.bar = True  # also into a pipe
    clock = Clock(int(device.type == "cuda"))
    trainer = L.Trainer(
        accelerator=device.type, devices=1, max_epochs=clock.first + epochs, callbacks=[progress, clock],
        logger=TensorBoardLogger(folder), enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return clock.seconds


def bare(model: Reconstructor, data: DataModule, device: torch.device, epochs: int, *, graph: bool = False) -> float:
    """A bare PyTorch loop over slices of a tensor, maybe as a CUDA graph: the limit of what a framework can reach."""
    model, windows, size = model.to(device), data.train.x[:].to(device), data.batch_size
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=graph)

    def step(x: Tensor) -> None:
        x_hat, _ = model(x)
        loss = F.mse_loss(x_hat, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    full = recorded(step, windows[:size].clone()) if graph else step
    start = now(device)
    for _ in range(epochs):
        for index in torch.randperm(len(windows), device=device).split(size):
            (full if len(index) == size else step)(windows[index])
    return now(device) - start


def recorded(step: Callable[[Tensor], None], x: Tensor) -> Callable[[Tensor], None]:
    """The step as one CUDA graph with the input x: recorded once, after three steps that allocate its buffers."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step(x)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x)

    def replay(batch: Tensor) -> None:
        x.copy_(batch)
        graph.replay()

    return replay


class Ordinary(L.LightningModule):
    """A model as most LightningModules are written."""

    def __init__(self, model: Reconstructor) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0].flatten(2)
        x_hat, _ = self.model(x)
        loss = F.mse_loss(x_hat, x)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=1e-3)


def lightning(model: Reconstructor, images: Subset[Any], size: int, device: torch.device, folder: Path) -> float:
    """One epoch of Lightning with torchvision's dataset and an ordinary DataLoader; its own bar and logging."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator=device.type, devices=1, max_epochs=1, callbacks=[clock], logger=TensorBoardLogger(folder),
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Ordinary(model), DataLoader(images, size, shuffle=True))
    return clock.seconds


def appendix(model: Reconstructor, images: Subset[Any], size: int) -> float:
    """The loop of the paper's appendix, with larger batches than its 1."""
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for x, _ in DataLoader(images, size):
        inputs = x.flatten(2)
        optimizer.zero_grad()
        outputs, _ = model(inputs)
        loss = criterion(outputs, inputs)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="msae", help="default msae")
    parser.add_argument("--batch", type=int, default=64, help="windows in a batch (default 64)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs in a turn (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--windows", type=int, default=60_000, help="training windows in an epoch (default 60000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device; use --device cpu")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    device, full, epochs, size = torch.device(options.device), mnist(), options.epochs, options.batch
    data = DataModule(full.train[: options.windows], Windows(full.test.x[:64]), size)
    unit, standard = transforms.ToTensor(), transforms.Normalize([0.1307], [0.3081])
    few = range(options.windows)
    images = Subset(MNIST(cache_folder(), transform=unit), few)
    normalized = Subset(MNIST(cache_folder(), transform=transforms.Compose([unit, standard])), few)

    def new(**knobs: Any) -> Reconstructor:
        return MODELS[options.model]((1, 784), **knobs)

    with TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], float]] = {}
        if device.type == "cuda":
            ways["bare PyTorch loop, CUDA graph"] = lambda: bare(new(), data, device, epochs, graph=True)
        ways |= {
            "bare PyTorch loop": lambda: bare(new(), data, device, epochs),
            "this project": lambda: project(new(), data, device, Path(folder), epochs),
        }
        if device.type == "cuda":
            compiled = new(compile=True)  # the same in all turns: a new one would be compiled again
            ways["this project, model.compile=true"] = lambda: project(compiled, data, device, Path(folder), epochs)
        else:
            ways["Lightning, torchvision, DataLoader"] = lambda: (
                lightning(new(), images, size, device, Path(folder)) * epochs
            )
            ways["appendix's loop"] = lambda: appendix(new(), normalized, size) * epochs
        for way in ways.values():
            way()  # warm up
        rounds = [{name: way() for name, way in ways.items()} for _ in range(options.rounds)]
    print(
        f"\n{options.rounds} rounds, {options.windows} windows an epoch, {options.threads} thread(s), {options.device}"
    )
    print("| way | samples a second, median | of the first: median (least to greatest) |\n| --- | ---: | ---: |")
    limit, rows = next(iter(ways)), []
    for name in ways:
        speed = epochs * options.windows / median(turn[name] for turn in rounds)
        ratios = sorted(turn[limit] / turn[name] for turn in rounds)
        spread = {"median": median(ratios), "least": ratios[0], "greatest": ratios[-1]}
        rows.append({"way": name, "samples_per_second": round(speed), "of_the_first": spread})
        print(f"| {name} | {speed:,.0f} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"n": options.rounds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
