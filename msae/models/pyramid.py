"""Scales from coarse to fine: the window, and ever shorter segments of it."""

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
"""Parts into which training windows are cut to choose shares of the latent."""
COMPARED = 2**22
"""Values of the windows by which shares are chosen, at most."""


@final
class PyramidAutoEncoder(Reconstructor):
    """Scales from coarse to fine, each of which codes what the coarser ones left.

    A scale cuts the window into segments that share one encoder and one decoder, so that a fine scale has few
    parameters and learns from as many examples as there are segments. Each has a linear path, which starts at the
    principal axes of what is left at that scale, and hidden layers beside it, which start at zero: training starts at
    PCA. Where data has a range, reconstructions are clipped to it, and the gradient passes straight through.

    How the latent is shared among the scales follows from the training windows, see `choose_shares`: where they are
    many the whole window's axes serve best, where they are few the axes of its segments do.

    The encoders' codes are a first guess. Each further pass decodes them and adds the decoder's adjoint of what is
    left, times a learned matrix, as in learned iterative inference (Gregor and LeCun 2010; arXiv 1807.09356).

    Args:
        shape: (channels, length) of a window, or (channels, rows, columns) of one that is cut along both axes.
        latent_dim: values in the latent, all scales together; or a share of a window's values, at least 8 of them,
            rounded down to a multiple of the coarsest segments.
        segments: number of segments along each axis, a scale each, from coarse to fine; [1] is a model of one scale.
            Those that are more than the window has steps are left out.
        hidden_dim: size of the hidden layers of a model of one scale. Of several, the finer ones have a quarter of it,
            and the coarsest as much as leaves the number of parameters as it is: scales cost none.
        code_dims: values in the code of a segment, for each scale, 0 for one that only refines what the others made;
            None to choose them by the training windows, before which the coarsest scale has all.
        passes: guesses of the codes, 1 for the encoders' alone.
        training: `lr` and the other arguments of `Reconstructor`.

    Raises:
        InputError: numbers of segments that do not grow or that all exceed the window's steps, or codes that are not of
            `latent_dim` values together.
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
                f"segments={counts}: expected numbers that grow, the first at most the window's {min(self.grid)} steps"
            )
        if len({self._scale(i, 1, 1).grid for i in range(len(self.segments))}) < len(self.segments):
            raise InputError(f"segments={counts}: two of them are the same segments of the window's {self.grid} steps")
        coarsest = self._scale(0, 1, 1).dim
        if isinstance(latent_dim, float) and 0 < latent_dim < 1:
            latent_dim = max(8, int(latent_dim * self.channels * self.length))
            latent_dim = max(1, latent_dim // coarsest) * coarsest
        self.hparams["latent_dim"] = check_int("latent_dim", latent_dim)
        self.passes = check_int("passes", passes)
        if code_dims is None and latent_dim % coarsest:
            raise InputError(f"latent_dim={latent_dim}: expected a multiple of {coarsest}, the segments of segments[0]")
        dims = [latent_dim // coarsest, *[0] * len(self.segments[1:])] if code_dims is None else code_dims
        self._build(check_ints("code_dims", dims, 0))

    def _scale(self, i: int, code_dim: int, hidden_dim: int) -> Scale:
        return Scale((self.channels, *self.grid), self.segments[i], code_dim, hidden_dim)

    def _build(self, dims: list[int]) -> None:
        """The nets for codes of `dims` values a segment."""
        if len(dims) != len(self.segments):
            raise InputError(f"segments={self.segments} code_dims={dims}: expected one for each scale")
        finer = [self._scale(i, dim, max(1, self.hidden_dim // 4)) for i, dim in enumerate(dims[1:], 1)]
        total = dims[0] * self._scale(0, 1, 1).dim + sum(scale.dim for scale in finer)
        if total != self.hparams["latent_dim"] or not dims[0]:
            raise InputError(
                f"code_dims={dims}: make {total} latent values, {dims[0]} in each of the coarsest segments; expected "
                f"latent_dim={self.hparams['latent_dim']}, and at least 1"
            )
        scales = [self._scale(0, dims[0], self._hidden(dims[0], finer)), *finer]
        self.scales: Any = nn.ModuleList(scales)
        self.codes = {
            scale.name: slice(stop - scale.dim, stop)
            for scale, stop in zip(scales, accumulate(scale.dim for scale in scales), strict=True)
            if scale.dim
        }
        self.coded = max(i for i, dim in enumerate(dims, 1) if dim)  # finer ones refine, in the last pass alone
        self.steps: Any = nn.ModuleList(
            nn.ModuleList(nn.Linear(dim, dim) if dim else nn.Identity() for dim in dims) for _ in range(self.passes - 1)
        )
        for parameter in self.steps.parameters():
            nn.init.zeros_(parameter)

    def _hidden(self, dim: int, finer: list[Scale]) -> int:
        """Size of the coarsest scale's hidden layers that gives as many parameters as one scale would have."""

        def size(*scales: Scale) -> int:
            return sum(p.numel() for scale in scales for p in scale.parameters()) + sum(
                (self.passes - 1) * (scale.code_dim + 1) * scale.code_dim for scale in scales
            )

        alone = Scale((self.channels, *self.grid), 1, self.hparams["latent_dim"], self.hidden_dim)
        least, next_ = (self._scale(0, dim, n) for n in (1, 2))
        return max(1, 1 + round((size(alone) - size(least, *finer)) / (size(next_) - size(least))))

    @torch.no_grad()
    def initialize(self, windows: Callable[[], Float[Tensor, "n channels length"]]) -> None:
        """Choose the shares of the latent, and start the linear paths at the principal axes of what is left.

        What a scale leaves is that of windows its axes were not fitted to, fold by fold: where windows are few, axes
        explain all of those they are fitted to, and finer scales would find nothing.
        """
        x = windows().unflatten(2, self.grid)
        dims = [scale.code_dim for scale in self.scales]
        if self.hparams["code_dims"] is None and len(dims) > 1 and len(x) > 1:
            n = min(len(x), max(2 * FOLDS, COMPARED // x[0].numel()))
            some = x[torch.linspace(0, len(x) - 1, n).long()]
            log.info("choosing the scales' shares of the latent by %d windows", n)
            dims = choose_shares(some, list(self.scales), self.hparams["latent_dim"])
            self._build(dims)
            log.info("latent values of a segment, by scale: %s", dims)
        self.hparams["code_dims"] = dims
        for i, scale in enumerate(self.scales):
            scale.initialize(x)
            if any(dims[i + 1 :]) and len(x) > 1:
                [x] = held_out(x, scale, [scale.code_dim])

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of scaled windows."""
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
        """Scaled reconstructions of latents."""
        return self._bounded(self._made(z)[-1])

    def stages_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Scaled reconstructions by the coarsest scale alone, by the two coarsest, and so on to all, by their names."""
        return {scale.name: self._bounded(x) for scale, x in zip(self.scales, self._made(z), strict=True)}

    def _made(self, z: Float[Tensor, "batch latent"]) -> list[Tensor]:
        """What the scales up to each make together of latents, before it is clipped at last."""
        parts = z.split([scale.dim for scale in self.scales], dim=1)
        return self._decode([part.unflatten(1, (*s.grid, -1)) for part, s in zip(parts, self.scales, strict=True)])[0]

    def _bounded(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch channels length"]:
        """Windows within the data's range; the gradient passes straight through."""
        return (self.clip(x).detach() + (x - x.detach())).flatten(2)

    def _decode(self, codes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the scales up to each make together, before it is clipped at last, and the hidden values of each."""
        made, hidden = [codes[0].new_zeros(codes[0].shape[0], self.channels, *self.grid)], []
        for scale, code in zip(self.scales, codes, strict=False):
            added, values = scale.decode(code, self.clip(made[-1]))
            made.append(made[-1] + added)
            hidden.append(values)
        return made[1:], hidden


def held_out(
    x: Float[Tensor, "n channels *sides"], scale: Scale, dims: Sequence[int]
) -> Iterator[Float[Tensor, "n channels *sides"]]:
    """What the principal axes of a scale's segments leave of windows, for each number of axes, fold by fold.

    Each window is explained by axes of the windows of other folds. A fold is every tenth of a hundred stretches of the
    windows, so that neither windows that overlap nor classes in order fall into a fold of their own.
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
    """Values in the code of a segment, for each scale, by which linear paths leave the least of held-out windows.

    Compared are all ways to give the finer scales quarters of the latent, in whole values a segment; the
    coarsest has the rest, at least 1 value a segment. It has all unless the gain is above its standard error (the rule
    of Breiman et al., 1984).
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
    """The least held-out error of `candidates`, sorted tuples of values a segment for each scale.

    Returns:
        That error, the candidate, and its error in each window.
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
