"""Ridge regression on latents, and the command; no forecast uses later steps."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import Command, Result, save
from hydra import compose, initialize_config_dir
from pyarrow import csv, parquet
from sklearn.base import clone
from sklearn.linear_model import Ridge
from torch import Tensor

from msae import InputError, MultiScaleForecaster, forecast, read
from msae.cli import CONF
from msae.data import calendar
from msae.data.rows import Table
from msae.models.ae import AutoEncoder
from msae.models.nested import NestedAutoEncoder
from msae.uses import forecasting, look_back
from msae.uses.forecasting import Part

LENGTH = 8


def wave(time: int, seed: int = 0) -> Tensor:
    """Two channels in double precision: a noisy sine high up, and a walk."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, time))
    return torch.from_numpy(np.stack([100 + np.sin(np.arange(time) / 3) + noise[0] / 9, noise[1].cumsum()]))


def split(series: Tensor) -> list[list[Part]]:
    return [[(series[:, :200], 0)], [(series[:, 200 - LENGTH : 260], LENGTH)], [(series[:, 260 - LENGTH :], LENGTH)]]


def windows(series: Tensor, first: int, stop: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The naive computation: inputs and futures whose steps are all from `first` to `stop`."""
    now = [t for t in range(LENGTH, series.shape[1]) if t >= first and t + horizon <= stop]
    x = np.stack([series[:, t - LENGTH : t].numpy().reshape(-1) for t in now])
    return x, np.stack([series[:, t : t + horizon].numpy().reshape(-1) for t in now])


RAW = {"raw": look_back.raw([4, LENGTH])}


@pytest.mark.parametrize("horizon", [1, 5])
def test_it_is_ridge_regression(horizon: int) -> None:
    """Forecasts equal scikit-learn's on differences of scaled root mean square, with the same penalty."""
    series = wave(320)
    train, val, test = split(series)
    found = forecasting.fit(RAW, train, val, LENGTH, [horizon])[horizon]
    width = series[:, :200].std(1, correction=0).numpy()

    def features(first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y = (part.reshape(len(part), 2, -1) for part in windows(series, first, stop, horizon))
        last = x[..., -1:]
        z = (x[..., ::-1][..., 1 : found.look_back] - last) / width[:, None]
        return np.concatenate([np.ones((*z.shape[:2], 1)), z], 2), (y - last) / width[:, None], last

    (z, y, _), (z_test, y_test, last) = features(0, 200), features(260, 320)
    groups = [[0], [1]] if found.each else [[0, 1]]
    y_hat = np.empty_like(y_test)
    for group in groups:
        own, future = (value[:, group].reshape(-1, value.shape[2]) for value in (z, y))
        size = np.sqrt(np.square(own).mean(0))
        ridge = Ridge(found.alpha, fit_intercept=False).fit(own / size, future)
        for channel in group:
            y_hat[:, channel] = ridge.predict(z_test[:, channel] / size).reshape(len(y_hat), -1)
    x_test = torch.from_numpy(windows(series, 260, 320, horizon)[0].reshape(-1, 2, LENGTH))
    assert found(x_test).numpy() == pytest.approx(y_hat * width[:, None] + last, rel=1e-6)
    result = forecasting.evaluate({horizon: found}, test, LENGTH)[horizon]
    assert result.n == len(x_test) == 60 - horizon + 1
    assert result.mse.numpy() == pytest.approx(np.square(y_hat - y_test).mean((0, 2)))
    assert result.mae.numpy() == pytest.approx(np.abs(y_hat - y_test).mean((0, 2)))


def test_horizons_side_by_side_are_as_each_alone() -> None:
    train, val, _ = split(wave(320))
    train += split(wave(320, seed=1))[0]
    together = forecasting.fit(RAW, train, val, LENGTH, [1, 5, 40], stride=3)
    for horizon, its in together.items():
        alone = forecasting.fit(RAW, train, val, LENGTH, [horizon], stride=3)[horizon]
        assert (alone.alpha, alone.each, alone.look_back) == (its.alpha, its.each, its.look_back)
        assert alone.weights.numpy() == pytest.approx(its.weights.numpy(), rel=1e-5, abs=1e-8)


def test_intervals_hold_their_share_of_validation() -> None:
    train, val, _ = split(wave(320))
    found = forecasting.fit(RAW, train, val, LENGTH, [3], level=0.9)
    coverage = forecasting.evaluate(found, val, LENGTH)[3].coverage
    assert ((coverage >= 0.9) & (coverage < 0.97)).all()


def test_a_channel_that_is_constant() -> None:
    series = wave(320)
    series[1] = 5
    train, val, test = split(series)
    found = forecasting.fit(RAW, train, val, LENGTH, [2])
    assert found[2](series[None, :, :LENGTH])[0, 1].tolist() == pytest.approx([5, 5])
    assert forecasting.evaluate(found, test, LENGTH)[2].mse[1] == pytest.approx(0)


@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_codes_see_their_own_steps_and_channel(channels: str) -> None:
    model = NestedAutoEncoder((2, LENGTH), lengths=[4, LENGTH], code_dim=2, channels=channels)
    features = look_back.latent(model)
    x = wave(LENGTH).float()[None]
    plain, changed = features.compute(x), x.clone()
    assert plain.shape == (1, 2, max(features.sizes.values()))
    changed[:, 1, 0] += 9
    differs = (features.compute(changed) != plain)[0].any(1).tolist()
    assert differs == ([False, True] if channels == "separate" else [True, True])
    if channels == "separate":
        assert features.sizes == {4: 3, LENGTH: 6}
        assert torch.equal(features.compute(changed)[..., :3], plain[..., :3])


X = wave(400).T.numpy().astype(np.float32)
CHANNELS = ["a", "a_low", "a_high", "b", "b_low", "b_high"]
TIMES = np.datetime64("2024-01-01T00:00:00") + np.arange(400) * np.timedelta64(15, "m")


@pytest.fixture
def run(command: Command) -> object:
    torch.manual_seed(0)
    save(AutoEncoder((2, LENGTH), latent_dim=6), "best.ckpt", ["a", "b"])

    def forecast(*args: str) -> Result:
        fixed = ("ckpt=best.ckpt", "data=series", "data.path=a.csv", "out=f.csv", "horizons=[3,10]")
        return command(*fixed, *args, module="forecast")

    return forecast


def write_file(path: str, x: np.ndarray = X, **columns: object) -> None:
    csv.write_csv(pa.table({"a": x[:, 0], "b": x[:, 1]} | columns), path)


def fitted(*overrides: str) -> tuple[list[Table], dict[str, list[Part]], dict[int, forecasting.Forecaster]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("forecast", overrides=["ckpt=best.ckpt", "out=f.csv", *overrides])
    model = read.begin(cfg)
    tables, _, parts = forecast.series_of(cfg, model)
    features = forecast.features_of(model, lambda _: None)
    return tables, parts, forecasting.fit(features, parts["training"], parts["validation"], LENGTH, [3, 10])


@pytest.mark.usefixtures("run")
def test_what_the_test_split_holds_changes_nothing() -> None:
    """Changes in the last 15 % of the file have no effect; changes in the training split change the coefficients."""
    found = []
    for low, high in ((0, 0), (340, 400), (0, 280)):
        x = X.copy()
        x[low:high] = np.random.default_rng(5).normal(size=(high - low, 2)) * 30
        write_file("a.csv", x)
        found.append(fitted("data.path=a.csv")[2])
    for horizon, plain in found[0].items():
        assert plain.alpha == found[1][horizon].alpha
        assert torch.equal(plain.weights, found[1][horizon].weights)
        other = found[2][horizon].weights
        assert plain.weights.shape != other.shape or not torch.equal(plain.weights, other)


@pytest.mark.usefixtures("run")
def test_parts_look_back_but_not_across_gaps_or_series() -> None:
    """The steps that a split may forecast are its own; windows reach back into the split before."""
    day = np.arange(200)
    day[100:] += 50  # a gap within the training split, which ends at 140
    write_file("a.csv", t=np.repeat(day, 2), g=list("xy") * 200)
    options = ("data.path=a.csv", "data.time_column=t", "data.group_column=g", "data.max_gap=1")
    [table], parts, _ = fitted(*options)

    def rows(its: Sequence[Part]) -> list[tuple[int, int]]:
        order = {tuple(row): i for i, row in enumerate(table.values.tolist())}
        starts = [order[tuple(series[:, 0].tolist())] for series, _ in its]
        return [(start + first, start + series.shape[1]) for start, (series, first) in zip(starts, its, strict=True)]

    assert rows(parts["training"]) == [(0, 100), (100, 140), (200, 300), (300, 340)]
    assert [first for _, first in parts["training"]] == [0] * 4
    assert rows(parts["validation"]) == [(140, 170), (340, 370)]
    assert rows(parts["test"]) == [(170, 200), (370, 400)]
    assert [first for split in ("validation", "test") for _, first in parts[split]] == [LENGTH] * 4


def test_command(run: Command) -> None:
    write_file("a.csv", t=TIMES)
    code, out, err = run("data.time_column=t")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == ["horizon", "latent", "raw", "used", "look-back", "regressions", "penalty"]
    for line in lines[2:4]:
        _, latent, raw, used = line.split()[:4]
        assert used == ("latent" if float(latent) < float(raw) else "raw")
    rows = [line.split() for line in lines[7:13]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (horizon, n, name) for horizon, n in (("3", "58"), ("10", "51")) for name in ("a", "b", "all")
    ]
    deviation = X[:280].std(0, dtype=np.float64)
    mse, mae, mse_raw, mae_raw = map(float, rows[1][3:7])
    assert mse_raw == pytest.approx(mse * deviation[1] ** 2, rel=1e-2)
    assert mae_raw == pytest.approx(mae * deviation[1], rel=1e-2)
    assert float(rows[2][3]) == pytest.approx((float(rows[0][3]) + mse) / 2, rel=1e-2)
    table = csv.read_csv("f.csv").to_pydict()
    assert list(table) == ["file", "horizon", "step", "time", *CHANNELS]
    assert table["step"] == [*range(1, 4), *range(1, 11)]
    assert np.array(table["time"], "M8[s]")[3:].tolist() == [
        (TIMES[-1] + step * np.timedelta64(15, "m")).item() for step in range(1, 11)
    ]
    assert np.abs(np.array(table["a"]) - 100).max() < 2  # raw units
    assert Path("f.csv.png").stat().st_size > 5000


def test_series_of_groups_and_no_times(run: Command) -> None:
    """The forecasts are those of the last window of each series."""
    write_file("a.csv", g=["x"] * 200 + ["y"] * 200)
    assert run("data.group_column=g", "out=f.parquet").code == 0
    table = parquet.read_table("f.parquet").to_pydict()
    assert list(table) == ["file", "group", "horizon", "step", *CHANNELS]
    assert table["group"] == ["x"] * 13 + ["y"] * 13
    _, _, found = fitted("data.path=a.csv", "data.group_column=g")
    y_hat = found[10](torch.from_numpy(X[None, 192:200].transpose(0, 2, 1).copy()))
    assert table["b"][3:13] == pytest.approx(y_hat[0, 1].tolist(), rel=1e-4)


@pytest.mark.usefixtures("run")
def test_months_are_months() -> None:
    months = np.datetime64("2020-01") + np.arange(48)
    times = (months.astype("M8[D]") - np.datetime64("2020-01-01")) / np.timedelta64(1, "s")
    table = Table(Path("a.csv"), ["a"], X[:48], times, np.datetime64("2020-01-01"), [("", 0, 48)])
    after = forecast.following(table, 48, 4).to_pylist()
    assert [str(np.datetime64(t, "D")) for t in after] == ["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]
    numbers = Table(Path("a.csv"), ["a"], X[:48], np.arange(48) * 0.5, None, [("", 0, 48)])
    assert forecast.following(numbers, 48, 2).to_pylist() == [24.0, 24.5]


def test_a_gap_begins_a_new_stretch_and_a_hole_is_the_last_value(run: Command) -> None:
    times = TIMES.copy()
    times[150:] += np.timedelta64(5, "h")
    write_file("a.csv", b=[None if i == 395 else float(x) for i, x in enumerate(X[:, 1])], t=times)
    code, _, err = run("data.time_column=t", "data.missing=interpolate")
    assert code == 0, err
    [table], parts, _ = fitted("data.path=a.csv", "data.time_column=t", "data.missing=interpolate")
    assert [series.shape[1] for series, _ in parts["training"]] == [150, 130]
    assert table.values[395, 1] == table.values[394, 1]


@pytest.mark.parametrize(
    ("stamps", "after"),
    [
        (pd.date_range("2018-01-31", "2019-12-31", freq="ME"), ["2020-01-31", "2020-02-29", "2020-03-31"]),
        (pd.date_range("2018-03-31", "2019-12-31", freq="QE"), ["2020-03-31", "2020-06-30", "2020-09-30"]),
        (pd.bdate_range("2021-01-01", "2021-07-09"), ["2021-07-12", "2021-07-13", "2021-07-14"]),
        (pd.bdate_range("2021-01-01", "2021-07-09").delete([20, 50]), ["2021-07-12", "2021-07-13", "2021-07-14"]),
        (pd.date_range("2016-02-29", "2019-02-28", freq="YE-FEB"), ["2020-02-29", "2021-02-28", "2022-02-28"]),
    ],
)
def test_the_calendar_goes_on(stamps: pd.DatetimeIndex, after: list[str]) -> None:
    assert calendar.following(stamps, 3).strftime("%Y-%m-%d").tolist() == after
    zoned = calendar.following(stamps.tz_localize("+05:30"), 3)
    assert zoned.strftime("%Y-%m-%d %z").tolist() == [f"{day} +0530" for day in after]


def test_estimator_takes_and_gives_data_frames() -> None:
    index = pd.date_range("2015-01-31", periods=120, freq="ME")
    frame = pd.DataFrame(X[:120], index, ["a", "b"])
    forecaster = MultiScaleForecaster(6, window=16, n_epochs=1, random_state=0, device="cpu")
    found = clone(forecaster).fit(frame)
    y_hat, (low, high) = found.predict(3), found.predict_interval(3)
    assert y_hat.columns.tolist() == ["a", "b"]
    assert y_hat.index.strftime("%m-%d").tolist() == ["01-31", "02-28", "03-31"]
    assert ((low < y_hat) & (y_hat < high)).all(axis=None)
    array = clone(forecaster).fit(frame.to_numpy()).predict(3)
    np.testing.assert_allclose(array, y_hat.to_numpy())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).predict(3), y_hat)
    with pytest.raises(InputError, match="horizon=7: expected a whole number, from 1 to 6"):
        found.predict(7)


def test_a_channel_called_as_another_column(run: Command) -> None:
    csv.write_csv(pa.table({"step": X[:, 0], "b": X[:, 1]}), "a.csv")
    assert run("data.columns=[step,b]").code == 0
    assert csv.read_csv("f.csv").column_names[:4] == ["file", "horizon", "step", "step_value"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["horizons=[3,99]"],
            "horizons: 99: no window of 8 steps has 99 steps after it in the validation split, whose",
        ),
        (["horizons=24"], "horizons=24: expected a list of whole numbers"),
        (["horizons=all"], "horizons=all: expected a list of whole numbers"),
        (["horizons=null"], "horizons=None: expected a list of whole numbers"),
        (["horizons=[]"], "horizons=[]: expected steps to forecast, such as [24,48]"),
        (["horizons=[24,24]"], "horizons=[24, 24]: 24 is given twice"),
        (["horizons=[0]"], "horizons=0: expected a whole number, at least 1"),
        (["data.val_size=0"], "horizons: 3: no window of 8 steps has 3 steps after it in the validation split"),
        (
            ["data.path=hole.csv", "data.missing=error"],
            "hole.csv, line 397, column b: no value; data.missing=interpolate carries the last value on",
        ),
        (["data.path=one.csv", "data.columns=[a]"], "one.csv: 1 channels, a; the model takes 2, in windows of 8 steps"),
        (["data.path=short.csv"], "horizons: 3: no window of 8 steps has 3 steps after it in the training split"),
        (["data.path=cut.npy", "data.columns=[0,1]"], "cut.npy: windows already cut; expected series"),
        (["data.test_path=a.csv"], "data.test_path=a.csv: a.csv is among the files of data.path too"),
        (["out=there.csv"], "out=there.csv: there.csv exists; overwrite=true replaces it"),
    ],
)
def test_mistakes(args: list[str], message: str, run: Command) -> None:
    write_file("a.csv")
    write_file("hole.csv", b=[None if i == 395 else float(i) for i in range(400)])
    write_file("short.csv", X[:9])
    csv.write_csv(pa.table({"a": X[:, 0]}), "one.csv")
    np.save("cut.npy", np.zeros((9, 2, 8)))
    Path("there.csv").touch()
    before = sorted(Path().iterdir())
    code, out, err = run(*args)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {message}")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("trained", "args", "message"),
    [
        ({}, [], None),
        ({}, ["data.test_size=0.1"], None),
        ({}, ["data.test_size=0.3"], "data.test_size=0.3: the model was trained on steps of this test"),
        ({}, ["data.test_path=b.csv"], None),
        ({}, ["data.path=b.csv", "data.test_size=0.3"], None),
        ({}, ["data.path=b.csv", "data.test_path=a.csv"], "data.test_path=a.csv: the model was trained on a.csv"),
        ({"path": ["away/b.csv", "a.csv"]}, ["data.path=b.csv", "data.test_size=0.3"], "data.test_size=0.3: the model"),
        ({"group_column": "g"}, ["data.group_column=null"], "data.group_column=None: the model was trained on steps"),
        (
            {"test_path": "b.csv"},
            ["data.test_path=null"],
            "data.test_size=0.15: the model was trained on steps of this",
        ),
        ({"test_path": "b.csv"}, [], None),
        ({"test_path": "b.csv"}, ["data.test_path=b.csv"], None),
        ({}, ["data.split=random"], "data.split=random: expected time"),
    ],
)
def test_what_the_model_was_trained_on_is_no_test(
    trained: dict[str, object], args: list[str], message: str | None, run: Command
) -> None:
    write_file("a.csv")
    write_file("b.csv")
    data = {"path": "a.csv", "test_path": None, "test_size": 0.15, "group_column": None} | trained
    checkpoint = torch.load("best.ckpt", weights_only=True)
    options = {"_target_": "msae.data.series.series", "window": LENGTH} | data
    checkpoint["state_dict"]["_extra_state"]["data_options"] = options
    torch.save(checkpoint, "best.ckpt")
    code, _, err = run(*args)
    if message is None:
        assert (code, err) == (0, "")
    else:
        assert (code, len(err.splitlines())) == (2, 1)
        assert err.startswith(f"error: {message}")


def test_a_data_set_of_samples_is_refused(command: Command) -> None:
    save(AutoEncoder((1, 64)), "best.ckpt")
    code, _, err = command("ckpt=best.ckpt", "data=digits", "out=f.csv", module="forecast")
    assert (code, err) == (
        2,
        "error: data: a data set of samples; expected data=series, or an option made of it, such as data=ecg\n",
    )
