"""`python -m msae.augment`: rows of new samples, with what they are made from."""

from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch
from aeon.datasets import load_classification
from conftest import Command, Result, save
from pyarrow import csv, parquet
from sklearn.datasets import load_digits

from msae.data.digits import digits as digits_data
from msae.models.ae import AutoEncoder
from msae.models.pyramid import PyramidAutoEncoder

TRAIN = ("trainer=cpu", "trainer.enable_progress_bar=false")
TIME = np.arange(400)
WAVES = np.stack([np.sin(TIME / 5), 100 + 10 * np.cos(TIME / 9)], 1).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model of digits with two scales, at its start, the principal axes."""
    data = digits_data()
    model = PyramidAutoEncoder((1, 8, 8), 24, [1, 2], code_dims=[8, 4])
    model.set_statistics(**data.statistics)
    model.initialize(lambda: data.train.x)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=0
    )
    trainer.fit(model, datamodule=data)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def digits(command: Command, checkpoint: Path) -> Command:
    """The command on digits, with that checkpoint."""

    def run(*args: str) -> Result:
        return command(f"ckpt={checkpoint}", "data=digits", *args, module="augment")

    return run


def steps(table: pa.Table, name: str = "") -> np.ndarray:
    """The values `(rows, length)` of a channel."""
    return np.stack([table[column] for column in table.column_names if column.startswith(f"{name}t")], 1)


def test_samples(digits: Command) -> None:
    """Each training sample gets two new ones near it, in order and with its label; statistics are printed."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16)[:-360]
    code, out, err = digits("out=new.parquet", "n=2", "scales=[2x2]", "strength=0.3")
    assert code == 0, err
    assert out.startswith("2874 new samples by jitter, at a distance of ")
    assert "spectral slope" in out
    table = parquet.read_table("new.parquet")
    assert table.column_names[:6] == ["index", "label", "copy", "strength", "distance", "reached"]
    for copy in (0, 1):
        part = table.filter(pa.compute.equal(table["copy"], copy))
        assert part["index"].to_pylist() == list(range(len(x)))
        assert part["label"].to_pylist() == labels[:-360].tolist()
        change = steps(part) - x
        assert 0 < np.sqrt((change**2).mean()) < 0.2
    assert set(table["strength"].to_pylist()) == {np.float32(0.3)}
    first, second = (steps(table.filter(pa.compute.equal(table["copy"], copy))) for copy in (0, 1))
    assert not np.array_equal(first, second)
    assert Path("new.parquet.png").stat().st_size > 5_000
    assert digits("out=again.csv", "n=2", "scales=[2x2]", "strength=0.3").code == 0
    assert steps(csv.read_csv("again.csv")) == pytest.approx(steps(table), abs=1e-6)
    assert digits("out=other.csv", "n=2", "scales=[2x2]", "strength=0.3", "seed=1").code == 0
    assert not np.allclose(steps(csv.read_csv("other.csv")), steps(table), atol=1e-3)


def test_adaptive(digits: Command) -> None:
    code, out, err = digits("out=new.csv", "adaptive=true", "distance=0.3", "change=drift")
    assert code == 0, err
    table = csv.read_csv("new.csv")
    assert "at a distance of 0.3 deviations" in out
    assert np.array(table["distance"]) == pytest.approx(0.3, rel=0.01)
    assert np.std(table["strength"]) > 0.01
    code, out, err = digits("out=far.csv", "adaptive=true", "distance=0.7", "change=mix")
    assert code == 0, err
    reached = np.array(csv.read_csv("far.csv")["reached"])
    assert f"{np.sum(~reached)} cannot reach distance=0.7 and have the greatest strength" in out
    assert not reached.all()


def test_windows_of_files(command: Command) -> None:
    """Windows start every `data.stride` steps; rows, group and label are given, and `mix` stays within a label."""
    lines = [f"{i},{'ab'[i // 200]},{'u' if i % 200 < 100 else 'v'},{p},{q}" for i, (p, q) in enumerate(WAVES)]
    Path("a.csv").write_text("\n".join(["t,g,kind,p,q", *lines]))
    files = ("data=series", "data.path=a.csv", "data.group_column=g", "data.columns=[p,q]", "data.time_column=t")
    args = ("model=ae16", "data.window=16", "trainer.max_epochs=3", "hydra.run.dir=run", *TRAIN)
    assert command(*args, *files).code == 0
    new = ("ckpt=run/best.ckpt", *files, "data.stride=8", "label=kind", "n=1")
    code, _, err = command(*new, "out=out/new.parquet", "change=mix", module="augment")
    assert code == 0, err
    table = parquet.read_table("out/new.parquet")
    starts = [*range(0, 185, 8), *range(200, 385, 8)]
    assert table["start"].to_pylist() == starts
    assert table["stop"].to_pylist() == [start + 16 for start in starts]
    assert table["group"].to_pylist() == ["a"] * 24 + ["b"] * 24
    assert table["label"].to_pylist() == ["u" if (start + 15) % 200 < 100 else "v" for start in starts]
    windows = np.stack([WAVES[start : start + 16] for start in starts])
    for channel, name in enumerate("pq"):
        change = steps(table, f"{name}_") - windows[:, :, channel]
        assert 0 < np.sqrt((change**2).mean()) < 2 * WAVES[:, channel].std()
    code, _, err = command(*new, "out=out/new.parquet", module="augment")
    assert (code, "out/new.parquet exists; overwrite=true replaces it" in err) == (2, True)
    assert command(*new, "out=out/new.parquet", "overwrite=true", module="augment").code == 0


def test_labels_are_the_names_of_classes(command: Command) -> None:
    save(AutoEncoder((6, 100), latent_dim=3), "motions.ckpt")
    args = ("ckpt=motions.ckpt", "data=ucr", "data.name=BasicMotions", "out=new.csv", "change=mix")
    assert command(*args, module="augment").code == 0
    labels = load_classification("BasicMotions", split="train")[1].tolist()
    assert csv.read_csv("new.csv")["label"].to_pylist() == labels


def test_few_of_a_label_are_told_of(command: Command) -> None:
    Path("a.csv").write_text("\n".join(["kind,p", *(f"{i // 100},{p}" for i, (p, _) in enumerate(WAVES))]))
    files = ("data=series", "data.path=a.csv", "data.columns=[p]")
    args = ("model=ae16", "data.window=16", "trainer.max_epochs=1", "hydra.run.dir=run", *TRAIN)
    assert command(*args, *files).code == 0
    new = ("ckpt=run/best.ckpt", *files, "data.stride=16", "label=kind", "out=new.csv", "change=mix")
    assert "neighbour" not in command(*new, module="augment").out
    Path("a.csv").write_text("\n".join(["kind,p", *(f"{i // 16},{p}" for i, (p, _) in enumerate(WAVES))]))
    code, out, _ = command(*new, "overwrite=true", module="augment")
    assert code == 0
    assert "25 have no neighbour of their label and are unchanged" in out


def test_samples_of_the_prior(command: Command) -> None:
    np.save("a.npy", WAVES)
    files = ("data=series", "data.path=a.npy", "data.normalize=window")
    kl = ("model.regularizer=kl", "model.beta=0.01")
    args = ("model=ae16", *kl, "data.window=16", "trainer.max_epochs=3", "hydra.run.dir=run", *TRAIN)
    assert command(*args, *files).code == 0
    code, out, err = command("ckpt=run/best.ckpt", *files, "out=new.parquet", "sample=50", module="augment")
    assert code == 0, err
    assert out.startswith("50 new samples of the prior\n")
    table = parquet.read_table("new.parquet")
    assert table.num_rows == 50
    assert steps(table, "1_").mean() == pytest.approx(100, abs=5)
    assert torch.load("run/best.ckpt", weights_only=True)  # is as it was


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["change=noise"], "change=noise: expected one of jitter, scaling, magnitude_warp, drift, mix"),
        (["strength=-1"], "strength=-1: expected a number from 0 to 100"),
        (["strength=1000"], "strength=1000: expected a number from 0 to 100"),
        (["strength=much"], "strength=much: expected a number from 0 to 100"),
        (["scales=[tiny]"], "scales=tiny: expected one of 1x1, 2x2"),
        (["scales=small"], "scales=small: expected a list, such as scales=[small], or null for all"),
        (["n=0"], "n=0: expected a whole number, at least 1"),
        (["adaptive=maybe"], "adaptive=maybe: expected one of True, False"),
        (
            ["adaptive=true", "distance=null"],
            "distance=null: adaptive=true needs a distance; expected a number above 0",
        ),
        (["adaptive=true", "distance=-1"], "distance=-1: expected a number above 0"),
        (["sample=9"], "sample: the model was trained with model.regularizer=none; expected kl"),
        (["label=kind"], "label=kind: a column of files; expected null"),
        (["out=new.txt"], "out=new.txt: expected a file ending .parquet or .csv"),
        (["seed=-1"], "seed=-1: expected a whole number, from 0"),
        (["strenght=1"], "strenght: no such key; nearest: strength"),
        (["data=series", "data.path=a.npy"], "a.npy: 2 channels, 0, 1; the model takes 1, in windows of 64 steps"),
        (["data=ucr"], "data: 1 channels, in windows of 150 steps; the model takes 1, in windows of 64 steps"),
    ],
)
def test_mistakes(args: list[str], message: str, digits: Command) -> None:
    np.save("a.npy", WAVES)
    code, out, err = digits("out=new.csv", *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1
    assert not list(Path().glob("*new*"))
