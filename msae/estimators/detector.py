"""Outliers behind scikit-learn's interface: among samples, or among the time steps of one series."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OutlierMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from msae.data.module import Windows
from msae.data.period import window_of
from msae.data.rows import Table
from msae.data.windows import Views
from msae.errors import InputError, check_choice, check_each, check_int, check_number
from msae.estimators.base import BATCH, MODELS, Estimator, plain
from msae.estimators.steps import Steps, steps_of
from msae.estimators.training import isolated
from msae.models.nested import NestedAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses import anomaly, events, ranges, reference, rules
from msae.uses.bank import Shelf, views
from msae.uses.suspects import suspects

log = logging.getLogger(__name__)
PROBABILITY = 1e-3
"""For `contamination="auto"`: the probability that a normal sample, or time step, is an outlier."""
FORMS = ("auto", "series", "samples")
FEW, MANY = 8, 500
"""An array of fewer columns than the first and as many rows as the second may be a series or samples."""


def _nested(shape: Sequence[int], latent_dim: int, lr: float) -> Reconstructor:
    """The model of the uses, with the settings of its config."""
    return NestedAutoEncoder(shape, code_dim=check_int("latent_dim", latent_dim), lr=lr, schedule="cosine")


@final
@dataclass(eq=False, repr=False)
class MultiScaleDetector(OutlierMixin, Estimator):  # type: ignore[misc]
    """Outliers among time series, or among the steps of one: what is far from all that `fit` has seen.

    A pandas DataFrame or Series is one series: rows are its steps and columns its channels; NaN is a missing value.
    Rows with a DatetimeIndex are put on a grid as those of files: jitter is absorbed, up to five missing rows are
    interpolated, and no window crosses a longer gap. Others count as evenly spaced. Results are pandas too, with its
    index. Arrays `(n, channels, time)` and
    `(n, time)` are n samples, each a series by itself. An array `(time, channels)` is one series with `form="series"`.

    A score is the distance from the nearest normal window and the error of the reconstruction, relative to what is
    usual in `fit`; see `msae.uses.anomaly`. What was in `fit` is recognized, and is not its own neighbour. As
    everywhere in scikit-learn, low scores are anomalous: all methods return *minus* the score of the command
    `python -m msae.detect`.

    Args:
        contamination: `auto` for a threshold that a normal sample or step exceeds with a probability of 0.001, as
            `python -m msae.detect` chooses it: by extreme value theory from the scores in `fit`, or, where these are
            fewer than 1,000, their quantile, which is close to the greatest; for a series of n window lengths, times
            1 + 8 / n. A number, above 0 and at most 0.5, is the fraction of outliers in `fit`.
        window: of a series, the number of steps of a window; None for twice its dominant period, at least 32.
        form: `series`, `samples`, or `auto`, which takes pandas objects as a series and arrays as samples. It refuses
            an array of at least 500 rows and fewer than 8 columns, which may be either.
        model: `auto` is `nested` for a series and `pyramid` for samples. This and the other arguments are those of
            `MultiScaleTransformer`.
        latent_dim: of `nested`, the number of values in the code of each scale and channel; of other models, that in
            the latent. It is at most half of the number of values in a sample or window.
        validation_fraction: as in `MultiScaleTransformer`; of a series it is the last part, which is as long as two
            windows at least, if they are at most a quarter of the series.

    Attributes:
        offset_: the threshold of `score_samples`, below which a sample or step is an outlier.
        decision_scores_: the scores in `fit`, `(n,)`; as in PyOD, high scores are anomalous.
        labels_: of the samples or steps in `fit`, `(n,)`; as in PyOD, 1 for outliers and 0 for others.
        form_: `series` or `samples`, as `fit` took it.
        reference_: what is normal.
        rules_: of a series, the rules that raw values keep; see `msae.uses.rules`.
        limits_: of a series, what makes steps an event.
        model_: this and the other attributes are those of `MultiScaleTransformer`.

    Raises:
        InputError: see `MultiScaleTransformer`.

    Examples:
        >>> import numpy as np, pandas as pd
        >>> from msae import MultiScaleDetector
        >>> index = pd.date_range("2026-01-01", periods=3000, freq="5min")
        >>> noise = np.random.default_rng(0).normal(size=(3000, 2))
        >>> wave = np.sin(np.arange(3000) / 6)[:, None] + 0.1 * noise
        >>> df = pd.DataFrame(wave, index, columns=["flow", "heat"])
        >>> detector = MultiScaleDetector(n_epochs=1, random_state=0, device="cpu").fit(df[:2000])
        >>> new = df[2000:].copy()
        >>> new.loc["2026-01-10 10:00":"2026-01-10 11:00", "heat"] = 0
        >>> detector.events(new)[["peak", "channel", "rule"]]
                         peak channel          rule
        0 2026-01-10 10:55:00    heat  stands still
        >>> detector.score(new).idxmin()  # low is anomalous
        Timestamp('2026-01-10 10:55:00')

        >>> X = np.sin(np.arange(32) / 3 + np.arange(40)[:, None])  # 40 samples of 32 steps
        >>> X[7, 10:20] = 0  # a sensor that stops
        >>> detector = MultiScaleDetector(n_epochs=1, random_state=0, device="cpu").fit(X)
        >>> int(detector.score_samples(X).argmin()), int(detector.predict(X)[7])  # -1 for outliers
        (7, -1)
    """

    _models: ClassVar[dict[str, Callable[..., Reconstructor]]] = {"nested": _nested, **MODELS}

    contamination: float | str = "auto"
    window: int | None = field(default=None, kw_only=True)
    form: str = field(default="auto", kw_only=True)
    model: str = field(default="auto", kw_only=True)
    latent_dim: int | float = field(default=32, kw_only=True)

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train on a series or on samples, which should be normal for the most part; `y` is not used."""
        auto = plain(self.contamination) == "auto"
        share = PROBABILITY if auto else check_number("contamination", plain(self.contamination), 0.5)
        if not share:
            raise InputError(f"contamination={self.contamination}: expected auto, or a number above 0 and at most 0.5")
        check_choice("model", plain(self.model), ("auto", *self._models))
        self.form_ = self._form(X)
        if self.form_ == "series":
            scores, totals, windows = self._fit_series(X, y)
        else:
            scores = totals = self._fit_samples(X, y)
            windows = math.inf
        with isolated(0):  # few scores are no surprise here
            above = events.threshold(totals, PROBABILITY) if auto else float(np.nanquantile(scores, 1 - share))
        above = events.raised(above, windows) if auto else above
        low = float(np.nanquantile(totals, events.LEVEL))
        self.limits_ = events.Limits(above, min(low, above), self.model_.length // 2)
        self.offset_ = -above
        self.decision_scores_ = scores.numpy()
        self.labels_ = (self.decision_scores_ > above).astype(int)
        return self

    def _form(self, X: Any) -> str:  # noqa: N803
        """Whether X is a series or samples."""
        form: str = check_choice("form", plain(self.form), FORMS)
        if form != "auto":
            return form
        if isinstance(X, (pd.DataFrame, pd.Series)):
            return "series"
        shape = np.asarray(X).shape
        if len(shape) == 2 and shape[0] >= MANY and shape[1] < FEW:
            raise InputError(
                f"X of shape {shape}: one series of {shape[1]} channels, or {shape[0]} samples of {shape[1]} steps? "
                "expected form='series' or form='samples'"
            )
        return "samples"

    def _fit_samples(self, X: Any, y: Any) -> Tensor:  # noqa: N803
        """Train on samples; return their scores."""
        if self.window is not None:
            raise InputError(f"window={self.window}: samples are windows; expected None, or a series")
        super().fit(X, y)
        x = self._windows(X)
        self._places = {self._digest(sample): number for number, sample in enumerate(x)}
        self.reference_ = reference.learn(self.model_, [x])
        return self._judged(x)

    def _fit_series(self, X: Any, y: Any) -> tuple[Tensor, Tensor, float]:  # noqa: N803
        """Train on a series; return its scores, those that set the threshold, and its length in windows."""
        given = self._series(X, reset=True)
        check_each("y", range(given.shape[1]) if y is None else np.asarray(y), given.shape[1], "steps")
        steps = steps_of(given, getattr(X, "index", None))
        x, self._freq = steps.x, steps.freq
        time = x.shape[1]
        rows, window = x.T.contiguous(), plain(self.window)
        if window is None:
            window = window_of([Table(Path(), [], rows.numpy())], {"training": [(0, *span) for span in steps.spans]})
        window = check_int("window", window, 2)
        held = round(check_number("validation_fraction", plain(self.validation_fraction), 0.5) * time)
        held = max(held, min(2 * window, time // 4)) if held else 0
        parts, later = steps.parted(time - held, window)
        if not later:  # a part that holds no window cannot validate
            held = 0
            parts, later = steps.parted(time, window)
        n = time - held
        longest = max((stop - start for start, stop in parts), default=0)
        if longest <= window:
            raise InputError(f"X: {longest or n} steps to train on; expected more than the window's {window}")
        names = getattr(self, "feature_names_in_", getattr(X, "columns", range(len(x))))
        for number in ranges.without_values(x[:, :n]):
            raise InputError(f"X: column {names[number]} has no value in the first {n} rows, which are for training")
        cut = [Windows(Views([rows], [(0, *span) for span in some], window)) for some in (parts, later) if some]
        self._train(cut[0], val=cut[1] if later else None, missing=bool(x.isnan().any()), names=list(map(str, names)))
        pieces = [[x[:, start:stop] for start, stop in some] for some in (parts, later)]
        self.reference_ = reference.learn(self.model_, pieces[0], fresh=pieces[1])
        self.rules_ = rules.learn([*pieces[0], *pieces[1]], len(x))
        self._places = {self._digest(x): n}
        first = [start for start, _ in (*parts, *later)]
        for one in suspects(self.reference_, [*pieces[0], *pieces[1]], self.model_.length, ranges.names(self.model_)):
            at = steps.labels([first[one.series] + one.step], getattr(X, "index", pd.RangeIndex(time)))[0]
            log.warning("X at %s: %s; if it is a failure, it hides later ones: leave it out", at, one.why)
        totals = self.reference_.totals
        scores = self._scored(steps).total.double()
        return scores[steps.place], totals.double(), time / self.model_.length

    def _series(self, X: Any, reset: bool = False) -> Tensor:  # noqa: N803
        """A series as float64 `(channels, time)`."""
        if isinstance(X, pd.Series):
            X = X.to_frame("value" if X.name is None else str(X.name))  # noqa: N806
        if isinstance(X, pd.DataFrame):
            for name, kind in X.select_dtypes(exclude=["number", "bool"]).dtypes.items():
                raise InputError(f"X: column {name} of {kind}; expected numbers, and times as the index")
        values = X[:, None] if isinstance(X, np.ndarray) and X.ndim == 1 else X
        found = check_array(
            values,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
            estimator=self,
            input_name="X",
        )
        validate_data(self, values, reset=reset, skip_check_array=True)  # number and names of channels
        return torch.from_numpy(np.array(found, order="C")).T

    @property
    def _model(self) -> Any:
        own = {"series": "nested", "samples": "pyramid"}
        return own[self.form_] if plain(self.model) == "auto" else plain(self.model)

    def _latent(self, latent_dim: Any, shape: Sequence[int]) -> Any:
        most = max(1, math.prod(shape) // 2)
        return most if isinstance(latent_dim, int) and latent_dim > most else latent_dim

    def _digest(self, x: Tensor) -> bytes:
        """What tells values from all others that the model can tell from them."""
        return hashlib.blake2b(x.to(self.model_.raw_dtype).numpy().tobytes(), digest_size=16).digest()

    @torch.no_grad()
    def _judged(self, x: Tensor) -> Tensor:
        """The score of each sample, high for outliers, in float64, so that it does not depend on the others."""
        model, known = self._exact, self.reference_
        ranges.warn_of_far(model, x, set())
        shelves = {
            name: Shelf(**{key: value.double() for key, value in vars(shelf).items()})
            for name, shelf in known.bank.shelves.items()
        }
        scorer = anomaly.Scorer(self.model_, known)
        found: list[Tensor] = []
        for batch in x.split(BATCH):
            own = torch.tensor([self._places.get(self._digest(sample), -1) for sample in batch])
            barred = known.bank.barred(own, torch.zeros_like(own))
            far = [shelves[view.name].distances(view, barred)[0] for view, _ in views(model, batch)]
            rows = torch.stack([each.movedim(1, 2).flatten(0, 1) for each in far])
            found.append(scorer.compared(batch[:, :, -1].T, rows).total)
        return torch.cat(found).double()

    def _steps(self, X: Any) -> Steps:  # noqa: N803
        """The steps of a series, with the length that they had in `fit`."""
        return steps_of(self._series(X), getattr(X, "index", None), self._freq)

    def _scored(self, steps: Steps) -> anomaly.Scores:
        """The scores of the steps of a series, high where it is anomalous; NaN in stretches shorter than a window."""
        x, length = steps.x, self.model_.length
        n = self._places.get(self._digest(x))
        parts = [span for some in steps.parted(x.shape[1] if n is None else n, length) for span in some]
        if not parts:
            raise InputError(f"series of {x.shape[1]} steps: expected at least {length}, the length of a window")
        names = list(self.model_.own_codes)
        total, channels, scales = (torch.full((m, x.shape[1]), torch.nan) for m in (1, len(x), len(names)))
        for number, (start, stop) in enumerate(parts):
            scorer = anomaly.Scorer(self.model_, self.reference_, own=None if n is None else number)
            found = anomaly.joined(list(anomaly.scores(scorer, x[:, start:stop])))
            total[:, start:stop], channels[:, start:stop] = found.total, found.channels
            scales[:, start:stop] = torch.stack([found.scales[name] for name in names])
        return anomaly.Scores(total[0], channels, dict(zip(names, scales, strict=True)))

    def score_samples(self, X: Any) -> Any:  # noqa: N803
        """The score of each sample, or of each step of a series, `(n,)`, low for outliers.

        Steps without any value have no score, NaN. Of a pandas object, a Series with its index.
        """
        check_is_fitted(self, "offset_")
        if self.form_ == "samples":
            return -self._judged(self._windows(X)).numpy()
        steps = self._steps(X)
        return _like(X, -self._scored(steps).total.double().numpy()[steps.place])

    def score(self, X: Any, y: Any = None) -> Any:  # noqa: N803
        """`score_samples`; `y` is not used."""
        return self.score_samples(X)

    def decision_function(self, X: Any) -> Any:  # noqa: N803
        """`score_samples` minus `offset_`: below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:  # noqa: N803
        """-1 for outliers and 1 for inliers, in the form of `score_samples`."""
        outlier = self.decision_function(X) < 0
        return _like(X if self.form_ == "series" else None, np.where(outlier, -1, 1))

    def events(self, X: Any) -> pd.DataFrame:  # noqa: N803
        """The events of a series: runs of steps that are not normal, see `msae.uses.events` and `msae.uses.rules`.

        Returns:
            A row for each event: `start`, `end`, `peak` and `known_at`, as the index of X has them (of an array, the
            numbers of steps); `score` and `scale` at the peak, NaN and empty for an event of a rule alone; `channel`;
            and `rule`, empty for an event of the scores alone.

        Raises:
            InputError: the detector was fitted to samples.
        """
        check_is_fitted(self, "offset_")
        if self.form_ == "samples":
            raise InputError(
                "events: fitted to samples; expected a detector of a series, by fit(frame) or form='series'"
            )
        steps, length = self._steps(X), self.model_.length
        found, limits = self._scored(steps), self.limits_
        strangest, runs = found.strangest(), list[events.Event]()
        for start, stop in (span for span in steps.spans if span[1] - span[0] >= length):
            part = anomaly.Scores(found.total[start:stop], found.channels[:, start:stop], {})
            some = events.merged(events.events(part, limits, strangest[start:stop]), limits)
            known = events.certain(torch.tensor([run.known for run in some]).long(), stop - start, length)
            some = [replace(run, known=step) for run, step in zip(some, known.tolist(), strict=True)]
            some = events.together(some, rules.events(self.rules_, steps.x[:, start:stop]), limits.gap)
            runs += [run.moved(start) for run in some]
        index = X.index if isinstance(X, (pd.DataFrame, pd.Series)) else pd.RangeIndex(len(steps.place))
        return steps.table(runs, index, ranges.names(self.model_), list(found.scales))

    def score_series(self, series: ArrayLike) -> NDArray[np.float64]:
        """The score of each time step of one series, low where it is anomalous; for a detector fitted to samples.

        Args:
            series: `(time,)` or `(channels, time)`, at least as long as a sample in `fit`.

        Returns:
            Scores `(time,)`.
        """
        check_is_fitted(self, "offset_")
        x = torch.tensor(check_array(np.atleast_2d(series), dtype=np.float64))
        scorer = anomaly.Scorer(self.model_, self.reference_)
        return -anomaly.joined(list(anomaly.scores(scorer, x))).total.double().numpy()


def _like(X: Any, values: NDArray[Any]) -> Any:  # noqa: N803
    """Values of steps in the form of a series: with its index, if it has one."""
    return pd.Series(values, X.index) if isinstance(X, (pd.DataFrame, pd.Series)) else values
