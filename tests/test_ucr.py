"""The UCR/UEA archive: sets in aeon, local archives, and the errors for sets that cannot be used."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msae import InputError
from msae.data.module import DataModule
from msae.data.ucr import ucr


def tsv(folder: Path, name: str, train: str, test: str = "1\t1\t2\t3\n2\t4\t5\t6\n") -> None:
    """The 2018 release: a label, then values; NaN for what is missing, and at the end for padding."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_TRAIN.tsv").write_text(train)
    (folder / f"{name}_TEST.tsv").write_text(test)


def test_a_set_that_comes_with_aeon() -> None:
    data = ucr("GunPoint", val_size=0.2)
    assert [len(split) for split in (data.train, data.val, data.test)] == [40, 10, 150]
    assert data.shape == (1, 150)
    assert not data.missing
    for split in (data.train, data.val, data.test):
        assert split.y is not None
        assert set(split.y.tolist()) == {0, 1}
    values = data.train.x[:].double()
    torch.testing.assert_close(data.offset[0, 0].double(), values.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(data.scale[0, 0].double(), values.std(correction=0), rtol=1e-4, atol=0)


def test_several_channels() -> None:
    assert ucr("BasicMotions", normalize="window").shape == (6, 100)


def test_unequal_lengths_are_padded_and_masked() -> None:
    with pytest.raises(InputError, match=r"series of 7 to 29 steps; data.pad=end or data.pad=start"):
        ucr("JapaneseVowels")
    end, start = (ucr("JapaneseVowels", pad=pad) for pad in ("end", "start"))
    assert end.missing
    assert end.shape == (12, 29)
    for last, first in zip(end.train.x[:5], start.train.x[:5], strict=True):
        there = int((~last[0].isnan()).sum())
        assert torch.equal(last[:, :there], first[:, 29 - there :])
        assert last[:, there:].isnan().all()
        assert first[:, : 29 - there].isnan().all()
    values = end.train.x[:].movedim(1, 0).flatten(1)
    torch.testing.assert_close(end.offset[:, 0], values.nanmean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
def test_a_local_archive(nested: bool, tmp_path: Path) -> None:
    tsv(tmp_path / "Small" if nested else tmp_path, "Small", "2\t0.5\t1\t2\n1\t3\t4\t5\n2\t6\t7\t9\n")
    data = ucr("Small", root=str(tmp_path), normalize="none")
    assert data.train.x[:].tolist() == [[[0.5, 1, 2]], [[3, 4, 5]], [[6, 7, 9]]]
    assert data.train.y is not None
    assert data.train.y.tolist() == [1, 0, 1]
    assert data.labels(data.train.y) == ["2", "1", "2"]
    assert data.test.x[:].tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


def test_a_local_archive_of_ts_files(tmp_path: Path) -> None:
    head = (
        "@problemName Small\n@timeStamps false\n@missing false\n@univariate true\n@equalLength true\n@seriesLength 3\n"
    )
    for split, rows in (("TRAIN", "1,2,3:a\n4,5,6:b\n"), ("TEST", "7,8,9:b\n")):
        (tmp_path / f"Small_{split}.ts").write_text(f"{head}@classLabel true a b\n@data\n{rows}")
    data = ucr("Small", root=str(tmp_path), normalize="none")
    assert data.train.x[:].tolist() == [[[1, 2, 3]], [[4, 5, 6]]]
    assert data.test.y is not None
    assert data.test.y.tolist() == [1]
    assert data.labels(data.test.y) == ["b"]


def test_missing_values_and_padding_of_the_release(tmp_path: Path) -> None:
    tsv(tmp_path, "Holes", "1\t1\tNaN\t3\n2\t4\t5\tNaN\n")
    root = str(tmp_path)
    with pytest.raises(InputError, match=r"series of 2 to 3 steps; data.pad"):
        ucr("Holes", root)
    with pytest.raises(
        InputError, match=r"series 0 of the training split: no value in channel 0 at step 1; set data.missing"
    ):
        ucr("Holes", root, pad="end")
    filled = ucr("Holes", root, pad="end", missing="interpolate", normalize="none").train.x[:]
    assert filled.nan_to_num(-1).tolist() == [[[1, 2, 3]], [[4, 5, -1]]]
    masked = ucr("Holes", root, pad="end", missing="mask", normalize="none").train.x[:]
    assert masked.nan_to_num(-1).tolist() == [[[1, -1, 3]], [[4, 5, -1]]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gunpont"}, r"name=gunpont: no such set; nearest: GunPoint, GunPoint\w+"),
        ({"name": "Q"}, "name=Q: no such set$"),
        ({"name": "GunPoint", "root": "nowhere"}, "root=nowhere: no such folder"),
        ({"name": "Smal", "root": "."}, r"no Smal_TRAIN and Smal_TEST, .ts or .tsv, in \.; nearest: Small"),
        ({"name": "Text", "root": "."}, r"Text_TRAIN.tsv: not a file of the archive"),
        ({"name": "Small", "pad": "both"}, "pad=both: expected one of None, end, start"),
        ({"name": "Small", "missing": "drop"}, "missing=drop: expected one of error, interpolate, mask"),
        ({"name": "Small", "normalize": "log"}, "normalize=log: expected one of"),
        ({"name": "Small", "root": ".", "val_size": 9}, "val_size=9: expected a whole number, from 0 to 1"),
    ],
)
def test_what_cannot_be_used(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tsv(tmp_path, "Small", "1\t1\t2\t3\n2\t4\t5\t6\n")
    tsv(tmp_path, "Text", "1\ta\tb\tc\n2\td\te\tf\n")
    with pytest.raises(InputError, match=message):
        ucr(**options)


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import aeon.datasets

    def refuse(_: str, **options: object) -> None:
        assert str(options["extract_path"]).startswith(str(tmp_path))
        raise ValueError("Could not download\nfiles")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(aeon.datasets, "load_classification", refuse)
    with pytest.raises(
        InputError, match=r"name=ECG200: aeon cannot download it \(Could not download files\); data.root reads"
    ):
        ucr("ECG200")


def test_an_interrupted_download_is_no_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first time the second file does not come; the second time both do, and the third time nobody asks."""
    import aeon.datasets

    asked: list[str] = []

    def load(name: str, split: str, extract_path: str) -> None:
        asked.append(split)
        if len(asked) == 2:
            raise OSError("reset by peer")
        folder = Path(extract_path, name)
        folder.mkdir(exist_ok=True)
        series = "@problemName x\n@univariate true\n@classLabel true 1 2\n@data\n1,2,3:1\n2,3,4:2\n4,5,6:1\n"
        (folder / f"{name}_{split.upper()}.ts").write_text(series)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(aeon.datasets, "load_classification", load)
    with pytest.raises(InputError, match="reset by peer"):
        ucr("ECG200")
    for _ in range(2):
        data = ucr("ECG200", val_size=0)
        assert (len(data.train), len(data.test)) == (3, 3)
        assert data.train.y is not None
        assert data.train.y.tolist() == [0, 1, 0]
    assert asked == ["train", "test", "train", "test"]
    assert [path.name for path in (tmp_path / "msae" / "ucr").iterdir() if path.is_dir()] == ["ECG200"]


def test_files_without_labels_or_content(tmp_path: Path) -> None:
    for part in ("TRAIN", "TEST"):
        text = "@problemName x\n@univariate true\n@classLabel false\n@data\n1,2,3\n2,3,4\n"
        (tmp_path / f"Plain_{part}.ts").write_text(text)
        (tmp_path / f"Empty_{part}.ts").write_text("nothing\n")
    assert ucr("Plain", str(tmp_path)).train.y is None
    with pytest.raises(InputError, match=r"Empty_TRAIN.ts: no series in it"):
        ucr("Empty", str(tmp_path))


def test_without_aeon(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "aeon":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"data=ucr needs aeon: pip install aeon \(or msae's extra \[ucr\]\)"):
        ucr("GunPoint")


def test_it_is_a_data_module() -> None:
    data = ucr("ItalyPowerDemand", batch_size=8, val_size=7)
    assert isinstance(data, DataModule)
    assert len(data.val) == 7
    assert np.prod(data.shape) == 24
