"""The model of a run, as it starts or as it resumes from a checkpoint."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from msae.baselines import sample
from msae.errors import InputError, one_line
from msae.models.checkpoint import read_checkpoint
from msae.models.contract import check_model
from msae.models.reconstructor import class_path
from msae.runs.callbacks import WITHIN
from msae.runs.folder import check_limits, check_same, config_in, kept_keys

if TYPE_CHECKING:
    from msae.data.module import DataModule
    from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)
RESTORE = {"_restore_modules_and_callbacks", "restore_training_state"}
"""Lightning's functions that restore a run."""
STATE = {"loops": dict, "optimizer_states": list, "callbacks": dict}
"""What Lightning would do without: training would start anew, from the weights."""
CHOSEN = ("code_dims",)
"""A model's arguments that its training windows choose where the config has null."""


def data_of(cfg: DictConfig) -> DataModule:
    """The data of a run; InputError if its function returns something else."""
    from msae.data.module import DataModule

    lengths = cfg.get("model", {}).get("lengths")
    if OmegaConf.is_list(lengths) and "window" in cfg.data and cfg.data.window is None and cfg.data.get("path"):
        cfg.data.window = max(lengths)  # of a model of several lengths, the longest
    data = instantiate(cfg.data)
    if not isinstance(data, DataModule):
        raise InputError(f"data: {cfg.data._target_} returns a {type(data).__name__}; expected a DataModule")
    return data


def model_of(cfg: DictConfig, data: DataModule) -> Reconstructor:
    """A new model for the windows of the data."""
    model: Reconstructor = instantiate(cfg.model, shape=(data.shape[0], *(data.image_shape or data.shape[1:])))
    return model


def built(cfg: DictConfig, data: DataModule, ckpt: Path | None, kept: Path) -> Reconstructor:
    """The model of a run, as it starts or before its checkpoint's weights are loaded.

    Args:
        cfg: of the run; its `data` takes what the files chose.
        data: of the run.
        ckpt: the checkpoint to resume from.
        kept: the checkpoint that the run ends by testing.
    """
    for key, value in data.chosen.items():
        if key in cfg.data:
            cfg.data[key] = value
    model = model_of(cfg, data)
    if ckpt is not None:
        model = as_before(cfg, model, data, ckpt, kept)
    model.set_statistics(**data.statistics)
    model.data_options = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    if ckpt is None:
        model.initialize(lambda: sample(data))
    check_model(model, data.train.x[:2])
    several = model.parts_scaled(model.offset.new_zeros(1, max(code.stop for code in model.own_codes.values())))
    if not several and model.latent_dim >= model.channels * model.length:
        log.warning(
            "a latent of %d values does not compress windows of %d values; reduce the latent (model.latent_dim)",
            model.latent_dim,
            model.channels * model.length,
        )
    return model


def as_before(cfg: DictConfig, model: Reconstructor, data: DataModule, ckpt: Path, kept: Path) -> Reconstructor:
    """The model of a checkpoint, before its weights are loaded; what its training windows chose stays chosen.

    Args:
        cfg: of the run.
        model: as the config alone makes it.
        data: of the run.
        ckpt: the checkpoint to resume from.
        kept: the checkpoint that the run ends by testing.

    Raises:
        InputError: the checkpoint is of another model or run, or `max_steps` ended it within an epoch and no longer
            does: the windows that were left of that epoch are not known.
    """
    name = f"resume={ckpt}"
    checkpoint = read_checkpoint(ckpt)
    for key, kind in STATE.items():
        if not isinstance(checkpoint.get(key), kind) or not checkpoint[key]:
            raise InputError(f"{name}: its state of the training cannot be restored (no {key})")
    if (beside := ckpt.parent / "config.yaml").is_file():
        check_same(name, kept_keys(config_in(beside)), kept_keys(cfg))
    if checkpoint["model_class"] != class_path(type(model)):
        theirs = checkpoint["model_class"].partition(":")[2]
        raise InputError(f"{name}: of the model {theirs}, not {type(model).__name__}")
    before, now = checkpoint["hyper_parameters"], {k: v for k, v in model.hparams.items() if k != "compile"}
    check_same(name, before, now | {key: before.get(key) for key in CHOSEN if now.get(key) is None})
    model = type(model)(**before, compile=model.compiles)
    sizes, expected = (
        {name: getattr(value, "shape", None) for name, value in state.items()}
        for state in (checkpoint["state_dict"], model.state_dict())
    )
    if sizes != expected:
        raise InputError(f"{name}: its weights do not fit {type(model).__name__}; the file may be damaged")
    steps, within = checkpoint["global_step"], checkpoint.get(WITHIN)
    epochs = checkpoint["epoch"] + (within is None and steps > 0)
    finished = check_limits(str(ckpt), cfg, {"steps": steps, "epochs": epochs})
    whole = data.steps_per_epoch
    if within is None and cfg.trainer.limit_train_batches == 1.0 and steps % whole and steps != cfg.trainer.max_steps:
        raise InputError(
            f"{name}: ended at step {steps}, within an epoch of {whole} steps; expected a checkpoint of whole epochs"
        )
    if within is not None and within["per_call"] != [data.steps_per_call, data.processes]:
        raise InputError(
            f"{name}: was saved within an epoch; expected the trainer.devices, trainer.num_nodes and "
            "trainer.limit_train_batches that it was saved with"
        )
    if finished and not kept.exists():  # Lightning trains no further, and the run is tested
        raise InputError(f"{name}: has nothing left to train; expected the run's folder, with {kept.name} to test")
    return model


@contextlib.contextmanager
def restoring(ckpt: Path | None) -> Iterator[None]:
    """Turn an error while Lightning restores the state of a run into an InputError that names the checkpoint."""
    try:
        yield
    except Exception as error:
        frames = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
        if isinstance(error, InputError) or not frames & RESTORE:
            raise
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise InputError(f"resume={ckpt}: its state of the training cannot be restored ({reason})") from error
