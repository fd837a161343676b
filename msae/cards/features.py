"""Features: how well a ridge classifier does with raw values, latents, pooled features and MiniRocket."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from msae.cards.state import SEEDS, Card, Row, mean_parts
from msae.cards.verdict import best
from msae.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from matplotlib.figure import Figure

USE = "features"
FOLDS = 4
VALUES = 1_000_000
"""The greatest number of values in the samples of a split that are used; they are spread evenly."""
Computed = tuple["Float[np.ndarray, 'n features']", "Float[np.ndarray, 'm features']"]
"""Features of the samples for training, and of those for the test."""


class Labelled:
    """Samples with labels: those of the training and validation split together, and those of the test split."""

    def __init__(self, card: Card) -> None:
        import torch

        from msae.data.batches import spread

        data = card.data
        found = []
        for splits in ((data.train, data.val), (data.test,)):
            x = torch.cat([its.x[:] for its in splits])
            y = torch.cat([its.y for its in splits if its.y is not None])
            index = spread(len(x), max(1, VALUES // (data.shape[0] * data.shape[1])))
            found.append((x[index], y[index].numpy()))
        (self.x, self.y), (self.x_test, self.y_test) = found
        if self.x.isnan().any() or self.x_test.isnan().any():
            raise InputError("samples with missing values or padding; expected samples of one length without holes")
        least = int(np.bincount(self.y)[np.unique(self.y)].min())
        if len(np.unique(self.y)) < 2 or least < FOLDS:
            raise InputError(f"a class of {least} samples; expected at least {FOLDS} of each, and two classes")
        card.of(USE if USE in card.content["uses"] else "augmentation")["samples"] = [len(self.x), len(self.x_test)]


def classifier() -> Any:
    """The classifier of all features."""
    return make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-3, 3, 10)))


def judged(
    x: Shaped[np.ndarray, "n features"],
    y: Shaped[np.ndarray, " n"],
    x_test: Shaped[np.ndarray, "m features"],
    y_test: Shaped[np.ndarray, " m"],
) -> tuple[float, Float[np.ndarray, " m"]]:
    """The accuracy by four-fold cross-validation, and whether each test sample is right after training on all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matrices that are nearly singular
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        val = float((cross_val_predict(classifier(), x, y, cv=folds) == y).mean())
        right = classifier().fit(x, y).predict(x_test) == y_test
    return val, right.astype(float)


def compare(card: Card) -> None:
    """Add the rows."""
    samples = Labelled(card)
    flat = [x.flatten(1).double().numpy() for x in (samples.x, samples.x_test)]
    card.row(USE, "raw values", partial(of_features, card, samples, lambda _: (flat[0], flat[1]), simple=True, seeds=1))
    if "reconstruction" in card.content["uses"]:
        card.row(USE, "latent", partial(of_latent, card, samples))
    others = {"pooled": pooled, "MiniRocket": minirocket}
    for name, compute in others.items():
        card.row(USE, name, partial(of_features, card, samples, partial(compute, samples)), card.use_left > 0)


def of_features(
    card: Card, samples: Labelled, compute: Callable[[int], Computed], simple: bool = False, seeds: int = len(SEEDS)
) -> Row:
    """The row of some features, by as many seeds as there is time for."""
    found: list[tuple[float, np.ndarray]] = []
    took, size = 0.0, 0
    for seed in SEEDS[:seeds]:
        if found and took > card.use_left:
            break
        begun = time.monotonic()
        z, z_test = compute(seed)
        found.append(judged(z, samples.y, z_test, samples.y_test))
        took, size = time.monotonic() - begun, z.shape[1]
    return {
        "simple": simple,
        "val": float(np.mean([val for val, _ in found])),
        "test": [float(right.mean()) for _, right in found],
        "parts": mean_parts([right.tolist() for _, right in found]),
        "features": size,
        "command": card.itself(USE),
    }


def of_latent(card: Card, samples: Labelled) -> Row:
    """The row of latents of the model that reconstructs validation windows best."""
    row = best("reconstruction", [row for row in card.rows("reconstruction") if "checkpoint" in row])
    if row is None:
        raise InputError("no model was trained for reconstruction")
    runs = card.folder / "runs" / row["name"]
    if not runs.is_dir():
        raise InputError(
            f"the runs of {row['name']} are gone since the card was finished; give features with another out"
        )
    found = of_features(card, samples, partial(latent, runs, samples))
    return found | {"note": f"of {row['name']}", "command": row["command"]}


def latent(runs: Path, samples: Labelled, seed: int) -> Computed:
    """Latents of a model."""
    import torch

    from msae import load

    model = load(runs / f"seed={seed}")
    with torch.no_grad():
        z, z_test = (model.encode(x.to(model.raw_dtype)).double().numpy() for x in (samples.x, samples.x_test))
    return z, z_test


def pooled(samples: Labelled, seed: int) -> Computed:
    """The features of `MultiScalePooler`."""
    from msae import MultiScalePooler

    pooler = MultiScalePooler(random_state=seed).fit(samples.x.numpy())
    return pooler.transform(samples.x.numpy()), pooler.transform(samples.x_test.numpy())


def minirocket(samples: Labelled, seed: int) -> Computed:
    """MiniRocket of aeon, where this is installed."""
    if find_spec("aeon") is None:
        raise InputError("it needs aeon: pip install aeon (or msae's extra [ucr])")
    import torch
    from aeon.transformations.collection.convolution_based import MiniRocket

    x, x_test = (x.float().numpy() for x in (samples.x, samples.x_test))
    threads = torch.get_num_threads()
    rocket = MiniRocket(random_state=seed).fit(x)
    z, z_test = (np.asarray(rocket.transform(some)) for some in (x, x_test))
    torch.set_num_threads(threads)  # numba changes those of torch too, which then wait for each other
    return z, z_test


def example(_: Card) -> Figure | None:
    """There is none."""
    return None
