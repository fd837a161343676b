"""Real clocks: times that jitter, rows that are missing, calendars, zones, codes for no value, and the window."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import msae
from msae import InputError
from msae.data import files, grid, rows
from msae.data.period import dominant_period
from msae.data.series import series
from msae.data.tables import Format

START = datetime.datetime(2026, 3, 2)


def write(path: Path, stamps: Sequence[object], values: Sequence[object] | None = None) -> Path:
    """A file of stamps and values, which are the numbers of the rows by default."""
    values = range(len(stamps)) if values is None else values
    path.write_text("when,v\n" + "".join(f"{stamp},{v}\n" for stamp, v in zip(stamps, values, strict=True)))
    return path


def read(path: Path, **options: Any) -> rows.Table:
    return files.read(path, Format(**({"time_column": "auto", "freq": "auto"} | options)))


def minutes(*at: float) -> list[str]:
    return [(START + datetime.timedelta(minutes=float(one))).isoformat() for one in at]


class TestGrid:
    @given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.35), st.floats(-1e-3, 1e-3))
    @settings(deadline=None, max_examples=30)
    def test_jitter_and_drift_are_absorbed(self, seed: int, jitter: float, drift: float) -> None:
        """Steps of any clock keep their numbers, whichever rows are missing."""
        rng = np.random.default_rng(seed)
        there = rng.random(3000) > 0.02
        there[0] = True
        x = (np.arange(3000) * (1 + drift / 4) + rng.uniform(-jitter, jitter, 3000))[there]
        assert grid.even(x).tolist() == np.flatnonzero(there).tolist()

    def test_missing_rows_and_longer_gaps(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        at = np.setdiff1d(np.arange(200), [7, 50, 51, *range(100, 112)])
        jitter = np.random.default_rng(0).uniform(-1.4, 1.4, len(at))
        jitter[[0, at.tolist().index(112)]] = 0
        path = write(tmp_path / "a.csv", minutes(*(5 * at + jitter)), at.tolist())
        with caplog.at_level("INFO"):
            table = read(path)
        text = "a row every 5min; rows missing: 3 in short gaps (2), which data.missing treats; longer gaps, which"
        assert rows.stretches(table) == [("", 0, 100), ("", 100, 188)]
        assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [7, 50, 51]
        assert [*range(100), *range(112, 200)] == [
            round(v)
            for v in np.where(np.isnan(table.values[:, 0]), [*range(100), *range(112, 200)], table.values[:, 0])
        ]
        assert table.place is not None
        assert table.order is not None
        assert np.array_equal(table.values[table.place, 0], at)
        assert np.array_equal(table.order[table.place], np.arange(len(at)))
        assert table.order[[7, 50, 51]].tolist() == [6, 48, 48]
        assert table.times is not None
        assert (np.diff(table.times) > 0).all()
        assert text in caplog.text
        data = series(str(path), 8)
        x = data.train.x[:]
        assert (data.chosen, data.missing) == ({"window": 8, "time_column": "when", "freq": "5min"}, False)
        assert all(np.allclose(np.diff(window[0]), 1) for window in x)  # lines across short gaps, none across the long
        assert len(series(str(path), 8, max_gap="2h", val_size=0, test_size=0.1).train) == 200 - 20 - 7
        assert len(series(str(path), 8, freq=None, max_gap="6min", missing="error").train) < len(x)

    def test_a_regular_file_stays_as_it_is(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", minutes(*range(60)))
        one, other = read(path), read(path, freq=None)
        assert (one.freq, one.place, one.order) == ("1min", None, None)
        assert np.array_equal(one.values, other.values)
        assert one.times is not None
        assert np.array_equal(one.times, np.asarray(other.times))

    @pytest.mark.parametrize("unit", ["60 Hz in ms", "numbers"])
    def test_a_step_between_whole_numbers(self, unit: str, tmp_path: Path) -> None:
        ms = np.round(np.arange(4000) * 1000 / 60).astype(int)
        stamps = [str(np.datetime64("2026-01-01") + np.timedelta64(one, "ms")) for one in ms]
        table = read(write(tmp_path / "a.csv", stamps if unit != "numbers" else ms), time_column="when")
        assert (len(table.values), table.place) == (4000, None)
        assert rows.duration(table.freq, table) == pytest.approx(1000 / 60 * (1e-3 if unit != "numbers" else 1), 1e-4)

    def test_repeated_times_are_averaged_and_rows_put_in_order(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        at = [*range(30), 29, *range(30, 60), 58, 60]
        table = read(write(tmp_path / "a.csv", minutes(*at), [*range(30), 39, *range(30, 60), 98, 60]))
        assert table.values[:, 0].tolist() == [*range(29), 34, *range(30, 58), 78, 59, 60]
        assert (
            "rows that go back, put in order: 1; rows averaged with the one before, in the same step: 2" in caplog.text
        )
        assert table.place is not None
        assert table.place.tolist() == at

    def test_series_below_each_other(self, tmp_path: Path) -> None:
        at = [i for i in range(40) if i != 9]
        lines = [f"{stamp},{g},{i}" for g in "xy" for i, stamp in zip(at, minutes(*at), strict=True)]
        (tmp_path / "a.csv").write_text("t,g,v\n" + "\n".join(lines) + "\n")
        table = read(tmp_path / "a.csv", group_column="g")
        assert rows.stretches(table) == [("x", 0, 40), ("y", 40, 80)]
        assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [9, 49]

    def test_a_longer_step_averages(self, tmp_path: Path) -> None:
        table = read(write(tmp_path / "a.csv", minutes(*range(7, 60))), freq="10min")
        assert table.values[:, 0].tolist() == [1, *(7.5 + 10 * i for i in range(5))]

    @pytest.mark.parametrize(
        ("stamps", "options", "message"),
        [
            (minutes(*np.random.default_rng(0).exponential(1, 500).cumsum()), {},
             r"the times have no even step .* data.freq=null data.max_gap=TIME to take rows as even"),
            (minutes(*range(50, 0, -1)), {}, r"line 3: time .* goes back from .*or data.time_column=null ignores"),
            (minutes(*range(20), *range(20)), {}, r"line 22: time .* repeats .*name the series with"),
            (minutes(*(i // 2 for i in range(60))), {}, r"line 3: time .* repeats .*name the series with"),
            (minutes(*range(30)), {"freq": "soon"}, "freq=soon: expected a time such as 90s"),
            (range(30), {"freq": "5min", "time_column": "when"}, "freq=5min: .* plain numbers"),
            (range(30), {"freq": "month", "time_column": "when"}, "freq=month: expected auto, null or a step such as"),
        ],
    )  # fmt: skip
    def test_what_fits_no_grid(
        self, stamps: Sequence[object], options: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=message):
            read(write(tmp_path / "a.csv", stamps), **options)

    @pytest.mark.parametrize("missing", ["error", "mask"])
    def test_missing_rows_by_option(self, missing: str, tmp_path: Path) -> None:
        path = str(write(tmp_path / "a.csv", minutes(*(i for i in range(60) if i != 20))))
        if missing == "mask":
            assert series(path, 4, missing="mask").train.x[:].isnan().sum() == 4
            return
        with pytest.raises(InputError, match=r"line 22: a gap after .*00:19:00, where there is a row every 1min; data"):
            series(path, 4, missing="error")


class TestCalendars:
    @pytest.mark.parametrize(
        ("first", "gone", "freq", "n"),
        [
            (["2019-10-31", "2019-11-30", "2019-12-31", "2020-01-31", "2020-02-29", "2020-03-31"], 3, "month", 6),
            (["2019-03-31", "2019-06-30", "2019-09-30", "2019-12-31", "2020-03-31"], 2, "3month", 5),
            (["2019-01-15", "2019-02-15", "2019-03-15", "2019-04-15", "2019-05-15"], 1, "month", 5),
            ([str(np.busday_offset("2021-07-02", i)) for i in range(20)], 6, "weekday", 20),
            ([str(np.busday_offset("2021-07-04", i, weekmask="1111001")) for i in range(20)], 7, "weekday", 20),
        ],
    )
    def test_even_by_the_calendar(self, first: list[str], gone: int, freq: str, n: int, tmp_path: Path) -> None:
        """A row that is missing has its place, and its own date."""
        stamps = [stamp for i, stamp in enumerate(first) if i != gone]
        table = read(write(tmp_path / "a.csv", stamps))
        assert (table.freq, len(table.values), rows.stretches(table)) == (freq, n, [("", 0, n)])
        assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [gone]
        assert table.times is not None
        assert [str(one)[:10] for one in table.stamps(table.times).to_pylist()] == first

    @pytest.mark.parametrize("step", ["15min", "1h"])
    def test_hours_of_autumn_and_spring(self, step: str, tmp_path: Path) -> None:
        """Local times ask for their zone where an hour is there twice; with it, steps are even in both."""
        import pandas as pd

        for first, last in (("2024-10-25", "2024-10-29"), ("2024-03-29", "2024-04-02")):
            true = pd.date_range(first, last, freq=step, tz="UTC")
            path = write(tmp_path / "a.csv", list(true.tz_convert("Europe/Berlin").strftime("%Y-%m-%d %H:%M")))
            table = read(path, time_zone="Europe/Berlin")
            assert table.times is not None
            assert (table.place, table.freq) == (None, step)
            assert table.stamps(table.times).cast(pa.timestamp("us", "UTC")).to_pylist() == list(true)
            if first == "2024-10-25":
                with pytest.raises(
                    InputError, match=r"as where clocks change; set their zone, such as data.time_zone="
                ):
                    read(path)
                with pytest.raises(InputError, match=r"time_zone=Mars: no such time zone; expected one such as Europe"):
                    read(path, time_zone="Mars")

    def test_days_of_a_zone(self, tmp_path: Path) -> None:
        """Days of 23 and 25 hours are steps like others."""
        import pandas as pd

        days = pd.date_range("2024-01-01", periods=330, freq="D", tz="Europe/Berlin")
        table = pa.table({"t": pa.array(days.to_series()), "v": np.arange(330.0)})
        parquet.write_table(table, tmp_path / "a.parquet")
        found = read(tmp_path / "a.parquet")
        assert (found.freq, found.place, found.clock) == ("1d", None, "t")


class TestTimesAsPeopleWriteThem:
    @pytest.mark.parametrize(
        ("form", "step"),
        [
            ("%m/%d/%Y %H:%M", 60), ("%d/%m/%Y %H:%M", 60), ("%m/%d/%Y %I:%M:%S %p", 60), ("%d.%m.%Y %H:%M:%S.%f", 60),
            ("%b %d, %Y", 1440), ("%d-%b-%Y", 1440), ("%Y/%m/%d", 1440), ("%d/%m/%y %H.%M.%S", 60),
        ],
    )  # fmt: skip
    def test_one_reading(self, form: str, step: int, tmp_path: Path) -> None:
        true = [START + datetime.timedelta(minutes=step * i) for i in range(500)]
        lines = [f'"{one.strftime(form)}"' for one in true]
        table = read(write(tmp_path / "a.csv", lines))
        assert table.times is not None
        assert table.stamps(table.times).to_pylist() == true

    def test_without_zeros_and_months(self, tmp_path: Path) -> None:
        stamps = [f"{9 + i // 720}/{1 + i // 24 % 30}/2016 {i % 24}:00" for i in range(720)]
        assert read(write(tmp_path / "a.csv", stamps)).freq == "1h"
        assert read(write(tmp_path / "a.csv", [f"{1949 + i // 12}-{1 + i % 12:02}" for i in range(60)])).freq == "month"

    def test_two_readings_are_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", [f"3/4/2016 {i}:00" for i in range(24)])
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value) == (
            f"{path}, column when: '3/4/2016 0:00' is 03 April 2016 or 04 March 2016; set "
            "data.time_format='%d/%m/%Y %H:%M' or data.time_format='%m/%d/%Y %H:%M'"
        )
        assert read(path, time_format="%d/%m/%Y %H:%M").freq == "1h"

    def test_a_later_row_decides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first piece of the file has two readings."""
        from msae.data import tables

        monkeypatch.setattr(tables, "BLOCK", 200)
        stamps = [f"{1 + i // 24:02}/04/2016 {i % 24:02}:00" for i in range(24 * 20)]
        table = read(write(tmp_path / "a.csv", stamps))
        assert (table.freq, str(table.origin)[:10]) == ("1h", "2016-04-01")

    def test_the_time_column_is_found_where_there_is_but_one(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", minutes(*range(40)))
        assert (read(path).clock, read(path).columns) == ("when", ["v"])
        assert read(path, columns=["v"]).clock == "when"
        with pytest.raises(InputError, match=r"is it a time\? then set data.time_column=when"):
            read(path, time_column=None)
        (tmp_path / "b.csv").write_text("timestamp,v\n" + "".join(f"{100 + 2 * i},{i}\n" for i in range(30)))
        assert (read(tmp_path / "b.csv").clock, read(tmp_path / "b.csv").freq) == ("timestamp", "2")
        (tmp_path / "c.csv").write_text("t,time\n" + "".join(f"{i},{i % 7}\n" for i in range(30)))
        assert read(tmp_path / "c.csv").columns == ["t", "time"]
        (tmp_path / "d.csv").write_text("a,b,v\n" + "".join(f"{s},{s},1\n" for s in minutes(*range(30))))
        with pytest.raises(InputError, match=r"d.csv: several columns of times, a, b; set data.time_column=a, and ch"):
            read(tmp_path / "d.csv")
        (tmp_path / "e.csv").write_text(",v\n" + "".join(f"{s},1\n" for s in minutes(*range(30))))
        assert read(tmp_path / "e.csv").clock == "index"


class TestValues:
    def test_a_code_for_no_value_is_told_and_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rng = np.random.default_rng(5)
        x = np.c_[2.1 + 0.5 * np.sin(np.arange(600) / 9), 30 + rng.normal(0, 1, 600), np.arange(600) % 2]
        x[rng.random(600) < 0.06, 0] = -200
        x[5, 1] = 99  # once is no code
        n = int((x[:, 0] == -200).sum())
        np.savetxt(tmp_path / "a.csv", x, delimiter=",", header="co,t,on", comments="")
        path = str(tmp_path / "a.csv")
        series(path, 24)
        warned = [record.getMessage() for record in caplog.records if "missing_values" in record.getMessage()]
        assert warned == [
            f"channel co: -200 is far outside of all other values, in {n} of 600 rows; if it stands for no value, "
            "set data.missing_values=[-200]"
        ]
        caplog.clear()
        data = series(path, 24, missing_values=[-200])
        assert data.offset[0].item() == pytest.approx(2.1, abs=0.05)
        assert "missing_values" not in caplog.text

    def test_codes_in_whole_numbers(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.r_[np.arange(50), 65535, np.arange(50)].astype(np.uint16))
        table = files.read(tmp_path / "a.npy", Format(missing_values=[65535]))
        assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [50]
        assert np.load(tmp_path / "a.npy")[50] == 65535

    def test_a_channel_without_values(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.c_[np.arange(90.0), np.full(90, np.nan)])
        with pytest.raises(InputError, match=r"a.npy, column 1: no value at all; data.missing=mask does without it"):
            series(str(tmp_path / "a.npy"), 4)

    def test_short_holes_are_filled_and_long_ones_end_a_stretch(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        x = np.c_[np.arange(200.0), np.arange(200.0)]
        x[10:12, 0] = x[30:35, 1] = x[60:66, 1] = np.nan
        np.save(tmp_path / "a.npy", x)
        with caplog.at_level("INFO"):
            data = series(str(tmp_path / "a.npy"), 8, val_size=0, test_size=0.1)
        said = "missing values: 7 in 2 short holes are interpolated; longer holes of 6 rows end a stretch, 1 times"
        assert said in caplog.text
        starts = data.train.x[:][:, 0, 0].tolist()
        assert starts == [*range(53), *range(66, 173)]
        assert np.allclose(np.diff(data.train.x[:].numpy()), 1)

    def test_a_hole_does_not_tell_training_of_later_rows(self, tmp_path: Path) -> None:
        """Whether a hole is short is judged within a split."""
        x = np.random.default_rng(0).normal(size=(100, 1))
        found = []
        for last in (72, 80):
            y = x.copy()
            y[68:last] = np.nan
            np.save(tmp_path / "a.npy", y)
            found.append(series(str(tmp_path / "a.npy"), 4).train.x[:])
        assert found[0].equal(found[1])

    def test_labels_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        np.savetxt(
            tmp_path / "a.csv", np.c_[np.arange(90), np.arange(90) > 80], delimiter=",", header="v,Label", comments=""
        )
        series(str(tmp_path / "a.csv"), 4)
        assert "channel Label holds only 0 and 1, as labels do; data.columns=[v] leaves it out" in caplog.text


class TestWindow:
    def test_twice_the_period(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        t = np.arange(2000)
        x = np.sin(2 * np.pi * t / 50) + 0.002 * t + np.random.default_rng(0).normal(0, 0.2, 2000)
        np.save(tmp_path / "a.npy", x)
        with caplog.at_level("INFO"):
            data = series(str(tmp_path / "a.npy"))
        assert data.shape == (1, 100)
        assert data.chosen["window"] == 100
        assert "window: 100 steps, by a period of 50 steps of the training split" in caplog.text

    @pytest.mark.parametrize(("n", "period", "window"), [(400, 50, 32), (2000, 8, 32), (160, 20, 24), (900, 100, 67)])
    def test_within_what_the_parts_allow(self, n: int, period: int, window: int, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.sin(2 * np.pi * np.arange(n) / period))
        assert series(str(tmp_path / "a.npy")).shape == (1, window)

    def test_only_training_rows_choose(self, tmp_path: Path) -> None:
        t, found = np.arange(3000), []
        for later in (20, 90):
            x = np.where(t < 2100, np.sin(2 * np.pi * t / 30), np.sin(2 * np.pi * t / later))
            np.save(tmp_path / "a.npy", x)
            found.append(series(str(tmp_path / "a.npy")).shape[1])
        assert found == [60, 60]

    def test_a_slow_wave_does_not_hide_the_period(self) -> None:
        t = np.arange(8000)
        x = 3 * np.sin(2 * np.pi * t / 1500) + np.sin(2 * np.pi * t / 24)
        assert dominant_period(x[:, None]) == 24
        assert dominant_period(np.ones((100, 2))) is None
        assert dominant_period(np.full((100, 1), np.nan)) is None


def test_the_commands(command: Command, tmp_path: Path) -> None:
    """A first run needs no option but the path; later files are read in the same way, rows of the file in and out."""
    rng, t = np.random.default_rng(1), np.arange(1500)
    x = np.sin(2 * np.pi * t / 40) + rng.normal(0, 0.1, 1500)
    stamps = np.array(minutes(*(5 * t + rng.uniform(-0.1, 0.1, 1500))))
    there = np.setdiff1d(t, [20, 400, 401, *range(700, 760)])
    write(tmp_path / "a.csv", stamps[there], x[there])
    small = there[there < 200]
    (tmp_path / "new" / "deeper").mkdir(parents=True)
    write(tmp_path / "new" / "deeper" / "b.csv", stamps[small], x[small])
    write(tmp_path / "new" / "short.csv", stamps[:20], x[:20])
    few = ("data=series", "data.path=a.csv", "trainer=cpu", "trainer.max_epochs=1", "model=ae16", "out=run")
    code, _, err = command(*few)
    assert code == 0, err
    model = msae.load("run/best.ckpt")
    options = model.data_options
    assert model.length == 80
    assert options is not None
    assert [options[key] for key in ("window", "time_column", "freq")] == [80, "when", "5min"]
    config = Path("run/config.yaml").read_text()
    assert "  window: 80\n" in config
    code, _, err = command("resume=run", "trainer.max_epochs=2")
    assert code == 0, err
    code, out, err = command("ckpt=run", "data.path=new", "out=s.csv", module="embed")
    assert code == 0, err
    assert "short.csv: left out: no stretch of 80 steps" in out + err
    code, out, err = command("ckpt=run", "data.path=new/deeper/b.csv", "out=back", module="reconstruct")
    assert code == 0, err
    assert len(Path("back/b.csv").read_text().splitlines()) == len(small) + 1
    for wrong in ("-200", "[x]"):
        code, _, err = command(*few[:2], f"data.missing_values={wrong}", "trainer=cpu", "out=other")
        said = {"-200": "-200", "[x]": "['x']"}[wrong]
        message = f"error: data.missing_values={said}: expected a list of numbers, such as [-200]"
        assert (code, err.splitlines()[-1]) == (2, message)
    code, out, err = command("ckpt=run", "data.path=new/short.csv", "out=z.csv", module="embed")
    assert (code, err.splitlines()[-1]) == (2, "error: new/short.csv: no stretch of 80 steps, the length of a window")
