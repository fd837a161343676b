"""Forecasts of a series, with arrays and data frames in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from msae.baselines import sample
from msae.data import calendar
from msae.data.module import DataModule, Windows
from msae.data.windows import Views
from msae.errors import InputError, check_choice, check_int, check_number
from msae.estimators.base import EPOCH_STEPS, plain
from msae.estimators.training import isolated, train, trainer_options
from msae.models.nested import NestedAutoEncoder
from msae.uses import forecasting, look_back

LONGEST, PARTS, SHORTEST = 336, 8, 8
"""With `window=None`: the greatest window, how many times the series is as long, and the least window, in steps."""


@final
@dataclass(eq=False, repr=False)
class MultiScaleForecaster(BaseEstimator):  # type: ignore[misc]
    """Forecasts of a series by codes of its last steps at several scales, or by their raw values.

    A series is `(time,)` or `(time, channels)`: an array, a pandas Series or a DataFrame. Forecasts have the same form,
    and their index goes on from that of the series: time stamps by the calendar, periods, or numbers. Rows count as
    even steps, so fill in those that are missing.

    The first part of the series trains a `NestedAutoEncoder` and ridge regressions. The last part chooses between codes
    and raw values, how far to look back, one regression for all channels or one for each, and the penalty, and its
    errors make the intervals. See `msae.uses.forecasting`.

    Args:
        horizon: the greatest number of steps to forecast.
        window: the number of steps that forecasts look back at; None for 336, or an eighth of a shorter series.
        lengths: the lengths of the scales, the longest of them the window; `auto` for an eighth, a quarter, half and
            all of the window.
        use: `latent`, `raw`, or `best`, the one with the smaller error on the last part of the series.
        level: the share of future values that an interval is meant to hold.
        code_dim: the number of values in a code.
        n_epochs: the number of epochs. An epoch has at least 50 optimizer steps.
        lr: Adam's learning rate.
        batch_size: the number of windows in a batch.
        validation_fraction: the last part of the series, which chooses, as a fraction.
        random_state: a seed, a RandomState, or None.
        device: the device to train on: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. The fitted model is on the CPU.
        verbose: 1 prints a line for each epoch.

    Attributes:
        model_: the trained model.
        forecaster_: the `msae.uses.forecasting.Forecaster`, with what was chosen.
        errors_: the mean squared error of `latent` and of `raw` on the last part of the series, where each channel's
            deviation in the first part is 1.

    Raises:
        InputError: a ValueError, for an invalid parameter or a series that is too short.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from msae import MultiScaleForecaster
        >>> index = pd.date_range("2015-01-31", periods=120, freq="ME")
        >>> sales = pd.Series(10 + np.sin(np.arange(120) * np.pi / 6), index, name="sales")
        >>> forecaster = MultiScaleForecaster(6, window=24, n_epochs=1, random_state=0, device="cpu").fit(sales)
        >>> forecaster.predict(3).round(1)
        2025-01-31    10.0
        2025-02-28    10.5
        2025-03-31    10.9
        Name: sales, dtype: float64
        >>> low, high = forecaster.predict_interval(3)
        >>> bool((low < high).all())
        True
    """

    horizon: int = 24
    window: int | None = None
    lengths: str | Sequence[int] = "auto"
    use: str = "best"
    level: float = forecasting.LEVEL
    code_dim: int = 16
    n_epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 64
    validation_fraction: float = 0.2
    random_state: Any = None
    device: str = "auto"
    verbose: int = 0

    # no metadata that scikit-learn's meta-estimators would route
    __metadata_request__fit = {"series": UNUSED}  # noqa: RUF012
    __metadata_request__predict = {"horizon": UNUSED, "series": UNUSED}  # noqa: RUF012

    def fit(self, series: Any, y: Any = None) -> Self:
        """Train on a series; `y` is not used."""
        value = {name: plain(value) for name, value in self.get_params(deep=False).items()}
        horizon = check_int("horizon", value["horizon"])
        check_choice("use", value["use"], forecasting.USES)
        forecasting.check_level(value["level"])
        check_int("n_epochs", value["n_epochs"])
        device = trainer_options(value["device"])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        x = self._series(series, reset=True)
        n = len(x) - round(check_number("validation_fraction", value["validation_fraction"], 1) * len(x))
        window = value["window"]
        length = max(SHORTEST, min(LONGEST, len(x) // PARTS)) if window is None else check_int("window", window, 2)
        parts = {"training": (x[:n].T, 0), "validation": (x[max(0, n - length) :].T, min(n, length))}
        for split, part in parts.items():
            forecasting.check_horizons(split, [part], length, [horizon])
        own = {split: Windows(Views([s.T], [(0, 0, s.shape[1])], length)) for split, (s, _) in parts.items()}
        data = DataModule(
            own["training"],
            own["validation"],  # no test split
            val=own["validation"],
            batch_size=value["batch_size"],
            seed=seed,
            normalize="standard",
            epoch_steps=EPOCH_STEPS,
        )
        with isolated(seed):
            keys = ("lengths", "code_dim", "lr")
            model = NestedAutoEncoder(data.shape, **{key: value[key] for key in keys}, schedule="cosine")
            model.set_statistics(**data.statistics)
            model.initialize(lambda: sample(data))
            train(model, data, value["n_epochs"], device, bool(value["verbose"]))
        self.model_ = model.cpu().eval()
        codes = look_back.latent(self.model_)
        features = {"latent": codes, "raw": look_back.raw(codes.sizes)}
        fit = [parts["training"]], [parts["validation"]], length, [horizon]
        found = forecasting.fit(features, *fit, use=value["use"], level=value["level"])
        self.forecaster_ = found[horizon]
        self.errors_ = self.forecaster_.errors
        self._last = series[-max(length, calendar.RECENT) :]
        return self

    def predict(self, horizon: int | None = None, series: Any = None) -> Any:
        """The steps after a series.

        Args:
            horizon: how many, at most the `horizon` of the constructor, which is the default.
            series: the series to continue, with the same channels; by default the one in `fit`.

        Returns:
            `(horizon,)` or `(horizon, channels)`, in the form of the series.
        """
        return self._after(horizon, series, 0)

    def predict_interval(self, horizon: int | None = None, series: Any = None) -> tuple[Any, Any]:
        """The lower and the upper ends of the intervals around `predict`, each in its form; same arguments."""
        return self._after(horizon, series, -1), self._after(horizon, series, 1)

    @torch.no_grad()
    def _after(self, horizon: int | None, series: Any, margins: int) -> Any:
        """Forecasts and a number of margins, in the form of the series."""
        check_is_fitted(self, "forecaster_")
        n = check_int("horizon", self.horizon if horizon is None else plain(horizon), 1, self.horizon)
        series = self._last if series is None else series
        x = self._series(series)
        if len(x) < self.model_.length:
            raise InputError(f"series of {len(x)} steps: expected at least the window, {self.model_.length}")
        x = x[None, -self.model_.length :].mT
        y_hat = (self.forecaster_(x) + margins * self.forecaster_.margins(x))[0, :, :n].T.numpy()
        if not isinstance(series, (pd.Series, pd.DataFrame)):
            return y_hat if np.ndim(series) == 2 else y_hat[:, 0]
        index = after(series.index, n)
        if isinstance(series, pd.Series):
            return pd.Series(y_hat[:, 0], index, name=series.name)
        return pd.DataFrame(y_hat, index, series.columns)

    def _series(self, series: Any, reset: bool = False) -> Tensor:
        """A series as float64 `(time, channels)`."""
        index = getattr(series, "index", None)
        if isinstance(index, pd.DatetimeIndex) and not index.is_monotonic_increasing:
            raise InputError("series: its time stamps do not increase; try series.sort_index()")
        if isinstance(index, pd.DatetimeIndex) and index.has_duplicates:
            raise InputError(f"series: the time stamp {index[index.duplicated()][0]} is there twice")
        x = series.to_frame(str(series.name)) if isinstance(series, pd.Series) else series
        x = np.asarray(x)[:, None] if np.ndim(x) == 1 else x
        values = check_array(x, dtype=np.float64, ensure_min_samples=2, estimator=self, input_name="series")
        validate_data(self, x, reset=reset, skip_check_array=True)  # number and names of channels
        return torch.tensor(values)


def after(index: pd.Index, n: int) -> pd.Index:
    """The n labels that follow an index of time stamps, periods or numbers."""
    if isinstance(index, pd.DatetimeIndex):
        return calendar.following(index, n).rename(index.name)
    if isinstance(index, pd.PeriodIndex):
        return pd.period_range(index[-1] + 1, periods=n, name=index.name)
    if not pd.api.types.is_numeric_dtype(index):
        raise InputError(f"series: an index of {index.dtype}; expected time stamps, periods or numbers")
    step = np.median(np.diff(index)) if len(index) > 1 else 1
    return pd.Index(index[-1] + step * np.arange(1, n + 1), dtype=index.dtype, name=index.name)
