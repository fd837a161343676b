"""What features classify series? A ridge classifier on pooled windows, latents and established features.

    python studies/features/features.py ARCHIVE [--out runs/features] [--sets NAME ...] [--methods NAME ...]

ARCHIVE is a folder of NAME_TRAIN.tsv and NAME_TEST.tsv, or .ts; sets with unequal lengths or missing values are left
out. Features are fitted to the training split, without its labels. Then a ridge classifier is fitted to the
standardized features; leave-one-out within that split chooses its penalty. The test split is used for the accuracy
only. Latents have an eighth of the length, at least 8 values. `pooled` are the features of `MultiScalePooler` with its
defaults, which cross-validation within training splits chose. At as many features, `random` has random directions in
place of learned ones, `unwhitened` random directions of windows that are not whitened, and `one dilation` has only
one, the best by leave-one-out within the training split. For `SCARCE` numbers of labels a class, drawn at random,
`pooled` is fitted to all training series without labels, and MiniRocket to those with labels. Methods that are random
have three seeds, MultiRocket-Hydra, which is slow, one. Processor seconds are of fit and transform of both splits, of
each method in turn. An interrupted study resumes when it is started again: it writes a .json for each set, and
`features.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from msae import MultiScalePooler, MultiScaleTransformer
from msae.data.ucr import ucr
from msae.estimators import directions, pooler
from msae.runs.comparison import interval, table
from msae.runs.folder import write_json

sys.path.append(str(Path(__file__).parents[1] / "ucr"))
from ucr_study import usable

SEEDS = (0, 1, 2)
CERTAIN = ("raw values", "PCA", "catch22", "MultiRocket-Hydra")
"""Methods that have no seed, or one."""
LATENTS = ("ae", "single", "pyramid")
WORTH = ("random", "unwhitened", "one dilation")
"""What learning and several dilations are worth is the difference of `pooled` to these."""
METHODS = ("pooled", "MiniRocket", "random", "catch22", "QUANT", "unwhitened", "one dilation", "MultiRocket-Hydra")
SHOWN = ("raw values", "PCA", *LATENTS, "catch22", "QUANT", "MiniRocket", "MultiRocket-Hydra", "pooled")
SCARCE = (10, 20)


def transformer(method: str, size: int, seed: int) -> Any:
    """A transformer of samples `(n, channels, length)` to features."""
    from aeon.transformations.collection import convolution_based, feature_based, interval_based

    if method == "MultiRocket-Hydra":
        from sklearn.pipeline import make_union

        hydra = convolution_based.HydraTransformer(random_state=seed, output_type="numpy")
        return make_union(convolution_based.MultiRocket(random_state=seed), hydra)
    flat = FunctionTransformer(lambda x: x.reshape(len(x), -1))
    model = partial(MultiScaleTransformer, method, size, n_epochs=16, device="cpu")
    return {
        "raw values": lambda: flat,
        "PCA": lambda: make_pipeline(flat, AtMost(size)),
        "catch22": lambda: feature_based.Catch22(replace_nans=True),
        "QUANT": interval_based.QUANTTransformer,
        "MiniRocket": lambda: convolution_based.MiniRocket(random_state=seed),
    }.get(
        method,
        lambda: model(random_state=seed) if method in LATENTS else MultiScalePooler(random_state=seed),
    )()


class AtMost(PCA):
    """PCA with fewer components where fewer vary than were asked for."""

    def fit_transform(self, X: Any, y: Any = None) -> Any:  # noqa: N803
        self.n_components = min(self.n_components, len(X) - 1, X.shape[1])
        return super().fit_transform(X, y)


def probe() -> Any:
    """The ridge classifier."""
    return make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 13)))


@contextmanager
def changed(method: str) -> Iterator[None]:
    """`MultiScalePooler` with random directions, and without whitening."""
    choose, learn = directions.choose, pooler.learn

    def at_random(codes: Any, count: int, random: Any) -> Any:
        drawn = random.normal(size=(count, codes.shape[1]))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def plain(windows: Any, count: int, random: Any) -> Any:
        drawn = random.normal(size=(count, *windows.shape[1:]))
        drawn = (drawn - drawn.mean(2, keepdims=True)).reshape(count, -1)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn, drawn.reshape(count, *windows.shape[1:])

    if method == "random":
        directions.choose = at_random
    if method == "unwhitened":
        pooler.learn = plain
    try:
        yield
    finally:
        directions.choose, pooler.learn = choose, learn


def computed(method: str, x: Any, x_test: Any, y: Any, size: int, seed: int) -> tuple[Any, Any, float]:
    """Features of both splits, and the processor seconds that they took."""
    torch.set_num_threads(1)  # which MiniRocket changes
    began = time.process_time()
    made = transformer(method, size, seed)
    if method == "one dilation":
        made = best_dilation(x, y, seed)
        return made.transform(x), made.transform(x_test), time.process_time() - began
    with changed(method):
        z = made.fit_transform(x)
    return np.asarray(z), np.asarray(made.transform(x_test)), time.process_time() - began


def best_dilation(x: Any, y: Any, seed: int) -> MultiScalePooler:
    """The pooler with the one dilation that leave-one-out chooses, and as many directions as all dilations have."""
    every = list(dict.fromkeys(its.dilation for its in MultiScalePooler(random_state=seed).fit(x).scales_))
    found = []
    for dilation in every:
        made = MultiScalePooler(64 * len(every), dilations=[dilation], random_state=seed).fit(x)
        found.append((probe().fit(made.transform(x), y)[-1].best_score_, made))
    return max(found, key=lambda pair: pair[0])[1]


def accuracy(z: Any, y: Any, z_test: Any, y_test: Any) -> float:
    """The share of the test split that is classified correctly."""
    return float(probe().fit(z, y).score(z_test, y_test))


def labelled(y: Any, count: int, seed: int) -> Any:
    """The numbers of so many samples of each class; none unless each class has more, or as many and others more."""
    classes, sizes = np.unique(y, return_counts=True)
    if sizes.min() < count or len(y) == count * len(classes):
        return None
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.flatnonzero(y == label))[:count] for label in classes])


def of_set(name: str, root: Path, out: Path, methods: list[str]) -> None:
    """The accuracy of each method and seed on a set; those already in the set's file are not computed again."""
    path = out / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    data = ucr(name, str(root))
    (x, y), (x_test, y_test) = ((split.x[:].double().numpy(), split.y.numpy()) for split in (data.train, data.test))
    size = max(8, data.shape[0] * data.shape[1] // 8)
    found |= {"train": len(x), "length": data.shape[1], "latent": size}
    values, seconds, scarce = (found.setdefault(key, {}) for key in ("accuracy", "seconds", "scarce"))
    for seed in SEEDS:
        for method in methods:
            done = values.setdefault(method, [])
            if len(done) > seed or (method in CERTAIN and seed):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # constant features of catch22
                z, z_test, took = computed(method, x, x_test, y, size, seed)
            done.append(accuracy(z, y, z_test, y_test))
            seconds.setdefault(method, []).append(took)
            for count in SCARCE if method in ("pooled", "MiniRocket") else ():
                few = labelled(y, count, seed)
                if few is None:
                    continue
                if method == "MiniRocket":
                    z_few, z_test, _ = computed(method, x[few], x_test, y[few], size, seed)
                else:
                    z_few = z[few]
                of = scarce.setdefault(str(count), {}).setdefault(method, [])
                of.append(accuracy(z_few, y[few], z_test, y_test))
            write_json(path, found)
    print(name, {method: round(fmean(of), 3) for method, of in values.items() if of}, flush=True)


def means(sets: dict[str, Any], methods: tuple[str, ...]) -> dict[str, Any]:
    """The accuracy of each method, mean over seeds, on each set `(sets,)`."""
    return {method: np.array([fmean(of["accuracy"][method]) for of in sets.values()]) for method in methods}


def cell(gap: Any, digits: int = 3) -> str:
    """The mean of differences over sets, with its 95 % interval."""
    low, high = interval(gap.tolist())
    return f"{gap.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def markdown(sets: dict[str, Any]) -> str:
    """The table of methods over the sets that have all of them, each compared with `pooled`."""
    methods = tuple(method for method in SHOWN if any(of["accuracy"].get(method) for of in sets.values()))
    lines = []
    complete = {name: of for name, of in sets.items() if all(of["accuracy"].get(m) for m in ("pooled", "MiniRocket"))}
    every = {name: of for name, of in complete.items() if all(of["accuracy"].get(m) for m in methods)}
    ranks = np.stack([rankdata(-row) for row in np.stack(list(means(every, methods).values()), axis=1).round(6)])
    for i, method in enumerate(methods):
        own = {name: of for name, of in complete.items() if of["accuracy"].get(method)}
        found = means(own, (method, "pooled"))
        of, pooled = found[method], found["pooled"]
        spread = [stdev(a) for its in own.values() if len(a := its["accuracy"][method]) > 1]
        shown = f"{of.mean():.3f}" + (f" ± {fmean(spread):.3f}" if spread else "")
        gap = ["", "", ""]
        if method != "pooled":
            gap = [f"{pooled.mean():.3f}", cell(pooled - of), f"{(pooled > of).sum()}"]
        lines.append([method, f"{len(own)}", shown, f"{ranks[:, i].mean():.2f}", *gap])
    rank = f"mean rank, {len(every)} sets"
    return table(
        ["features", "sets", "accuracy", rank, "`pooled` there", "`pooled` - it, 95 %", "`pooled` better"], lines
    )


def worth(sets: dict[str, Any]) -> str:
    """The table of what learning and several dilations are worth, at equal numbers of features."""
    lines = []
    for method in WORTH:
        own = {name: of for name, of in sets.items() if of["accuracy"].get(method) and of["accuracy"].get("pooled")}
        if own:
            found = means(own, (method, "pooled"))
            of, pooled = found[method], found["pooled"]
            n = sorted({len(its["accuracy"][method]) for its in own.values()})
            lines.append([method, f"{len(own)}", "-".join(map(str, n)), f"{of.mean():.3f}", f"{pooled.mean():.3f}"])
            lines[-1].append(cell(pooled - of))
    return table(["directions", "sets", "n", "accuracy", "`pooled` there", "`pooled` - it, 95 %"], lines)


def scarce(sets: dict[str, Any]) -> str:
    """The table of accuracies with few labels."""
    lines = []
    for count in map(str, SCARCE):
        pairs = [of["scarce"][count] for of in sets.values() if len(of.get("scarce", {}).get(count, {})) == 2]
        if pairs:
            mini, own = (np.array([fmean(of[method]) for of in pairs]) for method in ("MiniRocket", "pooled"))
            lines.append([count, f"{len(pairs)}", f"{mini.mean():.3f}", f"{own.mean():.3f}", cell(own - mini)])
    return table(["labels a class", "sets", "MiniRocket", "`pooled`", "`pooled` - MiniRocket, 95 %"], lines)


def times(sets: dict[str, Any]) -> str:
    """The table of processor seconds, against MiniRocket on the same sets."""
    lines = []
    for method in SHOWN:
        own = [
            of["seconds"]
            for of in sets.values()
            if of.get("seconds", {}).get(method) and of["seconds"].get("MiniRocket")
        ]
        if own:
            took, mini = (np.array([fmean(of[m]) for of in own]) for m in (method, "MiniRocket"))
            cells = [f"{took.sum():.1f}", f"{took.sum() / mini.sum():.1f}", f"{np.median(took / mini):.1f}"]
            lines.append([method, f"{len(own)}", *cells])
    header = ["features", "sets", "processor seconds, all sets", "of MiniRocket's sum", "of MiniRocket's, median set"]
    return table(header, lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/features"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--methods", nargs="*", default=[*METHODS, "raw values", "PCA", *LATENTS])
    given = parser.parse_args()
    names = usable(given.archive, given.sets)
    if not names:
        parser.error(f"{given.archive}: found no sets with complete series of one length")
    given.out.mkdir(parents=True, exist_ok=True)
    transformer("MiniRocket", 8, 0).fit_transform(np.random.default_rng(0).normal(size=(4, 1, 50)))  # compiles
    for name in names:
        of_set(name, given.archive, given.out, given.methods)
    sets = {path.stem: json.loads(path.read_text()) for path in sorted(given.out.glob("*.json")) if path.stem in names}
    write_json(given.out / "features.json", {"n": len(SEEDS), "sets": sets})
    print("\n\n".join([markdown(sets), worth(sets), scarce(sets), times(sets)]))


if __name__ == "__main__":
    main()
