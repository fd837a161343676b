"""Numbers that float32 does not hold: levels, sizes, constants, and values far outside of the training data."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from conftest import Command
from torch import Tensor

from msae import InputError
from msae.baselines import pca
from msae.data.module import DataModule, Windows
from msae.data.series import series
from msae.estimators import MultiScaleAugmenter, MultiScaleDetector, MultiScaleTransformer
from msae.estimators.training import isolated, train
from msae.models.ae import AutoEncoder
from msae.models.checkpoint import load
from msae.models.reconstructor import Reconstructor
from msae.uses import anomaly, augmentation, reference

OFFSETS = [1e3, 1e6, 1e9]
TIME, LENGTH = 900, 16
SMALL = {"latent_dim": 4, "n_epochs": 1, "random_state": 0, "device": "cpu"}


def walk(time: int = TIME, channels: int = 2) -> np.ndarray:
    """A series `(time, channels)`, the second channel of another size."""
    rng = np.random.default_rng(0)
    return (np.sin(np.arange(time) / 7)[:, None] + 0.1 * rng.normal(size=(time, channels))) * [1, 30][:channels]


def trained(data: DataModule) -> Reconstructor:
    """A model of a data set, after an epoch."""
    with isolated(0), torch.enable_grad():
        model = AutoEncoder(data.shape, latent_dim=6)
        model.set_statistics(**data.statistics)
        train(model, data, 1, {"accelerator": "cpu", "devices": 1}, verbose=False)
    return model.eval()


def read_as(kind: str, x: np.ndarray, folder: Path, normalize: str = "standard") -> DataModule:
    """A series as a data set, by way of a file or not."""
    path, options = folder / f"a.{kind}", {"window": LENGTH, "normalize": normalize, "seed": 0}
    columns = {"a": x[:, 0], "b": x[:, 1]}
    if kind == "csv":
        path.write_text("a,b\n" + "\n".join(f"{a!r},{b!r}" for a, b in x.tolist()))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
    elif kind == "npy":
        np.save(path, x)
    elif kind == "npz":
        np.savez(path, allow_pickle=False, **columns)
    elif kind == "long":
        path, options = folder / "a.csv", options | {"group_column": "g"}
        rows = [f"{'mn'[i % 2]},{a!r},{b!r}" for i, (a, b) in enumerate(x.tolist())]
        path.write_text("g,a,b\n" + "\n".join(rows))
    elif kind == "folder":
        path = folder / "in"
        path.mkdir()
        for i, part in enumerate(np.split(x, 2)):
            np.save(path / f"{i}.npy", part)
    elif kind == "windows":
        np.save(folder / "a.npy", np.stack(np.split(x[: len(x) // LENGTH * LENGTH], len(x) // LENGTH)).swapaxes(1, 2))
        path, options = folder / "a.npy", {"normalize": normalize, "split": "random", "seed": 0}
    else:
        windows = Windows(torch.from_numpy(x).unfold(0, LENGTH, 1))
        return DataModule(windows[:600], windows[600:], val_size=50, normalize=normalize)
    return series(str(path), **options)


def scores(model: Reconstructor, x: np.ndarray) -> Tensor:
    return anomaly.joined(list(anomaly.scores(anomaly.Scorer(model), torch.from_numpy(x).T))).channels


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.fixture(scope="module")
def low() -> dict[tuple[str, str], tuple[Reconstructor, Tensor, Tensor]]:
    """Of models without an offset: the model, its scores and its reconstructions of the test split."""
    return {}


@pytest.mark.parametrize(
    ("kind", "offset", "normalize"),
    [
        *(("tensor", offset, "standard") for offset in OFFSETS),
        *(("tensor", 1e9, normalize) for normalize in ("minmax", "none", "window")),
        *((kind, 1e9, "standard") for kind in ("csv", "parquet", "npy", "npz", "long", "folder", "windows")),
    ],
)
@torch.no_grad()
def test_a_level_changes_nothing(kind: str, offset: float, normalize: str, tmp_path: Path, low: dict[Any, Any]) -> None:
    """In whichever way the data come: scores, test windows' reconstructions and the baseline are those without it."""
    if (kind, normalize) not in low:
        data = read_as(kind, walk(), tmp_path, normalize)
        model = trained(data)
        low[kind, normalize] = scores(model, walk()), model(data.test.x[:])[0], pca(data, [6])
        assert model.base is None
        (tmp_path / "in").rename(tmp_path / "old") if kind == "folder" else None
    expected, expected_hat, rows = low[kind, normalize]
    data = read_as(kind, walk() + offset, tmp_path, normalize)
    model = trained(data)
    assert correlation(scores(model, walk() + offset), expected) > 0.999
    x = data.test.x[:]
    x_hat = model(x.double())[0]
    assert x_hat.dtype == torch.float64
    assert correlation(x_hat - offset, expected_hat) > 0.999
    assert model.errors(x)[0] > 0
    assert pca(data, [6])[0]["test_loss"] == pytest.approx(rows[0]["test_loss"], rel=1e-3)


@cache
def found(level: float) -> list[np.ndarray]:
    """What estimators make of samples on a level, without the level."""
    x = walk(640, 1)[:, 0].reshape(40, 16) + level
    detector = MultiScaleDetector(**SMALL).fit(x)
    made = [detector.score_samples(x), detector.score_series(x.reshape(-1))]
    of_series = MultiScaleDetector(form="series", window=16, **SMALL).fit(x.reshape(-1, 1))
    made.append(of_series.score(x.reshape(-1, 1)))
    transformer = MultiScaleTransformer(**SMALL).fit(x)
    made += [transformer.transform(x), transformer.inverse_transform(transformer.transform(x)) - level]
    made.append(MultiScaleAugmenter(**SMALL).fit(x).augment(x) - level)
    return made


@pytest.mark.parametrize("offset", OFFSETS)
def test_estimators_do_not_see_a_level(offset: float) -> None:
    for high, low in zip(found(offset), found(0), strict=True):
        assert high.dtype == np.float64
        assert correlation(high, low) > 0.999


def test_a_checkpoint_keeps_the_level_in_double_precision(tmp_path: Path) -> None:
    """To the bit; a checkpoint from before there was one has none."""
    data = read_as("tensor", walk() + 1e9, tmp_path)
    model = trained(data)
    x = data.test.x[:5]
    state = model.state_dict()
    torch.save(state, tmp_path / "a.pt")
    again = AutoEncoder(data.shape, latent_dim=6).eval()
    again.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert torch.equal(again(x)[0], model(x)[0])
    assert torch.equal(again(x.numpy())[0], model(x)[0])
    assert again.value_range.tolist() == data.value_range.tolist()
    for key in ("base", "channel_range", "unit", "value_range"):
        del state["_extra_state"][key]
    again.load_state_dict(state)
    assert (again.base, again.unit) == (None, 1.0)


def test_new_samples_stay_within_a_range_that_is_high_up() -> None:
    x = 1e9 + torch.rand(60, 1, 8, dtype=torch.float64)
    data = DataModule(Windows(x), Windows(x), normalize="standard", value_range=(1e9, 1e9 + 1))
    model = AutoEncoder(data.shape, latent_dim=3).eval()
    model.set_statistics(**data.statistics)
    made = augmentation.augment(model, x, augmentation.Reference.of(model, x), strength=5).x
    assert made.dtype == torch.float64
    assert 1e9 <= made.min() < made.max() <= 1e9 + 1
    assert not torch.equal(made, x)
    clipped = model.raw(model.clip(torch.tensor([[[-1e3, 1e3]]])) * model.scale + model.offset)
    assert clipped.tolist() == [[pytest.approx([1e9, 1e9 + 1], abs=1e-6, rel=0)]]


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_one_drop_out_is_noticed(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It does not hide the level, and the log says that it sets the scale."""
    x = walk() + 1e9
    x[100, 0] = 0
    data = read_as(kind, x, tmp_path)
    assert data.base is not None
    assert data.base[:, 0].tolist() == pytest.approx([1e9, 1e9], abs=40)
    [text] = [record.getMessage() for record in caplog.records]
    name = "a" if kind == "csv" else "0"
    assert text.startswith(f"channel {name}: a few values between 0 and 10000000")
    assert "set the scale" in text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.full((50, 1, 8), 5.0), "channel 0: constant, 5, in the training split"),
        (1e9 + 100 * torch.rand(50, 1, 8), "channel 0: varies by"),
        (1e17 + torch.rand(50, 1, 8, dtype=torch.float64) * 20, "channel 0: varies by"),
    ],
)
def test_what_cannot_be_held_is_told(x: Tensor, text: str, caplog: pytest.LogCaptureFixture) -> None:
    DataModule(Windows(x), Windows(x), normalize="standard")
    [record] = caplog.records
    assert record.getMessage().startswith(text)


def test_levels_that_wander_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Each window by itself can be normalized, but its level is a latent value, in float32."""
    x = torch.randn(50, 1, 8, dtype=torch.float64) + 1e9 * torch.arange(50)[:, None, None]
    DataModule(Windows(x), Windows(x), normalize="window")
    [record] = caplog.records
    assert record.getMessage().startswith("channel 0: varies by")


@pytest.mark.parametrize("size", [1e-30, 1e19, 1e30])
@pytest.mark.parametrize("normalize", ["standard", "minmax", "window"])
def test_sizes(size: float, normalize: str, command: Command) -> None:
    """The metrics of data in another unit: the same losses and PSNR, and the MSE in the square of the unit."""
    found = {}
    for unit in (1.0, size):
        lines = "\n".join(f"{a!r},{b!r}" for a, b in (walk() * unit).tolist())
        Path(f"{unit}.csv").write_text(f"a,b\n{lines}\n")
        args = ("data=series", f"data.path={unit}.csv", "data.window=16", f"data.normalize={normalize}", "model=ae")
        result = command(*args, "trainer=smoke", f"hydra.run.dir=r{unit}")
        assert result.code == 0, result.err
        found[unit] = json.loads(Path(f"r{unit}/metrics.json").read_text())
    one, other = (found[unit]["metrics"] for unit in (1.0, size))
    assert other["test/loss"] == pytest.approx(one["test/loss"], rel=1e-3)
    assert other["test/psnr"] == pytest.approx(one["test/psnr"], abs=0.01)
    assert other["test/mse"] == pytest.approx(one["test/mse"] * size**2, rel=1e-3)
    last = found[size]["history"][-1]
    assert last["train/mse"] == pytest.approx(found[1.0]["history"][-1]["train/mse"] * size**2, rel=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e19, 1e30])
def test_values_that_cannot_be_squared_as_they_are(size: float) -> None:
    x = torch.rand(20, 1, 8) * size
    with pytest.raises(InputError, match=r"normalize=none: .*; expected normalize=standard or minmax"):
        DataModule(Windows(x), Windows(x))


def test_a_metric_without_a_value_is_left_out(command: Command) -> None:
    Path("a.csv").write_text("a\n" + "5\n" * 200)
    result = command("data=series", "data.path=a.csv", "data.window=8", "model=ae", "trainer=smoke", "hydra.run.dir=r")
    assert result.code == 0, result.err
    text = Path("r/metrics.json").read_text()
    assert "test/psnr" not in json.loads(text)["metrics"]
    assert "Infinity" not in text
    assert "NaN" not in text
    assert "test/psnr left out: no value" in Path("r/train.log").read_text()
    assert "channel a: constant, 5, in the training split" in Path("r/train.log").read_text()


@pytest.mark.parametrize("value", [1e6, -1e19, 1e30, 1e300])
@pytest.mark.parametrize("normalize", ["standard", "window"])
def test_scores_far_outside_are_finite(
    value: float, normalize: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(read_as("csv", walk(), tmp_path, normalize))
    x = walk()
    known = reference.learn(model, [torch.from_numpy(x).T])
    assert not caplog.records
    x[400, 1] = value
    scorer = anomaly.Scorer(model, known)
    found = anomaly.joined([scorer.push(torch.from_numpy(x).T), scorer.finish()])
    for row in (found.total, *found.channels, *found.scales.values()):
        assert row.isfinite().all()
    assert normalize == "window" or abs(found.channels[1].argmax() - 400) < model.length
    [record] = caplog.records
    assert record.getMessage().startswith(f"channel b: {value:.6g} is far outside of the training data, -")


@pytest.mark.parametrize("form", ["samples", "series"])
def test_estimators_score_far_outside(form: str, caplog: pytest.LogCaptureFixture) -> None:
    x = walk(640, 1)
    x = x[:, 0].reshape(40, 16) if form == "samples" else x
    detector = MultiScaleDetector(0.1, form=form, **SMALL).fit(x)
    far = x * 1e200
    assert np.isfinite(detector.score_samples(far)).all()
    assert (detector.predict(far) == -1).all()
    assert all("channel 0: " in record.getMessage() for record in caplog.records)
    assert "far outside of the training data" in caplog.text


def test_reconstruct_writes_all_digits(command: Command) -> None:
    x = walk() + 1e9
    np.save("a.npy", x)
    Path("a.csv").write_text("a,b\n" + "\n".join(f"{a!r},{b!r}" for a, b in x.tolist()))
    base = ("data=series", "data.window=16", "model=ae", "trainer=smoke")
    for kind in ("csv", "npy"):
        assert command(*base, f"data.path=a.{kind}", f"hydra.run.dir=r{kind}").code == 0
        assert command(f"ckpt=r{kind}", f"data.path=a.{kind}", f"out=o{kind}", module="reconstruct").code == 0
    made = np.load("onpy/a.npy")
    assert made.dtype == np.float64
    model = load("rcsv")
    windows = torch.from_numpy(x[:LENGTH]).T[None]
    assert (made[:2] - 1e9).std() > 0.01
    text = np.loadtxt("ocsv/a.csv", delimiter=",", skiprows=1)
    assert text[0].tolist() == pytest.approx(model(windows)[0][0, :, 0].tolist(), abs=1e-5, rel=0)
    for module, args in (("forecast", ["horizons=[4]", "out=f.parquet"]), ("augment", ["out=f2.parquet"])):
        result = command("ckpt=rcsv", "data.path=a.csv", *args, module=module)
        assert result.code == 0, result.err
    forecast = pyarrow.parquet.read_table("f.parquet")
    assert str(forecast.schema.field("a").type) == "double"
    assert abs(forecast["a"].to_numpy() - 1e9).max() < 10
    assert str(pyarrow.parquet.read_table("f2.parquet").schema.field("a_t0").type) == "double"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.decode(torch.zeros(2, 5)), r"z of shape \(2, 5\): expected \(batch, 3\)"),
        (lambda model: model.decode(torch.zeros(0, 3)), r"z of shape \(0, 3\): expected at least one latent"),
        (lambda model: model(torch.zeros(0, 1, 8)), r"x of shape \(0, 1, 8\): expected at least one window"),
        (
            lambda model: augmentation.Reference.of(model, torch.zeros(3, 1, 8), torch.zeros(2, dtype=torch.long)),
            "y: 2 for 3 samples; expected one for each",
        ),
    ],
)
def test_tensors_that_cannot_be_used(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(AutoEncoder((1, 8), latent_dim=3).eval())


def test_several_seeds_and_resuming(command: Command) -> None:
    """Steps made for several runs at once, and a run that goes on, subtract the level too."""
    lines = "\n".join(f"{a!r},{b!r}" for a, b in (walk() + 1e9).tolist())
    Path("a.csv").write_text(f"a,b\n{lines}\n")
    base = ("data=series", "data.path=a.csv", "data.window=16", "model=ae", "trainer=smoke")
    assert command(*base, "seed=[0,1]", "hydra.run.dir=both").code == 0
    assert command(*base, "seed=0", "hydra.run.dir=one").code == 0
    both, one = (json.loads(Path(f"{run}/metrics.json").read_text())["metrics"] for run in ("both/seed=0", "one"))
    assert both["test/loss"] == pytest.approx(one["test/loss"], rel=1e-3)
    result = command("resume=one", "trainer.max_epochs=2")
    assert result.code == 0, result.err
    more = json.loads(Path("one/metrics.json").read_text())
    assert len(more["history"]) == 2
    assert more["metrics"]["test/loss"] < 1.5 * one["test/loss"]


def test_ordinary_data_are_float32(tmp_path: Path) -> None:
    assert read_as("csv", walk(), tmp_path).test.x[:1].dtype == torch.float32
    assert read_as("csv", walk() + 1e9, tmp_path).test.x[:1].dtype == torch.float64
