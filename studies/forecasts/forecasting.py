"""Do codes forecast? Ridge regression on the codes of each model, on raw values, and forecasts without a model.

    python studies/forecasts/forecasting.py ETTh1.csv exchange_rate.csv [--out runs/forecasting] [KEY=VALUE ...]

TS2Vec's protocol (arXiv 2106.10466): each series is split in time into 60, 20 and 20 % (of the first 14,400 hours of
ETTh1: the split into 12, 4 and 4 months that all its benchmarks share); values are normalized by the training split;
MSE and MAE are over all channels of the test split, in normalized units. Everything is chosen on the validation split.
Models see the last 336 steps and are trained on the training split with three seeds; KEY=VALUE are further overrides
for `msae.train`. It writes `forecasting.json` and `forecasting.md`; an interrupted study resumes when it is started
again.
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
from msae.data import files
from msae.data.series import in_time
from msae.data.tables import Format
from msae.runs.comparison import table
from msae.runs.folder import write_json
from msae.runs.reading import read_runs
from msae.uses import forecasting, look_back

SETS: dict[str, Any] = {
    "ETTh1": {"time_column": "date", "rows": 14400, "season": 24, "horizons": (24, 48, 96, 168, 192, 336, 720)},
    "exchange_rate": {"time_column": None, "rows": None, "season": 5, "horizons": (24, 48, 96, 168, 336)},
}
LENGTH = 336
MODELS = {
    "nested": ("model.lengths=[24,96,336]", "model.code_dim=32"),
    "pyramid": ("model.latent_dim=64",),
}
LOOK_BACKS = (24, 48, 96, 192, 336, 720)
"""Those that the searched ridge chooses from."""
STEPS = 1000
SHARES = (0.2, 0.2)
Parts = dict[str, list[forecasting.Part]]
Row = dict[str, Any]


def read(path: Path) -> tuple[Tensor, list[str]]:
    """The channels of a set, `(channels, time)`, and their names."""
    found = files.read(path, Format(time_column=SETS[path.stem]["time_column"]))
    return torch.from_numpy(found.values[: SETS[path.stem]["rows"]]).T, found.columns


def split(series: Tensor, length: int) -> Parts:
    """The splits in time, each with the steps before it that its first windows look back at."""
    spans = in_time([[("", 0, series.shape[1])]], SHARES)
    return {
        name: [(series[:, max(0, start - length) : stop], start - max(0, start - length))]
        for name, [(_, start, stop)] in spans.items()
    }


def fitted(
    features: dict[str, look_back.Features], parts: Parts, length: int, horizons: Sequence[int], **options: Any
) -> dict[int, Row]:
    """The errors of ridge regressions, and what was chosen, by the horizon."""
    found = forecasting.fit(features, parts["training"], parts["validation"], length, horizons, **options)
    errors = forecasting.evaluate(found, parts["test"], length)
    return {
        horizon: {
            "mse": float(its.mse.mean()),
            "mae": float(its.mae.mean()),
            "coverage": float(its.coverage.mean()),
            "validation_mse": found[horizon].errors[found[horizon].use],
            "use": found[horizon].use,
            "look_back": found[horizon].look_back,
            "each": found[horizon].each,
        }
        for horizon, its in errors.items()
    }


def repeated(parts: Parts, season: int, horizons: Sequence[int]) -> dict[int, Row]:
    """The errors of the last season, repeated; with a season of 1, of the last value."""
    deviation = forecasting.deviations(parts["training"])
    totals = {horizon: torch.zeros(3, dtype=torch.float64) for horizon in horizons}
    for x, futures in forecasting.pairs(parts["test"], LENGTH, horizons):
        for horizon, y in futures.items():
            last = x[: len(y), :, -season:].double() - x[: len(y), :, -1:]
            error = (last[..., torch.arange(horizon) % season] - y) / deviation
            totals[horizon] += torch.tensor([error.square().sum(), error.abs().sum(), error.numel()])
    return {horizon: {"mse": float(a / n), "mae": float(b / n)} for horizon, (a, b, n) in totals.items()}


def train(path: Path, out: Path, overrides: Sequence[str]) -> dict[str, list[Any]]:
    """The trained models, by name, one for each seed."""
    series, names = read(path)
    data = out / f"{path.stem}.csv"
    csv.write_csv(pa.table(dict(zip(names, series.numpy(), strict=True))), data)
    found: dict[str, list[Any]] = {}
    for model, options in MODELS.items():
        folder = out / path.stem / model
        command = [sys.executable, "-m", "msae.train", "-m", "data=series", f"data.path={data}", f"model={model}"]
        command += [f"data.window={LENGTH}", f"data.val_size={SHARES[0]}", f"data.test_size={SHARES[1]}", "seed=0,1,2"]
        command += ["trainer.max_epochs=-1", f"trainer.max_steps={STEPS}", *options, *overrides]
        command += [f"hydra.sweep.dir={folder}", "~hydra.callbacks.report"]
        command += [f"resume={folder}"] * folder.exists()
        if subprocess.run(command, check=False).returncode or read_runs(folder)[1]:
            sys.exit(f"not finished: {' '.join(command)}")
        found[model] = [load(run["folder"] / run["checkpoint"]) for run in read_runs(folder)[0]]
    return found


@torch.no_grad()
def study(path: Path, out: Path, overrides: Sequence[str]) -> list[Row]:
    """A row for each way and horizon."""
    season, horizons = SETS[path.stem]["season"], SETS[path.stem]["horizons"]
    series, _ = read(path)
    parts, long = split(series, LENGTH), split(series, max(LOOK_BACKS))
    raw = {"raw": look_back.raw([24, 96, LENGTH])}
    found = {
        "naive": [repeated(parts, 1, horizons)],
        "seasonal naive": [repeated(parts, season, horizons)],
        "OLS": [fitted({"raw": look_back.raw([LENGTH])}, parts, LENGTH, horizons, alphas=[1e-6])],
        "searched ridge": [fitted({"raw": look_back.raw(LOOK_BACKS)}, long, max(LOOK_BACKS), horizons)],
        "raw": [fitted(raw, parts, LENGTH, horizons)],
    }
    for name, models in train(path, out, overrides).items():
        for use in ("latent", "best"):
            found[f"{name}, {use}"] = [
                fitted({"latent": look_back.latent(model), **raw}, parts, LENGTH, horizons, use=use) for model in models
            ]
    result = []
    for way, seeds in found.items():
        for horizon in horizons:
            its = [seed[horizon] for seed in seeds]
            row: Row = {"data": path.stem, "way": way, "horizon": horizon, "n": len(its)}
            for key in ("mse", "mae", "coverage", "validation_mse"):
                if key in its[0]:
                    row[key] = fmean(one[key] for one in its)
            row["mse_sd"] = stdev(one["mse"] for one in its) if len(its) > 1 else None
            result.append(
                row | {key: [one[key] for one in its] for key in ("use", "look_back", "each") if key in its[0]}
            )
    return result


def markdown(rows: list[Row]) -> str:
    """A table for each file: MSE / MAE, by horizon."""
    texts = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        lines = []
        for way in dict.fromkeys(row["way"] for row in own):
            its = [row for row in own if row["way"] == way]
            spread = ["" if row["mse_sd"] is None else f" ± {row['mse_sd']:.3f}" for row in its]
            cells = [f"{row['mse']:.3f}{sd} / {row['mae']:.3f}" for row, sd in zip(its, spread, strict=True)]
            lines.append([way, f"{its[0]['n']}", *cells])
        horizons = dict.fromkeys(str(row["horizon"]) for row in own)
        texts.append(f"## {data}\n\n{table(['way', 'n', *horizons], lines)}")
    return "\n\n".join(texts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help=f"the files of {' and '.join(SETS)}, named so")
    parser.add_argument("--out", type=Path, default=Path("runs/forecasting"))
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    given = parser.parse_args([text for text in sys.argv[1:] if text not in overrides])
    if unknown := [path for path in given.files if path.stem not in SETS]:
        parser.error(f"{unknown[0]}: expected files named {' or '.join(f'{name}.csv' for name in SETS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = [row for path in given.files for row in study(path, given.out, overrides)]
    write_json(given.out / "forecasting.json", rows)
    (given.out / "forecasting.md").write_text(markdown(rows) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
