"""Check that a model's class keeps the contract of `Reconstructor`, before it trains for long."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msae.errors import InputError
from msae.models.reconstructor import Reconstructor


def check_model(model: Reconstructor, x: Tensor) -> None:
    """Raise InputError for a mistake in a model's class; the text says what to write instead.

    The state of the model and of the random generators stays as it is.

    Args:
        model: a model with statistics of its data.
        x: a few windows in raw units.

    Examples:
        >>> from msae.models.ae import AutoEncoder
        >>> check_model(AutoEncoder((1, 8), latent_dim=3), torch.zeros(2, 1, 8))  # says nothing: there is no mistake
    """
    name, codes = type(model).__name__, getattr(model, "_codes", None)
    if "shape" not in model.hparams:
        raise InputError(f"model {name}: call self.save_hyperparameters(logger=False) in its constructor")
    if not codes or not isinstance(codes, dict):
        raise InputError(
            f'model {name}: set self.codes in its constructor, such as self.codes = {{"whole": slice(0, 64)}}'
        )
    z, outputs, penalties = called(model, x)
    for method, value in (("stages_scaled", outputs["stages_scaled"]), ("penalties", penalties)):
        if not isinstance(value, dict) or (method == "stages_scaled" and not value):
            raise InputError(f"model {name}: {method} returns {value!r}; return a dict of tensors by name")
    check_codes(name, codes, z, len(x))
    stages = outputs.pop("stages_scaled")
    outputs |= {f"stages_scaled[{key!r}]": x_hat for key, x_hat in stages.items()}
    check_shapes(name, outputs, tuple(x.shape), tuple(x.shape))
    check_shapes(name, {f"penalties[{key!r}]": term for key, term in penalties.items()}, (), tuple(x.shape))


def called(model: Reconstructor, x: Tensor) -> tuple[Tensor, dict[str, Any], Any]:
    """What a model's methods return for windows: the latents, outputs by the methods' names, and its penalties."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        z = model.encode_scaled(model.scaled(x))
        outputs = {"decode_scaled": model.decode_scaled(z), "stages_scaled": model.stages_scaled(z)}
        penalties = model.penalties(z)
    for module, mode in modes.items():
        module.training = mode
    return z, outputs, penalties


def check_codes(name: str, codes: dict[str, slice], z: Tensor, n: int) -> None:
    """Raise InputError unless the latents of n windows are `(n, latent)`, and the codes divide them without a gap."""
    stops = [0, *(code.stop for code in codes.values())]
    if z.shape != (n, stops[-1]) or [code.start for code in codes.values()] != stops[:-1]:
        listed = ", ".join(f"{key} {code.start}:{code.stop}" for key, code in codes.items())
        raise InputError(
            f"model {name}: encode_scaled returns {tuple(z.shape)} for {n} windows, and its codes are {listed}; return "
            "(batch, latent), and let the codes follow one another from the first latent value to the last"
        )


def check_shapes(name: str, outputs: dict[str, Any], expected: tuple[int, ...], windows: tuple[int, ...]) -> None:
    """Raise InputError unless every output is a tensor of the expected shape."""
    for method, found in outputs.items():
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if given != expected:
            raise InputError(
                f"model {name}: {method} returns {given} for windows {windows}; return a tensor {expected}"
            )
