"""Checks, streams and tables that commands share."""

import errno
import io
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import save
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pyarrow import csv, parquet

from msae import InputError, read, write
from msae.cli import CONF
from msae.models.ae import AutoEncoder

X = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(AutoEncoder((2, 8), latent_dim=3, hidden_dims=(4,)), "best.ckpt", ["a", "b"])


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("embed", overrides=["ckpt=best.ckpt", "out=z.csv", *overrides])


def stretches(*overrides: str, label: str | None = None) -> list[read.Stretch]:
    cfg = config(*overrides)
    return list(read.stretches(cfg, read.begin(cfg, files=False), label))


def write_file(path: str, **columns: object) -> None:
    csv.write_csv(pa.table({"a": X[:, 0], "b": X[:, 1]} | columns), path)


@pytest.mark.parametrize("stride", [1, 3, 7, 8])
def test_windows_of_a_stretch(stride: int) -> None:
    write_file("a.csv")
    [whole] = stretches("data.path=a.csv")
    starts, x = (torch.cat(parts) for parts in zip(*whole.windows(8, stride, size=4), strict=True))
    assert len(starts) == whole.count(8, stride)
    assert starts.tolist() == sorted({*range(0, 43, stride), 42})
    assert all(torch.equal(window, torch.from_numpy(X[i : i + 8].T)) for i, window in zip(starts, x, strict=True))


def test_stretches_know_rows_times_and_labels() -> None:
    """The rows of two series alternate, one series has a gap, and one column is not a channel."""
    day = np.arange(50) // 2
    day[40:] += 9
    stamps = np.datetime64("2024-01-01") + day
    write_file("a.csv", t=stamps.astype("M8[s]"), g=list("xy") * 25, kind=[f"k{i}" for i in range(50)])
    options = ("data.path=a.csv", "data.time_column=t", "data.group_column=g", "data.max_gap=1d")
    found = stretches(*options, label="kind")
    assert [(one.group, one.x.shape[1]) for one in found] == [("x", 20), ("y", 20)]  # 5 steps after the gap are few
    steps = torch.tensor([2, 19])
    assert found[1].rows(steps).tolist() == [5, 39]
    assert found[1].labels.of(found[1].rows(steps)) == ["k5", "k39"]
    assert found[1].times(steps).to_pylist() == [d.item() for d in stamps[[5, 39]].astype("M8[us]")]
    assert torch.equal(found[1].x.float(), torch.from_numpy(X[1:40:2].T))


def test_windows_already_cut() -> None:
    np.save("a.npy", np.arange(96.0, dtype=np.float64).reshape(6, 2, 8))
    [whole] = stretches("data.path=a.npy", "data.columns=[0,1]")
    [(starts, x)] = whole.windows(8, 3)
    assert starts.tolist() == list(range(6))
    assert x.dtype == torch.float32
    assert x.numpy() == pytest.approx(np.load("a.npy"))


def test_samples_are_the_official_splits() -> None:
    """Samples are in order; those that training would hold out stay in their place."""
    from sklearn.datasets import load_digits

    save(AutoEncoder((1, 64)), "best.ckpt")
    cfg = config("data=digits")
    found = list(read.samples(cfg, read.begin(cfg, files=False)))
    assert [(batch.split, batch.first, len(batch.x)) for batch in found] == [("train", 0, 1437), ("test", 0, 360)]
    images, labels = load_digits(return_X_y=True)
    assert torch.cat([batch.x for batch in found])[:, 0].numpy() == pytest.approx(images / 16)
    assert torch.cat([batch.y for batch in found if batch.y is not None]).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=one.csv", "data.columns=[a]"], "one.csv: 1 channels, a; the model takes 2, in windows of 8 steps"),
        (["data.path=one.csv"], "data.columns=b: no such column in one.csv; it has: a"),
        (["data.path=long.npy"], "long.npy: 2 channels, 0, 1, in windows of 9 steps; the model takes 2, in windows of"),
        (["data.path=short.csv"], "short.csv: no stretch of 8 steps, the length of a window"),
        (
            ["data.path=hole.csv", "data.missing=error"],
            "hole.csv, line 5, column b: no value; set data.missing=interpolate or data.mis",
        ),
    ],
)
def test_data_that_does_not_fit(overrides: list[str], message: str) -> None:
    csv.write_csv(pa.table({"a": X[:, 0]}), "one.csv")
    np.save("long.npy", np.zeros((3, 2, 9)))
    csv.write_csv(pa.table({"a": X[:5, 0], "b": X[:5, 1]}), "short.csv")
    write_file("hole.csv", b=[None if i == 3 else 1.0 for i in range(50)])
    columns = ["data.columns=[0,1]"] if "npy" in overrides[0] else []
    with pytest.raises(InputError) as error:
        stretches(*overrides, *columns)
    assert str(error.value).startswith(message)


def test_samples_that_do_not_fit() -> None:
    cfg = config("data=digits")
    with pytest.raises(
        InputError, match=r"^data: 1 channels, in windows of 64 steps; the model takes 2, in windows of 8"
    ):
        next(read.samples(cfg, read.begin(cfg, files=False)))


def test_unknown_label_column() -> None:
    write_file("a.csv")
    np.save("a.npy", X)
    with pytest.raises(InputError, match=r"^label=kind: no such column in a.csv; it has: a, b$"):
        stretches("data.path=a.csv", label="kind")
    with pytest.raises(InputError, match=r"^label=kind: a.npy is an array"):
        stretches("data.path=a.npy", "data.columns=[0,1]", label="kind")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["out=z.txt"], "out=z.txt: expected a file ending .parquet or .csv"),
        (["out=???"], "out: no value; expected a file ending"),
        (["out=there.csv"], "out=there.csv: there.csv exists; overwrite=true replaces it"),
        (["out=new.csv"], "out=new.csv: new.csv.png exists"),
        (["out=link.csv"], "out=link.csv: link.csv exists; overwrite=true replaces it"),
        (["out=link.csv/z.csv"], "out=link.csv/z.csv: link.csv is a broken link; expected a folder"),
        (["out=folder.csv"], "out=folder.csv: folder.csv is a folder"),
        (["out=there.csv/z.csv"], "out=there.csv/z.csv: there.csv is a file; expected a folder"),
        (["out=a.csv", "overwrite=true"], "out=a.csv: a file of data.path, which would be written over"),
    ],
)
def test_outputs_that_cannot_be(overrides: list[str], message: str) -> None:
    write_file("a.csv")
    for name in ("there.csv", "new.csv.png"):
        Path(name).touch()
    Path("link.csv").symlink_to("nothing")
    Path("folder.csv").mkdir()
    with pytest.raises(InputError) as error:
        write.check_out(config("data.path=a.csv", *overrides), ".png")
    assert str(error.value).startswith(message)


def test_overwrite_is_true_or_false() -> None:
    read.begin(config("data.path=a.csv", "overwrite=true"))
    with pytest.raises(InputError, match=r"^overwrite=maybe: expected one of True, False$"):
        read.begin(config("data.path=a.csv", "overwrite=maybe"))


def test_what_exists_can_be_overwritten() -> None:
    write_file("a.csv")
    Path("z.csv").touch()
    assert write.check_out(config("data.path=a.csv", "overwrite=true"), ".png") == Path("z.csv")


@pytest.mark.parametrize("name", ["new/z.csv", "new/z.parquet"])
def test_writer(name: str) -> None:
    """Tables come in pieces, with commas in texts, empty fields, and fractions of seconds only in a later piece."""
    path = Path(name)
    whole, parts = np.datetime64("2024-01-01T01:00:00", "us"), np.datetime64("2024-01-01T02:00:00.250", "us")
    with write.Writer(path) as out:
        out.write({"file": ["a,b"], "x": torch.tensor([0.1]), "t": pa.array([whole]), "i": np.array([1])})
        assert not path.exists()
        out.write({"file": [None, 'say "c"'], "x": [np.nan, 2.0], "t": pa.array([parts] * 2), "i": np.array([2, 3])})
    assert out.rows == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    table = (csv.read_csv if path.suffix == ".csv" else parquet.read_table)(path).to_pydict()
    assert table["file"] == ["a,b", "" if path.suffix == ".csv" else None, 'say "c"']
    assert table["x"] == [pytest.approx(0.1), None, 2.0]
    assert table["i"] == [1, 2, 3]
    if path.suffix == ".csv":
        assert '2024-01-01 01:00:00"' in path.read_text()
    assert [str(np.datetime64(t, "us")) for t in table["t"]] == [str(whole), str(parts), str(parts)]


@pytest.mark.parametrize("escape", [True, False])
def test_no_text_is_a_formula_of_a_spreadsheet(escape: bool) -> None:
    """In a cell or a header of a .csv; numbers stay as they are."""
    run = ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1", "=A1\nb"]
    others = ["-1.5", "+3", "-1,5e-3", "-inf", "-", "a=1", "", None]
    texts = [*run, *others]
    with write.Writer(Path("z.csv"), escape) as out:
        out.write({"=name": texts, "x": [-1.5] * len(texts)})
    with write.Writer(Path("z.parquet"), escape) as out:
        out.write({"=name": texts})
    found = csv.read_csv("z.csv", parse_options=csv.ParseOptions(newlines_in_values=True)).to_pydict()
    mark = "'" * escape
    assert list(found) == [f"{mark}=name", "x"]
    assert found[f"{mark}=name"] == [*(mark + text for text in run), *others[:-1], ""]
    assert found["x"] == [-1.5] * len(texts)
    assert parquet.read_table("z.parquet").to_pydict() == {"=name": texts}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files cannot grow beyond 8 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(path: str, rows: int, pieces: int) -> None:
    with write.Writer(Path(path)) as out:
        for _ in range(pieces):
            out.write({"x": np.random.default_rng(0).normal(size=rows)})


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(
    ("name", "rows", "pieces"), [("z.csv", 1000, 9), ("z.parquet", 1000, 9), ("z.parquet", 850, 1)]
)
def test_a_table_that_cannot_grow_is_removed(name: str, rows: int, pieces: int) -> None:
    """The failure comes while writing, or for the last table when closing; the old file is kept."""
    Path(name).write_text("old")
    with pytest.raises(InputError) as error:
        fill(name, rows, pieces)
    assert str(error.value) == f"{name}: cannot be written: File too large; the old file is kept"
    assert Path(name).read_text() == "old"
    assert {p.name for p in Path().iterdir()} == {"best.ckpt", name}


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_writer: object, _table: object) -> None:
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    monkeypatch.setattr(parquet.ParquetWriter, "write", full)
    with pytest.raises(InputError, match=r"^z.parquet: cannot be written: No space left on device, .* free in \.; the"):
        fill("z.parquet", 10, 1)
    assert {p.name for p in Path().iterdir()} == {"best.ckpt"}


@pytest.mark.parametrize("error", [InputError("mine"), OSError(errno.EIO, "of a file that is read")])
def test_an_error_between_pieces_leaves_nothing(error: Exception) -> None:
    out = write.Writer(Path("z.csv"))
    with pytest.raises(type(error), match=r"mine|of a file that is read"), out:  # noqa: PT012
        out.write({"x": [1.0]})
        raise error
    assert {p.name for p in Path().iterdir()} == {"best.ckpt"}


@pytest.mark.usefixtures("small_disk")
def test_a_picture_is_whole_or_not_there() -> None:
    from msae import plots

    figure = plots.latents(X, np.arange(50), "start")
    with pytest.raises(InputError, match=r"^z.png: cannot be written: File too large"):
        write.picture(figure, Path("z.png"))
    assert {p.name for p in Path().iterdir()} == {"best.ckpt"}


def stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """What is written to stderr from now on."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_progress_is_a_line_for_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line follows soon after another, even for different series."""
    err = stderr(monkeypatch, terminal=False)
    clock = iter([0, 4, 8, 12, 14, 23, 40, 41])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with write.Progress("windows") as progress:
        progress.begin("a.csv", 5000)
        for n in (100, 900, 1500, 600):
            progress.update(n)
        progress.begin("b.csv", 30)
        progress.update(30)
        progress.begin("c.csv", 100)
        for n in (9, 1):
            progress.update(n)
    lines = ["a.csv: 2,500 of 5,000 windows", "b.csv: 30 of 30 windows", "c.csv: 10 of 100 windows"]
    assert err.getvalue().splitlines() == lines


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    err = stderr(monkeypatch, terminal=True)
    monkeypatch.setattr(write, "SECONDS", 0)
    with write.Progress("windows") as progress:
        for name in ("a.csv", "b.csv"):
            progress.begin(name, 50)
            progress.update(25)
            progress.bar.refresh()
    assert all(f"{name}:  50%" in err.getvalue() for name in ("a.csv", "b.csv"))
    assert "\n" not in err.getvalue()
