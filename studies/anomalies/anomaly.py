"""Does the reconstruction error find anomalies? VUS-PR of autoencoders and of established detectors.

    uv run --extra dev --with stumpy --with wfdb python studies/anomalies/anomaly.py NAB ECG [--sets ...]
        [--out runs/anomaly] [KEY=VALUE ...]

NAB is a folder of Numenta's series, a .csv of TIMESTAMP,VALUE each, and their labels, windows.json. ECG is the path of
MIT-BIH record 100 without its suffix: heartbeats that are neither normal nor of a bundle branch block are anomalies, a
beat long. KDD is aeon's KDD-TSAD_135. The Daphnet excerpt in aeon's wheel contains no anomaly, so no curve of
precision and recall exists for it, and it is left out.

The protocol, of which nothing was tuned:
- Training: the leading part of each series. KDD names its own, which is normal. For the others it is the first 15 %,
  the probation period of NAB's own protocol, whatever it contains (unsupervised). The last fifth of it chooses a
  model's epoch. Everything after it is scored.
- Windows: a fixed rule. A window is as long as the dominant period of the training part, the greatest peak of its
  autocorrelation between 10 steps and 500 (or an eighth of the training part), but at least 32 steps; without a peak
  it has the greatest length. Every detector has the same windows. Each channel is standardized by the training part.
- Models: the learning rate of their presets, 16 latent values, 1,500 steps, n = 3 seeds. The score of a step is the
  mean squared error of all windows that contain it, at stride 1. `pyramid, scales` is the other score of the same
  models: the error or the code distance of the scale with the highest score, divided by its usual value in training.
- PCA has 16 components. The isolation forest gets raw windows, n = 3 seeds, and its scores are averaged as the errors
  are. The matrix profile is that of the scored part with itself; each step has the mean of the windows that contain
  it.
- VUS-PR (Paparrizos et al., VLDB 2022) as aeon computes it, with buffers up to the length of a window; no threshold,
  no point adjustment.

An interrupted study resumes when it is started again. It writes `anomaly.json` and `anomaly.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from msae.runs.comparison import table
from msae.runs.folder import write_json
from msae.runs.reading import read_runs

MODELS = ("pyramid", "single", "ae")
SEEDS = (0, 1, 2)
LATENT = 16
SHARE = 0.15
NAMES = ("pyramid", "pyramid, scales", "single", "ae", "PCA", "matrix profile", "isolation forest")
Series = tuple[np.ndarray, np.ndarray, int]
"""Values `(time, channels)`, labels `(time,)`, and steps of the training part."""


def nab(path: Path) -> Series:
    """A series of Numenta's; a step is an anomaly if it lies in one of the windows of its labels."""
    import pandas as pd

    frame = pd.read_csv(path, parse_dates=["timestamp"])
    y = np.zeros(len(frame), dtype=int)
    for start, stop in json.loads((path.parent / "windows.json").read_text())[path.name]:
        y |= frame["timestamp"].between(start, stop).to_numpy()
    return frame[["value"]].to_numpy(np.float32), y, int(SHARE * len(frame))


def kdd() -> Series:
    """KDD-TSAD_135 of aeon, whose training part stands in its name and in a file of its own."""
    from aeon import datasets

    folder = Path(datasets.__file__).parent / "data" / "KDD-TSAD_135"
    parts = [np.genfromtxt(path, delimiter=",", skip_header=1) for path in sorted(folder.glob("*.csv"), reverse=True)]
    train, test = parts
    both = np.concatenate([train, test])
    return both[:, 1:2].astype(np.float32), both[:, 2].astype(int), len(train)


def ecg(path: Path) -> Series:
    """MIT-BIH record 100: the half of a beat's usual length at each side of a beat that is not normal is an anomaly."""
    import wfdb

    record = wfdb.rdrecord(str(path))
    x = record.p_signal.astype(np.float32)
    notes = wfdb.rdann(str(path), "atr")
    beats = [
        (at, kind) for at, kind in zip(notes.sample, notes.symbol, strict=True) if kind in set("NLRBAaJSVrFejnE/fQ?")
    ]
    half = int(np.median(np.diff([at for at, _ in beats]))) // 2
    y = np.zeros(len(x), dtype=int)
    for at, kind in beats:
        if kind not in "NLR":
            y[max(0, at - half) : at + half] = 1
    return x, y, int(SHARE * len(x))


def window_length(train: np.ndarray) -> int:
    """The rule of the protocol, of the first channel."""
    x = train[:, 0].astype(np.float64) - train[:, 0].mean()
    n = min(len(x) // 8, 500)
    power = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    correlation = np.fft.irfft(power)[: n + 1]
    peaks = [i for i in range(10, n) if correlation[i - 1] < correlation[i] >= correlation[i + 1]]
    return max(32, max(peaks, key=lambda i: correlation[i])) if peaks else n


def standardized(x: np.ndarray, train: int) -> np.ndarray:
    """Each channel by the mean and the deviation of its training part."""
    deviation = x[:train].std(0)
    return (x - x[:train].mean(0)) / np.where(deviation > 0, deviation, 1)


def spread_out(per_window: np.ndarray, length: int) -> np.ndarray:
    """Scores of windows at stride 1 as scores of steps: the mean of the windows that hold each."""
    ones = np.ones(length)
    return np.convolve(per_window, ones) / np.convolve(np.ones(len(per_window)), ones)


def pca(train: np.ndarray, test: np.ndarray, length: int) -> np.ndarray:
    """Squared error of the reconstruction from 16 components, the mean of all windows that hold a step."""
    from sklearn.decomposition import PCA

    def cut(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, length, axis=0).reshape(-1, x.shape[1] * length)

    windows = cut(train)
    fitted = PCA(min(LATENT, *windows.shape)).fit(windows[:: max(1, len(windows) // 20_000)])
    total, count = np.zeros(len(test)), np.zeros(len(test))
    for first in range(0, len(test) - length + 1, 4096):
        x = cut(test[first : first + 4096 + length - 1])
        error = np.square(x - fitted.inverse_transform(fitted.transform(x))).reshape(len(x), -1, length).mean(1)
        for step in range(length):
            total[first + step : first + step + len(x)] += error[:, step]
            count[first + step : first + step + len(x)] += 1
    return total / count


def isolation_forest(train: np.ndarray, test: np.ndarray, length: int, seed: int) -> np.ndarray:
    """scikit-learn's defaults on raw windows."""
    from sklearn.ensemble import IsolationForest

    def cut(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, length, axis=0).reshape(-1, x.shape[1] * length)

    forest = IsolationForest(random_state=seed).fit(cut(train))
    parts = [test[first : first + 4096 + length - 1] for first in range(0, len(test) - length + 1, 4096)]
    return spread_out(-np.concatenate([forest.score_samples(cut(part)) for part in parts]), length)


def matrix_profile(_: np.ndarray, test: np.ndarray, length: int) -> np.ndarray:
    """Distance of each window to its nearest neighbour, the mean of the channels'."""
    import stumpy

    profiles = [stumpy.stump(channel, length)[:, 0].astype(float) for channel in test.T.astype(np.float64)]
    return spread_out(np.nan_to_num(np.mean(profiles, axis=0), posinf=0.0), length)


def by_model(folder: Path, train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """The two scores of a trained model."""
    import torch

    from msae import load
    from msae.uses import anomaly

    torch.set_num_threads(1)
    model = load(folder)
    series = [torch.from_numpy(x.T.copy()).float() for x in (train, test)]
    known = anomaly.learn(model, series[:1])
    found = anomaly.joined(list(anomaly.scores(anomaly.Scorer(model, known.codes), series[1])))
    return {"error": found.total.numpy(), "scales": anomaly.strangest(found.scales, known.usual)[2].numpy()}


def vus_pr(score: np.ndarray, y: np.ndarray, length: int) -> float:
    """The volume under the surface of precision, recall and buffer, as aeon has it."""
    from aeon.benchmarking.metrics.anomaly_detection import range_pr_vus_score

    return float(range_pr_vus_score(y, score.astype(np.float64), max_buffer_size=length))


def train_models(folder: Path, path: Path, length: int, overrides: list[str]) -> None:
    """A sweep over models and seeds on the training part of a series."""
    keys = [f"data.path={path}", f"data.test_path={path.with_name('test.npy')}", f"data.window={length}"]
    keys += ["data.val_size=0.2", "trainer=cpu"]
    keys += ["trainer.max_epochs=-1", "trainer.max_steps=1500", f"++model.latent_dim={LATENT}", *overrides]
    command = [sys.executable, "-m", "msae.train", "-m", f"model={','.join(MODELS)}", "data=series", *keys]
    command += [f"seed={','.join(map(str, SEEDS))}", f"hydra.sweep.dir={folder}", "~hydra.callbacks.report"]
    command += [f"resume={folder}"] * folder.exists()
    if subprocess.run(command, check=False).returncode or read_runs(folder)[1]:
        sys.exit(f"not finished: {' '.join(command)}")


def evaluate(name: str, series: Series, out: Path, overrides: list[str]) -> dict[str, Any]:
    """VUS-PR of every detector on a series, kept in a file."""
    x, y, train = series
    kept = out / name / "result.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    length = window_length(x[:train])
    scaled = standardized(x, train)
    (out / name).mkdir(parents=True, exist_ok=True)
    np.save(out / name / "train.npy", scaled[:train])
    np.save(out / name / "test.npy", scaled[train:])  # on which nothing is selected
    train_models(out / name / "runs", out / name / "train.npy", length, overrides)
    parts, labels = (scaled[:train], scaled[train:]), y[train:]
    found: dict[str, list[float]] = {detector: [] for detector in NAMES}
    runs = read_runs(out / name / "runs")[0]
    for run in sorted(runs, key=lambda run: run["seed"]):
        scores = by_model(run["folder"] / run["checkpoint"], *parts)
        found[run["model"]].append(vus_pr(scores["error"], labels, length))
        if run["model"] == "pyramid":
            found["pyramid, scales"].append(vus_pr(scores["scales"], labels, length))
    others: list[tuple[str, Callable[..., np.ndarray]]] = [("PCA", pca), ("matrix profile", matrix_profile)]
    others += [("isolation forest", partial(isolation_forest, seed=seed)) for seed in SEEDS]
    for detector, method in others:
        found[detector].append(vus_pr(method(*parts, length), labels, length))
    result = {"length": length, "train": train, "steps": len(labels), "anomalous": float(labels.mean())}
    result |= {"channels": x.shape[1], "train_anomalous": float(y[:train].mean()), "vus_pr": found}
    write_json(kept, result)
    return result


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table over series, and mean ranks of the mean VUS-PR of seeds."""
    from scipy.stats import rankdata

    means = np.array([[fmean(result["vus_pr"][name]) for name in NAMES] for result in results.values()])
    ranks = np.array([rankdata(-row) for row in means])

    def cell(values: list[float]) -> str:
        return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

    rows = [
        [name, f"{r['length']}", f"{r['train']}", f"{r['steps']}", f"{r['anomalous']:.1%}"]
        + [cell(r["vus_pr"][detector]) for detector in NAMES]
        for name, r in results.items()
    ]
    rows.append(["mean rank", "", "", "", "", *(f"{rank:.2f}" for rank in ranks.mean(0))])
    header = ["series", "window", "training steps", "scored steps", "anomalous", *NAMES]
    n = "VUS-PR; mean ± standard deviation, seeds 0 to 2 (n = 3); PCA and the matrix profile are not random (n = 1)."
    return f"{n} Random scores reach a VUS-PR of about the share of anomalous steps.\n\n{table(header, rows)}\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nab", type=Path)
    parser.add_argument("ecg", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly"))
    parser.add_argument("--sets", nargs="*")
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    given = parser.parse_args([text for text in sys.argv[1:] if text not in overrides])
    labelled = json.loads((given.nab / "windows.json").read_text())
    sets: dict[str, Callable[[], Series]] = {
        path.stem: partial(nab, path) for path in sorted(given.nab.glob("*.csv")) if path.name in labelled
    }
    sets |= {"KDD-TSAD_135": kdd, "ecg_100": partial(ecg, given.ecg)}
    if unknown := set(given.sets or []) - set(sets):
        parser.error(f"--sets {' '.join(unknown)}: expected of {', '.join(sets)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    results = {}
    for name in given.sets or sets:
        results[name] = evaluate(name, sets[name](), given.out, overrides)
    text = markdown(results)
    write_json(given.out / "anomaly.json", results)
    (given.out / "anomaly.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
