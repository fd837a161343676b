"""Latents as tables."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from aeon.datasets import load_classification
from conftest import Command, Result, save
from pyarrow import csv, parquet

import msae
from msae import embed, plots
from msae.data.digits import digits
from msae.models.ae import AutoEncoder
from msae.models.msae import MultiScaleAutoEncoder

X = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(MultiScaleAutoEncoder((2, 8), small_dim=2, large_dim=3), "best.ckpt", ["a", "b"])
    save(AutoEncoder((1, 64), latent_dim=12), "digits.ckpt")


def write(path: str, **columns: object) -> None:
    csv.write_csv(pa.table({"a": X[:, 0], "b": X[:, 1]} | columns), path)


def run(command: Command, *args: str) -> Result:
    return command("ckpt=best.ckpt", "data=series", "data.path=a.csv", "out=z.csv", *args, module="embed")


def latent(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return msae.load("best.ckpt").encode(torch.from_numpy(x)).numpy()


def test_windows_of_a_file(command: Command) -> None:
    """Each window has a row with its rows, times and label, for any order of the file's columns."""
    times = np.datetime64("2024-01-01T00:00:00") + np.arange(50) * np.timedelta64(1, "h")
    write("a.csv", t=times, kind=["calm"] * 40 + ["wild"] * 10)
    code, out, err = run(command, "data.time_column=t", "data.stride=5", "label=kind")
    assert (code, err) == (0, "")
    assert out == "10 rows, 5 values each: small 2, large 3\n  z.csv\n  z.csv.png\n"
    table = csv.read_csv("z.csv").to_pydict()
    assert list(table) == [
        *("file", "start", "stop", "start_time", "stop_time", "label"),
        *("small_0", "small_1", "large_0", "large_1", "large_2"),
    ]
    starts = [*range(0, 41, 5), 42]
    assert table["start"] == starts
    assert table["stop"] == [start + 8 for start in starts]
    assert [np.datetime64(t) for t in table["start_time"]] == [times[start] for start in starts]
    assert [np.datetime64(t) for t in table["stop_time"]] == [times[start + 7] for start in starts]
    assert table["label"] == ["wild" if start + 7 >= 40 else "calm" for start in starts]
    z = latent(np.stack([X[start : start + 8].T for start in starts]))
    assert np.stack([table[name] for name in list(table)[-5:]], 1) == pytest.approx(z, rel=1e-4, abs=1e-6)
    assert Path("z.csv.png").stat().st_size > 5000


def test_windows_further_apart_than_they_are_long(command: Command) -> None:
    write("a.csv")
    code, _, err = run(command, "data.stride=20")
    assert (code, err) == (0, "")
    assert csv.read_csv("z.csv")["start"].to_pylist() == [0, 20, 40, 42]


def test_groups_and_parquet(command: Command) -> None:
    write("a.csv", g=list("xy") * 25)
    assert run(command, "data.group_column=g", "out=z.parquet").code == 0
    table = parquet.read_table("z.parquet").to_pydict()
    assert table["group"] == ["x"] * 18 + ["y"] * 18
    assert (table["start"][18:20], table["stop"][18]) == ([1, 3], 16)
    assert "start_time" not in table
    assert table["large_2"][18] == pytest.approx(latent(X[None, 1:16:2].transpose(0, 2, 1))[0, 4], rel=1e-4)


def test_samples_of_a_data_set(command: Command) -> None:
    args = ("ckpt=digits.ckpt", "data=digits", "out=z.parquet")
    code, out, err = command(*args, module="embed")
    assert (code, err) == (0, "")
    assert out.startswith("1797 rows, 12 values each: whole 12\n")
    table = parquet.read_table("z.parquet")
    assert table.column_names == ["split", "index", "label", *(f"whole_{i}" for i in range(12))]
    assert table["split"].to_pylist() == ["train"] * 1437 + ["test"] * 360
    assert table["index"].to_pylist() == [*range(1437), *range(360)]
    assert table["label"].to_pylist()[:12] == [*range(10), 0, 1]


def test_pooled_features(command: Command) -> None:
    """They are learned from the training split, and follow the latents."""
    args = ("ckpt=digits.ckpt", "data=digits", "out=z.parquet", "pool=true")
    code, out, _ = command(*args, module="embed")
    assert code == 0
    table, data = parquet.read_table("z.parquet"), digits()
    pooler = msae.MultiScalePooler(random_state=0).fit(data.train.x.numpy())
    names = list(pooler.get_feature_names_out())
    assert out.startswith(f"1797 rows, 12 values each: whole 12; {len(names)} pooled features\n")
    assert table.column_names[15:] == names
    assert table[names[5]].to_numpy()[-360:] == pytest.approx(pooler.transform(data.test.x.numpy())[:, 5], abs=1e-6)


def test_pooled_features_of_a_file(command: Command) -> None:
    write("a.csv")
    assert run(command, "pool=true", "data.stride=2").code == 0
    assert csv.read_csv("z.csv").column_names[8].startswith("value_window")
    csv.write_csv(pa.table({"a": X[:8, 0], "b": X[:8, 1]}), "a.csv")
    code, _, err = run(command, "pool=true", "overwrite=true")
    assert (code, err) == (2, "error: pool=true: 1 windows to learn from; expected at least 2\n")


def test_labels_are_the_names_of_classes(command: Command) -> None:
    save(AutoEncoder((6, 100), latent_dim=3), "motions.ckpt")
    args = ("ckpt=motions.ckpt", "data=ucr", "data.name=BasicMotions", "out=z.csv")
    assert command(*args, module="embed").code == 0
    train, test = (load_classification("BasicMotions", split=split)[1].tolist() for split in ("train", "test"))
    assert csv.read_csv("z.csv")["label"].to_pylist() == [*train, *test]
    assert len(set(train)) == 4


def test_memory_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of latents, the picture shows an even selection."""
    monkeypatch.setattr(embed, "POINTS", 10)
    shown = embed.Shown()
    for first in range(0, 1000, 7):
        z = torch.arange(first, min(first + 7, 1000)).float()[:, None]
        shown.add(z, {"start": z[:, 0].numpy()})
        assert len(shown.z) < 20
    z, by, name = shown.points()
    assert z[:, 0].tolist() == by.tolist() == [*range(0, 1000, 64)]
    assert name == "start"


@pytest.mark.parametrize("by", [np.arange(30) % 3, np.arange(30.0), np.datetime64("2024-01-01") + np.arange(30)])
@pytest.mark.parametrize("name", ["label", "start"])
@pytest.mark.parametrize("width", [1, 5])
def test_picture(by: np.ndarray, name: str, width: int) -> None:
    """Few labels have a legend, others a colour bar; a latent of one value is drawn as a line."""
    z = np.random.default_rng(0).normal(size=(30, width)).astype(np.float32)
    figure = plots.latents(z, by, name)
    legend = figure.axes[0].get_legend()
    if name == "label" and len(np.unique(by)) == 3:
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2"]
    else:
        assert (legend, len(figure.axes)) == (None, 2)
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["label=kind"], "label=kind: no such column in a.csv; it has: a, b"),
        (["ckpt=digits.ckpt"], "a.csv: 2 channels, a, b; the model takes 1, in windows of 64 steps"),
        (["data.path=short.csv"], "short.csv: no stretch of 8 steps, the length of a window"),
        (
            ["data.path=hole.csv", "data.missing=error"],
            "hole.csv, line 5, column b: no value; set data.missing=interpolate or data.mis",
        ),
        (["out=there.csv"], "out=there.csv: there.csv exists; overwrite=true replaces it"),
        (["data.window=9"], "data.window=9: the model takes 8 steps; leave it out"),
        (["out=z.npy"], "out=z.npy: expected a file ending .parquet or .csv"),
        (["out=???"], "out: no value; expected a file ending .parquet or .csv"),
        (["data.paht=a"], "data.paht: no such key; nearest: data.path"),
    ],
)
def test_mistakes(args: list[str], message: str, command: Command) -> None:
    write("a.csv")
    write("hole.csv", b=[None if i == 3 else 1.0 for i in range(50)])
    csv.write_csv(pa.table({"a": X[:5, 0], "b": X[:5, 1]}), "short.csv")
    Path("there.csv").touch()
    before = sorted(Path().iterdir())
    code, out, err = run(command, *args)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: {message}")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ckpt=digits.ckpt", "label=x"], "label=x: a column of files; expected null, as this data set has"),
        (["ckpt=best.ckpt"], "data: 1 channels, in windows of 64 steps; the model takes 2, in windows of 8 steps"),
    ],
)
def test_mistakes_with_data_sets(args: list[str], message: str, command: Command) -> None:
    code, _, err = command("data=digits", "out=z.csv", *args, module="embed")
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert not Path("z.csv").exists()
