"""Windows of several lengths that end together: what just happened in detail, what happened before in outline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from msae.errors import InputError, check_choice, check_int, check_ints
from msae.models.layers import Scale, nested
from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)
SHARES = (8, 4, 2, 1)
"""With `lengths="auto"`, the window's length divided by these: with a window of two periods a quarter of the period, a
half, one and two."""
LEAST = 8
"""The least number of steps of a length that `auto` chooses."""


class Coder(nn.Module):
    """An autoencoder of the last steps of a window: their mean, and a code of what differs from it.

    The code has a linear path, which starts at the principal axes, and a hidden layer beside it, and the decoder too.
    Each pass after the first decodes the code and corrects it by the error (see `PyramidAutoEncoder`).

    Args:
        channels: of the windows, coded together.
        length: number of steps.
        code_dim: number of values in the code, without the mean of each channel.
        hidden_dim: size of the hidden layers.
        passes: number of estimates of the code.
    """

    def __init__(self, channels: int, length: int, code_dim: int, hidden_dim: int, passes: int) -> None:
        super().__init__()
        self.length, self.code_dim = length, code_dim
        self.dim = code_dim + channels
        self.scale = Scale((channels, length), 1, code_dim, hidden_dim)
        self.steps = nn.ModuleList(nn.Linear(code_dim, code_dim) for _ in range(passes - 1))
        for parameter in self.steps.parameters():
            nn.init.zeros_(parameter)

    def rest(
        self, x: Float[Tensor, "batch channels window"]
    ) -> tuple[Float[Tensor, "batch channels length"], Float[Tensor, "batch channels 1"]]:
        """The last steps of windows without their means, and the means."""
        x = x[..., -self.length :]
        level = x.mean(2, keepdim=True)
        return x - level, level

    def encode(self, x: Float[Tensor, "batch channels window"]) -> Float[Tensor, "batch code"]:
        """Codes of the last steps of windows: the code, then the mean of each channel."""
        x, level = self.rest(x)
        code = self.scale.encode(x)
        for step in self.steps:
            made, hidden = self.scale.decode(code, x)
            code = code + step(self.scale.adjoint(x - made, hidden))
        return torch.cat([code.flatten(1), level.flatten(1)], dim=1)

    def decode(self, z: Float[Tensor, "batch code"]) -> Float[Tensor, "batch channels length"]:
        """Reconstructions of the last steps of windows."""
        code, level = z.split([self.code_dim, self.dim - self.code_dim], dim=1)
        none = code.new_zeros(len(code), self.dim - self.code_dim, self.length)
        made: Tensor = self.scale.decode(code.unsqueeze(1), none)[0]
        return made + level.unsqueeze(2)


@final
class NestedAutoEncoder(Reconstructor):
    """Windows of several lengths that end at the same step, each with a coder; a scale is a length.

    This takes the paper's two encoders, a small-scale one of a part of the input and a large-scale one of all of it
    (III-A), to several lengths and to inputs that are compared by their codes: the codes of a window are those of its
    last steps, for each length. A window is decoded by the longest length, and its end by ever shorter ones. Each coder
    is trained by the error of its own reconstruction.

    Args:
        shape: (channels, length) of a window.
        lengths: numbers of steps; the longest is the window's. `auto` for an eighth, a quarter, half and all of the
            window, at least 8 steps: with a window of two periods these are a quarter of the period, half of it, one
            and two.
        code_dim: number of values in a code, at most half of its steps; the mean of the steps is a further value.
        channels: `separate`, one coder for all channels, which codes each alone; or `joint`, one code for all of them.
        hidden_dim: size of the hidden layers.
        passes: number of estimates of a code; 1 for the encoder alone.
        training: `lr` and the other arguments of `Reconstructor`.

    Attributes:
        lengths: from the longest to the shortest.
        separate: whether each code consists of equal parts, one for each channel, in order.

    Raises:
        InputError: lengths that are not distinct, or of which the longest is not the window's.

    Examples:
        >>> model = NestedAutoEncoder((2, 32), lengths=[8, 32], code_dim=3)
        >>> z = model.encode(torch.zeros(5, 2, 32))
        >>> z.shape, model.codes
        (torch.Size([5, 16]), {'32': slice(0, 8, None), '8': slice(8, 16, None)})
        >>> {name: tuple(x_hat.shape) for name, x_hat in model.parts_scaled(z).items()}
        {'32': (5, 2, 32), '8': (5, 2, 8)}
    """

    def __init__(
        self,
        shape: Sequence[int],
        lengths: str | Sequence[int] = "auto",
        code_dim: int = 16,
        channels: str = "separate",
        hidden_dim: int = 128,
        passes: int = 3,
        **training: Any,
    ) -> None:
        super().__init__(shape, **training)
        self.save_hyperparameters(logger=False)
        check_int("code_dim", code_dim)
        check_int("hidden_dim", hidden_dim)
        check_int("passes", passes, 1, 1000)
        if lengths == "auto":
            lengths = sorted({max(min(LEAST, self.length), self.length // share) for share in SHARES})
            log.info("lengths of the scales: %s steps", ", ".join(map(str, lengths)))
        else:
            lengths = check_ints("lengths", lengths, 2)
        if len(set(lengths)) < len(lengths) or max(lengths) != self.length:
            raise InputError(
                f"lengths={list(lengths)}: expected distinct numbers of steps, the longest of them the window's "
                f"{self.length} steps, or auto"
            )
        self.lengths = sorted(lengths, reverse=True)
        self.hparams["lengths"] = self.lengths
        self.separate = check_choice("channels", channels, ("separate", "joint")) == "separate"
        together = 1 if self.separate else self.channels
        self.coders: Any = nn.ModuleList(
            Coder(together, n, min(code_dim, max(1, n // 2)), hidden_dim, passes) for n in self.lengths
        )
        copies = self.channels // together
        stops = [0, *accumulate(copies * coder.dim for coder in self.coders)]
        self.codes = {str(n): slice(*ends) for n, ends in zip(self.lengths, pairwise(stops), strict=True)}

    @torch.no_grad()
    def initialize(self, windows: Callable[[], Float[Tensor, "n channels length"]]) -> None:
        """Set the linear path of each coder to the principal axes of its steps."""
        x = self._apart(windows())
        for coder in self.coders:
            coder.scale.initialize(coder.rest(x)[0])

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of normalized windows: the codes from the longest length to the shortest."""
        apart = self._apart(x)
        return torch.cat([coder.encode(apart).reshape(len(x), -1) for coder in self.coders], dim=1)

    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Normalized reconstructions of latents, each step by the shortest length that reaches it."""
        return nested(list(self.parts_scaled(z).values()))

    def stages_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Normalized reconstructions by the longest length alone, by the two longest, and so on to all lengths."""
        parts = self.parts_scaled(z)
        return {name: nested(list(parts.values())[:n]) for n, name in enumerate(parts, 1)}

    def parts_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels steps"]]:
        """Normalized reconstructions of the last steps of windows by the code of each length alone."""
        parts = {}
        for coder, (name, code) in zip(self.coders, self._codes.items(), strict=True):
            made = coder.decode(z[:, code].reshape(-1, coder.dim))
            made = made.reshape(len(z), self.channels, coder.length)
            parts[name] = self.clip(made).detach() + (made - made.detach()) if self.bounded else made
        return parts

    def _apart(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "windows together length"]:
        """Windows as the coders take them: with `separate`, a window of one channel for each channel."""
        return x.reshape(-1, 1, x.shape[2]) if self.separate else x
