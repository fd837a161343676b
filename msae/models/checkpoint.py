"""Checkpoints: the format of the files, and `load`.

A run's folder holds `best.ckpt`, of the epoch with the least validation loss, and `last.ckpt`, of the last epoch. Both
are files of `torch.save` that load with `weights_only=True`: a dict of plain values and tensors. A model needs these
keys; the others are Lightning's (states of the optimizer, the loops and the callbacks) and serve to resume training:

- `model_class`: the model's class as `module:class`, which has to be importable.
- `hyper_parameters`: the arguments of its constructor, `shape` among them.
- `state_dict`: weights, the statistics of the training data (`offset`, `scale`, `value_range`), and as `_extra_state` a
  dict of further facts about these data, see `RawUnits`: `per_window`, `missing`, `bounded`, `names`, `base` and
  `channel_range` (float64 tensors or None), `unit`, where there is a base `value_range` in float64, and
  `data_options`. The last one is the resolved `data` section of the run's config, by which a use reads new files in the
  same way: plain values by name such as `_target_`, `path`, `window`, `time_column`, or None after training without a
  config. Checkpoints of older versions lack some of these.
- `epoch`, `global_step`: the number of epochs and of optimizer steps before this checkpoint.
"""

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
    """The checkpoint that a path names: the file itself, or in a run's folder its best.ckpt, else its last.ckpt.

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

    Args:
        path: a checkpoint, or a run's folder.

    Raises:
        InputError: the file is missing, or is not such a checkpoint.
    """
    path = find(path)
    checkpoint = None
    if zipfile.is_zipfile(path):  # every file of torch.save is one
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError):  # written by another program, or damaged
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    keys = {"model_class", "hyper_parameters", "state_dict", "epoch", "global_step"}
    if not isinstance(checkpoint, dict) or not keys <= checkpoint.keys():
        raise InputError(
            f"checkpoint {path}: not one that msae wrote; expected last.ckpt or best.ckpt of a run's folder"
        )
    return checkpoint


def load(path: str | PathLike[str]) -> Reconstructor:
    """The model of a checkpoint, on the CPU and in evaluation mode; it takes and gives windows in raw units.

    Args:
        path: a checkpoint, or a run's folder, whose best.ckpt (else last.ckpt) is read.

    Raises:
        InputError: the file is missing, is not a checkpoint, or its model's class cannot be imported.

    Examples:
        Train for an epoch, save, and load; no data set and no config are needed to use a model again:

        >>> import logging, tempfile, lightning, msae
        >>> logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        >>> from msae.data.digits import digits
        >>> from msae.models.ae import AutoEncoder
        >>> data = digits()
        >>> model = AutoEncoder(data.shape, latent_dim=8)
        >>> model.set_statistics(**data.statistics)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer.fit(model, datamodule=data)
        ...     trainer.save_checkpoint(f"{folder}/last.ckpt")
        ...     model = msae.load(folder)
        >>> x_hat, z = model(data.test.x)
        >>> x_hat.shape, z.shape
        (torch.Size([360, 1, 64]), torch.Size([360, 8]))
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
