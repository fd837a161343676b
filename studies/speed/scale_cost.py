"""What several scales cost in training: the pyramid and its single-scale control take turns, with one thread."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import hydra
import torch
from hydra.utils import instantiate

from msae.cli import CONF

BATCH = 64
IMAGE, SERIES = (1, 28, 28), (1, 512)
CASES = (
    (IMAGE, 16, ["model=pyramid28"]),
    (IMAGE, 64, ["model=pyramid28"]),
    (IMAGE, 128, ["model=pyramid28"]),
    (SERIES, 64, ["model=pyramid"]),
    (SERIES, 64, ["model=pyramid", "model.segments=[1,4]", "model.code_dims=[4,15]"]),
    (SERIES, 64, ["model=pyramid", "model.code_dims=[16,4,2]"]),
)
"""Shape of a window, values in the latent, and a model: finer scales of the first four refine, of the others code."""


def steps(shape: tuple[int, ...], latent: int, overrides: list[str]) -> Callable[[int], float]:
    """A function that takes steps with a model of `conf/model` and returns samples a second."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[*overrides, f"model.latent_dim={latent}"])
    model = instantiate(cfg.model, shape=shape)
    model.set_statistics(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.0, 1.0]), bounded=True)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x = torch.rand(BATCH, 1, model.length)

    def run(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            loss = model.errors(x)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return n * BATCH / (time.perf_counter() - start)

    run(n=5)
    return run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30, help="of each model in a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| window | latent | pyramid | single, samples a second | pyramid | ratio (least to greatest) |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for shape, latent, overrides in CASES:
        single, pyramid = steps(shape, latent, ["model=single"]), steps(shape, latent, overrides)
        rounds = [(single(given.steps), pyramid(given.steps)) for _ in range(given.rounds)]
        ratios = sorted(b / a for a, b in rounds)
        speeds = " | ".join(f"{median(column):,.0f}" for column in zip(*rounds, strict=True))
        named = " ".join(overrides).replace("model.", "").removeprefix("model=")
        about = f"{'x'.join(map(str, shape[1:]))} | {latent} | {named}"
        print(f"| {about} | {speeds} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")


if __name__ == "__main__":
    main()
