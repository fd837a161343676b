"""Are anomalies far from normal windows? VUS-PR of nested windows with a bank of normal codes, and of other detectors.

    uv run --extra dev --with stumpy --with wfdb python studies/anomalies/anomaly.py [--nab NAB] [--ecg ECG] [--ucr UCR]
        [--sets ...] [--seeds 0 1 2] [--nested] [--out runs/anomaly] [KEY=VALUE ...]

NAB is a folder of Numenta's series, a .csv of TIMESTAMP,VALUE each, and their labels, windows.json. ECG is the path of
MIT-BIH record 100 without its suffix: heartbeats that are neither normal nor of a bundle branch block are anomalies, a
beat long. With both comes KDD-TSAD_135 of aeon. UCR is a folder of series of the UCR anomaly archive, a .csv of
value,label each, and series.json, which gives the number of their training steps.

The protocol; labels chose nothing:
- Training: the leading part of each series. KDD's and UCR's own is normal. For the others it is the first 15 %, the
  probation period of NAB's own protocol, whatever it contains (unsupervised). The last fifth of it chooses a model's
  epoch. Everything after it is scored; of the UCR series the whole, training windows without the normal windows that
  share a step with them.
- The period P is the dominant one of the training part as `data.window=null` finds it, 64 steps where there is none, at
  least 16 steps and at most 512. Every detector has it. Each channel is standardized by the training part.
- `nested`: `model=nested`, a window of 2P, 1,000 steps, n = 3 seeds, all else as by default. Its score is that of
  `msae.detect`, with the whole training part as the reference. `2P`, `P`, `P/2` and `P/4` are the scores of each of its
  lengths alone.
- PCA: 16 components of windows of P, the error. k-means: 100 centres of z-scored windows, the distance of the nearest.
  `nearest`: the distance of z-scored windows from the nearest one of 4,000 training windows, or more than a window
  away. The isolation forest gets raw windows, n = 3 seeds. The matrix profile is that of the scored part with itself.
  Each step has the mean of the windows of P that contain it.
- VUS-PR (Paparrizos et al., VLDB 2022) as aeon computes it, with buffers up to P; no threshold, no point adjustment.
  An anomaly is located where the highest score lies within 100 steps of it.

How the scores of scales are made one, how many values a code has and that values and shape count alike was chosen by
`studies/anomalies/faults.py`, on training parts alone.

`--nested` leaves the peers out: on the 552,500 scored steps of the ECG the matrix profile alone takes hours. There the
VUS-PR is that of every eighth step, with buffers up to P / 8.

An interrupted study resumes when it is started again. It writes `anomaly.json` and `anomaly.md`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from msae.runs.comparison import table
from msae.runs.folder import write_json
from msae.runs.reading import read_runs

SEEDS = (0, 1, 2)
COMPONENTS, CENTRES, WINDOWS = 16, 100, 4000
SHARE = 0.15
LENGTHS = ("2P", "P", "P/2", "P/4")
PEERS = ("nearest", "k-means", "matrix profile", "isolation forest", "PCA")
NAMES = ("nested", *LENGTHS, *PEERS)
LONG = 200_000
"""Steps of a series above which VUS-PR is that of every eighth step."""
NEAR = 100
"""Steps from an anomaly within which the highest score locates it."""
Series = tuple[np.ndarray, np.ndarray, int, bool]
"""Values `(time, channels)`, labels `(time,)`, steps of the training part, and whether that part is scored too."""


def nab(path: Path) -> Series:
    """A series of Numenta's; a step is an anomaly if it lies in one of the windows of its labels."""
    import pandas as pd

    frame = pd.read_csv(path, parse_dates=["timestamp"])
    y = np.zeros(len(frame), dtype=int)
    for start, stop in json.loads((path.parent / "windows.json").read_text())[path.name]:
        y |= frame["timestamp"].between(start, stop).to_numpy()
    return frame[["value"]].to_numpy(np.float32), y, int(SHARE * len(frame)), False


def kdd() -> Series:
    """KDD-TSAD_135 of aeon, whose training part stands in its name and in a file of its own."""
    from aeon import datasets

    folder = Path(datasets.__file__).parent / "data" / "KDD-TSAD_135"
    parts = [np.genfromtxt(path, delimiter=",", skip_header=1) for path in sorted(folder.glob("*.csv"), reverse=True)]
    train, test = parts
    both = np.concatenate([train, test])
    return both[:, 1:2].astype(np.float32), both[:, 2].astype(int), len(train), False


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
    return x, y, int(SHARE * len(x)), False


def ucr(path: Path) -> Series:
    """A series of the UCR anomaly archive."""
    import pandas as pd

    frame = pd.read_csv(path)
    train = dict(json.loads((path.parent / "series.json").read_text()))[path.stem]["train_steps"]
    return frame[["value"]].to_numpy(np.float32), frame["label"].to_numpy(int), train, True


def period_of(train: np.ndarray) -> int:
    """The rule of the protocol."""
    from msae.data.period import dominant_period

    return min(max(16, dominant_period(train[:20_000]) or 64), 512)


def standardized(x: np.ndarray, train: int) -> np.ndarray:
    """Each channel by the mean and the deviation of its training part."""
    deviation = x[:train].std(0)
    return (x - x[:train].mean(0)) / np.where(deviation > 0, deviation, 1)


def spread_out(per_window: np.ndarray, length: int) -> np.ndarray:
    """Scores of windows at stride 1 as scores of steps: the mean of the windows that hold each."""
    ones = np.ones(length)
    return np.convolve(per_window, ones) / np.convolve(np.ones(len(per_window)), ones)


def pca(train: np.ndarray, test: np.ndarray, length: int, _: bool) -> np.ndarray:
    """Squared error of the reconstruction from 16 components, the mean of all windows that hold a step."""
    from sklearn.decomposition import PCA

    def cut(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, length, axis=0).reshape(-1, x.shape[1] * length)

    windows = cut(train)
    fitted = PCA(min(COMPONENTS, *windows.shape)).fit(windows[:: max(1, len(windows) // 20_000)])
    total, count = np.zeros(len(test)), np.zeros(len(test))
    for first in range(0, len(test) - length + 1, 4096):
        x = cut(test[first : first + 4096 + length - 1])
        error = np.square(x - fitted.inverse_transform(fitted.transform(x))).reshape(len(x), -1, length).mean(1)
        for step in range(length):
            total[first + step : first + step + len(x)] += error[:, step]
            count[first + step : first + step + len(x)] += 1
    return total / count


def z_scored(x: np.ndarray, length: int) -> np.ndarray:
    """Windows of all channels, each by its own mean and deviation, at least a twentieth of the median one."""
    windows = np.lib.stride_tricks.sliding_window_view(x, length, axis=0).astype(np.float32)
    windows = windows - windows.mean(2, keepdims=True)
    deviation = windows.std(2, keepdims=True)
    return (windows / np.maximum(deviation, np.median(deviation) / 20 + 1e-9)).reshape(len(windows), -1)


def nearest(train: np.ndarray, test: np.ndarray, length: int, whole: bool) -> np.ndarray:
    """Distance from the nearest training window."""
    import torch

    normal = z_scored(train, length)
    at = np.unique(np.linspace(0, len(normal) - 1, WINDOWS).astype(int))
    bank, places = torch.from_numpy(normal[at]), torch.from_numpy(at)
    found = []
    for first in range(0, len(test) - length + 1, 4096):
        x = torch.from_numpy(z_scored(test[first : first + 4096 + length - 1], length))
        far = torch.cdist(x, bank)
        if whole:
            far[(places - (first + torch.arange(len(x)))[:, None]).abs() < length] = torch.inf
        found.append(far.min(1).values)
    return spread_out(torch.cat(found).double().numpy(), length)


def k_means(train: np.ndarray, test: np.ndarray, length: int, _: bool) -> np.ndarray:
    """Distance from the nearest centre of training windows."""
    from sklearn.cluster import MiniBatchKMeans

    normal = z_scored(train, length)
    fitted = MiniBatchKMeans(min(CENTRES, len(normal)), random_state=0, n_init=3).fit(normal)
    parts = [test[first : first + 4096 + length - 1] for first in range(0, len(test) - length + 1, 4096)]
    return spread_out(np.concatenate([fitted.transform(z_scored(part, length)).min(1) for part in parts]), length)


def isolation_forest(train: np.ndarray, test: np.ndarray, length: int, _: bool, seed: int) -> np.ndarray:
    """scikit-learn's defaults on raw windows."""
    from sklearn.ensemble import IsolationForest

    def cut(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, length, axis=0).reshape(-1, x.shape[1] * length)

    forest = IsolationForest(random_state=seed).fit(cut(train))
    parts = [test[first : first + 4096 + length - 1] for first in range(0, len(test) - length + 1, 4096)]
    return spread_out(-np.concatenate([forest.score_samples(cut(part)) for part in parts]), length)


def matrix_profile(_: np.ndarray, test: np.ndarray, length: int, __: bool) -> np.ndarray:
    """Distance of each window to its nearest neighbour, the mean of the channels'."""
    import stumpy

    profiles = [stumpy.stump(channel, length)[:, 0].astype(float) for channel in test.T.astype(np.float64)]
    return spread_out(np.nan_to_num(np.mean(profiles, axis=0), posinf=0.0), length)


def held_out(train: int, length: int) -> int:
    """The steps at the end of a training part that choose the epoch; 0 if they hold no window of `length` steps."""
    steps = round(0.2 * train)
    return steps if steps >= length else 0


def by_model(
    folder: Path, train: np.ndarray, scored: np.ndarray, whole: bool, causal: bool = False
) -> dict[str, np.ndarray]:
    """The scores of a trained model, by all its lengths and by each."""
    import torch

    from msae import load
    from msae.uses import anomaly, reference

    torch.set_num_threads(1)
    model = load(folder)
    series = [torch.from_numpy(x.T.copy()).float() for x in (train, scored)]
    first = len(train) - held_out(len(train), model.length)
    fresh = [series[0][:, first:]] if first < len(train) else []
    known = reference.learn(model, [series[0][:, :first]], causal=causal, fresh=fresh)
    places = known.bank.starts + first * known.bank.series  # in the series as a whole
    known = replace(known, bank=replace(known.bank, starts=places, series=torch.zeros_like(places)))
    scorer = anomaly.Scorer(model, known, own=0 if whole else None, causal=causal)
    found = anomaly.joined(list(anomaly.scores(scorer, series[1])))
    each = zip(LENGTHS, found.scales.values(), strict=False)
    return {"nested": found.total.nan_to_num(0.0).numpy()} | {name: row.nan_to_num(0.0).numpy() for name, row in each}


def vus_pr(score: np.ndarray, y: np.ndarray, length: int) -> float:
    """The volume under the surface of precision, recall and buffer, as aeon has it."""
    from aeon.benchmarking.metrics.anomaly_detection import range_pr_vus_score

    return float(range_pr_vus_score(y, score.astype(np.float64), max_buffer_size=length))


def train_models(
    folder: Path, path: Path, period: int, share: float, overrides: list[str], seeds: Sequence[int]
) -> None:
    """Several seeds on the training part of a series, of which a share chooses the epoch."""
    keys = [f"data.path={path}", f"data.test_path={path.with_name('test.npy')}", f"data.window={2 * period}"]
    keys += ["model=nested", "data=series", f"data.val_size={share}", "trainer=cpu"]
    keys += ["trainer.max_epochs=-1", "trainer.max_steps=1000", f"seed={list(seeds)}".replace(" ", ""), *overrides]
    command = [sys.executable, "-m", "msae.train", *keys, f"hydra.run.dir={folder}"]
    command += [f"resume={folder}"] * folder.exists()
    if subprocess.run(command, check=False).returncode or read_runs(folder)[1]:
        sys.exit(f"not finished: {' '.join(command)}")


def evaluate(
    name: str, series: Series, out: Path, overrides: list[str], seeds: Sequence[int] = SEEDS, peers: bool = True
) -> dict[str, Any]:
    """VUS-PR of every detector on a series, and whether it locates the anomaly, kept in a file."""
    x, y, train, whole = series
    kept = out / name / "result.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    period = period_of(x[:train])
    scaled = standardized(x, train)
    (out / name).mkdir(parents=True, exist_ok=True)
    np.save(out / name / "train.npy", scaled[:train])
    np.save(out / name / "test.npy", scaled[train:])  # on which nothing is selected
    share = 0.2 if held_out(train, 2 * period) else 0
    if not share:
        print(f"{name}: a fifth of its {train} training steps holds no window of {2 * period}: the last epoch is taken")
    train_models(out / name / "runs", out / name / "train.npy", period, share, overrides, seeds)
    scored, labels = (scaled, y) if whole else (scaled[train:], y[train:])
    anomalous = np.flatnonzero(labels)
    found: dict[str, list[float]] = {detector: [] for detector in NAMES}
    located: dict[str, list[bool]] = {detector: [] for detector in NAMES}

    def judge(detector: str, score: np.ndarray) -> None:
        thin = 8 if len(score) > LONG else 1
        found[detector].append(vus_pr(score[::thin], labels[::thin], period // thin))
        located[detector].append(bool(anomalous.min() - NEAR <= score.argmax() <= anomalous.max() + NEAR))

    for run in sorted(read_runs(out / name / "runs")[0], key=lambda run: run["seed"]):
        for detector, score in by_model(run["folder"] / run["checkpoint"], scaled[:train], scored, whole).items():
            judge(detector, score)
    others: list[tuple[str, Callable[..., np.ndarray]]] = [("PCA", pca), ("matrix profile", matrix_profile)]
    others += [("nearest", nearest), ("k-means", k_means)]
    others += [("isolation forest", partial(isolation_forest, seed=seed)) for seed in seeds]
    for detector, method in others if peers else []:
        judge(detector, method(scaled[:train], scored, period, whole))
    result = {"period": period, "train": train, "steps": len(labels), "anomalous": float(labels.mean()), "ucr": whole}
    result |= {"channels": x.shape[1], "train_anomalous": float(y[:train].mean()), "vus_pr": found, "located": located}
    write_json(kept, result)
    return result


def add_causal(name: str, series: Series, out: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result of `evaluate` with the VUS-PR of `nested` where a step is scored by the windows that end with it."""
    if "causal" in result:
        return result
    x, y, train, whole = series
    scaled = standardized(x, train)
    scored, labels = (scaled, y) if whole else (scaled[train:], y[train:])
    result["causal"] = []
    for run in sorted(read_runs(out / name / "runs")[0], key=lambda run: run["seed"]):
        found = by_model(run["folder"] / run["checkpoint"], scaled[:train], scored, whole, causal=True)
        thin = 8 if len(labels) > LONG else 1
        result["causal"].append(vus_pr(found["nested"][::thin], labels[::thin], result["period"] // thin))
    write_json(out / name / "result.json", result)
    return result


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The tables over series, with means, mean ranks, and the number of anomalies that are located."""
    from scipy.stats import rankdata

    def cell(values: list[float]) -> str:
        if not values:
            return ""
        return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

    texts = []
    for group, title in ((True, "UCR anomaly archive, whole series"), (False, "The part after training")):
        some = {name: result for name, result in results.items() if result["ucr"] is group}
        if not some:
            continue
        names = [name for name in NAMES if any(r["vus_pr"][name] for r in some.values())]
        rows = [
            [name, f"{r['period']}", f"{r['train']}", f"{r['steps']}", f"{r['anomalous']:.1%}"]
            + [cell(r["vus_pr"][detector]) for detector in names]
            for name, r in some.items()
        ]
        means = np.array([[fmean(r["vus_pr"][name] or [0.0]) for name in names] for r in some.values()])
        rows.append(["mean", "", "", "", "", *(f"{mean:.3f}" for mean in means.mean(0))])
        ranks = np.array([rankdata(-row) for row in means]).mean(0)
        rows.append(["mean rank", "", "", "", "", *(f"{rank:.2f}" for rank in ranks)])
        if group:
            hits = [[fmean(r["located"][name] or [0.0]) for name in names] for r in some.values()]
            rows.append([f"located of {len(some)}", "", "", "", "", *(f"{hit:.1f}" for hit in np.sum(hits, axis=0))])
        header = ["series", "P", "training steps", "scored steps", "anomalous", *names]
        texts.append(f"{title}:\n\n{table(header, rows)}")
        if all("causal" in r for r in some.values()):
            mean = fmean(fmean(r["causal"]) for r in some.values())
            texts.append(f"With `causal=true` the mean of `nested` is {mean:.3f}.")
    n = "VUS-PR; mean ± standard deviation, seeds 0 to 2 (n = 3); the others are not random (n = 1)."
    return "\n\n".join([f"{n} Random scores reach a VUS-PR of about the share of anomalous steps.", *texts]) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key in ("--nab", "--ecg", "--ucr"):
        parser.add_argument(key, type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--nested", action="store_true")
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    given = parser.parse_args([text for text in sys.argv[1:] if text not in overrides])
    sets: dict[str, Callable[[], Series]] = {}
    if given.ucr:
        sets |= {path.stem: partial(ucr, path) for path in sorted(given.ucr.glob("*.csv"))}
    if given.nab:
        labelled = json.loads((given.nab / "windows.json").read_text())
        sets |= {path.stem: partial(nab, path) for path in sorted(given.nab.glob("*.csv")) if path.name in labelled}
    if given.ecg:
        sets |= {"KDD-TSAD_135": kdd, "ecg_100": partial(ecg, given.ecg)}
    if unknown := set(given.sets or []) - set(sets):
        parser.error(f"--sets {' '.join(unknown)}: expected of {', '.join(sets)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    results = {}
    for name in given.sets or sets:
        series = sets[name]()
        results[name] = evaluate(name, series, given.out, overrides, given.seeds, not given.nested)
        results[name] = add_causal(name, series, given.out, results[name])
    text = markdown(results)
    write_json(given.out / "anomaly.json", results)
    (given.out / "anomaly.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
