"""Scales from coarse to fine: the window, and ever shorter segments of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from msae.errors import InputError, check_int, check_ints
from msae.models.base import Reconstructor
from msae.models.layers import Scale


@final
class PyramidAutoEncoder(Reconstructor):
    """Scales from coarse to fine, each of which codes what the coarser ones left.

    A scale cuts the window into segments that share one encoder and one decoder, so that a fine scale has few
    parameters and learns from as many examples as there are segments. Each has a linear path, which starts at the
    principal axes of what is left at that scale, and hidden layers beside it, which start at zero: training starts at
    PCA. Where data has a range, reconstructions are clipped to it, and the gradient passes straight through.

    The encoders' codes are a first guess. Each further pass decodes them and adds the decoder's adjoint of what is
    left, times a learned matrix, as in learned iterative inference (Gregor and LeCun 2010; arXiv 1807.09356).

    Args:
        shape: (channels, length) of a window, or (channels, rows, columns) of one that is cut along both axes.
        segments: number of segments along each axis, a scale each, from coarse to fine; [1] is a model of one scale.
        code_dims: values in the code of a segment, for each scale; 0 for one that only refines what the others made.
        hidden_dims: sizes of the hidden layers, for each scale.
        passes: guesses of the codes, 1 for the encoders' alone.
        training: `lr` and the other arguments of `Reconstructor`.

    Raises:
        InputError: lists of different lengths, numbers of segments that do not grow or that exceed the window's steps,
            or no code at all.
    """

    def __init__(
        self,
        shape: Sequence[int],
        segments: Sequence[int] = (1, 4),
        code_dims: Sequence[int] = (64, 1),
        hidden_dims: Sequence[int] = (256, 64),
        passes: int = 3,
        **training: Any,
    ) -> None:
        super().__init__(shape, **training)
        self.save_hyperparameters(logger=False)
        counts, hidden = check_ints("segments", segments), check_ints("hidden_dims", hidden_dims)
        dims = check_ints("code_dims", code_dims, 0)
        if not len(counts) == len(dims) == len(hidden) or not any(dims):
            raise InputError(f"segments={counts} code_dims={dims} hidden_dims={hidden}: expected one for each scale")
        if counts != sorted(set(counts)) or counts[-1] > min(self.grid):
            raise InputError(
                f"segments={counts}: expected numbers that grow, up to the window's {min(self.grid)} steps"
            )
        scales = [Scale((self.channels, *self.grid), *sizes) for sizes in zip(counts, dims, hidden, strict=True)]
        self.scales: Any = nn.ModuleList(scales)
        self.codes = {
            "x".join(map(str, scale.grid)): slice(stop - scale.dim, stop)
            for scale, stop in zip(scales, accumulate(scale.dim for scale in scales), strict=True)
            if scale.dim
        }
        self.steps: Any = nn.ModuleList(
            nn.ModuleList(nn.Linear(dim, dim) if dim else nn.Identity() for dim in dims)
            for _ in range(check_int("passes", passes) - 1)
        )
        for parameter in self.steps.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def initialize(self, windows: Callable[[], Float[Tensor, "n channels length"]]) -> None:
        """Start the linear paths at the principal axes of scaled training windows, and of what they leave."""
        rest = windows().unflatten(2, self.grid)
        for scale in self.scales:
            rest = scale.join(scale.initialize(scale.cut(rest)))

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of scaled windows."""
        x = x.unflatten(2, self.grid)
        codes: list[Tensor] = []
        made = torch.zeros_like(x)
        for i, scale in enumerate(self.scales):
            codes.append(scale.encode(scale.cut(x - self.clip(made))))
            if any(finer.dim for finer in self.scales[i + 1 :]):
                made = made + scale.join(scale.decode(codes[-1], scale.cut(self.clip(made)))[0])
        for steps in self.steps:
            made, hidden = self._decode(codes)
            rest = x - self.clip(made)
            codes = [
                code + step(scale.adjoint(scale.cut(rest), values)) if scale.dim else code
                for code, step, scale, values in zip(codes, steps, self.scales, hidden, strict=True)
            ]
        return torch.cat([code.flatten(1) for code in codes], dim=1)

    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Scaled reconstructions of latents."""
        parts = z.split([scale.dim for scale in self.scales], dim=1)
        codes = [part.unflatten(1, (*s.grid, s.code_dim)) for part, s in zip(parts, self.scales, strict=True)]
        made, _ = self._decode(codes)
        return (self.clip(made).detach() + (made - made.detach())).flatten(2)

    def _decode(self, codes: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Reconstructions before they are clipped at last, and the hidden values of each scale."""
        made = codes[0].new_zeros(len(codes[0]), self.channels, *self.grid)
        hidden = []
        for scale, code in zip(self.scales, codes, strict=True):
            added, values = scale.decode(code, scale.cut(self.clip(made)))
            made = made + scale.join(added)
            hidden.append(values)
        return made, hidden
