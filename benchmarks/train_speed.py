"""Samples a second of four ways to train the MSAE on MNIST, as ratios: `python benchmarks/train_speed.py`.

Same model, batch size, Adam and number of windows; one epoch a turn, the four taking turns in one process, so that what
else the machine does meets all of them. Time runs from the start of the epoch to the end of training.
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

from msae.callbacks import Progress
from msae.data.base import DataModule, Windows
from msae.data.mnist import cache_folder, mnist
from msae.models.msae import MultiScaleAutoEncoder

BATCH = 64


class Clock(L.Callback):
    """Seconds from the start of the epoch to the end of training, what is logged at its end included."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


def project(data: DataModule, folder: Path) -> float:
    """This project's training with its logging, TensorBoard and progress bar, but without evaluation and pictures."""
    progress = Progress("benchmark", bar=True, data=data)
    progress.bar = True  # also into a pipe
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[progress, clock],
        logger=TensorBoardLogger(folder), enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(MultiScaleAutoEncoder((1, 784)), datamodule=data)
    return clock.seconds


def bare(data: DataModule) -> float:
    """A bare PyTorch loop over slices of a tensor: the limit of what a framework can reach."""
    model = MultiScaleAutoEncoder((1, 784))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    start = time.perf_counter()
    for index in torch.randperm(len(data.train)).split(BATCH):
        x = data.train.x[index]
        x_hat, _ = model(x)
        loss = F.mse_loss(x_hat, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


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


def lightning(images: Subset[Any], folder: Path) -> float:
    """Lightning with torchvision's dataset and an ordinary DataLoader; its own bar, logging and TensorBoard."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[clock], logger=TensorBoardLogger(folder),
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    full = mnist()
    data = DataModule(full.train[: options.windows], Windows(full.test.x[:BATCH]), BATCH)
    unit, standard = transforms.ToTensor(), transforms.Normalize([0.1307], [0.3081])
    few = range(options.windows)
    images = Subset(MNIST(cache_folder(), transform=unit), few)
    normalized = Subset(MNIST(cache_folder(), transform=transforms.Compose([unit, standard])), few)
    with TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], float]] = {
            "bare PyTorch loop": lambda: bare(data),
            "this project": lambda: project(data, Path(folder)),
            "Lightning, torchvision, DataLoader": lambda: lightning(images, Path(folder)),
            "appendix's loop": lambda: appendix(normalized),
        }
        for way in ways.values():
            way()  # warm up
        rounds = [{name: way() for name, way in ways.items()} for _ in range(options.rounds)]
    print(f"\n{options.rounds} rounds, {options.windows} windows a turn, {options.threads} thread(s)")
    print("| way | samples a second, median | of the bare loop: median (least to greatest) |\n| --- | ---: | ---: |")
    for name in ways:
        speed = options.windows / median(turn[name] for turn in rounds)
        ratios = sorted(turn["bare PyTorch loop"] / turn[name] for turn in rounds)
        print(f"| {name} | {speed:,.0f} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


if __name__ == "__main__":
    main()
