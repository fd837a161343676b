"""Checkpoints: what they hold, and `load`."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from msae.errors import InputError
from msae.models.reconstructor import Reconstructor


def find(path: str | PathLike[str]) -> Path:
    """The checkpoint that a path means: a file, or of the folder of a run best.ckpt, else last.ckpt.

    Raises:
        InputError: there is no such file or folder, or no checkpoint in the folder.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        found = next((file for file in (found / "best.ckpt", found / "last.ckpt") if file.is_file()), found)
    if found.is_dir():
        raise InputError(f"checkpoint {path}: a folder without best.ckpt or last.ckpt; expected the folder of a run")
    if not found.is_file():
        raise InputError(f"checkpoint {path}: no such file; expected the folder of a run, or its best.ckpt")
    return found


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint of a Reconstructor, on the CPU, read with `weights_only=True`.

    `path` is a file, or the folder of a run.

    Raises:
        InputError: the file is missing, or is not such a checkpoint.
    """
    path = find(path)
    checkpoint = None
    if zipfile.is_zipfile(path):  # as all checkpoints of torch are
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError):  # of another program, or damaged
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    keys = {"model_class", "hyper_parameters", "state_dict", "epoch", "global_step"}
    if not isinstance(checkpoint, dict) or not keys <= checkpoint.keys():
        raise InputError(
            f"checkpoint {path}: not one that msae wrote; expected last.ckpt or best.ckpt of a run's folder"
        )
    return checkpoint


def load(path: str | PathLike[str]) -> Reconstructor:
    """The model of a checkpoint, on the CPU and in evaluation mode; raw units in, raw units out.

    Raises:
        InputError: the file is missing, is not a checkpoint, or its model's class cannot be imported.
    """
    checkpoint = read_checkpoint(path)
    module, _, name = checkpoint["model_class"].partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise InputError(f"checkpoint {path}: its model {module}.{name} cannot be imported") from None
    if not (isinstance(cls, type) and issubclass(cls, Reconstructor)):
        raise InputError(f"checkpoint {path}: {module}.{name} is not a Reconstructor")
    model = cls(**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()
