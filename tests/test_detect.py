"""Scores of whole files as tables, with events and a picture."""

import errno
import io
import os
import shutil
import signal
import threading
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command, Result
from pyarrow import parquet

from msae import InputError, MultiScaleDetector, load, write
from msae.alarms import REASON
from msae.data import growing
from msae.models import archive
from msae.uses import anomaly, reference

TIME = 1500
ARGS = ("data=series", "data.window=12", "trainer=cpu", "trainer.max_epochs=2", "data.batch_size=32")
PYRAMID = ("model=pyramid", "model.latent_dim=8", "model.hidden_dim=8", "model.segments=[1,2]")


def waves(time: int = TIME, seed: int = 0) -> np.ndarray:
    """Two channels, one of them in hundreds."""
    noise = np.random.default_rng(seed).normal(size=(time, 2)) / 10
    return (np.sin(np.arange(time)[:, None] / np.array([3, 5])) + noise) * np.array([1, 100])


def strange() -> np.ndarray:
    """A spike in the first channel at row 1300, a level in the second at 1400 to 1404."""
    x = waves()
    x[1300, 0] += 9
    x[1400:1405, 1] += 800
    return x


def write_file(name: str, x: np.ndarray, **more: Any) -> None:
    times = pd.date_range("2024-01-01", periods=len(x), freq="h")
    pd.DataFrame({"t": times, "0": x[:, 0], "1": x[:, 1]} | more).to_csv(name, index=False, float_format="%.6f")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, and the file it was trained on, `a.csv`, beside it."""
    import sys

    from msae import train

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_file("a.csv", waves())
        path = f"data.path={folder / 'a.csv'}"
        patch.setattr(sys, "argv", ["msae.train", *ARGS, *PYRAMID, path, "data.time_column=t", "hydra.run.dir=run"])
        train.main()
    return folder


@pytest.fixture
def run(command: Command, trained: Path) -> Any:
    def detect(*args: str) -> Result:
        return command(f"ckpt={trained / 'run' / 'best.ckpt'}", *args, module="detect")

    return detect


def test_csv(run: Any, trained: Path) -> None:
    x = strange()
    write_file("new.csv", x)
    code, out, err = run("data.path=new.csv", "data.time_column=t", "out=o/s.csv", "merge=3", "probability=1e-5")
    assert code == 0, err
    assert out.startswith("1500 time steps, 2 events above ")
    assert "\n  in the 1275 normal steps it gives 0 events\n" in out
    assert out.endswith("\n  o/s.csv\n  o/s.csv.events.csv\n  o/s.csv.png\n")
    scores = pd.read_csv("o/s.csv")
    names = ["file", "row", "time", "score", "score_0", "score_1", "scale_1", "scale_2", "strangest"]
    assert list(scores) == [*names, "alarm", "known_at", "known_at_time"]
    assert scores["row"].tolist() == list(range(TIME))
    assert scores["time"][25] == "2024-01-02 01:00:00"
    assert scores["score"].to_numpy() == pytest.approx(scores[["score_0", "score_1"]].max(axis=1).to_numpy(), rel=1e-4)
    model = load(trained / "run" / "best.ckpt")
    training = torch.from_numpy(pd.read_csv(trained / "a.csv")[["0", "1"]].to_numpy()).T.float()
    known = reference.learn(model, [training[:, :1050]], fresh=[training[:, 1050:1275]])
    scorer = anomaly.Scorer(model, known)
    found = anomaly.joined(list(anomaly.scores(scorer, torch.from_numpy(x).T.float())))
    assert scores["score_1"].to_numpy() == pytest.approx(found.channels[1].numpy(), rel=1e-2, abs=1e-3)
    above = float(out.split("above ")[1].split()[0])
    assert scores["alarm"].tolist() == (scores["score"] > above * (1 + 1e-6)).tolist()
    events = pd.read_csv("o/s.csv.events.csv")
    places = ["start", "end", "peak", "known_at"]
    times = [f"{name}_time" for name in places]
    assert list(events) == ["file", *places, *times, "score", "threshold", "rule", "strangest", "channel", *REASON]
    assert events["threshold"].to_numpy() == pytest.approx([above, above], rel=1e-5)
    assert events["channel"].tolist() == [0, 1]
    assert events["rule"].tolist() == ["out of range", "out of range"]
    assert events["known_at"].tolist() == [1300, 1400]  # the rule knows at once
    assert events["peak"][0] == 1300
    assert events["peak_time"][0] == "2024-02-24 04:00:00"
    assert 1389 <= events["start"][1] <= 1400 < 1404 <= events["end"][1] <= 1415
    assert events["start"][1] <= events["peak"][1] <= events["end"][1]
    assert set(events["strangest"]) <= {"1", "2", 1, 2}
    assert Path("o/s.csv.png").stat().st_size > 10_000


def test_one_fault_is_one_event(run: Any) -> None:
    """A stuck sensor, a level and a slow wave are three events, each with its reason; without the defaults more."""
    x = waves(seed=1)
    x[300:360, 0] = x[300, 0]
    x[700:720, 1] += 1000
    x[1100:1200, 0] = np.sin(np.arange(100) * 1.5)
    write_file("new.csv", x)
    args = ("data.path=new.csv", "data.time_column=t", "threshold=1.5")
    assert run(*args, "out=s.csv", "merge=auto").code == 0
    events = pd.read_csv("s.csv.events.csv", dtype={"channel": str})
    assert events["rule"].fillna("").tolist() == ["stands still", "out of range", ""]
    assert events["channel"].tolist() == ["0", "1", "0"]
    for (start, end), event in zip([(300, 359), (700, 719), (1100, 1199)], events.itertuples(), strict=True):
        assert start - 12 <= event.start <= start + 6
        assert end - 6 <= event.end <= end + 12
    assert run(*args, "threshold=2.5", "out=t.csv", "merge=0", "hysteresis=false", "rules=false").code == 0
    bare = pd.read_csv("t.csv.events.csv")
    assert bare["rule"].isna().all()
    assert (bare["end"] - bare["start"]).sum() < (events["end"] - events["start"]).sum() - 10


def test_known_at(run: Any) -> None:
    """A file cut at that row has the row's score; the event of a longer file was not known in one that ends before."""
    x = waves(seed=1)
    x[1100:1200, 0] = np.sin(np.arange(100) * 1.5)
    write_file("late.csv", x)
    args = ("data.time_column=t", "threshold=1.5", "rules=false")
    assert run("data.path=late.csv", "out=late.s.csv", *args).code == 0
    late, [event] = pd.read_csv("late.s.csv"), pd.read_csv("late.s.csv.events.csv").to_dict("records")
    assert late["known_at"].tolist() == [*range(11, TIME), *[TIME - 1] * 11]
    assert late["known_at_time"].tolist() == late["time"][late["known_at"]].tolist()
    assert event["known_at"] == late["known_at"][late["alarm"]].min()
    assert event["known_at_time"] == late["time"][event["known_at"]]
    for time in (event["known_at"], event["known_at"] + 1):
        write_file("early.csv", x[:time])
        assert run("data.path=early.csv", f"out={time}.csv", *args).code == 0
    cut = pd.read_csv(f"{event['known_at'] + 1}.csv")
    same = late["known_at"] <= event["known_at"]
    assert cut["score"][same[: len(cut)]].to_numpy() == pytest.approx(late["score"][same].to_numpy(), rel=1e-4)
    assert len(pd.read_csv(f"{event['known_at'] + 1}.csv.events.csv")) == 1


@pytest.mark.parametrize(("budget", "steps"), [("50h", 50), ("2d", 48), ("100", 100 / 3600)])
def test_a_budget_of_alarms(run: Any, trained: Path, budget: str, steps: float) -> None:
    """Of the training split itself, about as many events as the budget allows."""
    args = (f"data.path={trained / 'a.csv'}", f"alarms_per={budget}", "threshold=quantile", "merge=2")
    code, out, err = run(*args, "out=s.csv", "data.time_column=t")
    if steps < 2:
        assert (code, "alarms_per=100: 0.0278 steps; expected at least 2" in err) == (2, True)
        return
    n = int(out.split("normal steps it gives ")[1].split()[0])
    assert 0.7 * 1275 / steps <= n <= 1275 / steps
    assert run(*args[:1], "alarms_per=50", *args[2:], "out=t.csv", "data.time_column=null").code == 0
    if steps == 50:
        assert pd.read_csv("s.csv.events.csv")["threshold"][0] == pd.read_csv("t.csv.events.csv")["threshold"][0]


def test_few_training_scores(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A quantile serves, and the log says so; the picture and the tables are as usual."""
    np.save("x.npy", strange())
    np.save("calm.npy", waves(630, seed=5))
    code, out, err = run("data.path=x.npy", "out=x.csv", "reference=calm.npy")
    assert (code, err) == (0, "")
    assert "630 training scores are too few for extreme value theory; the threshold is their quantile" in caplog.text
    assert "in the 630 normal steps it gives 0 events\n" in out


def test_the_reason_of_an_event(run: Any, trained: Path) -> None:
    """The window that is furthest from normal, the value and what is normal there, and where in the training data."""
    x = waves()
    x[1300:1303, 1] += 250
    write_file("new.csv", x)
    code, _, err = run("data.path=new.csv", "data.time_column=t", "out=s.csv", "rules=false", "threshold=1.5")
    assert code == 0, err
    [event] = pd.read_csv("s.csv.events.csv").to_dict("records")
    assert event["channel"] == 1
    assert event["from"] <= event["peak"] <= event["to"] == event["from"] + 11
    assert event["value"] == pytest.approx(x[event["peak"], 1], rel=1e-5)
    assert abs(event["value"] - event["expected"]) > 2 * event["band"] > 0
    assert event["normal_file"] == str(trained / "a.csv")
    training = pd.read_csv(trained / "a.csv")
    assert event["normal_time"] == training["t"][event["normal_row"]]
    normal = training["1"][event["normal_row"] : event["normal_row"] + 11]
    clean = waves()[event["from"] : event["to"], 1]
    assert np.corrcoef(normal, clean)[0, 1] > 0.8


def test_a_failure_in_the_training_data_is_told(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its file, row and time, each time; data without one are not suspected."""
    x = waves()
    x[900:930, 1] = -700
    write_file("bad.csv", x)
    write_file("new.csv", waves(seed=3))
    args = ("data.path=new.csv", "data.time_column=t", "overwrite=true", "out=s.csv")
    assert run(*args).code == 0
    assert "failure" not in caplog.text
    assert run(*args, "reference=bad.csv").code == 0
    said = "bad.csv, row 900, 2024-02-07 12:00:00: 1 is -700, where all other values are at least -1"
    assert said in caplog.text
    assert "; if it is a failure, it hides later ones: leave it out, and train again" in caplog.text


def test_rules_are_those_of_the_estimator(run: Any, trained: Path) -> None:
    """Of the same rows: the training and the validation split."""
    assert run(f"data.path={trained / 'a.csv'}", "out=s.parquet").code == 0
    kept = archive.read(trained / "run" / "best.bank")["normal"]["rules"]
    frame = pd.read_csv(trained / "a.csv", index_col="t", parse_dates=True)[:1275]
    detector = MultiScaleDetector(n_epochs=1, window=12, latent_dim=4, random_state=0, device="cpu").fit(frame)
    for name, value in vars(detector.rules_).items():
        rtol = 1e-3 if name == "change" else 1e-9  # the splits part at different rows, at which no change counts
        torch.testing.assert_close(value, kept[name], rtol=rtol, atol=0)


def test_training_rows_are_scored_as_new_ones(run: Any, trained: Path) -> None:
    """In their own file normal windows that share a row with them do not count; in another file they do."""
    shutil.copy(trained / "a.csv", "copy.csv")
    for path, name in ((trained / "a.csv", "own"), ("copy.csv", "copy")):
        code, _, err = run(f"data.path={path}", f"out={name}.parquet")
        assert code == 0, err
    own, copy = (parquet.read_table(f"{name}.parquet").to_pandas()["score"] for name in ("own", "copy"))
    assert (own[:1000] > 1.01 * copy[:1000]).mean() > 0.8
    assert own[1300:].to_numpy() == pytest.approx(copy[1300:].to_numpy(), rel=1e-4)


def test_normal_windows_are_kept_beside_the_checkpoint(
    command: Command, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second call reads them, so that it needs no training data; one that is damaged or of other options is not."""
    shutil.copytree(trained / "run", "run")
    shutil.copy(trained / "a.csv", "mine.csv")
    (Path("run") / "best.bank").unlink(missing_ok=True)
    write_file("new.csv", strange())
    args = ("ckpt=run", "data.path=new.csv", "data.time_column=t")
    assert command(*args, "out=1.parquet", module="detect").code == 0
    kept = (Path("run") / "best.bank").read_bytes()
    (trained / "a.csv").rename(trained / "away.csv")
    try:
        code, _, err = command(*args, "out=2.parquet", module="detect")
        assert code == 0, err
        assert Path("1.parquet").read_bytes() == Path("2.parquet").read_bytes()
        for flag in ("bank_size=99", "stride=2", "causal=true"):
            assert "cannot read the data" in command(*args, flag, "out=3.parquet", module="detect").err
        (Path("run") / "best.bank").write_bytes(kept[:5000] + b"x" + kept[5001:])
        code, _, err = command(*args, "out=3.parquet", module="detect")
        assert (code, "best.bank: not readable, so that it is learned again" in caplog.text) == (2, True)
        assert "cannot read the data" in err
    finally:
        (trained / "away.csv").rename(trained / "a.csv")
    assert command(*args, "out=3.parquet", module="detect").code == 0
    assert (Path("run") / "best.bank").read_bytes() == kept


def test_causal(run: Any) -> None:
    """A score is known with its step, and needs none of the later ones."""
    x = strange()
    np.save("x.npy", x)
    np.save("cut.npy", x[:1302])
    for name in ("x", "cut"):
        code, _, err = run(f"data.path={name}.npy", f"out={name}.parquet", "causal=true")
        assert code == 0, err
    whole, cut = (parquet.read_table(f"{name}.parquet").to_pandas() for name in ("x", "cut"))
    assert whole["known_at"].tolist() == whole["row"].tolist()
    assert whole["score"][:1302].to_numpy() == pytest.approx(cut["score"].to_numpy(), rel=1e-4, nan_ok=True)
    assert whole["score"].isna().sum() == 11
    assert cut["alarm"][1300]


def test_parquet_and_a_series_in_two_files(run: Any) -> None:
    """A row's score does not depend on the rows of other files, and the two runs have one threshold."""
    x = strange()
    np.save("x.npy", x)
    Path("in").mkdir()
    np.save("in/1.npy", x[:700])
    np.save("in/2.npy", x[700:])
    assert run("data.path=x.npy", "out=x.parquet").code == 0
    assert run("data.path=in", "out=in.parquet").code == 0
    one, two = (parquet.read_table(f"{name}.parquet").to_pandas() for name in ("x", "in"))
    assert two["row"].tolist() == [*range(700), *range(800)]
    apart = np.r_[:689, 711:TIME]
    assert two["score"][apart].to_numpy() == pytest.approx(one["score"][apart].to_numpy(), rel=1e-3, abs=1e-5)
    one, two = (pd.read_csv(f"{name}.parquet.events.csv") for name in ("x", "in"))
    assert len(one)
    assert one["end"].tolist() == (two["end"] + 700 * two["file"].str.endswith("2.npy")).tolist()


def test_groups_gaps_and_missing_values(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The rows of two series alternate; stretches shorter than a window and missing values have no scores."""
    x = waves(300)
    times = np.repeat(np.r_[0:60, 1000:1005, 2000:2085], 2)
    frame = pd.DataFrame({"t": times, "0": x[:, 0], "1": x[:, 1], "g": ["u", "v"] * 150})
    frame.loc[20:24, "0"] = np.nan
    frame.loc[30, "1"] = frame.loc[30, "0"] = np.nan
    frame.to_csv("g.csv", index=False)
    args = ("data.path=g.csv", "data.time_column=t", "data.group_column=g", "data.max_gap=2", "data.missing=mask")
    none = ("threshold=1e9", "reference=null")
    assert "freq=1h: g.csv has times that are plain numbers" in run(*args, "out=g.parquet", *none).err
    args = (*args, "data.freq=auto")
    code, _, err = run(*args, "out=g.parquet", *none)
    assert code == 0, err
    assert "g.csv: leaves out 10 of 300 rows, in stretches between gaps" in caplog.text
    scores = parquet.read_table("g.parquet").to_pandas().set_index("row")
    assert sorted(scores.index) == [*range(120), *range(130, 300)]
    assert scores["group"].sort_index().tolist() == ["u", "v"] * 145
    assert scores["time"].sort_index().tolist() == np.delete(times, range(120, 130)).tolist()
    assert scores.index[scores["score_0"].isna()].tolist() == [20, 22, 24, 30, 21, 23]
    assert scores.index[scores["score"].isna()].tolist() == [30]
    assert not {"strangest", "scale_1"} & set(scores)
    events = pd.read_csv("g.parquet.events.csv")
    assert len(events) == 0
    assert {"group", "start", "end_time", "channel"} <= set(events)


def test_a_channel_without_values_is_told(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, and in a row of the table of events; alarms are those of the other channel."""
    x = strange()
    x[:, 0] = np.nan
    write_file("e.csv", x)
    args = ("data.path=e.csv", "data.time_column=t", "data.missing=mask", "probability=1e-4", "merge=3")
    assert run(*args, "out=e.parquet").code == 0
    assert "e.csv: channel 0 has no value; scores are of the other channels" in caplog.text
    events = pd.read_csv("e.parquet.events.csv")
    [(_, first)] = events[events["rule"] == "missing"].iterrows()
    assert (first["start"], first["end"], first["channel"], first["rule"]) == (0, TIME - 1, 0, "missing")
    assert np.isnan(first["score"])
    assert np.isnan(first["threshold"])
    assert set(events["channel"][events["rule"] != "missing"]) == {1}


def test_reference_files_and_quantile(run: Any) -> None:
    """The threshold is that of the reference, for all scored files."""
    np.save("x.npy", strange())
    np.save("calm.npy", waves(seed=5) * np.array([1.5, 1.0]))
    args = ("data.path=x.npy", "threshold=quantile", "probability=.01", "overwrite=true")
    assert run("data.path=calm.npy", "out=calm.csv", "threshold=1").code == 0
    expected = pd.read_csv("calm.csv")["score"].quantile(0.99)
    for path in ("calm.npy", "[calm.npy]"):
        _, out, err = run(*args, "out=x.csv", f"reference={path}")
        assert not err
        assert float(out.split("above ")[1].split()[0]) == pytest.approx(1, rel=0.1)  # it is what is usual there
    assert expected > 2  # by the training split


def test_windows_already_cut(run: Any) -> None:
    """Windows are separate: no event extends from one to the next."""
    windows = np.stack(np.split(waves(240), 20)).transpose(0, 2, 1).astype(np.float32)
    windows[3, 0, 11] += 30
    windows[4, 0, 0] += 20
    np.save("w.npy", windows)
    code, _, err = run("data.path=w.npy", "out=w.csv", "threshold=20", "merge=5", "hysteresis=false", "rules=false")
    assert code == 0, err
    scores = pd.read_csv("w.csv")
    assert scores["index"].tolist() == np.repeat(range(20), 12).tolist()
    assert scores["step"].tolist() == list(range(12)) * 20
    events = pd.read_csv("w.csv.events.csv")
    assert events[["index", "end"]].to_numpy()[0].tolist() == [3, 11]
    assert events[["index", "start"]].to_numpy()[1].tolist() == [4, 0]
    assert len(events) == 2


def test_samples_of_a_data_set(command: Command) -> None:
    args = ("data=ucr", "data.name=ItalyPowerDemand", "trainer=cpu", "trainer.max_epochs=1")
    assert command("model=msae16", *args, "hydra.run.dir=run").code == 0
    code, out, err = command("ckpt=run/best.ckpt", *args[:2], "out=s.parquet", "probability=.05", module="detect")
    assert code == 0, err
    scores = parquet.read_table("s.parquet").to_pandas()
    assert len(scores) == 24 * (67 + 1029)
    assert scores.groupby("split")["index"].max().to_dict() == {"train": 66, "test": 1028}
    assert scores["score"][scores["split"] == "train"].quantile(0.95) == pytest.approx(
        float(out.split("above ")[1].split()[0]), rel=0.1
    )
    assert set(scores["strangest"]) == {"small", "large"}


def test_full_disk(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that could not be written is removed."""
    np.save("x.npy", waves())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write.Writer, "_open", full)
    code, _, err = run("data.path=x.npy", "out=o/x.csv")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "o/x.csv: cannot be written: No space left on device" in err
    assert not list(Path("o").iterdir())


def test_what_exists_is_kept(run: Any) -> None:
    np.save("x.npy", waves())
    Path("x.csv.events.csv").write_text("mine")
    code, _, err = run("data.path=x.npy", "out=x.csv", "threshold=1")
    assert (code, err) == (2, "error: out=x.csv: x.csv.events.csv exists; overwrite=true replaces it\n")
    assert run("data.path=x.npy", "out=x.csv", "threshold=1", "overwrite=true").code == 0
    assert Path("x.csv.events.csv").read_text() != "mine"


def test_training_data_that_is_gone(run: Any, trained: Path) -> None:
    np.save("x.npy", waves())
    (trained / "a.csv").rename(trained / "b.csv")
    (trained / "run" / "best.bank").unlink(missing_ok=True)
    try:
        code, _, err = run("data.path=x.npy", "out=x.csv")
        assert code == 2
        assert err.startswith(f"error: reference=training: cannot read the data of {trained}/run/best.ckpt: ")
        assert err.endswith(
            "type reference=PATH to compare with other files, or reference=null and threshold=NUMBER to do without\n"
        )
        assert run("data.path=x.npy", "out=x.csv", "threshold=1", "reference=null").code == 0
    finally:
        (trained / "b.csv").rename(trained / "a.csv")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data.path=short.npy"], "short.npy: no stretch of 12 steps"),
        (["data.path=one.npy"], "data.columns=1: no such column in one.npy; it has: 0"),
        (
            ["data.path=holes.npy", "data.missing=error"],
            "holes.npy, row 3, column 0: no value; set data.missing=interpolate or data",
        ),
        (["data=digits"], "data: 1 channels, in windows of 64 steps; the model takes 2"),
        (["stride=13"], "stride=13: expected a whole number, from 1 to 12"),
        (["stride=0"], "stride=0: expected a whole number"),
        (["merge=-1"], "merge=-1: expected a whole number, at least 0"),
        (["threshold=best"], "threshold=best: expected one of evt, quantile, a number"),
        (["threshold=-1"], "threshold=-1: expected a number from 0"),
        (["probability=0"], "probability=0: expected a number between 0 and 1"),
        (["probability=2"], "probability=2: expected a number from 0 to 1"),
        (["merge=half"], "merge=half: expected a whole number, at least 0"),
        (["hysteresis=low"], "hysteresis=low: expected one of True, False"),
        (["rules=stuck"], "rules=stuck: expected one of True, False"),
        (["alarms_per=1d"], "alarms_per=1d: x.npy has no times; expected a number of steps, or data.time_column"),
        (["alarms_per=[1,2]"], "alarms_per=[1, 2]: x.npy has no times; expected a number of steps"),
        (["alarms_per=1"], "alarms_per=1: 1 steps; expected at least 2"),
        (["alarms_per=1d", "threshold=5"], "alarms_per=1d: threshold=5 is a number; expected evt or quantile"),
        (["bank_size=1"], "bank_size=1: expected a whole number, at least 2"),
        (["follow=yes please"], "follow=yes please: expected one of True, False"),
        (["follow=true", "poll=0"], "poll=0: expected a number of seconds above 0"),
        (["follow=true"], "follow=true: x.npy is no .csv; expected one, to which rows are added"),
        (
            ["follow=true", "out=x.parquet"],
            "out=x.parquet: rows cannot be added to it; expected a .csv with follow=true",
        ),
        (["follow=true", "data.path=[x.npy,one.npy]"], "2 files; expected one with follow=true"),
        (["follow=true", "data.group_column=g"], "group_column=g: expected null with follow=true, and a file a series"),
        (["causal=now"], "causal=now: expected one of True, False"),
        (["causal=true", "stride=2"], "stride=2: expected 1 with causal=true or follow=true"),
        (["reference=null"], "reference=null: threshold=evt needs training scores; expected a number"),
        (["reference=nowhere"], "reference=nowhere: no such file or folder"),
        (["reference=short.npy"], "short.npy: no stretch of 12 steps"),
        (["reference=x.npy", "data=digits"], "reference=x.npy: files, but data is a data set of samples"),
        (["out=x.txt"], "out=x.txt: expected a file ending .parquet or .csv"),
        (["treshold=1"], "treshold: no such key; nearest: threshold"),
    ],
)
def test_mistakes(args: list[str], message: str, run: Any) -> None:
    x = waves()
    holes = x.copy()
    holes[3, 0] = np.nan
    for name, array in (("x", x), ("short", x[:5]), ("one", x[:, :1]), ("holes", holes)):
        np.save(f"{name}.npy", array)
    code, out, err = run(*(["data.path=x.npy"] if "data=digits" not in args else []), "out=o/s.csv", *args)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("o/s.csv").exists()


def test_new_files_are_read_as_those_of_the_run(command: Command) -> None:
    """Separator, time column, gaps and missing values need no options again; given options replace them."""
    times = pd.date_range("2024-01-01", periods=300, freq="h").delete(slice(100, 130))
    frame = pd.DataFrame({"t": times, "0": waves()[: len(times), 0]})
    frame.loc[7, "0"] = np.nan
    frame.to_csv("old.csv", sep=";", index=False)
    frame.to_csv("new.csv", sep=";", index=False)
    read = ("data.separator=;", "data.time_column=t", "data.max_gap=3h", "data.missing=interpolate")
    args = ("model=single", "model.latent_dim=2", "data=series", "data.path=old.csv", "data.window=12", "trainer=cpu")
    assert command(*args, *read, "trainer.max_epochs=1", "out=run").code == 0
    for number, given in enumerate((["data.path=new.csv"], ["data=series", "data.path=new.csv"], [])):
        more = (f"out={number}.csv", "threshold=quantile", "probability=0.05")
        code, _, err = command("ckpt=run", *given, *more, module="detect")
        assert (code, err) == (0, "")
        assert len(pd.read_csv(f"{number}.csv")) == len(times)
    assert pd.read_csv("0.csv").score.equals(pd.read_csv("1.csv").score)
    asis = ("data.max_gap=null", "data.freq=null")
    code, _, err = command("ckpt=run", "data.path=new.csv", *asis, "out=x.csv", module="detect")
    assert (code, "max_gap" in err) == (2, True)


def test_a_checkpoint_runs_no_code_but_ours(trained: Path, command: Command) -> None:
    checkpoint = torch.load(trained / "run" / "best.ckpt", weights_only=True)
    checkpoint["state_dict"]["_extra_state"]["data_options"] |= {"_target_": "os.system"}
    torch.save(checkpoint, "x.ckpt")
    code, _, err = command("ckpt=x.ckpt", "out=x.csv", module="detect")
    assert (code, err) == (
        2,
        "error: ckpt=x.ckpt: reads its data by os.system, which is not run for a file that names it; where you trust "
        "it, type data._target_=os.system, or register it as an entry point of msae.data\n",
    )
    checkpoint["state_dict"]["_extra_state"]["data_options"] = None
    torch.save(checkpoint, "x.ckpt")
    code, _, err = command("ckpt=x.ckpt", "out=x.csv", module="detect")
    assert (code, "does not say how its data were read; expected data=NAME and its keys" in err) == (2, True)


class Grower(threading.Thread):
    """Adds texts to a file, each once the rows before it are scored, and then sends a signal."""

    def __init__(self, pieces: list[tuple[bytes, int]], number: int = signal.SIGINT, instead: bytes = b"") -> None:
        super().__init__()
        self.path, self.out = Path("live.csv").resolve(), Path("live.s.csv").resolve()
        self.pieces, self.number, self.instead = pieces, number, instead
        self.seen: list[int] = []
        self.over = threading.Event()

    def rows(self) -> int:
        return self.out.read_bytes().count(b"\n") - 1 if self.out.exists() else -1

    def run(self) -> None:
        for text, expected in self.pieces:
            if not text:
                self.path.write_bytes(self.instead)
            with self.path.open("ab") as file:
                file.write(text)
            until = monotonic() + 60
            while self.rows() < expected and monotonic() < until and not self.over.is_set():
                sleep(0.005)
            sleep(0.03)
            self.seen.append(self.rows())
        if not self.over.is_set():
            os.kill(os.getpid(), self.number)


def grow(run: Any, pieces: list[tuple[bytes, int]], *args: str, **more: Any) -> tuple[Result, Grower]:
    """Follow `live.csv`, which begins empty."""
    Path("live.csv").write_bytes(b"")
    Path("live.s.csv").unlink(missing_ok=True)
    grower = Grower(pieces, **more)
    grower.start()
    try:
        return run("data.path=live.csv", "out=live.s.csv", "follow=true", "poll=0.01", *args), grower
    finally:
        grower.over.set()
        grower.join()


def compare(run: Any, *args: str) -> None:
    """The tables of `live.csv` are those of the same rows at once."""
    shutil.copy("live.csv", "whole.csv")
    code, _, err = run("data.path=whole.csv", "out=whole.s.csv", "causal=true", "overwrite=true", *args)
    assert code == 0, err
    for end in ("s.csv", "s.csv.events.csv"):
        whole, live = (Path(f"{name}.{end}").read_text().replace(f"{name}.csv", "x.csv") for name in ("whole", "live"))
        assert live.splitlines()[0] == whole.splitlines()[0]
        assert sorted(live.splitlines()) == sorted(whole.splitlines())


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("kept", [growing.KEPT, 30])
def test_a_file_that_grows(run: Any, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and events are those of the whole file to the bit, whatever the pieces; a row's score is there at once.

    It begins without a header and without a window; a line comes in two pieces, a stretch ends at a gap, and others
    where values are missing. Old rows are dropped.
    """
    monkeypatch.setattr(growing, "KEPT", kept)
    monkeypatch.setattr(growing, "TRACKED", 16)
    x = strange()
    x[300:360, 0] = x[300, 0]
    x[700:702, 1] = np.nan
    x[760:780, 0] = np.nan
    write_file("all.csv", x)
    text = Path("all.csv").read_bytes().splitlines(keepends=True)
    del text[1001:1041]
    pieces, at = [], 0
    for stop, rows in {
        1: -1,
        8: -1,
        12: -1,
        13: 12,
        14: 13,
        320: 319,
        321: 320,
        703: 700,
        770: 760,
        790: 760,
        1000: 979,
        1001: 980,
        1012: 980,
        1013: 992,
        1301: 1280,
        1460: 1439,
        1461: 1440,
    }.items():
        pieces.append((b"".join(text[at:stop]), rows))
        at = stop
    cut = pieces[6][0]
    pieces[6:7] = [(cut[:9], 319), (cut[9:], 320)]
    (code, out, err), grower = grow(run, pieces, "threshold=1.5")
    assert (code, err) == (130, "")
    assert grower.seen == [rows for _, rows in pieces]
    assert "row 302, time 2024-01-13 14:00:00: event in channel 0, score " in out
    assert out.count(": event in channel ") == 4
    assert out.endswith("\n1440 time steps, 4 events\n  live.s.csv\n  live.s.csv.events.csv\n")
    compare(run, "threshold=1.5")


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("kind", ["jitter", "averaged", "mask", "own", "merged"])
def test_a_file_that_grows_on_a_grid(run: Any, kind: str, trained: Path) -> None:
    """Stamps that jitter, several rows in a step, missing values, the training file, and an event of two runs."""
    rng = np.random.default_rng(0)
    x = waves(700) if kind == "own" else strange()[:700]
    args = ["alarms_per=50h" if kind == "own" else "threshold=2"]
    if kind == "averaged":
        x, args = np.repeat(x, 3, axis=0)[: 3 * 400], [*args, "data.freq=3h"]
    if kind == "mask":
        x[100:200:2, 0] = x[101:200:2, 1] = np.nan
        args.append("data.missing=mask")
    if kind == "merged":
        x, args = waves(700, 3), ["data.missing=mask", "merge=60", "threshold=3", "hysteresis=false"]
        x[[300, 370], 0] += 9
        x[420:520, 1] = np.nan
    write_file("all.csv", x)
    if kind == "jitter":
        frame = pd.read_csv("all.csv", parse_dates=["t"])
        frame["t"] += pd.to_timedelta(rng.uniform(-700, 700, len(frame)).round(), "s")
        frame.drop([50, 51, 400]).to_csv("all.csv", index=False)
    text = Path("all.csv").read_bytes().splitlines(keepends=True)
    some = [301, 396, 516, 530, 590] if kind == "merged" else rng.choice(np.arange(1, len(text)), 5, replace=False)
    stops = [0, *sorted(map(int, some)), len(text)]
    total = {"averaged": 399}.get(kind, 700)
    pieces = [(b"".join(text[a:b]), total if b == len(text) else -1) for a, b in pairwise(stops)]
    if kind == "own":
        shutil.move(trained / "a.csv", "a.csv")
        (trained / "a.csv").symlink_to(Path("live.csv").resolve())
    try:
        (code, _, err), grower = grow(run, pieces, *args)
        assert (code, err) == (130, "")
        assert grower.seen[-1] == total
        if kind == "averaged":  # it is not known that the last step is complete
            with Path("live.csv").open("w") as file:
                file.writelines(line.decode() for line in text[: 1 + 3 * 399])
        if kind != "own":
            compare(run, *args)
            return
        shutil.copy("live.s.csv", "first.csv")
        assert run("data.path=live.csv", "out=whole.s.csv", "causal=true", *args).code == 0
        assert Path("whole.s.csv").read_bytes() == Path("first.csv").read_bytes()
    finally:
        if kind == "own":
            (trained / "a.csv").unlink()
            shutil.move("a.csv", trained / "a.csv")


def test_times_of_a_table_that_grows(tmp_path: Path) -> None:
    """Once one has a fraction of a second, all that follow have."""
    times = np.array(["2026-01-01T00:00:00", "2026-01-01T00:00:00.5", "2026-01-01T00:00:01"], "datetime64[ms]")
    with write.Appended(tmp_path / "x.csv", escape=True) as out:
        for time in times:
            out.write({"time": np.array([time])})
    lines = (tmp_path / "x.csv").read_text().replace('"', "").split()
    assert [line for line in lines if ":" in line] == ["00:00:00", "00:00:00.500", "00:00:01.000"]


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    """Of a table that grows."""

    class Full(io.FileIO):
        def write(self, text: Any) -> int:
            if len(text) < 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text[:5])

    path = tmp_path / "a.csv"
    with write.Appended(path, escape=True) as out:
        out.write({"row": np.arange(3), "name": ["=A1", "b", "c"]})
        out._file.close()
        out._file = Full(path, "r+")
        out._file.seek(0, io.SEEK_END)
        with pytest.raises(InputError, match=r"a\.csv: cannot be written: No space left on device"):
            out.write({"row": np.arange(3, 6), "name": ["d", "e", "f"]})
    assert path.read_text() == '"row","name"\n0,"\'=A1"\n1,"b"\n2,"c"\n'


@pytest.mark.usefixtures("sigint")
def test_what_a_live_file_may_do(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Rows out of order are left out, with a word; a bad row, or another file in its place, ends it in one line."""
    write_file("all.csv", waves(60))
    text = Path("all.csv").read_bytes().splitlines(keepends=True)
    start = (b"".join(text[:41]), 40)
    late = (text[30] + text[31] + text[41], 41)
    (code, out, err), _ = grow(run, [start, late], "threshold=9", number=signal.SIGTERM)
    assert (code, err) == (143, "")
    said = "live.csv, row 40: time 2024-01-02 05:00:00 is not after 2024-01-02 15:00:00 of the row before"
    assert caplog.text.count(said) == 1
    assert "\n41 time steps, 0 events; 2 rows out of order were left out\n" in out
    assert pd.read_csv("live.s.csv")["row"].tolist() == [*range(40), 42]
    again = ("threshold=9", "overwrite=true")
    (code, _, err), _ = grow(run, [start, (b"2024-01-02 16:00:00,x,1\n", 41)], *again)
    assert code == 2
    assert err.startswith("error: live.csv, line 42, column 0: 'x' is not a number")
    assert len(pd.read_csv("live.s.csv")) == 40
    (code, _, err), _ = grow(run, [start, (b"", 41)], *again, instead=b"t,0,1\n2024-01-01,1,2\n")
    assert (code, err.count("\n")) == (2, 1)
    assert "live.csv: was cut or replaced after 40 rows were read; start again, with another out\n" in err
    assert len(pd.read_csv("live.s.csv")) == 40
