"""Windows a second of this project's pipeline and of the ordinary one: `python studies/speed/window_speed.py`.

Both serve every window of a series once, shuffled, in batches of 64, in this process: one by the DataModule's batches,
the other by a `torch.utils.data.Dataset` that slices one window an item, under an ordinary DataLoader. They take
turns.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msae.data.module import DataModule, Windows
from msae.data.windows import Views

BATCH, LENGTH = 64, 96


class PerItem(Dataset[Tensor]):
    """One window an item, as most write it."""

    def __init__(self, series: Tensor) -> None:
        self.series = series

    def __len__(self) -> int:
        return len(self.series) - LENGTH + 1

    def __getitem__(self, index: int) -> Tensor:
        return self.series[index : index + LENGTH].T


def project(data: DataModule) -> float:
    """Seconds of an epoch of the DataModule."""
    start, seen = time.perf_counter(), 0
    for batches in data.train_dataloader():
        for batch in batches:
            seen += len(batch)
    assert seen == len(data.train)
    return time.perf_counter() - start


def ordinary(series: Tensor) -> float:
    """Seconds of an epoch of Dataset and DataLoader."""
    start, seen = time.perf_counter(), 0
    for batch in DataLoader(PerItem(series), BATCH, shuffle=True):
        seen += len(batch)
    assert seen == len(series) - LENGTH + 1
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--time", type=int, default=200_000, help="time steps of the series (default 200000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.rounds} rounds, {options.time} time steps, windows of {LENGTH} at stride 1, one thread")
    print("| channels | this project, windows a second | Dataset and DataLoader | ratio (least to greatest) |")
    print("| ---: | ---: | ---: | ---: |")
    for channels in (1, 7):
        series = torch.randn(options.time, channels)
        windows = Windows(Views([series], [(0, 0, len(series))], LENGTH))
        data = DataModule(windows, windows, BATCH, val=Windows(windows.x[:0]))
        turns = [(project(data), ordinary(series)) for _ in range(options.rounds + 1)][1:]
        ours, theirs = (len(windows) / median(turn[i] for turn in turns) for i in (0, 1))
        ratios = sorted(other / own for own, other in turns)
        spread = f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        print(f"| {channels} | {ours:,.0f} | {theirs:,.0f} | {spread} |")


if __name__ == "__main__":
    main()
