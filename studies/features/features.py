"""Are latents good features? A ridge classifier on the latents of each model, and on established features.

    python studies/features/features.py ARCHIVE [--out runs/features] [--sets NAME ...] [--epochs 16]

ARCHIVE is a folder of NAME_TRAIN.tsv and NAME_TEST.tsv, or .ts; sets with unequal lengths or missing values are left
out. Features are fitted to the training split, without its labels. Then a ridge classifier is fitted to the
standardized features; cross-validation within that split chooses its penalty. The test split is used for the accuracy
only. Latents have an eighth of the length, at least 8 values. `pooled` are the features of `MultiScalePooler` with its
defaults; `pooled PCA` the same with principal components of the windows; `pooled, one scale` the same with windows of
one length, a sixteenth of a sample, and as many features. Of a quarter, an eighth and a sixteenth, this length was the
best by cross-validation within the training splits, which also chose everything else in `MultiScalePooler`. Nothing is
tuned for a set. Methods that are random have three seeds. An interrupted study resumes when it is started again. It
writes a .json for each set, `features.json` and `features.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from msae import MultiScalePooler, MultiScaleTransformer
from msae.data.ucr import ucr
from msae.runs.comparison import interval, table
from msae.runs.folder import write_json

sys.path.append(str(Path(__file__).parents[1] / "ucr"))
from ucr_study import usable

SEEDS = (0, 1, 2)
MODELS = ("ae", "single", "pyramid")
POOLED = ("pooled PCA", "pooled, one scale", "pooled")
OTHERS = ("raw values", "PCA", "catch22", "MiniRocket")
CERTAIN = ("raw values", "PCA", "catch22")
"""Methods that have no seed."""


def features(method: str, size: int, epochs: int, seed: int) -> Any:
    """A transformer of samples `(n, channels, length)` to features `(n, size)`, or as many as it gives."""
    from aeon.transformations.collection.convolution_based import MiniRocket
    from aeon.transformations.collection.feature_based import Catch22

    flat = FunctionTransformer(lambda x: x.reshape(len(x), -1))
    model = partial(MultiScaleTransformer, device="cpu", n_epochs=5)
    made: dict[str, Callable[[], Any]] = {
        "raw values": lambda: flat,
        "PCA": lambda: make_pipeline(flat, AtMost(size)),
        "catch22": lambda: Catch22(replace_nans=True),
        "MiniRocket": lambda: MiniRocket(random_state=seed),
        "pooled PCA": lambda: MultiScalePooler(make_pipeline(flat, PCA(8)), random_state=seed),
        "pooled, one scale": lambda: MultiScalePooler(model("single", 6 * 8), scales=(16,), random_state=seed),
        "pooled": lambda: MultiScalePooler(model("single", 8), random_state=seed),  # the default's, but for the device
    }
    return made.get(method, lambda: model(method, size, n_epochs=epochs, random_state=seed))()


class AtMost(PCA):
    """PCA with fewer components where fewer vary than were asked for."""

    def fit_transform(self, X: Any, y: Any = None) -> Any:  # noqa: N803
        self.n_components = min(self.n_components, len(X) - 1, X.shape[1])
        return super().fit_transform(X, y)


def accuracy(method: str, data: Any, size: int, epochs: int, seed: int) -> float:
    """The share of the test split that is classified correctly."""
    (x, y), (x_test, y_test) = ((split.x[:].double().numpy(), split.y.numpy()) for split in (data.train, data.test))
    probe = make_pipeline(
        features(method, size, epochs, seed), StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 13))
    )
    return float(probe.fit(x, y).score(x_test, y_test))


def of_set(name: str, root: Path, out: Path, epochs: int, methods: tuple[str, ...]) -> dict[str, Any]:
    """The accuracy of each method and seed on a set; those already in the set's file are not computed again."""
    torch.set_num_threads(1)
    path = out / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"epochs": epochs, "accuracy": {}}
    if found["epochs"] != epochs:
        raise SystemExit(
            f"{path}: its models were trained for {found['epochs']} epochs, not {epochs}; use another --out FOLDER"
        )
    data = ucr(name, str(root))
    size = max(8, data.shape[0] * data.shape[1] // 8)
    found |= {"train": len(data.train), "length": data.shape[1], "latent": size}
    for method in methods:
        done = found["accuracy"].setdefault(method, [])
        for seed in (SEEDS[:1] if method in CERTAIN else SEEDS)[len(done) :]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # constant features of catch22
                done.append(accuracy(method, data, size, epochs, seed))
            write_json(path, found)
    print(name, {method: round(fmean(values), 3) for method, values in found["accuracy"].items()}, flush=True)
    return found


def markdown(results: dict[str, dict[str, Any]], methods: tuple[str, ...]) -> tuple[str, list[dict[str, Any]]]:
    """The table of methods over sets, each against the last, and its rows."""
    last = methods[-1]
    means = {method: np.array([fmean(of["accuracy"][method]) for of in results.values()]) for method in methods}
    ranks = np.stack([rankdata(-column) for column in np.stack(list(means.values()), axis=1).round(6)])
    rows = []
    for i, method in enumerate(methods):
        spread = [stdev(values) for of in results.values() if len(values := of["accuracy"][method]) > 1]
        gap = interval((means[last] - means[method]).tolist()) if method != last else None
        row = {"features": method, "accuracy": float(means[method].mean()), "rank": float(ranks[:, i].mean())}
        row |= {"sd": fmean(spread) if spread else None, "last_less": gap}
        row["won"] = int((means[last] > means[method]).sum())
        rows.append(row)
    lines = []
    for row in rows:
        gap, spread = row["last_less"], "" if row["sd"] is None else f" ± {row['sd']:.3f}"
        cells = ["", ""] if gap is None else [f"{gap[0]:.3f} to {gap[1]:.3f}", f"{row['won']}"]
        lines.append([row["features"], f"{row['accuracy']:.3f}{spread}", f"{row['rank']:.2f}", *cells])
    header = [
        "features",
        f"accuracy, mean of {len(results)} sets",
        "mean rank",
        f"{last} - it, 95 %",
        f"{last} better on",
    ]
    return table(header, lines), rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/features"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--epochs", type=int, default=16)
    given = parser.parse_args()
    names = usable(given.archive, given.sets)
    if not names:
        parser.error(f"{given.archive}: found no sets with complete series of one length")
    given.out.mkdir(parents=True, exist_ok=True)
    methods = (*OTHERS, *MODELS, *POOLED)
    run: Callable[[str], Any] = partial(of_set, root=given.archive, out=given.out, epochs=given.epochs, methods=methods)
    found = Parallel(n_jobs=2)(delayed(run)(name) for name in names)
    results = dict(zip(names, found, strict=True))
    text, rows = markdown(results, methods)
    write_json(given.out / "features.json", {"n": len(SEEDS), "sets": results, "methods": rows})
    (given.out / "features.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
