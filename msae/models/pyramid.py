"""Scales from coarse to fine: the whole window, and ever shorter segments of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby, product
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from msae.errors import InputError, check_int, check_ints
from msae.models.layers import Scale, principal_axes
from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)
FOLDS = 10
"""Number of parts into which training windows are divided for cross-validation."""
COMPARED = 2**22
"""Greatest number of values in the windows by which the shares of the latent are chosen."""


@final
class PyramidAutoEncoder(Reconstructor):
    """Scales from coarse to fine; each encodes the residual that the coarser scales leave.

    A scale cuts the window into segments that share one encoder and one decoder, so that a fine scale has few
    parameters, and learns from as many examples as there are segments. Each scale has a linear path, which starts at
    the principal axes of the residual, and hidden layers beside it, which start at zero: before training the model is a
    PCA. Where the data are bounded, reconstructions are clipped to their range, and the gradient ignores the clipping.

    The training windows decide how the latent is shared among the scales (`choose_shares`). With many windows the axes
    of the whole window are best, with few the axes of its segments.

    The encoders give a first estimate of the codes. Each further pass decodes it and corrects it by the decoder's
    adjoint of the reconstruction error, times a learned matrix, as in learned iterative inference (Gregor and LeCun
    2010; arXiv 1807.09356).

    Args:
        shape: (channels, length) of a window, or (channels, rows, columns) of one that is cut along both axes.
        latent_dim: number of values in the latent, all scales together; or below 1, a share of the number of values in
            a window, at least 8 values and rounded down to a multiple of the number of the coarsest segments.
        segments: number of segments along each axis, for each scale from coarse to fine; [1] is a model of one scale.
            Numbers above the window's number of steps are left out.
        hidden_dim: size of the hidden layers of a model of one scale. In a model of several, the finer scales have a
            quarter of it, and the coarsest as many as give the same number of parameters.
        code_dims: number of values in the code of a segment, for each scale; 0 for a scale that only refines the
            reconstruction of the others. None to choose them by the training windows in `initialize`; until then the
            coarsest scale has the whole latent.
        passes: number of estimates of the codes; 1 for the encoders alone.
        training: `lr` and the other arguments of `Reconstructor`.

    Raises:
        InputError: numbers of segments that do not grow or are all above the window's number of steps, or codes whose
            sizes do not add up to `latent_dim`.

    Examples:
        >>> model = PyramidAutoEncoder((1, 16), latent_dim=6, segments=[1, 4], code_dims=[2, 1])
        >>> x = torch.zeros(5, 1, 16)
        >>> z = model.encode(x)
        >>> z.shape, model.codes
        (torch.Size([5, 6]), {'1': slice(0, 2, None), '4': slice(2, 6, None)})
        >>> {name: tuple(x_hat.shape) for name, x_hat in model.stages(z).items()}
        {'1': (5, 1, 16), '4': (5, 1, 16)}
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int | float = 64,
        segments: Sequence[int] = (1, 4, 16),
        hidden_dim: int = 128,
        code_dims: Sequence[int] | None = None,
        passes: int = 3,
        **training: Any,
    ) -> None:
        super().__init__(shape, **training)
        self.save_hyperparameters(logger=False)
        counts, self.hidden_dim = check_ints("segments", segments), check_int("hidden_dim", hidden_dim)
        self.segments = [n for n in counts if n <= min(self.grid)]
        if counts != sorted(set(counts)) or not self.segments:
            raise InputError(
                f"segments={counts}: expected growing numbers, the first at most the window's {min(self.grid)} steps"
            )
        if len({self._scale(i, 1, 1).grid for i in range(len(self.segments))}) < len(self.segments):
            raise InputError(f"segments={counts}: two of them give the same segments of the window's {self.grid} steps")
        coarsest = self._scale(0, 1, 1).dim
        if isinstance(latent_dim, float) and 0 < latent_dim < 1:
            latent_dim = max(8, int(latent_dim * self.channels * self.length))
            latent_dim = max(1, latent_dim // coarsest) * coarsest
        self.hparams["latent_dim"] = check_int("latent_dim", latent_dim)
        self.passes = check_int("passes", passes, 1, 1000)
        if code_dims is None and latent_dim % coarsest:
            raise InputError(
                f"latent_dim={latent_dim}: expected a multiple of {coarsest}, the number of the coarsest segments"
            )
        dims = [latent_dim // coarsest, *[0] * len(self.segments[1:])] if code_dims is None else code_dims
        self._build(check_ints("code_dims", dims, 0))

    def _scale(self, i: int, code_dim: int, hidden_dim: int) -> Scale:
        return Scale((self.channels, *self.grid), self.segments[i], code_dim, hidden_dim)

    def _build(self, dims: list[int]) -> None:
        """Build the nets for codes of `dims` values a segment."""
        if len(dims) != len(self.segments):
            raise InputError(f"segments={self.segments} code_dims={dims}: expected one number for each scale")
        finer = [self._scale(i, dim, max(1, self.hidden_dim // 4)) for i, dim in enumerate(dims[1:], 1)]
        total = dims[0] * self._scale(0, 1, 1).dim + sum(scale.dim for scale in finer)
        if total != self.hparams["latent_dim"] or not dims[0]:
            raise InputError(
                f"code_dims={dims}: {total} latent values in all, {dims[0]} for a coarsest segment; expected "
                f"latent_dim={self.hparams['latent_dim']} in all, and at least 1 for a coarsest segment"
            )
        scales = [self._scale(0, dims[0], self._hidden(dims[0], finer)), *finer]
        self.scales: Any = nn.ModuleList(scales)
        self.codes = {
            scale.name: slice(stop - scale.dim, stop)
            for scale, stop in zip(scales, accumulate(scale.dim for scale in scales), strict=True)
            if scale.dim
        }
        self.coded = max(i for i, dim in enumerate(dims, 1) if dim)  # the finer scales refine, in the last pass only
        self.steps: Any = nn.ModuleList(
            nn.ModuleList(nn.Linear(dim, dim) if dim else nn.Identity() for dim in dims) for _ in range(self.passes - 1)
        )
        for parameter in self.steps.parameters():
            nn.init.zeros_(parameter)

    def _hidden(self, dim: int, finer: list[Scale]) -> int:
        """Size of the coarsest scale's hidden layers that gives the number of parameters of a model of one scale."""

        def size(*scales: Scale) -> int:
            return sum(p.numel() for scale in scales for p in scale.parameters()) + sum(
                (self.passes - 1) * (scale.code_dim + 1) * scale.code_dim for scale in scales
            )

        alone = Scale((self.channels, *self.grid), 1, self.hparams["latent_dim"], self.hidden_dim)
        least, next_ = (self._scale(0, dim, n) for n in (1, 2))
        return max(1, 1 + round((size(alone) - size(least, *finer)) / (size(next_) - size(least))))

    @torch.no_grad()
    def initialize(self, windows: Callable[[], Float[Tensor, "n channels length"]]) -> None:
        """Choose the shares of the latent, and set the linear paths to the principal axes of the residuals.

        The residual of a scale is cross-validated: each window's is by axes that were fitted to other windows. Where
        windows are few, axes explain the windows they are fitted to completely, and finer scales would find nothing.
        """
        x = windows().unflatten(2, self.grid)
        dims = [scale.code_dim for scale in self.scales]
        if self.hparams["code_dims"] is None and len(dims) > 1 and len(x) > 1:
            n = min(len(x), max(2 * FOLDS, COMPARED // x[0].numel()))
            some = x[torch.linspace(0, len(x) - 1, n).long()]
            log.info("choosing the scales' shares of the latent by %d windows", n)
            dims = choose_shares(some, list(self.scales), self.hparams["latent_dim"])
            self._build(dims)
            log.info("latent values of a segment, for each scale: %s", dims)
            if len(coded := [scale.name for scale in self.scales if scale.dim]) == 1:
                log.warning("one scale, %s, gets the whole latent; to share it, choose model.code_dims", *coded)
        self.hparams["code_dims"] = dims
        for i, scale in enumerate(self.scales):
            scale.initialize(x)
            if any(dims[i + 1 :]) and len(x) > 1:
                [x] = held_out(x, scale, [scale.code_dim])

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of normalized windows."""
        x = x.unflatten(2, self.grid)
        codes: list[Tensor] = []
        made = torch.zeros_like(x)
        for i, scale in enumerate(self.scales, 1):
            codes.append(scale.encode(x - self.clip(made)))
            if i < self.coded:
                made = made + scale.decode(codes[-1], self.clip(made))[0]
        for number, steps in enumerate(self.steps, 2):
            stages, hidden = self._decode(codes if number == self.passes else codes[: self.coded])
            rest = x - self.clip(stages[-1])
            codes = [
                code + step(scale.adjoint(rest, values)) if scale.dim else code
                for code, step, scale, values in zip(codes, steps, self.scales, hidden, strict=False)
            ] + codes[len(hidden) :]
        return torch.cat([code.flatten(1) for code in codes], dim=1)

    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Normalized reconstructions of latents."""
        return self._bounded(self._made(z)[-1])

    def stages_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Normalized reconstructions by the coarsest scale alone, by the two coarsest, and so on to all scales."""
        return {scale.name: self._bounded(x) for scale, x in zip(self.scales, self._made(z), strict=True)}

    def _made(self, z: Float[Tensor, "batch latent"]) -> list[Tensor]:
        """Reconstructions of latents by the scales up to each one, before the last clipping."""
        parts = z.split([scale.dim for scale in self.scales], dim=1)
        return self._decode([part.unflatten(1, (*s.grid, -1)) for part, s in zip(parts, self.scales, strict=True)])[0]

    def _bounded(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch channels length"]:
        """Windows clipped to the range of the data; the gradient ignores the clipping."""
        return (self.clip(x).detach() + (x - x.detach())).flatten(2)

    def _decode(self, codes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Reconstructions by the scales up to each one, before the last clipping, and the hidden values of each."""
        made, hidden = [codes[0].new_zeros(codes[0].shape[0], self.channels, *self.grid)], []
        for scale, code in zip(self.scales, codes, strict=False):
            added, values = scale.decode(code, self.clip(made[-1]))
            made.append(made[-1] + added)
            hidden.append(values)
        return made[1:], hidden


def held_out(
    x: Float[Tensor, "n channels *sides"], scale: Scale, dims: Sequence[int]
) -> Iterator[Float[Tensor, "n channels *sides"]]:
    """Cross-validated residuals of windows: what the principal axes of a scale's segments leave.

    The axes for a window are fitted to the windows of other folds. A fold is every tenth of a hundred stretches of the
    windows, so that overlapping windows, and classes in order, are not a fold by themselves.

    Yields:
        The residuals, for each number of axes in `dims`.
    """
    fold = torch.arange(len(x)) * min(len(x), 10 * FOLDS) // len(x) % FOLDS
    fitted = [principal_axes(scale.cut(x[fold != i]).flatten(0, -2), max(dims)) for i in range(min(FOLDS, len(x)))]
    for dim in dims:
        rest = x.clone()
        for i, (mean, axes) in enumerate(fitted if dim else []):
            own = scale.cut(x[fold == i]) - mean
            rest[fold == i] = scale.join(own - own @ axes[:, :dim] @ axes[:, :dim].T)
        yield rest


def choose_shares(x: Float[Tensor, "n channels *sides"], scales: list[Scale], latent_dim: int) -> list[int]:
    """The number of values in the code of a segment, for each scale, with the least cross-validated linear error.

    All ways to give quarters of the latent to the finer scales are compared, in whole values a segment; the coarsest
    scale has the rest, at least 1 value a segment. It has all unless the gain is above its standard error (the rule of
    Breiman et al., 1984).
    """
    coarsest, *counts = (math.prod(scale.grid) for scale in scales)
    found = set()
    for quarters in product(range(5), repeat=len(counts)):
        for rounded in (math.floor, round) if sum(quarters) <= 4 else ():
            finer = [rounded(q * (latent_dim - coarsest) / (4 * n)) for q, n in zip(quarters, counts, strict=True)]
            left = latent_dim - sum(dim * n for dim, n in zip(finer, counts, strict=True))
            if left >= coarsest and left % coarsest == 0:
                found.add((left // coarsest, *finer))
    _, dims, error = least(x, scales, sorted(found))
    [alone] = held_out(x, scales[0], [latent_dim // coarsest])
    gain = alone.flatten(1).square().mean(1) - error
    certain = gain.mean() > gain.std() / len(x) ** 0.5
    return list(dims) if certain else [latent_dim // coarsest, *[0] * len(counts)]


def least(
    x: Float[Tensor, "n channels *sides"], scales: list[Scale], candidates: list[tuple[int, ...]]
) -> tuple[float, tuple[int, ...], Float[Tensor, " n"]]:
    """The least cross-validated error of `candidates`, sorted tuples of the number of values a segment for each scale.

    Returns:
        The error, its candidate, and the error of that candidate in each window.
    """
    if not scales:
        error = x.flatten(1).square().mean(1)
        return error.mean().item(), (), error
    groups = {dim: [c[1:] for c in group] for dim, group in groupby(candidates, key=lambda candidate: candidate[0])}
    found = []
    for dim, rest in zip(groups, held_out(x, scales[0], list(groups)), strict=True):
        mean, dims, error = least(rest, scales[1:], groups[dim])
        found.append((mean, (dim, *dims), error))
    return min(found, key=lambda candidate: candidate[0])
