"""Augmentation: whether a classifier gains by new samples among those that it is trained on."""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from sklearn.model_selection import StratifiedKFold

from msae.cards.features import FOLDS, Labelled, classifier, example
from msae.cards.state import SEEDS, Card, Row, mean_parts
from msae.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["compare", "example"]
USE = "augmentation"
NAMES = ("no new samples", "new samples")
EPOCHS, LATENT = 3, 16
"""Of the autoencoder that makes new samples."""


def compare(card: Card) -> None:
    """Add the rows."""
    samples = Labelled(card)
    card.row(USE, NAMES[0], partial(of_samples, card, samples, more=False))
    card.row(USE, NAMES[1], partial(of_samples, card, samples, more=True), card.use_left > 3)


def of_samples(card: Card, samples: Labelled, more: bool) -> Row:
    """The row of a classifier of raw values, by cross-validation and on test, with or without new samples."""
    x, y = samples.x.double().numpy(), samples.y
    x_test = samples.x_test.double().numpy()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    val: list[float] = []
    test: list[Float[np.ndarray, " m"]] = []
    for number, (a, b) in enumerate(folds.split(x, y)):
        begun = time.monotonic()
        val.append(right(x[a], y[a], x[b], y[b], 0, more).mean())
        took = time.monotonic() - begun
        if (FOLDS - number) * took > card.use_left:  # the other folds, and one training for the test
            raise InputError("no time was left for it")
    for seed in SEEDS if more else SEEDS[:1]:
        if not test or took < card.use_left:
            test.append(right(x, y, x_test, samples.y_test, seed, more))
    return {
        "simple": not more,
        "val": float(np.mean(val)),
        "test": [float(one.mean()) for one in test],
        "parts": mean_parts([one.tolist() for one in test]),
        "command": card.itself(USE),
    }


def right(
    x: Float[np.ndarray, "n channels time"],
    y: np.ndarray,
    x_test: Float[np.ndarray, "m channels time"],
    y_test: np.ndarray,
    seed: int,
    more: bool,
) -> Float[np.ndarray, " m"]:
    """Whether a classifier is right about each test sample; with `more`, trained with a new sample for each old one."""
    if more:
        from msae import MultiScaleAugmenter

        sizes = {"latent_dim": min(LATENT, x[0].size // 2), "n_epochs": EPOCHS}
        augmenter = MultiScaleAugmenter(model="single", **sizes, random_state=seed)
        x, y = augmenter.fit_resample(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matrices that are nearly singular
        fitted = classifier().fit(x.reshape(len(x), -1), y)
        found: Float[np.ndarray, " m"] = (fitted.predict(x_test.reshape(len(x_test), -1)) == y_test).astype(float)
    return found
