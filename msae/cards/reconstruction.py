"""Reconstruction: PCA and the models at one latent size, each trained for the same time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from msae.cards import training
from msae.cards.state import SEEDS, Card, Row, parts_of, row_of
from msae.cards.verdict import best

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure

    from msae.data.module import DataModule, Windows

USE = "reconstruction"
SHOWN = 6
"""Test windows in the picture."""


def compare(card: Card) -> None:
    """Add the rows."""
    latent = training.latent_of(card.data)
    given = training.sizes(card.data, latent)
    card.of(USE)["latent"] = latent
    card.row(USE, "PCA", partial(of_pca, card, latent))
    for i, name in enumerate(training.MODELS):
        share = card.use_left / (len(training.MODELS) - i)
        card.row(USE, name, partial(of_model, card, name, given[name], share), card.use_left > 0 or i == 0)


def of_model(card: Card, name: str, given: list[str], seconds: float) -> Row:
    """The row of a model that may take so many seconds."""
    from msae import load

    steps, given = training.planned(card, USE, name, given, seconds)
    models = [load(run) for run in training.trained(card, name, given, steps)]
    val, test = ([training.errors(model, windows) for model in models] for windows in (card.data.val, card.data.test))
    first = int(np.argmin([errors.mean() for errors in val]))
    return row_of(
        [errors.mean() for errors in val],
        [errors.mean() for errors in test],
        [parts_of(errors) for errors in test],
        simple=False,
        latent=models[0].latent_dim,
        steps=steps,
        checkpoint=f"runs/{name}/seed={SEEDS[first]}/best.ckpt",
        command=card.command("train", *training.overrides(given, steps)),
    )


def of_pca(card: Card, latent: int) -> Row:
    """The row of PCA, whose output is clipped to the range of data that have one."""
    val, test = pca_errors(card.data, latent, card.data.val), pca_errors(card.data, latent, card.data.test)
    note = "clipped to the range of the data" if card.data.bounded else ""
    report = training.overrides(
        training.sizes(card.data, latent)[training.MODELS[0]], training.PROBE
    )  # which has a row of PCA
    more = {"latent": latent, "note": note, "command": card.command("train", *report)}
    return row_of([val.mean()], [test.mean()], [parts_of(test)], simple=True, **more)


def pca_errors(data: DataModule, latent: int, windows: Windows) -> Float[np.ndarray, " n"]:
    """`training.errors` of PCA, fitted to the training split."""
    from sklearn.decomposition import PCA

    from msae import baselines
    from msae.data.batches import spread

    train = baselines.sample(data).flatten(1).double().numpy()
    kept = max(1, min(latent - 2 * data.shape[0] * data.per_window, len(train) - 1, train.shape[1]))
    fitted = PCA(kept, svd_solver="covariance_eigh" if len(train) > train.shape[1] else "full").fit(train)
    found = []
    for index in spread(len(windows), training.WINDOWS).split(2048):
        raw = windows.x[index]
        x, scale = (values.flatten(1).double().numpy() for values in baselines.scaled(data, raw))
        x_hat = fitted.inverse_transform(fitted.transform(x))
        if data.bounded:
            above = data.offset if data.base is None else data.offset + data.base
            offset = above.numpy().repeat(data.shape[1], 1).reshape(-1)
            low, high = data.value_range.tolist()
            x_hat = np.clip(x_hat, (low - offset) / scale, (high - offset) / scale)
        there = ~raw.isnan().flatten(1).numpy()
        found.append(np.square(x_hat - x).sum(1, where=there) / np.maximum(there.sum(1), 1))
    return np.concatenate(found)


def example(card: Card) -> Figure | None:
    """Test windows and their reconstruction by the model that is best on validation."""
    import torch

    from msae import load, plots

    row = best(USE, [row for row in card.rows(USE) if "checkpoint" in row])
    if row is None or not (card.folder / row["checkpoint"]).is_file():
        return None
    x, _ = card.data.shown(SHOWN)
    with torch.no_grad():
        outputs = {row["name"]: load(card.folder / row["checkpoint"])(x)[0]}
    return plots.reconstructions(x, outputs, card.data.image_shape, card.data.names, "Windows of the test split")
