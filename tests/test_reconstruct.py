"""Whole files in raw units and in their own format."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import lightning as L
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Command, Result
from pyarrow import csv, parquet
from torch import Tensor, nn

from msae.data.module import DataModule, Windows
from msae.models.reconstructor import Reconstructor
from msae.reconstruct import summary

TIMES = [f"2024-01-{1 + i // 24:02} {i % 24:02}:00:00" for i in range(53)]
X = np.random.default_rng(0).normal(size=(53, 2)).astype(np.float32) * 100


Run = Callable[..., Result]


@final
class Same(Reconstructor):
    """Reconstructs perfectly, except for a constant of 1 in raw units."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.save_hyperparameters(logger=False)
        self.by = nn.Parameter(torch.tensor(1.0))
        self.codes = {"whole": slice(0, self.channels * self.length)}

    def encode_scaled(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode_scaled(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (self.channels, self.length)) + self.by


@pytest.fixture
def run(command: Command, tmp_path: Path) -> Run:
    """The command, with the checkpoint of a model of two channels and windows of 8."""
    model = Same((2, 8))
    data = DataModule(Windows(torch.zeros(4, 2, 8)), Windows(torch.zeros(4, 2, 8)))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=0
    )
    trainer.fit(model, datamodule=data)
    (tmp_path / "run").mkdir()
    trainer.save_checkpoint(tmp_path / "run" / "best.ckpt")

    def reconstruct(*args: str) -> Result:
        return command("ckpt=run/best.ckpt", *args, module="reconstruct")

    return reconstruct


def approx(x: np.ndarray) -> object:
    return pytest.approx(x + 1, abs=1e-3)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_csv(run: Run, stride: int) -> None:
    rows = [f"{b:.4f},{time},{a:.4f}" for time, (a, b) in zip(TIMES, X, strict=True)]
    Path("a.csv").write_text("\n".join(["b,time,a", *rows]))
    code, out, err = run("data.path=a.csv", "data.time_column=time", f"data.stride={stride}", "data.columns=[a,b]")
    assert code == 0, err
    assert "a.csv: 53 rows, RMSE by channel: a 1, b 1\n  run/reconstruction/a.csv" in out
    lines = Path("run/reconstruction/a.csv").read_text().splitlines()
    assert lines[0] == "b,time,a"
    cells = [line.split(",") for line in lines[1:]]
    assert [time for _, time, _ in cells] == TIMES
    assert np.array([[a, b] for b, _, a in cells], float) == approx(X)
    assert Path("run/reconstruction/a.csv.png").stat().st_size > 10_000


def test_csv_of_another_kind(run: Run) -> None:
    """The file has semicolons, decimal commas, no header, and alternating rows of two series."""
    rows = [f"{i};{'xy'[i % 2]};{a:.4f};{b:.4f}".replace(".", ",") for i, (a, b) in enumerate(X)]
    Path("a.csv").write_text("\n".join(["t;g;a;b", *rows]))
    options = ("data.separator=;", "data.decimal=,", "data.time_column=t", "data.group_column=g")
    code, _, err = run("data=series", "data.path=a.csv", *options, "out=out")
    assert code == 0, err
    lines = Path("out/a.csv").read_text().splitlines()
    cells = [line.replace(",", ".").split(";") for line in lines[1:]]
    assert [cell[:2] for cell in cells] == [row.split(";")[:2] for row in rows]
    assert np.array([cell[2:] for cell in cells], float) == approx(X)


def test_columns_that_are_no_channels_stay(run: Run) -> None:
    rows = [f'{time},"{a:.4f}",x y,{b:.4f}' for time, (a, b) in zip(TIMES, X, strict=True)]
    Path("a.csv").write_text("\n".join(["time,a,note,b", *rows]))
    code, _, err = run("data.path=a.csv", "data.columns=[a,b]")
    assert code == 0, err
    cells = [line.split(",") for line in Path("run/reconstruction/a.csv").read_text().splitlines()]
    assert cells[0] == ["time", "a", "note", "b"]
    assert [(cell[0], cell[2]) for cell in cells[1:]] == [(time, "x y") for time in TIMES]
    assert np.array([[a, b] for _, a, _, b in cells[1:]], float) == approx(X)


@pytest.mark.parametrize(("args", "mark"), [((), "'"), (("escape=false",), "")])
def test_no_text_that_stays_is_a_formula(args: tuple[str, ...], mark: str, run: Run) -> None:
    Path("a.csv").write_text("\n".join(["a,=x,b", *(f"{a:.4f},=1+1,{b:.4f}" for a, b in X)]))
    code, _, err = run("data.path=a.csv", "data.columns=[a,b]", *args)
    assert code == 0, err
    lines = Path("run/reconstruction/a.csv").read_text().splitlines()
    assert lines[0] == f"a,{mark}=x,b"
    assert {line.split(",")[1] for line in lines[1:]} == {f"{mark}=1+1"}


def test_channels_are_those_it_was_trained_on(command: Command) -> None:
    """Channels are found by name, in any order; a file without them is refused."""
    header, rows = "p,q", [f"{i % 9},{1000 + i % 7}" for i in range(200)]
    Path("a.csv").write_text("\n".join([header, *rows]))
    Path("b.csv").write_text("\n".join(["q,extra,p", *(f"{row.split(',')[1]},x,{row.split(',')[0]}" for row in rows)]))
    args = ("data=series", "data.window=8", "trainer=cpu", "trainer.max_epochs=1", "model=ae16", "hydra.run.dir=run")
    assert command(*args, "data.path=a.csv").code == 0
    outs = [
        command("ckpt=run/best.ckpt", f"data.path={name}.csv", module="reconstruct")
        .out.splitlines()[0]
        .split(": ", 1)[1]
        for name in "ab"
    ]
    assert outs[0] == outs[1]
    assert outs[0].startswith("200 rows, RMSE by channel: p ")
    assert Path("run/reconstruction/b.csv").read_text().startswith("q,extra,p\n")
    Path("c.csv").write_text("\n".join(["u,v", *rows]))
    code, _, err = command("ckpt=run/best.ckpt", "data.path=c.csv", module="reconstruct")
    assert (code, err) == (2, "error: data.columns=p: no such column in c.csv; it has: u, v\n")


def test_what_exists_is_kept(run: Run) -> None:
    np.save("a.npy", X)
    assert run("data.path=a.npy").code == 0
    before = Path("run/reconstruction/a.npy").stat().st_mtime_ns
    code, _, err = run("data.path=a.npy")
    assert code == 2
    assert "run/reconstruction/a.npy exists; overwrite=true replaces it" in err
    assert Path("run/reconstruction/a.npy").stat().st_mtime_ns == before
    assert run("data.path=a.npy", "overwrite=true").code == 0
    assert Path("run/reconstruction/a.npy").stat().st_mtime_ns > before


def test_a_file_is_written_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure leaves the old file and no part of the new one; a link to nowhere is replaced, not followed."""

    def full(_: Path, path: Path, *_rest: object) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    np.save("a.npy", X)
    folder = Path("run/reconstruction")
    folder.mkdir()
    (folder / "a.npy").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr("msae.data.files.write_array", full)
        code, _, err = run("data.path=a.npy", "overwrite=true")
    assert (code, "run/reconstruction/a.npy: cannot be written: No space left on device" in err) == (2, True)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("a.npy", "old")]
    (folder / "a.npy").unlink()
    (folder / "a.npy").symlink_to(Path("elsewhere.npy").absolute())
    code, _, err = run("data.path=a.npy", "overwrite=true")
    assert code == 0, err
    assert not Path("elsewhere.npy").exists()
    assert not (folder / "a.npy").is_symlink()


def test_errors_by_channel() -> None:
    """Each error is in its channel's unit, over time or windows; a channel without values has none."""
    x = np.array([[0.0, 0.0, np.nan], [0.0, np.nan, np.nan]])
    assert summary(x, x + np.array([3.0, 5.0, 1.0]), ["a", "b", "c"]) == "RMSE by channel: a 3, b 5, c nan"
    windows = np.zeros((4, 9, 5))
    assert summary(windows, windows + np.arange(9)[:, None], list("abcdefghi")).endswith("g 6, h 7, and 1 more")


def test_no_header(run: Run) -> None:
    np.savetxt("a.csv", X, delimiter=",", fmt="%.4f")
    assert run("data.path=a.csv").code == 0
    assert np.loadtxt("run/reconstruction/a.csv", delimiter=",") == approx(X)


def test_gaps_and_short_stretches(run: Run) -> None:
    """A stretch shorter than a window is left empty."""
    times = [*range(20), *range(30, 35), *range(100, 128)]
    table = pa.table({"t": times, "a": X[:, 0], "b": X[:, 1]})
    csv.write_csv(table, "a.csv")
    assert run("data.path=a.csv", "data.time_column=t", "data.max_gap=2").code == 0
    x_hat = csv.read_csv("run/reconstruction/a.csv").to_pandas()
    assert x_hat["t"].tolist() == times
    assert x_hat["a"][20:25].isna().all()
    assert x_hat[["a", "b"]].drop(range(20, 25)).to_numpy() == approx(np.delete(X, range(20, 25), 0))


def test_parquet(run: Run) -> None:
    stamps = pa.array(np.array(TIMES, dtype="datetime64[s]"))
    table = pa.table({"a": X[:, 0].astype(float), "time": stamps, "b": X[:, 1], "note": ["x"] * 53})
    parquet.write_table(table, "a.parquet", row_group_size=10)
    code, _, err = run("data.path=a.parquet", "data.time_column=time", "data.columns=[a,b]")
    assert code == 0, err
    x_hat = parquet.read_table("run/reconstruction/a.parquet")
    assert x_hat.column_names == ["a", "time", "b", "note"]
    assert x_hat["note"].to_pylist() == ["x"] * 53
    assert x_hat["time"].cast(stamps.type).combine_chunks() == stamps
    assert np.stack([x_hat["a"], x_hat["b"]], 1) == approx(X)


def test_arrays(run: Run) -> None:
    np.save("a.npy", X)
    np.savez("b.npz", u=X[:, 0], v=X[:, 1])
    np.savez("c.npz", z=X)
    np.save("d.npy", X[:48].reshape(3, 8, 4)[:, :, :2].transpose(0, 2, 1))
    assert run("data.path=[abcd].np*").code == 0
    assert np.load("run/reconstruction/a.npy") == approx(X)
    both = np.load("run/reconstruction/b.npz")
    assert np.stack([both["u"], both["v"]], 1) == approx(X)
    assert np.load("run/reconstruction/c.npz")["z"] == approx(X)
    assert np.load("run/reconstruction/d.npy") == approx(np.load("d.npy"))


def test_missing_values_are_filled(run: Run) -> None:
    x = X.copy()
    x[10:12, 0] = np.nan
    np.save("a.npy", x)
    code, _, err = run("data.path=a.npy", "data.missing=error")
    assert (code, "row 10, column 0: no value" in err) == (2, True)
    assert run("data.path=a.npy").code == 0
    x[10:12, 0] = np.interp([10, 11], [9, 12], x[[9, 12], 0])
    assert np.load("run/reconstruction/a.npy") == approx(x)
    assert np.isnan(np.load("a.npy")[10, 0])  # the user's file is as it was


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data.path=a.npy", "data.stride=9"], "data.stride=9: expected at most 8, the length of a window"),
        (["data.path=a.npy", "data.columns=[0]"], "a.npy: 1 channels, 0; the model takes 2, in windows of 8 steps"),
        (["data.path=short.npy"], "short.npy: no stretch of 8 steps"),
        (["data.path=nowhere"], "data.path=nowhere: no such file or folder, and no match"),
        (["data.path=a.npy", "out=."], "out=.: a.npy would be written over"),
        (["data.path=a.npy", "data.missing=x"], "data.missing=x: expected one of"),
        (["data=digits"], "data: a data set of samples; expected data=series"),
        (["data.path=*/x.npy"], "data.path=*/x.npy: two files called x.npy"),
        (["data.path=a.npy", "ckpt=nowhere.ckpt"], "checkpoint nowhere.ckpt: no such file"),
        (["data.paht=a.npy"], "data.paht: no such key; nearest: data.path"),
        (["data.path=a.npy", "out=short.npy"], "out=short.npy: a file; expected a folder"),
        (["data.path=a.npy", "ckpt=???"], "ckpt: no value; expected the folder of a run"),
        (["data.stride=1"], "data.path: no value; expected data.path=..."),
        (
            ['overwrite="a'],
            'overwrite="a: cannot be read; expected key=value; is a quote or bracket left open?',
        ),
    ],
)
def test_mistakes(args: list[str], message: str, run: Run) -> None:
    np.save("a.npy", X)
    np.save("short.npy", X[:5])
    for folder in ("u", "v"):
        Path(folder).mkdir()
        np.save(f"{folder}/x.npy", X)
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}") or message in err
    assert len(err.splitlines()) == 1
    assert not Path("run/reconstruction").exists()
