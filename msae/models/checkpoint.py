"""Checkpoints: the format of the files, and `load`.

A run's folder holds `best.ckpt`, of the epoch with the least validation loss, and `last.ckpt`, of the last epoch. Both
are files of `torch.save` that load with `weights_only=True`: a dict of plain values and tensors. A model needs these
keys; the others are Lightning's (states of the optimizer, the loops and the callbacks) and serve to resume training:

- `model_class`: the model's class as `module:class`; which of them are used, see `class_of`.
- `hyper_parameters`: the arguments of its constructor, `shape` among them.
- `state_dict`: weights, the statistics of the training data (`offset`, `scale`, `value_range`), and as `_extra_state` a
  dict of further facts about these data, see `RawUnits`: `per_window`, `missing`, `bounded`, `names`, `base` and
  `channel_range` (float64 tensors or None), `unit`, where there is a base `value_range` in float64, and
  `data_options`. The last one is the resolved `data` section of the run's config, by which a use reads new files in the
  same way: plain values by name such as `_target_`, `path`, `window`, `time_column`, or None after training without a
  config. Checkpoints of older versions lack some of these.
- `epoch`, `global_step`: the number of epochs and of optimizer steps before this checkpoint.

A file may come from elsewhere: nothing that it names is imported, and no memory that it claims is taken, before it is
checked. `archive.py` has the checksum.
"""

from __future__ import annotations

import importlib
import re
import sys
from importlib.metadata import entry_points
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msae.errors import InputError, one_line
from msae.models.archive import not_ours, read
from msae.models.reconstructor import Reconstructor
from msae.whole import available, size

GROUP = "msae.models"
"""Entry points of packages whose models checkpoints may name."""
FIELDS: dict[str, tuple[type, str]] = {
    "model_class": (str, "a text, module:class"),
    "hyper_parameters": (dict, "a dict"),
    "state_dict": (dict, "a dict"),
    "epoch": (int, "a whole number from 0"),
    "global_step": (int, "a whole number from 0"),
}
"""What a checkpoint has for a model, the types, and how they are called."""
PLAIN = (bool, int, float, str, type(None))


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
    checkpoint = read(path)
    if not isinstance(checkpoint, dict) or not FIELDS.keys() <= checkpoint.keys():
        raise not_ours(path)
    for name, (kind, expected) in FIELDS.items():
        value = checkpoint[name]
        if not isinstance(value, kind) or (isinstance(value, int) and (isinstance(value, bool) or value < 0)):
            given = value if isinstance(value, int) else f"a {type(value).__name__}"
            raise InputError(f"checkpoint {path}: {name}: {given}; expected {expected}")
    for name, value in checkpoint["hyper_parameters"].items():
        if not (isinstance(name, str) and is_plain(value)):
            raise InputError(f"checkpoint {path}: hyper_parameters, {name}: expected numbers, texts and lists of them")
    return checkpoint


def is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value is a number, a text or nothing, or a list or dict of such."""
    if isinstance(value, dict) and depth:
        return all(isinstance(key, str) and is_plain(one, depth - 1) for key, one in value.items())
    if isinstance(value, (list, tuple)) and depth:
        return all(is_plain(one, depth - 1) for one in value)
    return isinstance(value, PLAIN)


def load(path: str | PathLike[str]) -> Reconstructor:
    """The model of a checkpoint, on the CPU and in evaluation mode; it takes and gives windows in raw units.

    Args:
        path: a checkpoint, or a run's folder, whose best.ckpt (else last.ckpt) is read.

    Raises:
        InputError: the file is missing, damaged or no checkpoint, or its model's class is not known, see `class_of`.

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
    name = f"checkpoint {find(path)}"
    cls = class_of(name, checkpoint["model_class"])
    arguments, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    try:
        check_claims(name, cls, arguments, state)
        model = cls(**arguments)
        model.load_state_dict(state)
    except Exception as error:
        if isinstance(error, InputError) and str(error).startswith(name):
            raise
        reason = one_line(error)[:200]
        raise InputError(f"{name}: its fields are not those of {cls.__name__}: {reason}") from error
    return model.eval()


def trust(path: str) -> None:
    """Import the class `module:class` of a model of a user's own, which `load` then finds.

    Raises:
        InputError: there is no such class.
    """
    module, _, cls = path.partition(":")
    try:
        importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise InputError(f"model_class={path}: cannot be imported ({error}); expected package.module:Class") from None
    class_of(f"model_class={path}", f"{module}:{cls}")


def class_of(name: str, path: str) -> type[Reconstructor]:
    """The class `module:class` of a model.

    Those of `msae.models` are found, those of modules that are already imported, and entry points of the group
    `msae.models`. Nothing else is imported.

    Args:
        name: of the checkpoint, for an error.
        path: the class, as the checkpoint names it.

    Raises:
        InputError: it is none of these, or not a model.
    """
    module, _, cls = path.partition(":")
    if re.fullmatch(r"msae\.models(\.\w+)*", module):
        try:
            importlib.import_module(module)
        except ImportError:
            raise InputError(f"{name}: its model {path} is not one of this version of msae") from None
    registered = [point for point in entry_points(group=GROUP) if point.value.replace(" ", "") == path]
    if module not in sys.modules and not registered:
        raise InputError(
            f"{name}: its model is {path[:200]}, which is not imported for a file that names it; where you trust it, "
            f"import {module[:100]} in Python, type model_class={path[:200]}, "
            f"or register it as an entry point of {GROUP}"
        )
    found: Any = registered[0].load() if registered else sys.modules[module]
    for part in () if registered else cls.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None  # getattr may import
    if not (isinstance(found, type) and issubclass(found, Reconstructor)):
        raise InputError(f"{name}: its model {path[:200]} is not a Reconstructor")
    return found


def check_claims(name: str, cls: type[Reconstructor], arguments: dict[str, Any], state: dict[str, Any]) -> None:
    """Raise InputError unless a model of these arguments has the tensors of the state, and fits in memory.

    It is built without memory for this. A class of a user's own that needs values in its constructor is not checked.
    """
    try:
        with torch.device("meta"):
            model = cls(**arguments)
    except Exception as error:  # of a constructor
        if isinstance(error, InputError) or "meta" not in str(error):
            raise
        return
    expected = model.state_dict()
    if odd := next(iter(expected.keys() ^ state.keys()), None):
        raise InputError(f"{name}: state_dict, {odd}: {'missing' if odd in expected else f'{cls.__name__} has none'}")
    for key, value in expected.items():
        if isinstance(value, Tensor):
            check_tensor(f"{name}: state_dict, {key}", state[key], value)
        else:
            check_facts(f"{name}: {key}", state[key], value, model.channels)
    taken = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    if taken > available():
        raise InputError(f"{name}: its model takes {size(taken)}, and {size(available())} of memory are available")


def check_tensor(name: str, given: Any, expected: Tensor) -> None:
    """Raise InputError unless a value is a tensor of the expected shape, with all its values in the file."""
    if not isinstance(given, Tensor) or given.shape != expected.shape:
        found = f"of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise InputError(f"{name}: {found}; expected a tensor of shape {tuple(expected.shape)}")
    if given.layout != torch.strided or given.device.type != "cpu" or given.untyped_storage().nbytes() < given.nbytes:
        raise InputError(f"{name}: not all its values are in the file")


def check_facts(name: str, given: Any, known: dict[str, Any], channels: int) -> None:
    """Raise InputError unless facts about the training data have the names and types of those that a model has."""
    if not isinstance(given, dict):
        raise InputError(f"{name}: a {type(given).__name__}; expected a dict")
    tensors = {"base": (channels, 1), "channel_range": (channels, 2), "value_range": (2,)}
    for key, value in given.items():
        if key in tensors and (value is not None or key == "value_range"):
            check_tensor(f"{name}, {key}", value, torch.empty(tensors[key], device="meta"))
            continue
        if key not in known:
            raise InputError(f"{name}, {str(key)[:80]}: not a field of this version of msae")
        options = key == "data_options" and (value is None or (isinstance(value, dict) and is_plain(value, 5)))
        names = key == "names" and (value is None or (isinstance(value, (list, tuple)) and len(value) == channels))
        if not (
            options
            or (names and is_plain(value))
            or (known[key] is not None and type(value) is type(known[key]))
            or key in tensors
        ):
            raise InputError(f"{name}, {key}={str(value)[:80]}: not of the type that a model has there")
