"""Draw the README's picture: a series, its alarms, and its reconstruction by scale.

    python studies/overview/overview.py nyc_taxi.csv docs/pictures/overview.png

The series is the number of taxi passengers in New York in each half hour from July 2014 to January 2015:
`data/realKnownCause/nyc_taxi.csv` of the Numenta Anomaly Benchmark, https://github.com/numenta/NAB. The model is
trained on the first half, to the middle of October. Windows are a week long; one scale is the whole week, the other
each of its days. Training and detection are the project's own commands and take about half a minute on one thread.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.csv
import torch
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter, DayLocator, MonthLocator
from matplotlib.figure import Figure
from PIL import Image

import msae
from msae.plots import envelope

WEEK = 336
"""Half hours in a window."""
TRAINED = 0.5
"""The fraction of the series that the model is trained on."""
TRAIN = (
    f"model=pyramid model.segments=[1,7] model.code_dims=[14,2] model.latent_dim=28 model.passes=1 model.lr=3e-4 "
    f"data=series data.time_column=timestamp data.window={WEEK} data.stride=2 data.val_size=.1 data.test_size=.4 "
    "trainer=cpu trainer.max_epochs=10"
)
DETECT = "merge=48"
KNOWN = {"2014-11-01": "marathon ", "2014-12-29": "New Year ", "2015-01-23": "blizzard "}
"""What happened in New York at the greatest alarms."""


def run(command: str, *args: str) -> None:
    """Run one of the project's commands."""
    subprocess.run([sys.executable, "-m", f"msae.{command}", *args], check=True)


def main() -> None:
    """Train, detect, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="nyc_taxi.csv")
    parser.add_argument("png", type=Path, help="the picture to write")
    paths = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trained, scores = f"{folder}/run", f"{folder}/scores.csv"
        run("train", *TRAIN.split(), f"data.path={paths.csv}", f"out={trained}")
        run("detect", *DETECT.split(), f"ckpt={trained}", f"out={scores}")
        figure = draw(scores, msae.load(trained), paths.csv)
    paths.png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(paths.png, dpi=110, facecolor="white")
    image = Image.open(paths.png).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(paths.png, optimize=True)


def draw(scores: str, model: "msae.models.reconstructor.Reconstructor", path: Path) -> Figure:
    """The picture, of the tables that `detect` wrote and the trained model."""
    table = pyarrow.csv.read_csv(scores)
    times, score = (table[name].to_numpy() for name in ("time", "score"))
    events = pyarrow.csv.read_csv(f"{scores}.events.csv").to_pylist()
    x = pyarrow.csv.read_csv(path)["value"].to_numpy().astype(np.float32) / 1000
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    series, strange = above.subplots(2, 1, sharex=True)
    envelope(series, times, x, color="tab:blue", linewidth=0.6)
    series.set_title(
        "Taxi passengers in New York: a model trained to mid-October and its alarms", fontsize=11, loc="left"
    )
    series.set_ylabel("passengers,\nthousands in 30 min")
    envelope(strange, times, score, color="black", linewidth=0.6)
    # the highest score without an alarm is the threshold, within a line's width
    quiet = max(value for value, alarm in zip(score, table["alarm"].to_pylist(), strict=True) if not alarm)
    strange.axhline(quiet, color="tab:red", linestyle="--", linewidth=1)
    strange.set(ylabel="anomaly score\n(times usual)")
    strange.text(times[300], quiet + 0.1, "threshold", color="tab:red", fontsize=9)
    for axis in (series, strange):
        axis.axvspan(times[0], times[int(TRAINED * len(times))], color="tab:green", alpha=0.1, linewidth=0)
        for event in events:
            axis.axvspan(*np.array([event["start_time"], event["end_time"]], "M8[us]"), color="tab:red", alpha=0.35)
        axis.margins(x=0)
        dates(axis, MonthLocator())
    series.set_ylim(0, 50)
    series.text(times[400], 48, "training", color="tab:green", fontsize=9, va="top")
    for day, name in KNOWN.items():
        series.text(np.datetime64(day), 48, name, color="tab:red", fontsize=9, ha="right", va="top")
    reconstructions(below, x, times, model)
    return figure


def reconstructions(figure: Figure, x: np.ndarray, times: np.ndarray, model: torch.nn.Module) -> None:
    """Two weeks side by side for each scale: a usual one, and that of the greatest alarm."""
    starts = [int(np.searchsorted(times, np.datetime64(day))) for day in ("2014-10-20", "2014-12-29")]
    windows = np.stack([x[start : start + WEEK] for start in starts])[:, None]
    with torch.no_grad():
        stages = model.stages(model.encode(torch.from_numpy(windows * 1000)))
    axes = figure.subplots(2, 2, sharey=True, sharex="col")
    names = ("scale of\nthe week", "scales of the\nweek and its days")
    for row, name, x_hat in zip(axes, names, stages.values(), strict=True):
        for axis, start, window, line in zip(row, starts, windows[:, 0], x_hat[:, 0].numpy() / 1000, strict=True):
            at = times[start : start + WEEK]
            axis.plot(at, window, color="0.7", linewidth=2.4, label="series")
            axis.plot(at, line, color="tab:orange", linewidth=1.2, label="reconstruction")
            axis.set(ylim=(-8, 33))
            axis.margins(x=0)
            dates(axis, DayLocator())
        row[0].set_ylabel(name, fontsize=9)
    axes[0, 0].set_title("Reconstruction by scale: an ordinary week ...", fontsize=11, loc="left")
    axes[0, 1].set_title("... and the week of New Year", fontsize=11, loc="left")
    axes[1, 1].legend(fontsize=9, ncols=2, loc="lower right", framealpha=0.9)


def dates(axis: Axes, locator: MonthLocator | DayLocator) -> None:
    """Short dates at a locator's places."""
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


if __name__ == "__main__":
    main()
