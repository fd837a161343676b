"""The estimators behind scikit-learn's interface: its own checks, aeon's pipelines, and that nothing is left behind."""

import copy
import logging
import pickle
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from msae import InputError, MultiScaleAugmenter, MultiScaleDetector, MultiScalePooler, MultiScaleTransformer
from msae.data.digits import digits
from msae.data.ucr import ucr
from msae.estimators import base
from msae.models.reconstructor import Reconstructor
from msae.uses import anomaly, reference

RNG = np.random.default_rng(0)
X = np.sin(np.arange(24) / 3 + RNG.uniform(0, 6, (40, 1))) + 0.1 * RNG.normal(size=(40, 24)) + 5
Y = np.repeat(["a", "b"], 20)
QUICK = {"latent_dim": 4, "n_epochs": 1, "random_state": 0, "device": "cpu"}
ALL = (MultiScaleTransformer, MultiScaleDetector, MultiScaleAugmenter)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is once through the samples."""
    monkeypatch.setattr(base, "EPOCH_STEPS", 1)


CHECKED = {name: value for name, value in QUICK.items() if name != "latent_dim"}


@parametrize_with_checks(
    [
        MultiScaleTransformer(**CHECKED),
        MultiScaleDetector(**CHECKED),
        MultiScaleDetector(0.1, model="nested", form="samples", **CHECKED),
        MultiScaleAugmenter(model="ae", **CHECKED),
    ],
    expected_failed_checks=lambda estimator: (
        {"check_classifier_data_not_an_array": "a DataFrame is one series, an array samples"}
        if getattr(estimator, "form", None) == "auto"
        else {}
    ),
)
def test_scikit_learns_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted_estimators() -> dict[Any, Any]:
    """Each estimator fitted to X; tests only read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "EPOCH_STEPS", 1)
        return {cls: cls(**QUICK).fit(X, Y) for cls in ALL}


@pytest.fixture(scope="module")
def transformer(fitted_estimators: dict[Any, Any]) -> MultiScaleTransformer:
    return fitted_estimators[MultiScaleTransformer]


def test_transform_and_back_is_the_reconstruction(transformer: MultiScaleTransformer) -> None:
    z = transformer.transform(X)
    assert z.shape == (40, 4)
    x_hat = transformer.inverse_transform(z)
    with torch.no_grad():
        expected = transformer.model_(torch.from_numpy(X).float()[:, None])[0][:, 0]
    np.testing.assert_allclose(x_hat, expected, rtol=1e-4, atol=1e-4)
    scaled = (x_hat - X) / transformer.model_.scale.item()
    np.testing.assert_allclose(transformer.score_samples(X), -np.mean(scaled**2, 1), rtol=1e-5)
    assert transformer.score(X) == pytest.approx(-np.mean(scaled**2))
    assert transformer.score(X) > -0.5  # where the mean of the samples has -1


@pytest.mark.parametrize("cls", ALL)
def test_several_channels(cls: Any) -> None:
    x = np.stack([X, 100 * X[:, ::-1]], 1)
    estimator = cls(**QUICK).fit(x, Y)
    assert estimator.model_.offset[:, 0].tolist() == pytest.approx(x.mean((0, 2)), rel=0.02)
    assert estimator.score_samples(x).shape == (40,)
    if cls is MultiScaleTransformer:
        assert estimator.inverse_transform(estimator.transform(x)).shape == x.shape
    if cls is MultiScaleAugmenter:
        assert estimator.augment(x).shape == x.shape
    for wrong in (x[:, :1], x[:, :, :20], x[:, 0]):
        with pytest.raises(
            InputError, match=rf"X of shape \({', '.join(map(str, wrong.shape))}\): expected samples of shape \(2, 24\)"
        ):
            estimator.score_samples(wrong)


def test_one_channel_of_three_dimensions_is_the_same(transformer: MultiScaleTransformer) -> None:
    again = MultiScaleTransformer(**QUICK).fit(X[:, None])
    np.testing.assert_array_equal(again.transform(X[:, None]), transformer.transform(X))
    assert again.inverse_transform(again.transform(X[:, None])).shape == (40, 1, 24)


@pytest.mark.parametrize("model", base.MODELS)
def test_features_are_named_by_scale_and_index(model: str) -> None:
    fitted = (
        MultiScaleTransformer(**{**QUICK, "model": model, "normalize": "window"}).set_output(transform="pandas").fit(X)
    )
    found = fitted.transform(X)
    codes = fitted.model_.codes
    for scale, code in codes.items():
        assert list(found.columns[code]) == [f"{scale}_{i}" for i in range(code.stop - code.start)]
    assert list(codes)[-1] == "level"
    np.testing.assert_allclose(found["level_0"], X.mean(1), rtol=1e-5)
    assert found.shape == (40, 4 + 2)


def test_lgta_in_all_estimators() -> None:
    """An odd latent leaves one value unused; samples do not change each other's features; all steps are changed."""
    settings = {**QUICK, "model": "lgta", "latent_dim": 7}
    features = MultiScaleTransformer(**settings).fit(X)
    z = features.transform(X)
    assert z.shape == (40, 6)
    np.testing.assert_allclose(features.transform(X[7:9]), z[7:9], rtol=1e-9, atol=1e-12)
    assert np.isfinite(MultiScaleDetector(**settings).fit(X).score_samples(X)).all()
    new, labels = MultiScaleAugmenter(scales=["steps"], **settings).fit_resample(X, Y)
    assert (new[40:] != X).all()
    assert labels.tolist() == [*Y, *Y]


@pytest.mark.parametrize("cls", ALL)
def test_a_seed_gives_the_same_weights_and_another_others(cls: Any) -> None:
    first, same, other = (cls(**{**QUICK, "model": "ae", "random_state": seed}).fit(X[:20]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.score_samples(X), same.score_samples(X))
    assert np.any(first.score_samples(X) != other.score_samples(X))


@pytest.mark.parametrize("cls", ALL)
def test_clone_and_pickle(cls: Any, fitted_estimators: dict[Any, Any]) -> None:
    fitted = fitted_estimators[cls]
    copied = clone(fitted)
    assert not hasattr(copied, "model_")
    assert copied.get_params() == fitted.get_params()
    saved = pickle.dumps(fitted)
    loaded = pickle.loads(saved)
    np.testing.assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))
    weights = sum(4 * p.numel() for p in fitted.model_.parameters())
    assert len(saved) < weights + 60_000  # no Trainer, no data


def test_grid_search_by_reconstruction_and_in_a_pipeline() -> None:
    search = GridSearchCV(MultiScaleTransformer(**QUICK), {"latent_dim": np.array([1, 6])}, cv=2).fit(X)
    assert search.best_params_ == {"latent_dim": 6}
    pipeline = make_pipeline(MultiScaleTransformer(**QUICK), LogisticRegression())
    labels = np.where(X[:, :3].mean(1) > X.mean(), "up", "down")
    grid = {"multiscaletransformer__model": ["ae", "pyramid"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, labels)
    assert search.best_params_ == {"multiscaletransformer__model": "pyramid"}  # which starts at PCA
    assert search.score(X, labels) > 0.9


@pytest.mark.parametrize("name", ["ItalyPowerDemand", "BasicMotions"])
def test_pipelines_with_aeon(name: str) -> None:
    from aeon.classification.sklearn import ContinuousIntervalTree
    from aeon.pipeline import make_pipeline as aeon_pipeline
    from aeon.transformations.collection import Normalizer

    data = ucr(name)
    assert data.train.y is not None
    assert data.test.y is not None
    (x, y), (x_test, y_test) = ((s.x[:].double().numpy(), s.y.numpy()) for s in (data.train, data.test))  # type: ignore[union-attr]
    features = MultiScaleTransformer(**{**QUICK, "latent_dim": 16})
    pipelines = [
        make_pipeline(features, ContinuousIntervalTree(random_state=0)),
        make_pipeline(Normalizer(), features, RidgeClassifier()),
    ]
    if x.shape[1] == 1:  # aeon's own pipeline takes several channels from aeon's own transformers alone
        pipelines.append(aeon_pipeline(Normalizer(), features, ContinuousIntervalTree(random_state=0)))
        pipelines.append(aeon_pipeline(features, RidgeClassifier()))
    for pipeline in pipelines:
        assert pipeline.fit(x, y).score(x_test, y_test) > (0.85 if name == "ItalyPowerDemand" else 0.3)


@pytest.mark.parametrize("cls", ALL)
def test_nothing_is_left_behind(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # not that of `random`, which the checks of shapes draw from
    loggers = [logging.getLogger(name) for name in (None, "lightning.pytorch", "lightning.fabric", "msae")]
    numpy_state = np.random.get_state()[1].tolist()
    before = torch.get_rng_state().tolist(), list(warnings.filters), torch.get_num_threads()
    settings = [(logger.level, list(logger.handlers)) for logger in loggers], signal.getsignal(signal.SIGINT)
    cls(**QUICK).fit(X, Y).score_samples(X)
    assert numpy_state == np.random.get_state()[1].tolist()
    assert before == (
        torch.get_rng_state().tolist(),
        list(warnings.filters),
        torch.get_num_threads(),
    )
    assert settings == ([(logger.level, logger.handlers) for logger in loggers], signal.getsignal(signal.SIGINT))
    assert list(tmp_path.iterdir()) == []
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_interrupts_and_can_interrupt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reconstructor, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MultiScaleTransformer(**QUICK).fit(X)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_import_is_lazy() -> None:
    code = "import msae, sys; assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError, match="MultiScaleTypo"):
        from msae import MultiScaleTypo  # noqa: F401


def test_verbose_prints_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = MultiScaleTransformer(**{**QUICK, "n_epochs": 3, "verbose": 1}).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(fitted.history_) == 3
    assert lines[0].startswith(f"epoch 1 of 3: train/loss={fitted.history_[0]['train/loss']:.4g} val/loss=")


def test_the_best_epoch_is_kept() -> None:
    fitted = MultiScaleTransformer(**{**QUICK, "n_epochs": 3, "lr": 100.0, "validation_fraction": 0.2}).fit(X)
    start = MultiScaleTransformer(**{**QUICK, "lr": 1e-12, "validation_fraction": 0.2}).fit(X)
    assert min(epoch["val/loss"] for epoch in fitted.history_) > start.history_[0]["val/loss"]
    np.testing.assert_allclose(fitted.transform(X), start.transform(X), rtol=1e-5, atol=1e-5)
    last = MultiScaleTransformer(**{**QUICK, "n_epochs": 3, "lr": 100.0, "validation_fraction": 0}).fit(X)
    assert set(last.history_[0]) == {"train/loss"}
    assert last.score(X) < start.score(X)


def test_two_samples_of_one_step() -> None:
    for cls in ALL:
        assert cls(**QUICK).fit([[1.0], [2.0]]).score_samples([[1.0], [2.0], [3.0]]).shape == (3,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(X > 6, np.nan, X), "Input X contains NaN"),
        (np.where(X > 6, np.inf, X), "Input X contains infinity"),
        (X[0], "Expected 2D array, got 1D array"),
        (X[:1], r"Found array with 1 sample\(s\)"),
        (X[None, None], r"X of shape \(2, 1, 40, 24\): expected \(n, time\) or \(n, channels, time\)"),
        (np.empty((3, 2, 0)), r"X of shape \(3, 2, 0\): expected"),
    ],
)
def test_samples_that_cannot_be_used(values: np.ndarray, message: str) -> None:
    for cls in ALL:
        with pytest.raises(ValueError, match=message):
            cls(**QUICK).fit(values if values.shape[0] > 1 or "1 sample" in message else np.concatenate([values] * 2))


def test_samples_of_another_length(transformer: MultiScaleTransformer) -> None:
    with pytest.raises(ValueError, match="X has 20 features, but MultiScaleTransformer is expecting 24 features"):
        transformer.transform(X[:, :20])
    with pytest.raises(InputError, match=r"X of shape \(40, 1, 24\): expected samples of shape \(24,\), as in fit"):
        transformer.transform(X[:, None])
    with pytest.raises(InputError, match=r"latents of shape \(40, 24\): expected \(n, 4\)"):
        transformer.inverse_transform(X)
    named = MultiScaleTransformer(**QUICK).fit(pd.DataFrame(X, columns=[f"t{i}" for i in range(24)]))
    with pytest.raises(ValueError, match="feature names should match"):
        named.transform(pd.DataFrame(X, columns=[f"u{i}" for i in range(24)]))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"model": "pyramids"}, "model=pyramids: expected one of pyramid, single, ae, msae, lgta"),
        ({"model": "msae", "latent_dim": 1}, "latent_dim=1: expected a whole number, at least 2"),
        ({"model": "lgta", "latent_dim": 1}, "latent_dim=1: expected a whole number, at least 2"),
        ({"latent_dim": 0}, "latent_dim=0"),
        ({"n_epochs": 0}, "n_epochs=0: expected a whole number, at least 1"),
        ({"lr": -1}, "lr=-1: expected a number above 0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"normalize": "log"}, "normalize=log: expected one of"),
        ({"validation_fraction": 2}, "validation_fraction=2: expected a number from 0 to 1"),
        ({"device": "tpu9"}, "device=tpu9: expected auto"),
        ({"device": "cuda:99"}, "device=cuda:99: this machine has no such device; expected auto"),
    ],
)
def test_parameters_that_cannot_be_used(parameter: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MultiScaleTransformer(**{**QUICK, **parameter}).fit(X)


def test_a_loss_that_is_not_finite() -> None:
    settings = {"model": "ae", "lr": 1e30, "n_epochs": 3, "validation_fraction": 0}
    with pytest.raises(InputError, match="try an lr below 1e\\+30"):
        MultiScaleTransformer(**{**QUICK, **settings}).fit(X)


def test_outliers_are_found() -> None:
    strange = X.copy()
    strange[::10] = 5 + RNG.normal(size=(4, 24))
    detector = MultiScaleDetector(0.1, **QUICK).fit(strange)
    assert np.flatnonzero(detector.predict(strange) == -1).tolist() == [0, 10, 20, 30]
    assert detector.predict(X[1::2]).mean() > 0.8
    np.testing.assert_array_equal(detector.fit_predict(strange), detector.predict(strange))
    for wrong in (0, 0.6, -0.1, "none"):
        with pytest.raises(InputError, match=f"contamination={wrong}"):
            MultiScaleDetector(wrong, **QUICK).fit(X)


@pytest.mark.parametrize("model", ["pyramid", "nested"])
def test_few_normal_samples_are_outliers(model: str) -> None:
    """One in 1,000 is expected; with as few samples in `fit`, none above their greatest score."""
    data = digits()
    x, new = data.train.x[:, 0].double().numpy(), data.test.x[:, 0].double().numpy()
    detector = MultiScaleDetector(**{**QUICK, "model": model}).fit(x)
    assert (detector.predict(new) == -1).mean() < 0.01
    assert detector.labels_.sum() <= 3
    noise = np.random.default_rng(0).permuted(new, axis=1)
    assert (detector.predict(noise) == -1).mean() > 0.5
    few = MultiScaleDetector(**{**QUICK, "model": model}).fit(x[:200])
    assert (few.predict(new) == -1).mean() < 0.1
    assert few.labels_.sum() == 1  # the quantile lies just below the greatest score


def test_samples_in_fit_are_not_their_own_neighbours() -> None:
    """Those that are scored again, in whatever order and type, have their scores in `fit`."""
    detector = MultiScaleDetector(0.1, **QUICK).fit(X)
    np.testing.assert_array_equal(-detector.score_samples(X), detector.decision_scores_)
    np.testing.assert_array_equal(-detector.score_samples(X[5:2:-1]), detector.decision_scores_[5:2:-1])
    np.testing.assert_allclose(-detector.score_samples(X.astype(np.float32)), detector.decision_scores_, rtol=1e-5)
    assert detector.labels_.tolist() == (detector.predict(X) == -1).astype(int).tolist()
    assert detector.labels_.sum() == 4
    close = -detector.score_samples(X * (1 + 1e-6))
    assert (close < detector.decision_scores_).all()
    twins = MultiScaleDetector(0.1, **QUICK).fit(np.concatenate([X, X[:3]]))
    np.testing.assert_array_equal(twins.decision_scores_[:3], twins.decision_scores_[40:])


def test_scores_of_the_steps_of_a_series(fitted_estimators: dict[Any, Any]) -> None:
    detector = fitted_estimators[MultiScaleDetector]
    series = np.sin(np.arange(200) / 3) + 5
    series[100] += 6
    scores = detector.score_series(series)
    assert abs(scores.argmin() - 100) < 24
    known = reference.learn(detector.model_, [torch.from_numpy(X)[:, None]])
    found = anomaly.joined(list(anomaly.scores(anomaly.Scorer(detector.model_, known), torch.from_numpy(series)[None])))
    np.testing.assert_array_equal(scores, -found.total.numpy())
    new = X[0] + 0.01
    assert detector.score_series(new)[-1] == pytest.approx(detector.score_samples(new[None])[0], rel=1e-3)
    for wrong, message in ((series[:20], "series of 20 steps"), (np.stack([series] * 2), r"expected \(1, time\)")):
        with pytest.raises(InputError, match=message):
            detector.score_series(wrong)


TIME = 1600
FRAME = pd.DataFrame(
    np.sin(np.arange(TIME) / 5)[:, None] * [1, 30] + np.random.default_rng(0).normal(size=(TIME, 2)) * [0.1, 3],
    pd.date_range("2026-01-01", periods=TIME, freq="5min", tz="Europe/Berlin", name="time"),
    ["flow", "heat"],
)
TRAINED = 1200


@pytest.fixture(scope="module")
def of_frame() -> MultiScaleDetector:
    """A detector of the first part of `FRAME`; tests only read it."""
    return MultiScaleDetector(**QUICK).fit(FRAME[:TRAINED])


def test_a_data_frame_is_one_series(of_frame: MultiScaleDetector) -> None:
    assert (of_frame.form_, of_frame.model_.channels, of_frame.model_.length) == ("series", 2, 62)
    assert list(of_frame.model_.codes) == ["62", "31", "15", "8"]
    assert of_frame.model_.names == ["flow", "heat"]
    new = FRAME[TRAINED:].copy()
    new.iloc[200:212, 1] = 90
    for found in (of_frame.score(new), of_frame.score_samples(new), of_frame.decision_function(new)):
        assert found.index.equals(new.index)
        assert 190 < found.argmin() < 222
    labels = of_frame.predict(new)
    assert labels.index.equals(new.index)
    assert set(labels) == {-1, 1}
    np.testing.assert_array_equal(labels == -1, of_frame.score(new) < of_frame.offset_)
    assert (of_frame.predict(FRAME[TRAINED:]) == -1).mean() < 0.02
    scorer = anomaly.Scorer(of_frame.model_, of_frame.reference_)
    expected = anomaly.joined(list(anomaly.scores(scorer, torch.tensor(new.to_numpy().T))))
    np.testing.assert_array_equal(of_frame.score(new), -expected.total.numpy())


def test_events_of_a_data_frame(of_frame: MultiScaleDetector) -> None:
    assert len(of_frame.events(FRAME[TRAINED:])) == 0
    new = FRAME[TRAINED:].copy()
    new.iloc[100:106, 0] += 3
    new.iloc[300:330, 1] = np.nan
    found = of_frame.events(new)
    assert list(found.columns) == ["start", "end", "peak", "known_at", "score", "channel", "scale", "rule"]
    for name in ("start", "end", "peak", "known_at"):
        assert found[name].dtype == new.index.dtype
        assert of_frame.events(FRAME[TRAINED:])[name].dtype == new.index.dtype
    fault = found[found["channel"] == "flow"].iloc[0]
    assert fault["start"] <= new.index[103] <= fault["end"]
    assert new.index[100] <= fault["known_at"] <= new.index[106 + 62]
    assert fault["score"] == of_frame.score(new)[fault["peak"]] < of_frame.offset_
    assert fault["scale"] in of_frame.model_.codes
    [missing] = found[found["rule"].str.contains("missing")].to_dict("records")
    assert missing["channel"] == "heat"
    assert missing["start"] <= new.index[300]
    assert missing["end"] >= new.index[329]


def test_the_series_in_fit_is_not_its_own_neighbour(of_frame: MultiScaleDetector) -> None:
    own = of_frame.score(FRAME[:TRAINED])
    np.testing.assert_array_equal(-own, of_frame.decision_scores_)
    assert of_frame.labels_.tolist() == (of_frame.predict(FRAME[:TRAINED]) == -1).astype(int).tolist()
    assert of_frame.labels_.mean() < 0.01
    assert of_frame.score(FRAME[: TRAINED - 1]).median() > 2 * own.median()  # another series, and close to this one
    strange = FRAME.copy()
    strange.iloc[700:710, 1] = 90
    detector = MultiScaleDetector(0.02, **QUICK)
    labels = detector.fit_predict(strange)
    assert (labels == -1).mean() == pytest.approx(0.02, abs=0.001)
    assert labels.iloc[700:710].max() == -1


def place(x: Any, step: int) -> Any:
    """The label of a step."""
    return step if isinstance(x, np.ndarray) else x.index[step]


def test_missing_values_in_fit() -> None:
    holes = FRAME.copy()
    holes.iloc[300:310, 0] = np.nan
    holes.iloc[700:705] = np.nan
    detector = MultiScaleDetector(**QUICK).fit(holes)
    assert detector.model_.missing
    assert np.flatnonzero(np.isnan(detector.decision_scores_)).tolist() == list(range(700, 705))
    assert not set(np.flatnonzero(detector.labels_)) & set(range(700, 705))
    assert (detector.predict(FRAME[:200]) == 1).all()


@pytest.mark.parametrize("kind", ["array", "one", "rows"])
def test_other_series(kind: str) -> None:
    """Arrays that are named a series, one channel, and frames without times."""
    x = {"array": FRAME.to_numpy(), "one": FRAME["flow"], "rows": FRAME.reset_index(drop=True)}[kind]
    detector = MultiScaleDetector(window=40, form="series" if kind == "array" else "auto", **QUICK).fit(x[:TRAINED])
    new = x[TRAINED:].copy()
    new[100:110] = 77
    scores, found = detector.score(new), detector.events(new)
    assert isinstance(scores, np.ndarray if kind == "array" else pd.Series)
    hit = (found["start"] <= place(new, 105)) & (found["end"] >= place(new, 105))
    assert hit.any()
    assert set(found["channel"]) <= {"array": {"0", "1"}, "one": {"flow"}, "rows": {"flow", "heat"}}[kind]
    assert detector.model_.length == 40
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score(new), scores)


def test_time_stamps_are_put_on_a_grid(of_frame: MultiScaleDetector, caplog: pytest.LogCaptureFixture) -> None:
    """Jitter and repeated stamps change nothing; few missing rows are interpolated, and a gap begins a new stretch."""
    new = FRAME[TRAINED:].copy()
    whole = of_frame.score(new)
    jitter = new.set_axis(new.index + pd.to_timedelta(np.tile([0, 40, -40, 20], 100), "s"))
    np.testing.assert_array_equal(of_frame.score(jitter), whole)
    twice = new.iloc[[*range(100), 99, *range(100, 400)]]
    np.testing.assert_allclose(of_frame.score(twice), whole.iloc[[*range(100), 99, *range(100, 400)]], rtol=1e-4)
    assert "rows averaged with the one before, in the same step: 1" in caplog.text
    apart = new.drop(new.index[150:250])
    found = of_frame.score(apart)
    assert found.index.equals(apart.index)
    first, second = (of_frame.score(part) for part in (new[:150], new[250:]))
    np.testing.assert_allclose(found, np.concatenate([first, second]), rtol=1e-4)
    assert of_frame.score(new.drop(new.index[170:250]).drop(new.index[:150])).iloc[:20].isna().all()
    few = new.drop(new.index[200:203]).copy()
    few.iloc[300:306, 0] += 3
    found = of_frame.score(few)
    assert found.notna().all()
    np.testing.assert_allclose(found[:100], whole[:100], rtol=1e-4)
    [event] = of_frame.events(few).to_dict("records")
    assert event["start"] <= few.index[303] <= event["end"] < few.index[-1]
    assert event["start"] in few.index
    assert event["peak"] == found.idxmin()


def test_fit_to_stamps_with_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """No window crosses it, what was in `fit` is known again, and a failure in it is told by its label."""
    frame = FRAME.drop(FRAME.index[500:700]).copy()
    frame.iloc[900:930, 1] = -500
    detector = MultiScaleDetector(**QUICK).fit(frame)
    assert detector.reference_.bank.series.unique().tolist() == [0, 1, 2]
    assert detector.reference_.totals.numel() == len(frame)
    np.testing.assert_array_equal(-detector.score(frame), detector.decision_scores_)
    label = re.search(r"X at (.*): heat is -500, where all other values are at least ", caplog.text)
    assert label is not None
    assert frame.index[900] <= pd.Timestamp(label[1]) < frame.index[930]


def test_a_few_columns_are_named() -> None:
    rows = FRAME.to_numpy()
    message = (
        r"X of shape \(1600, 2\): one series of 2 channels, or 1600 samples of 2 steps\? "
        "expected form='series' or form='samples'"
    )
    with pytest.raises(InputError, match=message):
        MultiScaleDetector(**QUICK).fit(rows)
    assert MultiScaleDetector(form="samples", **QUICK).fit(FRAME).sample_shape_ == (2,)
    assert MultiScaleDetector(form="samples", **QUICK).fit(rows).score(rows).shape == (1600,)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: x.assign(kind="on"), {}, "X: column kind of .*; expected numbers, and times as the index"),
        (lambda x: x[::-1], {}, "X, row 1: time .* goes back from .* of the row before; expected X.sort_index"),
        (lambda x: x.iloc[np.arange(1000) // 2], {}, "X, row 1: time .* repeats .* of the row before; expected X"),
        (lambda x: x.set_axis(["a", "a"], axis=1), {}, "Expected unique column names"),
        (lambda x: x.assign(empty=np.nan), {}, "X: column empty has no value in the first 1440 rows"),
        (lambda x: x.assign(flow=np.inf), {}, "Input X contains infinity"),
        (lambda x: x[:40], {"window": 40}, "X: 40 steps to train on; expected more than the window's 40"),
        (lambda x: x, {"window": 1}, "window=1: expected a whole number, at least 2"),
        (lambda _: X, {"window": 24}, "window=24: samples are windows; expected None, or a series"),
        (lambda x: x, {"form": "frame"}, "form=frame: expected one of auto, series, samples"),
        (lambda x: x, {"model": "nest"}, "model=nest: expected one of auto, nested, pyramid"),
        (lambda x: x, {"latent_dim": 0.5}, "latent_dim=0.5: expected a whole number"),
    ],
)
def test_series_that_cannot_be_used(change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiScaleDetector(**{**QUICK, **options}).fit(change(FRAME))


def test_other_series_than_in_fit(of_frame: MultiScaleDetector) -> None:
    with pytest.raises(ValueError, match="feature names should match"):
        of_frame.score(FRAME.rename(columns={"flow": "gas"}))
    with pytest.raises(InputError, match="series of 20 steps: expected at least 62"):
        of_frame.score(FRAME[:20])
    with pytest.raises(InputError, match="events: fitted to samples; expected a detector of a series"):
        MultiScaleDetector(**QUICK).fit(X).events(X)


@pytest.mark.parametrize("change", ["jitter", "scaling", "magnitude_warp", "drift", "mix"])
def test_new_samples(change: str) -> None:
    augmenter = MultiScaleAugmenter(change, 0.3, copies=2, **QUICK)
    x, y = augmenter.fit_resample(X, Y)
    assert x.shape == (120, 24)
    np.testing.assert_array_equal(x[:40], X)
    assert y.tolist() == Y.tolist() * 3
    first, second = np.split(x[40:], 2)
    for made in (first, second):
        assert 0 < np.abs(made - X).mean() < X.std()
    assert np.any(first != second)
    np.testing.assert_array_equal(augmenter.augment(X, Y), x[40:])  # random_state is a seed
    still = augmenter.set_params(strength=0.0, copies=1).augment(X, Y)
    np.testing.assert_allclose(still, X, atol=1e-5)


def test_mixing_keeps_labels_apart() -> None:
    far = np.concatenate([X[:20], X[20:] + 50])
    augmenter = MultiScaleAugmenter("mix", 1.0, **QUICK).fit(far, Y)
    made = augmenter.augment(far, Y)
    assert made[:20].max() < 30 < made[20:].min()
    with pytest.raises(InputError, match="y=None: mix needs labels"):
        augmenter.augment(far)


def test_a_distance_for_every_sample() -> None:
    augmenter = MultiScaleAugmenter(distance=0.2, scales=["1"], **QUICK).fit(X)
    moved = np.sqrt(np.mean((augmenter.augment(X) - X) ** 2, 1)) / X.std()
    np.testing.assert_allclose(moved, 0.2, rtol=0.03)
    with pytest.warns(UserWarning, match="40 of 40 new samples do not reach it"):
        augmenter.set_params(change="mix", distance=50.0).augment(X)


@pytest.mark.parametrize("cls", [MultiScaleTransformer, MultiScaleDetector, MultiScaleAugmenter, MultiScalePooler])
def test_labels_of_another_number(cls: Any) -> None:
    with pytest.raises(InputError, match=f"y: 3 for {len(X)} samples; expected one for each"):
        cls().fit(X, Y[:3])


def test_labels_and_changes_that_cannot_be_used(fitted_estimators: dict[Any, Any]) -> None:
    augmenter = copy.deepcopy(fitted_estimators[MultiScaleAugmenter])
    with pytest.raises(InputError, match="label c: expected a label that was in fit: a, b"):
        augmenter.augment(X[:2], ["a", "c"])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        augmenter.augment(X, Y[:3])
    valid = augmenter.get_params()
    for parameter, message in (
        ({"change": "jiter"}, "change=jiter: expected one of"),
        ({"strength": -1.0}, "strength=-1"),
        ({"scales": ["7"]}, "scales=7: expected one of"),
        ({"copies": 0}, "copies=0"),
        ({"distance": 1e9}, "distance=1000000000.0: expected a number above 0, to 100"),
    ):
        with pytest.raises(InputError, match=message):
            augmenter.set_params(**parameter).augment(X, Y)
        fresh = clone(augmenter)
        with pytest.raises(InputError, match=message):  # before it trains
            fresh.fit(X, Y)
        assert not hasattr(fresh, "model_")
        augmenter.set_params(**valid)
