"""Samples a second of several ways to train the MSAE on MNIST, as ratios: `python studies/speed/train_speed.py`.

All ways have the same model, batch size, Adam and number of windows. They take turns of one epoch in one process, so
that other work on the machine slows all of them. Time runs from the start of the epoch to the end of training.
`--device cuda` compares with a bare loop whose step is one CUDA graph, which the host cannot slow down; compilation
and recording before the first counted step are not timed.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
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
from msae.runs.callbacks import Progress

BATCH = 64


class Clock(L.Callback):
    """Seconds from the start of the epoch to the end of training, including the logging at its end."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = now(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = now(pl_module.device) - self.start


def now(device: torch.device) -> float:
    """Seconds, after the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def project(data: DataModule, device: torch.device, folder: Path, **knobs: Any) -> float:
    """This project's training with its logging, TensorBoard and progress bar, but without evaluation and pictures.

    A model that compiles does so, and records its CUDA graphs, in two epochs before the one that is timed: the graph of
    the last batch, a smaller one, is recorded when it comes for the second time.
    """
    progress = Progress("benchmark", bar=True, data=data)
    progress.bar = True  # also into a pipe
    clock = Clock()
    trainer = L.Trainer(
        accelerator=device.type, devices=1, max_epochs=3 if knobs else 1, callbacks=[progress, clock],
        logger=TensorBoardLogger(folder), enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(MultiScaleAutoEncoder((1, 784), **knobs), datamodule=data)
    return clock.seconds


def bare(data: DataModule, device: torch.device, *, graph: bool = False) -> float:
    """A bare PyTorch loop over slices of a tensor, maybe as a CUDA graph: the limit of what a framework can reach."""
    model, windows = MultiScaleAutoEncoder((1, 784)).to(device), data.train.x[:].to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True, capturable=graph)

    def step(x: Tensor) -> None:
        x_hat, _ = model(x)
        loss = F.mse_loss(x_hat, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    full = recorded(step, windows[:BATCH].clone()) if graph else step
    start = now(device)
    for index in torch.randperm(len(windows), device=device).split(BATCH):
        (full if len(index) == BATCH else step)(windows[index])
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
    """The MSAE as most LightningModules are written."""

    def __init__(self) -> None:
        super().__init__()
        self.model = MultiScaleAutoEncoder((1, 784))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0].flatten(2)
        x_hat, _ = self.model(x)
        loss = F.mse_loss(x_hat, x)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=1e-3)


def lightning(images: Subset[Any], device: torch.device, folder: Path) -> float:
    """Lightning with torchvision's dataset and an ordinary DataLoader; its own bar, logging and TensorBoard."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator=device.type, devices=1, max_epochs=1, callbacks=[clock], logger=TensorBoardLogger(folder),
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Ordinary(), DataLoader(images, BATCH, shuffle=True))
    return clock.seconds


def appendix(images: Subset[Any]) -> float:
    """The loop of the paper's appendix, with batches of 64 in place of its 1."""
    model, criterion = MultiScaleAutoEncoder((1, 784)), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for x, _ in DataLoader(images, BATCH):
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
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--windows", type=int, default=60_000, help="training windows a turn (default 60000)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device; use --device cpu")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    device, full = torch.device(options.device), mnist()
    data = DataModule(full.train[: options.windows], Windows(full.test.x[:BATCH]), BATCH)
    unit, standard = transforms.ToTensor(), transforms.Normalize([0.1307], [0.3081])
    few = range(options.windows)
    images = Subset(MNIST(cache_folder(), transform=unit), few)
    normalized = Subset(MNIST(cache_folder(), transform=transforms.Compose([unit, standard])), few)
    with TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], float]] = {}
        if device.type == "cuda":
            ways["bare PyTorch loop, CUDA graph"] = lambda: bare(data, device, graph=True)
        ways |= {
            "bare PyTorch loop": lambda: bare(data, device),
            "this project": lambda: project(data, device, Path(folder)),
        }
        if device.type == "cuda":
            ways["this project, model.compile=true"] = lambda: project(data, device, Path(folder), compile=True)
        ways["Lightning, torchvision, DataLoader"] = lambda: lightning(images, device, Path(folder))
        if device.type == "cpu":
            ways["appendix's loop"] = lambda: appendix(normalized)
        for way in ways.values():
            way()  # warm up
        rounds = [{name: way() for name, way in ways.items()} for _ in range(options.rounds)]
    print(f"\n{options.rounds} rounds, {options.windows} windows a turn, {options.threads} thread(s), {options.device}")
    print("| way | samples a second, median | of the first: median (least to greatest) |\n| --- | ---: | ---: |")
    limit = next(iter(ways))
    for name in ways:
        speed = options.windows / median(turn[name] for turn in rounds)
        ratios = sorted(turn[limit] / turn[name] for turn in rounds)
        print(f"| {name} | {speed:,.0f} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


if __name__ == "__main__":
    main()
