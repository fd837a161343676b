"""Features of whole series, pooled over windows of several lengths."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from msae import InputError, MultiScalePooler, MultiScaleTransformer
from msae.estimators.pooler import STATISTICS, cut

RNG = np.random.default_rng(0)
FLAT = FunctionTransformer(lambda x: x.reshape(len(x), -1))
LINEAR = make_pipeline(FLAT, PCA(2))
QUICK = MultiScaleTransformer("single", latent_dim=2, n_epochs=1, device="cpu", normalize="none")


def events(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Samples `(n, 96)`: noise, and anywhere in it a bump and a dip, in one class first the bump."""
    rng = np.random.default_rng(seed)
    x, y = 0.1 * rng.normal(size=(n, 96)), np.arange(n) % 2
    for row, label, start in zip(x, y, rng.integers(0, 80, n), strict=True):
        row[start : start + 8] += 2 * label - 1
        row[start + 8 : start + 16] -= 2 * label - 1
    return x, y


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is once through the samples."""
    monkeypatch.setattr("msae.estimators.base.EPOCH_STEPS", 1)


@parametrize_with_checks([MultiScalePooler(QUICK, scales=(1, 2), random_state=0)])
def test_scikit_learns_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("coder", [LINEAR, QUICK])
def test_events_are_found_wherever_they_are(coder: Any) -> None:
    """The latent of a whole sample, with as many values, shows little of them."""
    (x, y), (x_test, y_test) = events(60, 1), events(200, 2)
    pooled = make_pipeline(MultiScalePooler(coder, random_state=0), StandardScaler(), RidgeClassifier()).fit(x, y)
    whole = make_pipeline(PCA(40), StandardScaler(), RidgeClassifier()).fit(x, y)
    assert whole.score(x_test, y_test) < 0.9 < 0.98 < pooled.score(x_test, y_test)


def test_features_are_what_their_names_say() -> None:
    x = RNG.normal(size=(9, 3, 64))
    fitted = MultiScalePooler(QUICK, scales=(1, 4), parts=(1, 2), random_state=0).set_output(transform="pandas").fit(x)
    found = fitted.transform(x)
    assert list(fitted.coders_) == [64, 16]
    assert found.shape == (9, 2 * 3 * len(STATISTICS) * 2)
    windows = np.stack([x[:, :, start : start + 16] for start in range(0, 49, 2)], 1)
    codes = np.stack([fitted.coders_[16].transform(windows[:, i]) for i in range(25)], 1)
    assert found["window16_part1of1_mean_1_1"].to_numpy() == pytest.approx(codes[:, :, 1].mean(1))
    assert found["window16_part1of2_std_1_0"].to_numpy() == pytest.approx(codes[:, :12, 0].std(1))
    assert found["window16_part2of2_q0.9_1_0"].to_numpy() == pytest.approx(np.quantile(codes[:, 12:, 0], 0.9, 1))
    whole = fitted.coders_[64].transform(x)
    assert found["window64_part2of2_q0_1_1"].to_numpy() == pytest.approx(whole[:, 1])


@pytest.mark.parametrize(("time", "lengths"), [(5, [5]), (20, [20, 10, 8]), (512, [512, 256, 128, 64, 32, 16])])
def test_lengths(time: int, lengths: list[int]) -> None:
    assert list(MultiScalePooler(LINEAR).fit(RNG.normal(size=(12, time))).coders_) == lengths


def test_windows_overlap_and_few_are_shared_by_parts() -> None:
    x = np.arange(40.0).reshape(1, 1, 40)
    assert cut(x, 32)[0, :, 0, 0].tolist() == [0, 4, 8]
    fitted = MultiScalePooler(LINEAR, scales=(2,), parts=(9,)).fit(RNG.normal(size=(8, 10)))
    assert np.isfinite(fitted.transform(RNG.normal(size=(8, 10)))).all()


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = RNG.normal(size=(20, 64))
    fitted = MultiScalePooler(QUICK, random_state=0).fit(x)
    found = fitted.transform(x)
    monkeypatch.setattr("msae.estimators.pooler.BATCH", 100)
    np.testing.assert_allclose(fitted.transform(x), found, rtol=1e-12)
    np.testing.assert_allclose(fitted.transform(x[3:4]), found[3:4], rtol=1e-12)
    again = pickle.loads(pickle.dumps(clone(fitted).fit(x)))
    np.testing.assert_array_equal(again.transform(x), found)


def test_few_windows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coder is fitted to different windows, from all samples."""
    monkeypatch.setattr("msae.estimators.pooler.WINDOWS", 50)
    seen: list[Any] = []
    monkeypatch.setattr(PCA, "fit", lambda self, x, *_: seen.append(x) or self)
    MultiScalePooler(make_pipeline(FLAT, PCA(2)), scales=(4,), random_state=0).fit(np.arange(640.0).reshape(10, 64))
    assert [x.shape for x in seen] == [(50, 16)]
    assert len(np.unique(seen[0][:, 0])) == 50
    assert len(np.unique(seen[0][:, 0] // 64)) == 10


def test_grid_search_and_torchs_generator() -> None:
    x, y = events(24)
    before = torch.get_rng_state().tolist()
    pipeline = make_pipeline(MultiScalePooler(QUICK, scales=(8,), random_state=0), StandardScaler(), RidgeClassifier())
    grid = {"multiscalepooler__parts": [(1,), (1, 2)], "multiscalepooler__coder__latent_dim": [1, 3]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(x, y)
    assert set(search.best_params_) == set(grid)
    assert torch.get_rng_state().tolist() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scales": ()}, r"scales=\(\): expected a sequence of one or more whole numbers"),
        ({"parts": (1, 0)}, "parts=0: expected a whole number, at least 1"),
        ({"scales": (1, 2.5)}, "scales=2.5: expected a whole number, at least 1"),
        ({"scales": 4}, "scales=4: expected a sequence of one or more whole numbers"),
    ],
)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiScalePooler(LINEAR, **given).fit(RNG.normal(size=(8, 20)))


def test_other_samples_than_in_fit() -> None:
    fitted = MultiScalePooler(LINEAR).fit(RNG.normal(size=(8, 2, 20)))
    with pytest.raises(InputError, match=r"X of shape \(8, 2, 21\): expected samples of shape \(2, 20\), as in fit"):
        fitted.transform(RNG.normal(size=(8, 2, 21)))
