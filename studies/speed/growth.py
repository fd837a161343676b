"""How time and memory of training grow with windows, length, channels and seeds: `python studies/speed/growth.py`.

Starting from 10,000 windows of one channel and 128 steps, one size is changed at a time. Each row is measured in its
own process, which trains `pyramid` with 64 latent values on random values, in batches of 64, with one thread. It
reports the milliseconds of an optimizer step of one seed (the median of calls of 32 steps) and the peak of memory,
beside the memory of the windows themselves. With several rounds it reports the median, the least and the greatest.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
import warnings
from statistics import median
from typing import Any

import lightning as L
import torch

from msae import baselines
from msae.data.module import DataModule, Windows
from msae.models.pyramid import PyramidAutoEncoder
from msae.runs import trainer
from msae.runs.comparison import table
from msae.runs.stack import Run, Stack

BASE = {"windows": 10_000, "length": 128, "channels": 1, "seeds": 1}
GROWN = {
    "windows": (10_000, 100_000, 1_000_000, 10_000_000),
    "length": (64, 512, 2048, 8192),
    "channels": (4, 16, 64),
    "seeds": (5, 20),
}


class Clock(L.Callback):
    """Seconds of each call of `training_step`, without waiting for other seeds."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.start = time.perf_counter() - (pl_module.stack.waited if pl_module.stack else 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, number: int) -> None:
        waited = pl_module.stack.waited if pl_module.stack else 0
        self.seconds.append((time.perf_counter() - waited - self.start) / len(batch))


def measure(windows: int, length: int, channels: int, seeds: int, steps: int) -> dict[str, float]:
    """In this process: milliseconds a step, and GiB at the peak and of the windows."""
    trainer.quiet()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    x = torch.rand(windows, channels, length)
    shared, seconds = DataModule(Windows(x), Windows(x[:100])), list[float]()

    def one(seed: int, stack: Run | None) -> None:
        data = copy.copy(shared)
        data.seed = seed
        L.seed_everything(seed, verbose=False)
        model = PyramidAutoEncoder(data.shape, latent_dim=64, segments=[1, 4, 16])
        model.set_statistics(**data.statistics)
        model.stack = stack
        model.initialize(lambda: baselines.sample(data))
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "limit_val_batches": 0}
        callbacks = [Clock(seconds)]
        L.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=callbacks, **quiet).fit(model, data)

    if seeds == 1:
        one(0, None)
    else:
        Stack({str(k): lambda run: one(int(run.name), run) for k in range(seeds)}).run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"ms": 1000 * median(seconds), "peak": peak, "data": x.nbytes / 2**30}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each row (default 3)")
    parser.add_argument("--steps", type=int, default=160, help="optimizer steps of each row (default 160)")
    parser.add_argument("--only", choices=GROWN, help="one of the four alone")
    parser.add_argument("--most", type=int, default=sys.maxsize, help="leave out larger sizes")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(**given.row, steps=given.steps)))
        return
    rows = [
        BASE | {name: size}
        for name, sizes in GROWN.items()
        for size in sizes
        if given.only in (None, name) and size <= given.most
    ]
    found: list[list[dict[str, float]]] = [[] for _ in rows]
    for _ in range(given.rounds):  # the rows take turns, so that other work on the machine slows all of them
        for row, results in zip(rows, found, strict=True):
            command = [sys.executable, __file__, "--steps", str(given.steps), "--row", json.dumps(row)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(out.splitlines()[-1]))
            print(*row.values(), results[-1], flush=True)
    lines = []
    for row, results in zip(rows, found, strict=True):
        ms, peak = (sorted(result[key] for result in results) for key in ("ms", "peak"))
        spread = f" ({ms[0]:.2f} to {ms[-1]:.2f})" if len(ms) > 1 else ""
        size = f"{results[0]['data']:.2f}"
        lines.append(
            [*(f"{value:,}" for value in row.values()), f"{median(ms):.2f}{spread}", f"{median(peak):.2f}", size]
        )
    print(f"\n{table([*BASE, 'ms a step', 'peak, GiB', 'windows, GiB'], lines)}")


if __name__ == "__main__":
    main()
