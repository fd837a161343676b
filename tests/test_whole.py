"""Files that are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from msae import InputError
from msae.whole import PATTERN, clean, to_json, whole, write_text


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def test_a_file_appears_when_it_is_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_text("old")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with whole(Path("a.txt")) as temporary:
        temporary.write_text("new one")
        assert Path("a.txt").read_text() == "old"
        assert temporary.match(PATTERN)
        assert temporary.suffix == ".txt"
    assert Path("a.txt").read_text() == "new one"
    assert synced == [7]
    assert names() == ["a.txt"]


def test_it_has_the_permissions_of_a_new_file() -> None:
    before = os.umask(0o027)
    write_text(Path("a.txt"), "x")
    os.umask(before)
    assert Path("a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("mine")])
def test_after_a_failure_all_is_as_it_was(error: BaseException) -> None:
    Path("a.txt").write_text("old")
    with pytest.raises(type(error)), whole(Path("a.txt")) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise error
    assert Path("a.txt").read_text() == "old"
    assert names() == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"a\.txt: cannot be written: No space left on device, [\d.]+ .B free in \.; the unfinished"),
        (errno.EACCES, r"a\.txt: cannot be written: Permission denied; the unfinished file was removed"),
    ],
)
def test_an_error_of_the_system_is_one_line(number: int, said: str) -> None:
    with pytest.raises(InputError, match=said), whole(Path("a.txt")):
        raise OSError(number, "x")
    assert names() == []


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_replaced_and_not_followed(there: bool) -> None:
    if there:
        Path("target.txt").write_text("theirs")
    Path("a.txt").symlink_to("target.txt")
    write_text(Path("a.txt"), "mine")
    assert not Path("a.txt").is_symlink()
    assert Path("a.txt").read_text() == "mine"
    assert names() == (["a.txt", "target.txt"] if there else ["a.txt"])
    assert not there or Path("target.txt").read_text() == "theirs"


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    (tmp_path / f"{PATTERN[:-1]}old.ckpt").write_text("left")
    (tmp_path / ".mine").write_text("x")
    with whole(Path("a.txt")) as held:
        assert names() == sorted([".mine", held.name])
        clean.__wrapped__(tmp_path)
        assert names() == sorted([".mine", held.name])
    Path(".msae-link").symlink_to(".mine")
    clean.__wrapped__(tmp_path)
    assert Path(".mine").exists()


def test_json_has_no_numbers_that_are_none() -> None:
    assert to_json({"a": [float("nan"), 1.5], "b": {"c": -float("inf")}, "d": None, "e": True}) == (
        '{"a": [null, 1.5], "b": {"c": null}, "d": null, "e": true}'
    )
