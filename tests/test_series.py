"""A user's own files: reading, splitting, and the errors for files that cannot be used."""

import gzip
import io
import os
import re
import resource
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from msae import InputError
from msae.data import files, rows, tables
from msae.data.module import NORMALIZATIONS, Windows
from msae.data.series import series
from msae.write import column

SPLITS = ("train", "val", "test")


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], separator: str = ",") -> str:
    lines = ([separator.join(header)] if header else []) + [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def ramp(path: Path, n: int = 100) -> str:
    """Rows a = 0, 1, ..., b = 1000, 999, ...."""
    return write(path, "ab", [(i, 1000 - i) for i in range(n)])


def starts(windows: Windows) -> list[int]:
    """First value of each window, which for a ramp is its first row."""
    return [int(x[0, 0]) for x in windows.x[:]]


class TestSplit:
    def test_in_time_then_windows_then_statistics(self, tmp_path: Path) -> None:
        data = series(ramp(tmp_path / "a.csv"), window=5, stride=3, val_size=0.2, test_size=0.1)
        assert data.shape == (2, 5)
        assert starts(data.train) == [*range(0, 66, 3)]  # of rows 0 to 69
        assert starts(data.val) == [70, 73, 76, 79, 82, 85]  # of rows 70 to 89
        assert starts(data.test) == [90, 93]  # of rows 90 to 99
        for split in SPLITS:
            for x in getattr(data, split).x[:]:
                assert torch.equal(x[0], x[0, 0] + torch.arange(5))
                assert torch.equal(x[1], 1000 - x[0])
        rows = torch.arange(70.0)
        torch.testing.assert_close(data.offset, torch.stack([rows.mean(), 1000 - rows.mean()])[:, None])
        torch.testing.assert_close(data.scale, rows.std(correction=0).expand(2, 1))
        assert data.value_range.tolist() == [0, 1000]

    @given(
        st.integers(40, 120), st.integers(2, 6), st.integers(1, 4), st.sampled_from(NORMALIZATIONS),
        st.sampled_from(["auto", "interpolate", "mask"]), st.sets(st.integers(0, 39), max_size=12),
    )  # fmt: skip
    @settings(deadline=None, max_examples=40)
    def test_nothing_of_validation_and_test_reaches_training(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        n: int,
        window: int,
        stride: int,
        scale: str,
        missing: str,
        holes: set[int],
    ) -> None:
        """Training windows and statistics do not depend on later rows, nor on missing values there."""
        rng = np.random.default_rng(n)
        x = rng.normal(size=(n, 2))
        x[[hole for hole in holes if hole < n], 0] = np.nan
        first = n - round(0.15 * n) - round(0.15 * n)
        x[[0, -1, first - 2, first]] = 1.0
        x[first - 1, 0] = np.nan  # the last training row: a line to the next would leak
        folder = tmp_path_factory.mktemp("series")
        found = []
        for after in (x[first:], 1e6 * (1 + x[first:])):
            np.save(folder / "a.npy", np.concatenate([x[:first], after]))
            data = series(str(folder / "a.npy"), window, stride, normalize=scale, missing=missing)
            found.append((data.train.x[:].nan_to_num(-9e9), data.offset, data.scale, data.value_range))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)

    @pytest.mark.parametrize("scale", NORMALIZATIONS)
    def test_nor_of_groups_broken_by_gaps(self, scale: str, tmp_path: Path) -> None:
        """Two interleaved series of 50 rows have a gap after row 20; rows after 35 have no effect."""
        rng, found = np.random.default_rng(0), []
        values = rng.normal(size=(100, 2))
        for factor in (1, 1e6):
            rows = [
                (i + 10 * (i > 20), f"g{g}", *(values[2 * i + g] * (factor if i >= 35 else 1)))
                for i in range(50)
                for g in (0, 1)
            ]
            write(tmp_path / "a.csv", "tgab", rows)
            data = series(
                str(tmp_path / "a.csv"), 3, time_column="t", group_column="g", max_gap=2, normalize=scale,
                val_size=0.14, test_size=0.16,
            )  # fmt: skip
            found.append((data.train.x[:], data.offset, data.scale, data.value_range))
        assert len(found[0][0]) == 2 * (19 + 12)
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))

    def test_series_of_groups_and_files(self, tmp_path: Path) -> None:
        """Each is split by itself, in time; no window has values of two."""
        for number, file in enumerate(("x.csv", "y.csv")):
            rows = [(i, f"g{g}", 1000 * number + 100 * g + i) for i in range(20) for g in (0, 1)]  # interleaved
            write(tmp_path / file, ["t", "g", "v"], rows)
        data = series(str(tmp_path / "*.csv"), 3, time_column="t", group_column="g", val_size=0.2, test_size=0.2)
        bases = (0, 100, 1000, 1100)
        assert starts(data.train) == [base + i for base in bases for i in range(10)]
        assert starts(data.val) == [base + i for base in bases for i in (12, 13)]
        assert starts(data.test) == [base + i for base in bases for i in (16, 17)]
        for x in data.train.x[:]:
            assert torch.equal(x[0], x[0, 0] + torch.arange(3))

    def test_no_window_crosses_a_gap(self, tmp_path: Path) -> None:
        times = [*range(30), *range(40, 120)]
        path = write(tmp_path / "a.csv", "tv", [(t, t) for t in times])
        data = series(path, 4, time_column="t", max_gap=5)
        assert all(torch.equal(x[0], x[0, 0] + torch.arange(4)) for x in data.train.x[:])
        assert {26, 40} <= set(starts(data.train))
        assert not {27, 28, 29} & set(starts(data.train))
        crossing = series(path, 4, time_column="t", max_gap=11)
        assert {27, 28, 29} <= set(starts(crossing.train))

    def test_windows_already_cut(self, tmp_path: Path) -> None:
        x = np.arange(40.0)[:, None, None] + np.zeros((40, 2, 5))
        np.save(tmp_path / "x.npy", x)
        path = str(tmp_path / "x.npy")
        data = series(path, split="random", val_size=0.25, test_size=0.1)
        assert [len(getattr(data, split)) for split in SPLITS] == [26, 10, 4]
        assert data.shape == (2, 5)
        every = [starts(getattr(data, split)) for split in SPLITS]
        assert sorted(every[0] + every[1] + every[2]) == [*range(40)]
        assert starts(series(path, split="random", val_size=0.25, test_size=0.1, seed=5).test) == every[2]
        assert starts(series(path, split="random", val_size=0.25, test_size=0.1, split_seed=5).test) != every[2]
        np.save(tmp_path / "test.npy", x[:3] + 100)
        data = series(path, test_path=str(tmp_path / "test.npy"), val_size=0.25)
        assert [len(data.train), len(data.val), starts(data.test)] == [30, 10, [100, 101, 102]]

    def test_a_test_file(self, tmp_path: Path) -> None:
        ramp(tmp_path / "a.csv")
        write(tmp_path / "b.csv", "ab", [(500 + i, 0) for i in range(8)])
        data = series(str(tmp_path / "a.csv"), 5, test_path=str(tmp_path / "b.csv"), val_size=0.3)
        assert (len(data.train), len(data.val), starts(data.test)) == (66, 26, [500, 501, 502, 503])

    def test_without_validation(self, tmp_path: Path) -> None:
        data = series(ramp(tmp_path / "a.csv"), 5, val_size=0)
        assert (len(data.train), len(data.val), len(data.test)) == (81, 0, 11)
        assert data.val_dataloader() == []

    def test_short_stretches_are_left_out_and_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [(g, i) for g, n in (("long", 60), ("short", 10)) for i in range(n)]
        with caplog.at_level("INFO"):
            data = series(write(tmp_path / "a.csv", "gv", rows), 8, group_column="g", val_size=0.2, test_size=0.2)
        assert len(data.train) == 29
        assert "training split: left out 1 of 2 stretches, which are shorter than a window" in caplog.text


class TestFormats:
    X = np.round(np.random.default_rng(0).normal(size=(60, 2)), 3)

    def read(self, path: Path, **options: Any) -> torch.Tensor:
        """The training windows of length 1 in a row, which are rows."""
        module = series(str(path), 2, stride=2, val_size=0, test_size=0.1, **options)
        return module.train.x[:].movedim(1, 2).flatten(0, 1)

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".npz"])
    def test_all_hold_the_same(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"a{suffix}"
        if suffix == ".csv":
            write(path, "ab", self.X.tolist())
        elif suffix == ".parquet":
            parquet.write_table(pa.table({"a": self.X[:, 0], "b": self.X[:, 1]}), path, row_group_size=7)
        elif suffix == ".npy":
            np.save(path, self.X)
        else:
            np.savez(path, a=self.X[:, 0], b=self.X[:, 1])
        torch.testing.assert_close(self.read(path), torch.from_numpy(self.X[:54]).float())
        columns = [1] if suffix == ".npy" else ["b"]
        torch.testing.assert_close(self.read(path, columns=columns), torch.from_numpy(self.X[:54, 1:]).float())

    @pytest.mark.parametrize("dtype", [">f8", "u2", "?", "f2", "i8"])
    def test_arrays_of_other_types(self, dtype: str, tmp_path: Path) -> None:
        x = (np.arange(60) % 7 % 2).astype(dtype)
        np.save(tmp_path / "a.npy", x)
        assert torch.equal(self.read(tmp_path / "a.npy")[:, 0], torch.from_numpy(x[:54].astype("f4")))

    def test_no_header(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", [], self.X.tolist())
        torch.testing.assert_close(
            self.read(tmp_path / "a.csv", columns=["1", 0])[0], torch.tensor(self.X[0, ::-1].copy()).float()
        )

    def test_a_header_of_numbers(self, tmp_path: Path) -> None:
        """pandas writes such a header for columns without names."""
        write(tmp_path / "a.csv", ["0", "1"], self.X.tolist())
        torch.testing.assert_close(self.read(tmp_path / "a.csv")[0], torch.tensor(self.X[0]).float())

    def test_other_signs_and_times(self, tmp_path: Path) -> None:
        rows = [
            (f"{1 + i // 24:02}.03.2024 {i % 24:02}:00", *(str(v).replace(".", ",") for v in row))
            for i, row in enumerate(self.X)
        ]
        path = write(tmp_path / "a.csv", ["t", "a", "b"], rows, ";")
        options = {"separator": ";", "decimal": ",", "time_column": "t", "time_format": "%d.%m.%Y %H:%M"}
        torch.testing.assert_close(self.read(Path(path), **options), torch.from_numpy(self.X[:54]).float())

    def test_a_separator_at_the_end_of_each_line(self, tmp_path: Path) -> None:
        for first in ("a;b;;", ""):
            lines = [first, *(f"{a};{b};;" for a, b in self.X)]
            (tmp_path / "a.csv").write_text("\n".join(lines).strip() + "\n")
            x = self.read(tmp_path / "a.csv", separator=";")
            torch.testing.assert_close(x, torch.from_numpy(self.X[:54]).float())
        (tmp_path / "a.csv").write_text("a;b;\n" + "1;2;\n" * 200 + "1;2;3\n")
        with pytest.raises(InputError, match=r"a.csv: .*invalid value '3'"):
            self.read(tmp_path / "a.csv", separator=";")

    def test_an_index_without_a_name(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", ["", "a"], [(f"2024-01-01 00:{i:02}", i) for i in range(60)])
        table = files.read(tmp_path / "a.csv", tables.Format(time_column="index"))
        assert table.times is not None
        assert (table.columns, table.times[:2].tolist()) == (["a"], [0, 60])

    def test_compressed(self, tmp_path: Path) -> None:
        ramp(tmp_path / "a.csv")
        (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes() + b"\n\n"))
        [path] = files.find(str(tmp_path / "*.gz"))
        found = files.read(path, tables.Format())
        assert np.array_equal(found.values, files.read(tmp_path / "a.csv", tables.Format()).values)
        assert found.where(3).endswith("b.csv.gz, line 5")
        tables.Csv(path, tables.Format()).write(tmp_path / "c.csv.gz", ["a"], ["b"], found.values[:, 1:])
        assert np.array_equal(files.read(tmp_path / "c.csv.gz", tables.Format()).values, found.values)
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(InputError, match=r"b.csv.gz: not a table \(Compressed file ended"):
            files.read(path, tables.Format())

    def test_true_and_false(self, tmp_path: Path) -> None:
        on = np.arange(60) % 3 == 0
        write(tmp_path / "a.csv", "ab", [(str(flag).lower(), i) for i, flag in enumerate(on)])
        parquet.write_table(pa.table({"a": on, "b": np.arange(60)}), tmp_path / "b.parquet")
        for name in ("a.csv", "b.parquet"):
            assert np.array_equal(files.read(tmp_path / name, tables.Format()).values[:, 0], on)

    def test_fractions_in_a_format(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "ta", [(f"01.03.2024 00:00:01.{i:03}", i) for i in range(60)])
        form = tables.Format(time_column="t", time_format="%d.%m.%Y %H:%M:%S.%f")
        assert files.read(tmp_path / "a.csv", form).times == pytest.approx(np.arange(60) / 1000)

    @pytest.mark.parametrize("zone", ["", "Z", "+02:00"])
    @pytest.mark.parametrize("kind", ["csv", "parquet", "stamps"])
    def test_times(self, kind: str, zone: str, tmp_path: Path) -> None:
        """Times may be a microsecond apart, as text or parquet's own type, with fractions only late in the file."""
        times = [f"2024-03-01T23:59:59{f'.{i:06}' if i else ''}{zone}" for i in range(60)]
        if kind == "csv":
            path = write(tmp_path / "a.csv", ["t", "a"], [(time, i) for i, time in enumerate(times)])
        else:
            stamps = pa.array(np.arange(60) * 1000, pa.timestamp("ns", "UTC" if zone else None))
            path = str(tmp_path / "a.parquet")
            parquet.write_table(pa.table({"t": stamps if kind == "stamps" else times, "a": np.arange(60)}), path)
        table = files.read(Path(path), tables.Format(time_column="t"))
        assert table.times == pytest.approx(np.arange(60) * 1e-6, abs=1e-12)
        assert len(rows.stretches(table)) == 1

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_nanoseconds_since_1970_are_exact(self, kind: str, tmp_path: Path) -> None:
        times = 1_700_000_000_000_000_001 + 100 * np.arange(60)
        path = tmp_path / f"a.{kind}"
        if kind == "csv":
            write(path, "ta", [(time, 1) for time in times])
        else:
            parquet.write_table(pa.table({"t": times, "a": np.arange(60)}), path)
        table = files.read(path, tables.Format(time_column="t"))
        assert table.times is not None
        assert table.stamps(table.times).to_pylist() == times.tolist()
        assert len(rows.stretches(table)) == 1
        assert table.when(1) == "1700000000000000101"

    @pytest.mark.parametrize(
        ("ends", "zone", "first"),
        [
            (["+05:30"], "+05:30", "2024-03-20 05:00:00+0530"),
            (["-0800"], "-08:00", "2024-03-20 05:00:00-0800"),
            (["Z"], "UTC", "2024-03-20 05:00:00Z"),
            (["+01:00", "+02:00"], "UTC", "2024-03-20 04:00:00Z"),  # where the clocks change
            ([""], None, "2024-03-20 05:00:00"),
        ],
    )
    def test_an_offset_is_kept(self, ends: list[str], zone: str | None, first: str, tmp_path: Path) -> None:
        hours = [f"2024-03-20T{5 + i + (i > 9) * (len(ends) - 1):02}:00{ends[i > 9 and -1]}" for i in range(18)]
        path = write(tmp_path / "a.csv", "ta", [(hour, i) for i, hour in enumerate(hours)])
        table = files.read(Path(path), tables.Format(time_column="t"))
        assert table.times is not None
        stamps = table.stamps(table.times)
        assert stamps.type == pa.timestamp("us", zone)
        assert column(stamps, text=True)[0].as_py() == first
        assert len(rows.stretches(table)) == 1

    def test_a_zone_is_kept_to_the_nanosecond(self, tmp_path: Path) -> None:
        stamps = pa.array(1_700_000_000_000_000_001 + 100 * np.arange(60), pa.timestamp("ns", "Europe/Berlin"))
        parquet.write_table(pa.table({"t": stamps, "a": np.arange(60)}), tmp_path / "a.parquet")
        table = files.read(tmp_path / "a.parquet", tables.Format(time_column="t"))
        assert table.times is not None
        assert table.stamps(table.times) == stamps

    def test_numbers_of_two_kinds_are_times(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whole numbers come first, fractions in a later block."""
        monkeypatch.setattr(tables, "BLOCK", 100)
        times = [*range(80), *(79 + i / 2 for i in range(1, 60))]
        path = write(tmp_path / "a.csv", ["t", "a"], [(t, 1) for t in times])
        assert files.read(Path(path), tables.Format(time_column="t")).times == pytest.approx(times)

    def test_blank_lines(self, tmp_path: Path) -> None:
        """A blank line is a missing value in a file of one column, but not at its end, nor with several columns."""
        (tmp_path / "a.csv").write_text("a\r\n" + "1\r\n\r\n3\r\n" * 20 + "\r\n\r\n")
        x = self.read(tmp_path / "a.csv", missing="interpolate")
        assert x[:, 0].tolist() == [1, 2, 3] * 18
        (tmp_path / "b.csv").write_text("\na,b\n" + "1,2\n\n3,4\n" * 20 + "\n")
        assert self.read(tmp_path / "b.csv").tolist() == [[1, 2], [3, 4]] * 18

    @pytest.mark.parametrize(
        ("first", "header", "columns", "rows"),
        [
            ("7,NA", None, ["0", "1"], 51),
            ("0,1", None, ["0", "1"], 50),  # as pandas names columns that have no name
            ("0,1", False, ["0", "1"], 51),
            ("1998,1999", None, ["0", "1"], 51),
            ("1998,1999", True, ["1998", "1999"], 50),
        ],
    )
    def test_what_is_a_header(
        self, first: str, header: bool | None, columns: list[str], rows: int, tmp_path: Path
    ) -> None:
        (tmp_path / "a.csv").write_text(f"{first}\n" + "5,6\n" * 50)
        table = files.read(tmp_path / "a.csv", tables.Format(header=header))
        assert (table.columns, len(table.values)) == (columns, rows)

    def test_pandas_index_is_no_channel(self, tmp_path: Path) -> None:
        import pandas as pd

        pd.DataFrame({"a": np.arange(90.0)})[::3].drop(index=6).to_parquet(tmp_path / "a.parquet")
        assert files.read(tmp_path / "a.parquet", tables.Format()).columns == ["a"]

    def test_files_of_a_path(self, tmp_path: Path) -> None:
        for name in ("a.csv", "b/c.csv", "b/d/e.csv"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            ramp(tmp_path / name)
        (tmp_path / "f.csv").mkdir()
        found = files.find([str(tmp_path / "**" / "*.csv"), str(tmp_path / "a.csv")])
        assert [str(file.relative_to(tmp_path)) for file in found] == ["a.csv", "b/c.csv", "b/d/e.csv"]
        (tmp_path / ".b").mkdir()
        ramp(tmp_path / ".b" / "c.csv")
        assert files.find(str(tmp_path)) == found

    def test_hidden_files_are_no_data(self, tmp_path: Path) -> None:
        ramp(tmp_path / "a.csv")
        for name in (".12.a.csv", "._a.csv"):  # of an interrupted copy, and of macOS
            (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
        assert files.find(str(tmp_path)) == files.find(str(tmp_path / "*.csv")) == [tmp_path / "a.csv"]
        (tmp_path / "a.csv").unlink()
        with pytest.raises(InputError, match=r"no .csv, .*file in it"):
            files.find(str(tmp_path))

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / os.fsdecode(b"\xe9.csv")).touch()
        with pytest.raises(InputError, match=r"\\udce9.csv': not UTF-8 in this locale; expected another name"):
            files.find(str(tmp_path))

    def test_many_files_hold_no_descriptors(self, tmp_path: Path) -> None:
        for i in range(100):
            np.save(tmp_path / f"{i:03}.npy", np.full(5, float(i)))
            ramp(tmp_path / f"{i:03}.csv", 5)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/dev/fd").iterdir()]) + 30, limits[1]))
        try:
            kept = [files.read(path, tables.Format()) for path in files.find(str(tmp_path))]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert [table.values[4, 0] for table in kept[::2]] == [4] * 100
        assert [table.values[4, 0] for table in kept[1::2]] == [*range(100)]

    def test_many_columns(self, tmp_path: Path) -> None:
        """Their names are looked up, not compared with each other."""
        names = [f"channel_{i}" for i in range(20_000)]
        path = Path(write(tmp_path / "a.csv", names, [range(20_000)] * 3))
        before = time.process_time()
        table = files.read(path, tables.Format(columns=names))
        tables.Csv(path, tables.Format()).write(tmp_path / "b.csv", [], names, table.values)
        assert time.process_time() - before < 8  # 60 s where each is compared
        assert files.read(tmp_path / "b.csv", tables.Format()).values[2, -1] == 19_999

    @pytest.mark.parametrize("columns", [[1, 2], [3, 1], [0, 2]])
    def test_columns_of_an_array_are_not_copied_into_memory(self, columns: list[int], tmp_path: Path) -> None:
        x = np.arange(240.0).reshape(60, 4)
        np.save(tmp_path / "a.npy", x)
        table = files.read(tmp_path / "a.npy", tables.Format(columns=columns))
        assert np.array_equal(table.values, x[:, columns])
        base: Any = table.values
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, torch.Tensor)  # mapped by it

    def test_precision_is_that_of_the_whole_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stretch that hardly varies is not refused for that."""
        monkeypatch.setattr(files, "BLOCK", 20)
        np.save(tmp_path / "a.npy", np.r_[0.1 + 1e-11 * np.arange(40), np.arange(20)])
        assert len(files.read(tmp_path / "a.npy", tables.Format()).values) == 60

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(0, 2**16))
    def test_interpolation(self, missing: list[bool], seed: int) -> None:
        """Interpolation equals numpy's for any missing values."""
        x = np.random.default_rng(seed).normal(size=(len(missing), 1))
        holes, there = np.flatnonzero(missing), np.flatnonzero(~np.array(missing))
        expected = x[:, 0].copy()
        x[holes] = np.nan
        if len(there):
            expected[holes] = np.interp(holes, there, expected[there])
        else:
            expected[:] = np.nan
        rows.interpolate(x)
        assert x[:, 0] == pytest.approx(expected, nan_ok=True)

    def test_pieces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Files are read in pieces, and their ends change nothing."""
        rng = np.random.default_rng(0)
        names = rng.choice(["x", "y", "z"], 400)
        lines = [(i, name, f"{v:.4f}") for i, (name, v) in enumerate(zip(names, rng.normal(size=400), strict=True))]
        path = write(tmp_path / "a.csv", "tgv", lines)
        form = tables.Format(None, "t", "g")
        whole = files.read(Path(path), form)
        for module in (files, rows, tables):
            monkeypatch.setattr(module, "BLOCK", 100)
        pieces = files.read(Path(path), form)
        assert whole.groups == pieces.groups
        for one, other in ((whole.values, pieces.values), (whole.times, pieces.times), (whole.order, pieces.order)):
            assert np.array_equal(one, other)
        assert rows.stretches(whole, 1000) == rows.stretches(pieces, 1000)

    def test_missing_values(self, tmp_path: Path) -> None:
        rows = [(i, "" if i in (0, 5, 6) else 10 * i) for i in range(60)]
        path = tmp_path / "a.csv"
        write(path, "ab", rows)
        x = self.read(path, missing="interpolate")
        assert x[:8, 1].tolist() == [10, 10, 20, 30, 40, 50, 60, 70]
        module = series(str(path), 2, missing="mask")
        assert module.missing
        assert module.train.x[:].isnan().sum() == 5  # row 0 once, rows 5 and 6 in two windows each
        assert not series(str(path), 2, missing="interpolate").missing


def npy(array: np.ndarray) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.save(folder / "a.npy", array)
        return str(folder / "a.npy")

    return make


def text(content: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "a.csv").write_text(content)
        return str(folder / "a.csv")

    return make


def lines(n: int = 50, **changed: str) -> Callable[[Path], str]:
    """A file of columns t, a, b, with some lines replaced."""
    return text("t,a,b\n" + "\n".join(changed.get(f"line{i + 2}", f"{i},{i}.5,1") for i in range(n)) + "\n")


def stamped(n: int = 50, **changed: str) -> Callable[[Path], str]:
    """A file of hourly time stamps t and a channel a, with some stamps replaced."""
    times = [f"2020-01-{1 + i // 24:02} {i % 24:02}:00" for i in range(n)]
    return text("t,a\n" + "\n".join(f"{changed.get(f'line{i + 2}', time)},{i}" for i, time in enumerate(times)) + "\n")


NAN, INF = float("nan"), float("inf")
BAD: list[tuple[Callable[[Path], str], dict[str, Any], str]] = [
    (lines(line4="2,x,1"), {}, "line 4, column a: 'x' is not a number; leave the field empty if it is missing"),
    (lines(line4='2,"1,5",1'), {},
     r"line 4, column a: '1,5' is not a.*; is it a decimal comma\? then set data.decimal"),
    (lines(line4="2,,1"), {"missing": "error"}, "line 4, column a: no value; set data.missing=interpolate or"),
    (lines(line4="2,inf,1"), {}, "line 4, column a: inf: expected a finite number"),
    (lines(line4="2,1e39,1"), {}, r"line 4, column a: 1e\+39: expected a finite number"),
    (lines(line4='2,"5,827.0",1'), {}, "line 4, column a: '5,827.0' is not a.*; write numbers without thousands"),
    (lines(line4="2,1"), {}, "a.csv, line 4: 2 fields, expected 3 columns, t, a, b"),
    (lines(line4="\n\n2,1"), {}, "a.csv, line 6: 2 fields, expected 3 columns"),
    (lines(line4="\n\n2,x,1"), {}, "line 6, column a: 'x' is not a number"),
    (lines(line4="0,1,1"), {"time_column": "t", "freq": None},
     "line 4: time 0 goes back from 1 of the row before; .*data.group"),
    (lines(line4="1,1,1"), {"time_column": "t", "freq": None},
     "line 4: time 1 repeats 1 of the row before; remove such rows"),
    (lines(line51="90,1,1"), {"time_column": "t", "freq": None},
     "line 51: a gap of 42 after 48, where the usual step is 1; data.max"),
    (lines(line4=",1,1"), {"time_column": "t"}, "line 4, column t: no time; expected a time in every row"),
    (lines(line4="noon,1,1"), {"time_column": "t"}, "line 4, column t: 'noon' is neither a number nor a time of"),
    (lines(line4="2020-01-01,1,1"), {"time_column": "t"}, "line 4, column t: '2020-01-01': the column mixes numbers"),
    (lines(line4="NaN,1,1"), {"time_column": "t", "missing": "mask"}, "line 4, column t: no time"),
    (lines(line4="x,1,1"), {"group_column": "t", "columns": ["t", "a"]}, "group_column: t is named twice"),
    (lines(), {"columns": ["a", "a"]}, "a is named twice"),
    (lines(line4=",1,1"), {"group_column": "t"}, "line 4, column t: empty; expected the name of a series"),
    (stamped(line9="soon"), {"time_column": "t"}, "line 9, column t: 'soon' is neither"),
    (stamped(line9="13/01/2020"), {"time_column": "t", "time_format": "%Y-%m-%d %H:%M"},
     "line 9, column t: '13/01/2020' does not match data.time_format='%Y-%m-%d %H:%M'"),
    (stamped(line51="2020-01-09 00:00"), {"time_column": "t", "freq": None},
     "line 51: a gap of 6d after .* where the usual step is 1h; data.max_gap=1h splits .*max_gap=6d lets"),
    (stamped(line3="2020-01-01 00:00"), {"time_column": "t", "freq": None},
     "line 3: time 2020-01-01 00:00:00 repeats 2020-01-01 00:00:00 of the row before; remove such rows, or name"),
    (lines(), {"max_gap": "5min", "time_column": "t"}, "max_gap=5min: .* has times that are plain numbers"),
    (lines(), {"header": "yes"}, "header=yes: expected true, false or null"),
    (text("# logger\na,b\n1,2\n"), {}, "line 1: '# logger' is no header; remove the lines above the table"),
    (text("\n\n\n"), {}, "a.csv: empty file"),
    (text("a b\n1 2\n"), {}, r"line 2, column a b: '1 2' .*is the separator ' '\? then set data.separator=' '"),
    (text("1,5;2,5\n1,5;2,5\n"), {"columns": ["5;2"], "header": True},
     r"line 2, .*'5;2' .*then set data.separator=';'"),
    (text("a;b\n1.5;2\n"), {"separator": ";", "decimal": ","},
     r"'1.5' .*is it a decimal point\? then set data.decimal"),
    (text("a\n" + "1\n\n" * 40), {"missing": "error"}, "line 3, column a: no value"),
    (lines(), {"time_column": "u"}, r"^data.time_column=u: no such column in \S+a.csv; it has: t, a, b$"),
    (lines(), {"columns": ["aa"]}, r"^data.columns=aa: no such column in \S+a.csv; it has: t, a, b$"),
    (text(",".join(f"c{i}" for i in range(12)) + "\n1\n"), {"group_column": "x"},
     r"^data.group_column=x: no such column in \S+; it has: c0, c1, .*, c9, and 2 more$"),
    (lines(), {"columns": "a"}, "columns=a: expected a list of names"),
    (lines(), {"max_gap": "5min"}, "max_gap=5min: gaps of .* are unknown; set data.time_column"),
    (lines(), {"max_gap": "soon", "time_column": "t"}, "max_gap=soon: expected a time such as 90s"),
    (lines(), {"separator": ";"}, "one column, 't,a,b'; .*then set data.separator=','"),
    (lines(), {"window": 20}, "no window of 20 steps in the validation split, whose longest stretch has 8 of 50 steps"),
    (lines(), {"window": 60}, "no window of 60 steps in the training split"),
    (lines(), {"window": 1}, "window=1: expected a whole number, at least 2"),
    (lines(), {"stride": 0}, "stride=0: expected"),
    (lines(), {"missing": "skip"}, "missing=skip: expected one of auto, error, interpolate, mask"),
    (lines(), {"normalize": "log"}, "normalize=log: expected one of none, minmax, standard, window"),
    (lines(), {"split": "random"}, "split=random: windows of one series overlap"),
    (lines(), {"val_size": 0.5, "test_size": 0.5},
     "test_size=0.5: expected a share above 0 whose sum with val_size=0.5"),
    (lines(), {"test_size": 0}, "test_size=0: expected a share above 0"),
    (lines(), {"val_size": 10}, "val_size=10: expected a share from 0 to 1"),
    (lines(), {"decimal": ""}, "decimal=: expected one character"),
    (lines(), {"separator": "."}, "separator=.: is also the decimal point"),
    (lines(), {"test_path": "nowhere.csv"}, "test_path=nowhere.csv: no such file or folder"),
    (text(""), {}, "a.csv: empty file"),
    (text("a,b\n"), {}, "no rows; expected numbers below the header a, b"),
    (text("a,a\n1,2\n"), {}, "several columns have the name a"),
    (text(",a\n0,2\n"), {}, "the first column has no name; .*then set data.time_column=index, else choose"),
    (text("a,,b\n1,2,3\n"), {}, "a column without a name; choose the channels with data.columns"),
    (text("a,b"), {}, "a.csv: no rows; expected numbers below the header a, b"),
    (text("773869,767541\n" + "".join(f"{60 + i % 3},{55 + i % 4}\n" for i in range(60))), {},
     "line 1: 773869, 767541: far from the numbers below; are they names.* data.header=true, else data.header=false"),
    (text("a;b\n1;2\n"), {}, r"one column, 'a;b'; .*set data.separator=';'"),
    (text("2020-01-01,1.5\n2020-01-02,2.5\n"), {}, "line 1: '2020-01-01' is no name; expected numbers only, or"),
    (text("t,a\n2020-01-01,1.5\n2020-01-02,2.5\n"), {"time_column": None},
     r"'2020-01-01' .*then set data.time_column=t"),
    (npy(np.array(["a", "b"])), {}, r"expected numbers \(time,\), .* got <U1"),
    (npy(np.zeros((2, 2, 2, 2))), {}, r"got float64 \(2, 2, 2, 2\)"),
    (npy(np.zeros((0, 2))), {}, r"got float64 \(0, 2\)"),
    (npy(np.zeros(50, complex)), {}, r"got complex128"),
    (npy(np.array([None, 1])), {}, "not an array file of numbers"),
    (npy(np.r_[np.zeros(30), NAN, np.zeros(30)]), {"missing": "error"}, "row 30, column 0: no value"),
    (npy(np.r_[np.zeros(30), INF, np.zeros(30)]), {}, "row 30, column 0: inf: expected a finite number"),
    (npy(np.full((60, 1), NAN)), {"missing": "interpolate"}, "row 0, column 0: no value; set data.missing=mask"),
    (npy(np.r_[np.zeros(60), np.full(40, NAN)]), {"missing": "mask"}, "no value at all in the validation split"),
    (npy(np.zeros((2, 50))), {}, r"longest stretch has 2 of 2 steps; it has 50 channels: is it transposed\?"),
    (npy(np.zeros(50)), {"test_path": "a.npy"}, "test_path=a.npy: .*a.npy is also a file of data.path"),
    (npy(np.zeros((9, 1, 4))), {}, "split=time: .* holds windows; set data.split=random or data.test_path"),
    (npy(np.zeros((9, 1, 4))), {"window": 5, "split": "random"}, "window=5 stride=1: .* holds windows of 4 steps"),
    (npy(np.zeros((2, 1, 4))), {"window": None, "split": "random"}, "2 windows; too few for a training, validation"),
    (npy(np.zeros(60)), {"time_column": "t"}, "time_column=t: .*a.npy is an array"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "options", "message"), BAD)
def test_what_cannot_be_used(
    make: Callable[[Path], str], options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        series(make(tmp_path), **({"window": 4} | options))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path, r"no .csv, .csv.gz, .parquet, .npy, .npz file in it"),
        (tmp_path / "a.txt", "no such file or folder, and no match"),
        (tmp_path / "b.txt", "expected one of .csv, .csv.gz, .parquet, .npy, .npz"),
        (tmp_path / "b.npz", "not an array file of numbers"),
        (tmp_path / "b.npy", "not an array file of numbers"),
        (tmp_path / "b.parquet", "not a parquet file"),
        (tmp_path / "b.csv", "not UTF-8 text"),
    ]:
        if path.name.startswith("b"):
            path.write_bytes(b"\xff\xfe1\x00")
        with pytest.raises(InputError, match=message):
            series(str(path), 4)
    parquet.write_table(pa.table({"a": ["x"], "t": [pa.scalar(0, pa.timestamp("s")).as_py()]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="column a: of type string, expected numbers"):
        series(str(tmp_path / "c.parquet"), 4)
    with pytest.raises(InputError, match=r"column t: of type timestamp.*then set data.time_column=t"):
        series(str(tmp_path / "c.parquet"), 4, columns=["t"])
    ramp(tmp_path / "d.csv")
    write(tmp_path / "e.csv", "ac", [(1, 2)])
    pa_table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"])
    parquet.write_table(pa_table, tmp_path / "g.parquet")
    with pytest.raises(InputError, match=r"g.parquet: several columns have the name a"):
        series(str(tmp_path / "g.parquet"), 4)
    with pytest.raises(InputError, match=r"e.csv: \['a', 'c'\] .* but .*d.csv has \['a', 'b'\]"):
        series(str(tmp_path / "[de].csv"), 4)
    np.savez(tmp_path / "f.npz", a=np.zeros(3), b=np.zeros(4))
    with pytest.raises(InputError, match=r"expected one array, or columns of one length, got a \(3,\), b \(4,\)"):
        series(str(tmp_path / "f.npz"), 4)


def test_sizes_that_an_array_file_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compared with the file, and with the memory that there is, before memory is taken."""
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros((3_000_000, 2)))
    monkeypatch.setattr(files, "available", lambda: 40_000_000)
    with pytest.raises(InputError, match=r"zeros\.npz: takes 48 MB unpacked, and 40 MB of memory are available; expec"):
        series(str(tmp_path / "zeros.npz"), 4)
    small = io.BytesIO()
    np.lib.format.write_array_header_1_0(small, {"descr": "<f8", "fortran_order": False, "shape": (2**50, 2)})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("a.npy", small.getvalue() + bytes(160))
    with pytest.raises(InputError, match=r"lie\.npz: a\.npy claims 18 PB and holds 288 B"):
        series(str(tmp_path / "lie.npz"), 4)
    (tmp_path / "lie.npy").write_bytes(small.getvalue() + bytes(160))
    with pytest.raises(InputError, match=r"lie\.npy: not an array file of numbers: "):
        series(str(tmp_path / "lie.npy"), 4)


def test_constant_channels_and_many(tmp_path: Path) -> None:
    """A constant channel is normalized to 0, and a thousand channels work."""
    np.save(tmp_path / "a.npy", np.full((80, 1000), 3.0))
    for scale, expected in (("standard", 0.0), ("minmax", 0.0), ("none", 3.0)):
        data = series(str(tmp_path / "a.npy"), 4, normalize=scale)
        assert data.shape == (1000, 4)
        assert torch.equal((data.test.x[:] - data.offset) / data.scale, torch.full((9, 1000, 4), expected))


@pytest.mark.usefixtures("pictures")
def test_a_thousand_channels_and_values_that_are_missing(command: Command) -> None:
    """They work from file to pictures, even if the last test windows have no values."""
    x = np.random.default_rng(0).normal(size=(200, 1000)).astype(np.float32)
    x[190:] = np.nan
    np.save("a.npy", x)
    args = ("data=series", "data.path=a.npy", "data.window=4", "data.missing=mask", "data.val_size=0.2")
    code, out, err = command(*args, "model=ae16", "trainer=cpu", "trainer.max_epochs=1", "hydra.run.dir=run")
    assert code == 0, err
    assert re.search(r"test MSE [\d.]+ ", out)


def test_one_window_a_split(tmp_path: Path) -> None:
    data = series(ramp(tmp_path / "a.csv", 12), 4, val_size=1 / 3, test_size=1 / 3)
    assert [starts(getattr(data, split)) for split in SPLITS] == [[0], [4], [8]]


def test_the_files_of_the_command(command: Command, tmp_path: Path) -> None:
    """From a file to a run, with raw units on both sides; a mistake is one line and leaves nothing."""
    t = np.arange(400)
    write(tmp_path / "a.csv", ["time", "level", "heat"], [(i, 500 + 20 * np.sin(i / 5), np.cos(i / 7)) for i in t])
    args = ("data=series", "data.path=a.csv", "data.window=16", "trainer=cpu", "model=msae16", "trainer.max_epochs=30")
    code, _, err = command(*args, "data.time_column=time", "hydra.run.dir=run")
    assert code == 0, err
    import msae

    model = msae.load("run/best.ckpt")
    x = series("a.csv", 16, time_column="time").test.x[:]
    x_hat, _ = model(x)
    error = (x_hat - x).square().mean((0, 2)).sqrt()
    assert error[0] < 20 * 0.7  # in the units of the file; a model of nothing is off by 14
    assert x_hat[:, 0].mean() > 450
    code, _, err = command(*args, "data.columns=[heet]", "hydra.run.dir=other")
    assert code == 2
    assert err.strip() == "error: data.columns=heet: no such column in a.csv; it has: time, level, heat"
    assert not Path("other").exists()
