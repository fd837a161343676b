"""What a forecast sees of the window before it: codes of its last steps, or their raw values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

    def compute(x: Tensor) -> Tensor:
        return (x[..., -max(sizes) : -1] - x[..., -1:]).flip(2)

    return Features(compute, sizes)


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
    base: Any = 0.0 if model.base is None else model.base
    channels = model.channels

    def together(x: Tensor) -> Tensor:
        with torch.no_grad():
            z = model.encode(x)
        return torch.cat([z[:, None].expand(-1, channels, -1), x[..., -1:].double() - base - model.offset], 2)

    if not getattr(model, "separate", False):
        return Features(together, {model.length: model.latent_dim + 1}, alike=False)
    codes = {int(name): code for name, code in reversed(model.codes.items()) if name != "level"}

    def apart(x: Tensor) -> Tensor:
        with torch.no_grad():
            z = model.encode(x)
        offset, scale = model.level(x)
        found = []
        for code in codes.values():
            own = z[:, code].unflatten(1, (channels, -1))
            level = own[..., -1:].double() * scale + offset + base
            found += [own[..., :-1] * scale, level - x[..., -1:]]
        return torch.cat(found, 2)

    ends = accumulate((code.stop - code.start) // channels for code in codes.values())
    return Features(apart, dict(zip(codes, ends, strict=True)))
