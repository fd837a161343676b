"""Files that are written whole or not at all, by every part of the project."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from msae.errors import InputError, one_line

try:
    import fcntl
except ImportError:  # on Windows, where files that a killed process left are not removed
    fcntl = None  # type: ignore[assignment]

PATTERN = ".msae-*"
"""Names of temporary files, which lie in the folder of the file that they become."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors for which the free space is told."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file to write to, as `part`.

    Raises:
        InputError: an OSError while writing, such as of a full disk.
    """
    with told(path), part(path) as temporary:
        yield temporary


@contextlib.contextmanager
def part(path: Path) -> Iterator[Path]:
    """A temporary file to write to, of the same ending, which replaces `path` at the end once it is on the disk.

    After a failure it is removed, and `path` is as it was. A symbolic link at `path` is replaced, not followed.
    """
    clean(path.parent.resolve())
    temporary, file = begun(path)
    try:
        yield temporary
        os.fsync(file)
        temporary.replace(path)
    finally:
        os.close(file)
        temporary.unlink(missing_ok=True)


def begun(path: Path) -> tuple[Path, int]:
    """A new temporary file for `path`, and its descriptor, by which this process holds it."""
    while True:
        temporary = path.with_name(f"{PATTERN[:-1]}{secrets.token_hex(8)}{path.suffix}")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if hold(file, wait=True) is False or os.fstat(file).st_nlink:
            return temporary, file
        os.close(file)  # another process removed it before it was held


def hold(file: int, wait: bool) -> bool:
    """Whether this process holds a file now; False where another does, or where the file system knows no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@cache
def clean(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes were killed; a process looks once."""
    for path in folder.glob(PATTERN):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            if hold(file, wait=False):
                path.unlink()
            os.close(file)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError into an InputError that names the file and the reason, and of a full disk the free space."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        if error.errno in (*FULL, None) and path.parent.is_dir():
            reason += f", {free(path.parent)}"  # numpy gives no number for a full disk
        kept = "the old file is kept" if path.exists() else "the unfinished file was removed"
        raise InputError(f"{path}: cannot be written: {reason}; {kept}") from None


def free(folder: Path) -> str:
    """The free space of a folder's disk, as text."""
    return f"{size(shutil.disk_usage(folder).free)} free in {folder}"


def size(n: float) -> str:
    """A number of bytes in the unit that gives it few digits.

    Examples:
        >>> size(1_500_000_000)
        '1.5 GB'
    """
    power = min(6, int(math.log10(n) // 3)) if n else 0
    return f"{n / 1000**power:.3g} {['B', 'KB', 'MB', 'GB', 'TB', 'PB', 'EB'][power]}"


def available() -> float:
    """Bytes of memory that a process may take now; infinity where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf


def write_bytes(path: Path, content: Any) -> None:
    """Write bytes, or a buffer of them."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text, as UTF-8."""
    write_bytes(path, text.encode())


def to_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """A value as JSON, which knows no NaN and no Infinity: such a number is null.

    Examples:
        >>> to_json({"mse": 0.5, "psnr": [math.inf, math.nan]})
        '{"mse": 0.5, "psnr": [null, null]}'
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False, sort_keys=sort_keys)


def finite(value: Any) -> Any:
    """Nested dicts and lists with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
