"""The contract of a model's class, checked before it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msae.errors import InputError
from msae.models.reconstructor import Reconstructor


def check_model(model: Reconstructor, x: Tensor) -> None:
    """Raise InputError for mistakes in a new model's class, which else come when it has trained for long.

    Args:
        model: of the class, with statistics.
        x: a few windows in raw units.
    """
    name, codes = type(model).__name__, getattr(model, "_codes", None)
    if "shape" not in model.hparams:
        raise InputError(f"model {name}: expected a call of save_hyperparameters(logger=False) in its constructor")
    if not codes or not isinstance(codes, dict):
        raise InputError(f'model {name}: expected its constructor to fill `codes`, such as {{"whole": slice(0, 64)}}')
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        z = model.encode_scaled(model.scaled(x))
        outputs: dict[str, Any] = {"decode_scaled": model.decode_scaled(z)}
        stages, penalties = model.stages_scaled(z), model.penalties(z)
    for module, mode in modes.items():
        module.training = mode
    if not stages or not isinstance(stages, dict) or not isinstance(penalties, dict):
        raise InputError(f"model {name}: expected dicts of tensors of stages_scaled, with one at least, and penalties")
    stops = [0, *(code.stop for code in codes.values())]
    if z.shape != (len(x), stops[-1]) or [code.start for code in codes.values()] != stops[:-1]:
        listed = ", ".join(f"{key} {code.start}:{code.stop}" for key, code in codes.items())
        raise InputError(
            f"model {name}: codes {listed} for encode_scaled's {tuple(z.shape)} of {len(x)} windows; "
            "expected (batch, latent), and codes that follow one another from its first value to its last"
        )
    outputs |= {f"stages_scaled[{key!r}]": x_hat for key, x_hat in stages.items()}
    expected = dict.fromkeys(outputs, tuple(x.shape)) | {f"penalties[{key!r}]": () for key in penalties}
    outputs |= {f"penalties[{key!r}]": term for key, term in penalties.items()}
    for method, found in outputs.items():
        given = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if given != expected[method]:
            raise InputError(
                f"model {name}: {method} gives {given} for windows {tuple(x.shape)}; "
                f"expected a tensor {expected[method]}"
            )
