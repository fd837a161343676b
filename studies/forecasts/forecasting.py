"""Do latents forecast? Ridge regression on the latents of each model, on the raw window, and one linear map.

    python studies/forecasts/forecasting.py FILE.csv ... [--out runs/forecasting] [--rows N] [KEY=VALUE ...]

TS2Vec's protocol (arXiv 2106.10466): each series is split in time into 60, 20 and 20 %; values are normalized by the
training split; each horizon has a ridge regression, whose penalty the validation split chooses; MSE and MAE are over
all channels of the test split, in normalized units. All methods see the last 96 steps. Models are trained on the
training split with three seeds, 64 latent values and 3,000 steps; KEY=VALUE are further overrides for `msae.train`.
`linear` is one map from the last 96 steps of a channel, less the last value, to its future, the same for all channels,
as in DLinear and NLinear (arXiv 2205.13504), fitted in closed form. --rows takes the first N rows of each file, as
TS2Vec does with ETTh1 (14400). It writes `forecasting.json` and `forecasting.md`; an interrupted study resumes when it
is started again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import torch
from pyarrow import csv
from torch import Tensor

from msae import load
from msae.data import tables
from msae.data.series import in_time
from msae.runs.comparison import interval, table
from msae.runs.folder import write_json
from msae.runs.reading import read_runs
from msae.uses import forecasting

MODELS = ("ae", "single", "pyramid")
LENGTH = 96
SHARES = (0.2, 0.2)
Parts = dict[str, list[forecasting.Part]]


def read(path: Path, rows: int | None) -> tuple[Tensor, list[str]]:
    """The columns of numbers, `(channels, time)`, and their names."""
    bare = not tables.Csv(path, tables.Format()).header
    found = csv.read_csv(path, csv.ReadOptions(autogenerate_column_names=bare))
    found = found.slice(0, rows) if rows else found
    names = [
        field.name for field in found.schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    ]
    return torch.stack([torch.tensor(found[name].to_numpy()) for name in names]), names


def split(series: Tensor) -> Parts:
    """The splits in time, each with the steps before it that its first windows look back at."""
    spans = in_time([[("", 0, series.shape[1])]], SHARES)
    return {
        name: [(series[:, max(0, start - LENGTH) : stop], start - max(0, start - LENGTH))]
        for name, [(_, start, stop)] in spans.items()
    }


def errors(encode: forecasting.Encode, parts: Parts) -> dict[int, tuple[float, float]]:
    """MSE and MAE on the test split, for each horizon."""
    found = forecasting.fit(encode, parts["training"], parts["validation"], LENGTH)
    result = forecasting.evaluate(encode, found, parts["test"], LENGTH)
    return {horizon: (float(its.mse.mean()), float(its.mae.mean())) for horizon, its in result.items()}


def linear(parts: Parts) -> dict[int, tuple[float, float]]:
    """The same of one linear map for all channels, of differences from the last step, which is added again."""
    [(training, first)] = parts["training"]
    mean, deviation = forecasting.statistics([(training, first)])
    result = {}
    for horizon in forecasting.HORIZONS:
        sums = {}
        for name, [(series, _)] in parts.items():
            pairs = ((series - mean) / deviation).unfold(1, LENGTH + horizon, 1).flatten(0, 1)
            pairs = pairs - pairs[:, LENGTH - 1 : LENGTH]
            sums[name] = pairs[:, :LENGTH], pairs[:, LENGTH:]
        grams = {name: forecasting.Sums(LENGTH, horizon) for name in ("training", "validation")}
        for name, its in grams.items():
            its.add(sums[name][0].float(), sums[name][1])
        weights = min(map(grams["training"].solve, forecasting.ALPHAS), key=grams["validation"].squared_error)
        x, y = sums["test"]
        rest = forecasting.with_one(x.float()) @ weights - y
        result[horizon] = float(rest.square().mean()), float(rest.abs().mean())
    return result


def train(path: Path, rows: int | None, out: Path, overrides: Sequence[str]) -> dict[str, list[Any]]:
    """The trained models, by name, one for each seed."""
    series, names = read(path, rows)
    data = out / f"{path.stem}.csv"
    csv.write_csv(pa.table(dict(zip(names, series.numpy(), strict=True))), data)
    folder = out / path.stem
    command = [sys.executable, "-m", "msae.train", "-m", "data=series", f"data.path={data}", f"data.window={LENGTH}"]
    command += [f"data.val_size={SHARES[0]}", f"data.test_size={SHARES[1]}", f"model={','.join(MODELS)}", "seed=0,1,2"]
    command += ["model.latent_dim=64", "trainer.max_epochs=-1", "trainer.max_steps=3000", *overrides]
    command += [f"hydra.sweep.dir={folder}", "~hydra.callbacks.report"]
    command += [f"resume={folder}"] * folder.exists()
    if subprocess.run(command, check=False).returncode or read_runs(folder)[1]:
        sys.exit(f"not finished: {' '.join(command)}")
    found: dict[str, list[Any]] = {}
    for run in read_runs(folder)[0]:
        found.setdefault(run["model"], []).append(load(run["folder"] / run["checkpoint"]))
    return found


@torch.no_grad()
def study(path: Path, rows: int | None, out: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each way and horizon."""
    series, _ = read(path, rows)
    parts = split(series)
    found = {"ridge on raw values": [errors(lambda x: x.flatten(1), parts)], "linear": [linear(parts)]}
    for name, models in train(path, rows, out, overrides).items():
        found[name] = [errors(model.encode, parts) for model in models]
    result = []
    for way, seeds in found.items():
        for horizon in forecasting.HORIZONS:
            mse, mae = ([seed[horizon][i] for seed in seeds] for i in (0, 1))
            row = {"data": path.stem, "features": way, "horizon": horizon, "n": len(seeds)}
            row |= {"mse": fmean(mse), "mae": fmean(mae), "mse_sd": stdev(mse) if len(mse) > 1 else None}
            result.append(row | {"mse_interval": interval(mse)})
    return result


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each file: MSE / MAE, by horizon."""
    texts = []
    for data in dict.fromkeys(row["data"] for row in rows):
        lines = []
        for way in dict.fromkeys(row["features"] for row in rows):
            its = [row for row in rows if (row["data"], row["features"]) == (data, way)]
            spread = ["" if row["mse_sd"] is None else f" ± {row['mse_sd']:.3f}" for row in its]
            cells = [f"{row['mse']:.3f}{sd} / {row['mae']:.3f}" for row, sd in zip(its, spread, strict=True)]
            lines.append([way, f"{its[0]['n']}", *cells])
        texts.append(f"## {data}\n\n{table(['features', 'n', *map(str, forecasting.HORIZONS)], lines)}")
    return "\n\n".join(texts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/forecasting"))
    parser.add_argument("--rows", type=int)
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    given = parser.parse_args([text for text in sys.argv[1:] if text not in overrides])
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = [row for path in given.files for row in study(path, given.rows, given.out, overrides)]
    write_json(given.out / "forecasting.json", rows)
    (given.out / "forecasting.md").write_text(markdown(rows) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
