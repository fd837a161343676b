"""What a forecast sees of the window before it: codes of its last steps, or their raw values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from msae.models.reconstructor import Reconstructor


@dataclass(frozen=True)
class Features:
    """What a regression sees of a window, for each of its channels.

    Attributes:
        compute: features `(n, channels, features)`, in raw units, of windows in raw units.
        sizes: the look-backs in steps, and the number of features, the first ones, that see no further.
        alike: whether features mean the same for each channel, so that one regression can serve all channels.
    """

    compute: Callable[[Float[Tensor, "n channels length"]], Float[Tensor, "n channels features"]]
    sizes: dict[int, int]
    alike: bool = True


def raw(lengths: Iterable[int]) -> Features:
    """The last values of a channel, as differences from the very last, with each of these look-backs.

    Examples:
        >>> raw([2, 3]).compute(torch.tensor([[[1.0, 2.0, 5.0]]]))
        tensor([[[-3., -4.]]])
    """
    sizes = {length: length - 1 for length in sorted(lengths)}
    return Features(partial(differences, length=max(sizes)), sizes)


def differences(x: Float[Tensor, "n channels time"], length: int) -> Float[Tensor, "n channels features"]:
    """The last `length` values of each channel, from the latest to the earliest, less the very last."""
    return (x[..., -length:-1] - x[..., -1:]).flip(2)


def latent(model: Reconstructor) -> Features:
    """The codes of a model.

    Where the model codes each channel by itself (`separate`), a channel has the codes of its own last steps, and their
    levels as differences from its last value; look-backs are the model's lengths. Other models have one look-back, the
    window: a channel has the whole latent and its last value.

    Examples:
        >>> from msae.models.nested import NestedAutoEncoder
        >>> latent(NestedAutoEncoder((2, 32), lengths=[8, 32], code_dim=3)).sizes
        {8: 4, 32: 8}
    """
    if not model.separate:
        return Features(partial(whole, model=model), {model.length: model.latent_dim + 1}, alike=False)
    codes = {int(name): code for name, code in reversed(model.own_codes.items())}
    ends = accumulate((code.stop - code.start) // model.channels for code in codes.values())
    return Features(partial(apart, model=model, codes=[*codes.values()]), dict(zip(codes, ends, strict=True)))


@torch.no_grad()
def whole(x: Float[Tensor, "n channels length"], model: Reconstructor) -> Float[Tensor, "n channels features"]:
    """For each channel the whole latent, and the channel's last value above the model's level."""
    z, last = model.encode(x), x[..., -1:].double() - base(model) - model.offset
    return torch.cat([z[:, None].expand(-1, model.channels, -1), last], 2)


@torch.no_grad()
def apart(
    x: Float[Tensor, "n channels length"], model: Reconstructor, codes: Sequence[slice]
) -> Float[Tensor, "n channels features"]:
    """For each channel its codes, and their levels less the channel's last value."""
    z = model.encode(x)
    offset, scale = model.level(x)
    found = []
    for code in codes:
        own = z[:, code].unflatten(1, (model.channels, -1))
        level = own[..., -1:].double() * scale + offset + base(model)
        found += [own[..., :-1] * scale, level - x[..., -1:]]
    return torch.cat(found, 2)


def base(model: Reconstructor) -> Any:
    """What the model subtracts from windows before float32 holds them."""
    return 0.0 if model.base is None else model.base
