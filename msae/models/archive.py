"""The file of a checkpoint: written whole, with a checksum that is compared when it is read.

The file is what `torch.save` writes, a zip archive without compression, whose comment is the SHA-256 of all bytes
before the digest. Every program that reads such archives reads it. A checkpoint without the comment, of an older
version or of another Trainer, is compared with the checksums that zip keeps of each record.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection

from msae.errors import InputError, one_line
from msae.whole import write_bytes

MARK = b"msae sha256 "
"""The comment before the digest."""
DIGEST = 2 * hashlib.sha256().digest_size
"""Its length in hexadecimal digits."""
BESIDE = {"best.ckpt": "last.ckpt", "last.ckpt": "best.ckpt"}
"""The checkpoints of a run, each by the other."""


class WholeCheckpoints(TorchCheckpointIO):
    """What a Trainer writes and reads checkpoints with, as `Trainer(plugins=[WholeCheckpoints()])`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint with its checksum, whole or not at all; InputError where it cannot be written."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), packed(checkpoint))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """As `read`."""
        content: dict[str, Any] = read(Path(path), map_location)
        return content


def packed(content: Any) -> bytearray:
    """The bytes of a checkpoint's file."""
    buffer, kept = io.BytesIO(), apply_to_collection(content, torch.Tensor, alone)
    for key, part in content.items() if isinstance(content, dict) else ():
        if hasattr(part, "_metadata"):  # the versions of modules, which a copy of a state_dict lacks
            kept[key]._metadata = part._metadata  # noqa: SLF001
    torch.save(kept, buffer)
    found = bytearray(buffer.getbuffer())
    found[-2:] = (len(MARK) + DIGEST).to_bytes(2, "little")  # the length of the comment, 0 as torch writes it
    found += MARK
    return found + hashlib.sha256(found).hexdigest().encode()


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor; a copy of one that is a part of a larger one, all of which torch would save."""
    part = tensor.untyped_storage().nbytes() > tensor.nbytes
    return tensor.clone(memory_format=torch.contiguous_format) if part else tensor


def read(path: Path, map_location: Any = "cpu") -> Any:
    """What a checkpoint holds, read with `weights_only=True`.

    Raises:
        InputError: the file is damaged, or is not of `torch.save`.
    """
    if reason := flaw(path):
        other = path.with_name(BESIDE.get(path.name, path.name))
        sound = other != path and zipfile.is_zipfile(other) and not flaw(other)
        way = f"use {other}, which is sound" if sound else "expected an undamaged copy of it"
        raise InputError(f"checkpoint {path}: damaged, {reason}; {way}")
    try:
        return torch.load(path, map_location, weights_only=True)
    except Exception:  # noqa: BLE001  (a pickle of another program fails in many ways)
        raise not_ours(path) from None


def not_ours(path: Path) -> InputError:
    """The error about a file that is no checkpoint of this project."""
    return InputError(f"checkpoint {path}: not one that msae wrote; expected last.ckpt or best.ckpt of a run's folder")


def flaw(path: Path) -> str | None:
    """Why a file of torch.save is damaged, or None; also None where it is no such file.

    No memory is taken for what it claims to hold.
    """
    length = path.stat().st_size
    if not length:
        return "the file is empty"
    with path.open("rb") as file:
        same = matches(file)
        if same is None and file.read(4) != b"PK\x03\x04" and not zipfile.is_zipfile(file):
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(one.file_size for one in archive.infolist()) > length:
                    return "it claims to be larger than its file"
                if same is None:
                    same = not archive.comment and not archive.testzip()
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            return f"it is cut short or altered ({one_line(error)})"
    return None if same else "its content does not match its checksum"


def matches(file: IO[bytes]) -> bool | None:
    """Whether a file has the SHA-256 that its comment gives; None without such a comment."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[-DIGEST - len(MARK) : -DIGEST] != MARK:
            return None
        with memoryview(content)[:-DIGEST] as signed:
            return hashlib.sha256(signed).hexdigest().encode() == content[-DIGEST:]
