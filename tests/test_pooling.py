"""Features of whole series: how often short windows, at several dilations, look like learned shapes."""

import pickle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from msae import InputError, MultiScalePooler

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {"directions": 6, "thresholds": 3, "random_state": 0}


def events(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Samples `(n, 96)`: noise, and anywhere in it a bump and a dip, in one class first the bump."""
    rng = np.random.default_rng(seed)
    x, y = 0.1 * rng.normal(size=(n, 96)), np.arange(n) % 2
    for row, label, start in zip(x, y, rng.integers(0, 80, n), strict=True):
        row[start : start + 8] += 2 * label - 1
        row[start + 8 : start + 16] -= 2 * label - 1
    return x, y


@parametrize_with_checks([MultiScalePooler(**SMALL)])
def test_scikit_learns_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


def test_events_are_found_wherever_they_are() -> None:
    """Principal components of whole samples show little of them."""
    (x, y), (x_test, y_test) = events(60, 1), events(200, 2)
    pooled = make_pipeline(MultiScalePooler(random_state=0), StandardScaler(), RidgeClassifier()).fit(x, y)
    whole = make_pipeline(PCA(40), StandardScaler(), RidgeClassifier()).fit(x, y)
    assert whole.score(x_test, y_test) < 0.9 < 0.98 < pooled.score(x_test, y_test)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_what_their_names_say(channels: int) -> None:
    x = RNG.normal(size=(9, channels, 64)).cumsum(2)
    fitted = MultiScalePooler(**SMALL, parts=(1, 2)).set_output(transform="pandas").fit(x)
    found = fitted.transform(x)
    assert {its.dilation for its in fitted.scales_} == {1, 2, 4}
    assert found.shape == (9, 2 * 3 * 6 * 3 * 3)
    scaled = (x - fitted.mean_[:, None]) / fitted.deviation_[:, None]
    its = next(its for its in fitted.scales_ if its.differences and its.dilation == 2)
    windows = np.diff(scaled)[:, its.channels]
    windows = np.stack([windows[:, :, start : start + 17 : 2].reshape(9, -1) for start in range(63 - 16)], 1)
    above = windows @ its.weights[0].numpy() > its.thresholds[0, 1].numpy()
    where = "" if channels == 1 else f"_channel{'+'.join(map(str, its.channels))}"
    name = f"difference_window17_dilation2{where}_direction0_q0.5"
    assert found[f"{name}_part1of1"].to_numpy() == pytest.approx(above.mean(1), abs=1e-6)
    assert found[f"{name}_part2of2"].to_numpy() == pytest.approx(above[:, 23:].mean(1), abs=1e-6)


def test_lengths_and_missing_values() -> None:
    """Padding counts for nothing, and no window with a missing value counts."""
    x = RNG.normal(size=(12, 50))
    fitted = MultiScalePooler(**SMALL).fit(x)
    padded = x[:2].copy()
    padded[1, 30:] = np.nan
    np.testing.assert_array_equal(fitted.transform(padded), fitted.transform([x[0], x[1, :30]]))
    holed = x[:1].copy()
    holed[0, 25] = np.nan
    halves = fitted.transform([x[0, :25], x[0, 26:]])
    names = fitted.get_feature_names_out()
    plain = [i for i, name in enumerate(names) if name.startswith("value_window9_") and "direction0" in name]
    weights = np.array([25 - 8, 24 - 8])
    np.testing.assert_allclose(fitted.transform(holed)[0, plain], weights @ halves[:, plain] / weights.sum(), rtol=1e-5)
    short = fitted.transform([x[0, :5], x[1, :5]])  # no window of 9 steps: the training mean
    assert np.isfinite(short).all()
    longer = RNG.normal(size=(2, 70))
    np.testing.assert_array_equal(fitted.transform(longer[:, None]), fitted.transform(list(longer)))
    with pytest.raises(
        InputError, match="X has 70 features, but MultiScalePooler is expecting 50 features as input; give"
    ):
        fitted.transform(longer)
    unequal = MultiScalePooler(**SMALL).fit([row[: 20 + 2 * i] for i, row in enumerate(x)])
    assert np.isfinite(unequal.transform(list(x))).all()


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, before = RNG.normal(size=(20, 64)), torch.get_rng_state().tolist()
    fitted = MultiScalePooler(**SMALL).fit(x)
    found = fitted.transform(x)
    assert found.dtype == np.float32
    monkeypatch.setattr("msae.estimators.pooler.BATCH", 100)
    np.testing.assert_allclose(fitted.transform(x), found, atol=1e-6)
    np.testing.assert_allclose(fitted.transform(x[3:4]), found[3:4], atol=1e-6)
    again = pickle.loads(pickle.dumps(clone(fitted).fit(x)))
    np.testing.assert_allclose(again.transform(x), found, atol=1e-6)
    assert torch.get_rng_state().tolist() == before


def test_a_feature_is_explained() -> None:
    """Series with one shape at places at random: a feature looks for it."""
    x = 0.01 * RNG.normal(size=(30, 60))
    shape = np.array([0.0, 0, 0, 4, 0, 0, 0, 0, 0])
    for row, start in zip(x, RNG.integers(0, 51, 30), strict=True):
        row[start : start + 9] += shape
    fitted = MultiScalePooler(**SMALL).fit(x)
    ax = plt.figure().subplots()
    name = fitted.get_feature_names_out()[0]
    told = fitted.explain(name, ax)
    assert told["steps"].tolist() == list(range(9))
    assert told["shape"].shape == (1, 9)
    assert not told["differences"]
    assert ax.get_title() == name
    shapes = np.stack(
        [fitted.explain(f"value_window9_dilation1_direction{i}_q0.5_part1of1")["shape"] for i in range(6)]
    )
    peaks = np.abs(shapes[:, 0]).max(1) / np.sqrt((shapes[:, 0] ** 2).mean(1))
    assert peaks.max() > 2.5  # of 3 for a single step
    with pytest.raises(InputError, match="feature=none: expected a name of get_feature_names_out"):
        fitted.explain("none")


def test_grid_search() -> None:
    x, y = events(24)
    pipeline = make_pipeline(MultiScalePooler(**SMALL), StandardScaler(), RidgeClassifier())
    grid = {"multiscalepooler__parts": [(1,), (1, 2)], "multiscalepooler__directions": [4, 8]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, y)
    assert set(search.best_params_) == set(grid)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dilations": ()}, r"dilations=\(\): expected a sequence of one or more whole numbers"),
        ({"parts": (1, 0)}, "parts=0: expected a whole number, at least 1"),
        ({"dilations": (1, 2.5)}, "dilations=2.5: expected a whole number, at least 1"),
        ({"parts": 4}, "parts=4: expected a sequence of one or more whole numbers"),
        ({"directions": 0}, "directions=0: expected a whole number, at least 1"),
        ({"dilations": (9,)}, "X: no window of 9 steps without NaN"),
    ],
)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiScalePooler(**given).fit(RNG.normal(size=(8, 20)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((8, 3, 20)), "X: 3 channels; expected 2, as in fit"),
        (np.full((8, 2, 20), np.nan), "X: no value in sample 0"),
        ([np.zeros((2, 20)), np.zeros((1, 21))], "X: series with different numbers of channels"),
        (np.zeros((2, 2, 2, 2)), r"X of shape \(2, 2, 2, 2\): expected \(n, time\) or \(n, channels, time\)"),
    ],
)
def test_other_samples_than_in_fit(x: Any, message: str) -> None:
    fitted = MultiScalePooler(**SMALL).fit(RNG.normal(size=(8, 2, 20)))
    with pytest.raises(InputError, match=message):
        fitted.transform(x)
