"""Forecasts: the last value, the value a period before, ridge regression on raw values and on codes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from msae.cards import detection, training
from msae.cards.state import SEEDS, Card, Row, parts_of, row_of
from msae.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from matplotlib.figure import Figure
    from torch import Tensor

    from msae.models.reconstructor import Reconstructor
    from msae.uses.forecasting import Forecaster

USE = "forecast"
NAIVE = ("last value", "value a period before")
RIDGE = {"ridge on raw values": "raw", "ridge on codes": "latent"}
WINDOWS = 20_000
"""Training windows, at most, from which regressions are fitted; they are spread evenly."""


class Splits:
    """The series as `python -m msae.forecast` reads and splits them, and one horizon: half a window, a period."""

    def __init__(self, card: Card, model: Reconstructor) -> None:
        from msae.forecast import series_of
        from msae.uses import forecasting

        self.length, self.horizon = model.length, max(1, model.length // 2)
        cfg = OmegaConf.create({"data": model.data_options})
        _, self.last, self.parts = series_of(cfg, model)
        for split, its in self.parts.items():
            forecasting.check_horizons(split, its, self.length, [self.horizon])
        steps = sum(series.shape[1] for series, _ in self.parts["training"])
        self.stride = max(1, int(cfg.data.stride), -(-steps // WINDOWS))
        self.deviation = forecasting.deviations(self.parts["training"])

    def fitted(self, model: Reconstructor, use: str) -> Forecaster:
        """The regressions of `python -m msae.forecast`."""
        from msae.uses import forecasting, look_back

        codes = look_back.latent(model)
        features = {"latent": codes} if use == "latent" else {"raw": look_back.raw(codes.sizes)}
        train, val = self.parts["training"], self.parts["validation"]
        return forecasting.fit(features, train, val, self.length, [self.horizon], self.stride, use)[self.horizon]

    def errors(self, forecaster: Forecaster) -> Float[np.ndarray, " n"]:
        """The mean squared error of each test window's forecast, in deviations of the training split."""
        import torch

        from msae.uses import forecasting

        found = forecasting.residuals({self.horizon: forecaster}, self.parts["test"], self.length, self.stride)
        return torch.cat([error.square().mean((1, 2)) for _, error, _ in found]).numpy()

    def naive(self, split: str, change: Callable[[Tensor], Tensor]) -> Float[np.ndarray, " n"]:
        """The same of a rule that gives the change from the last value."""
        import torch

        from msae.uses import forecasting

        found = []
        for x, futures in forecasting.pairs(self.parts[split], self.length, [self.horizon], self.stride):
            y = futures[self.horizon]
            error = (change(x[: len(y)].double()) - y) / self.deviation
            found.append(error.square().mean((1, 2)))
        return torch.cat(found).numpy()


def compare(card: Card) -> None:
    """Add the rows."""
    if card.data.missing:
        raise InputError("data.missing=mask: forecasts need series without missing values")
    from msae import load

    use = detection.USE if "steps" in card.content["uses"].get(detection.USE, {}) else USE
    steps, _ = training.planned(card, use, "nested", ["model=nested"], card.use_left / 2)
    models = [load(run) for run in detection.nested(card, steps)]
    splits = Splits(card, models[0])
    card.of(USE)["horizon"] = splits.horizon
    for name in NAIVE:
        card.row(USE, name, partial(of_rule, card, splits, name, steps))
    for name, use in RIDGE.items():
        card.row(USE, name, partial(of_ridge, card, splits, models, use, steps))


def of_rule(card: Card, splits: Splits, name: str, steps: int) -> Row:
    """The row of a rule without a fit; a period is half a window, which is also the horizon."""

    def change(x: Tensor) -> Tensor:
        if name == NAIVE[0]:
            return x.new_zeros(*x.shape[:2], splits.horizon)
        return x[..., -splits.horizon :] - x[..., -1:]

    val, test = (splits.naive(split, change) for split in ("validation", "test"))
    return row_of([val.mean()], [test.mean()], [parts_of(test)], simple=True, command=card.itself(USE, steps))


def of_ridge(card: Card, splits: Splits, models: list[Reconstructor], use: str, steps: int) -> Row:
    """The row of regressions on raw values, or on the codes of each model."""
    found = [splits.fitted(model, use) for model in (models if use == "latent" else models[:1])]
    test = [splits.errors(forecaster) for forecaster in found]
    more: dict[str, Any] = {"command": card.itself(USE, steps)}
    val = [forecaster.errors[use] for forecaster in found]
    if use == "latent":
        more["checkpoint"] = f"runs/{detection.RUNS}/seed={SEEDS[int(np.argmin(val))]}/best.ckpt"
    look_back = [forecaster.look_back for forecaster in found]
    more["note"] = f"looks back {min(look_back)}" + f" to {max(look_back)}" * (len(set(look_back)) > 1) + " steps"
    return row_of(val, [e.mean() for e in test], [parts_of(e) for e in test], simple=use == "raw", **more)


def example(card: Card) -> Figure | None:
    """The forecast after the end of the first series, by codes."""
    import torch

    from msae import load, plots

    row = next((row for row in card.rows(USE) if "checkpoint" in row), None)
    if row is None or not (card.folder / row["checkpoint"]).is_file():
        return None
    model = load(card.folder / row["checkpoint"])
    splits = Splits(card, model)
    forecaster = splits.fitted(model, "latent")
    table, _, start, stop = splits.last[0]
    x = torch.from_numpy(table.values[stop - model.length : stop]).T[None].to(model.raw_dtype)
    with torch.no_grad():
        y_hat, margin = forecaster(x)[0], forecaster.margins(x)[0]
    shown = np.asarray(table.values[max(start, stop - 2 * model.length) : stop])
    return plots.forecast(shown, torch.stack([y_hat, y_hat - margin, y_hat + margin]).mT.numpy(), table.columns)
