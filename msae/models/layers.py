"""Plain `nn.Module` parts; they know nothing of training."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers through `sizes`, ReLU between them and none after the last (paper, appendix)."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def window_level(
    x: Float[Tensor, "batch channels length"],
) -> tuple[Float[Tensor, "batch channels 1"], Float[Tensor, "batch channels 1"]]:
    """Mean and deviation of each channel of each window; NaN is left out.

    A deviation is at least a millionth of the mean, since float32 keeps no less; of a window of zeros it is 1.
    """
    mean = x.nanmean(2, keepdim=True).nan_to_num()
    deviation = (x - mean).square().nanmean(2, keepdim=True).sqrt().nan_to_num()
    deviation = deviation.maximum(1e-6 * mean.abs())
    return mean, deviation.where(deviation > 0, 1.0)


class Scale(nn.Module):
    """A window cut into segments, all of which share one encoder and one decoder.

    Each has a linear path and, beside it, a hidden layer that starts without an effect. Where a window has several
    segments, the hidden layers see a segment and its neighbours, the decoder's in what coarser scales made of them.

    Args:
        shape: (channels, length) or (channels, rows, columns) of a window.
        segments: number of segments along each axis; the last is filled up with zeros.
        code_dim: values in the code of a segment; 0 for a scale that refines what the coarser ones made.
        hidden_dim: size of the hidden layers.

    Attributes:
        grid: number of segments, (n,) or (rows, columns).
        dim: values in the codes of all segments.
    """

    def __init__(self, shape: Sequence[int], segments: int, code_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.channels, *self.sides = shape
        self.steps = [math.ceil(side / segments) for side in self.sides]
        self.grid = tuple(math.ceil(side / step) for side, step in zip(self.sides, self.steps, strict=True))
        self.code_dim = code_dim
        self.dim = math.prod(self.grid) * code_dim
        size, self.whole = self.channels * math.prod(self.steps), segments == 1
        near = 1 if self.whole else 3 ** len(self.sides)
        self.expand = nn.Linear(code_dim if self.whole else near * (size + code_dim), hidden_dim)
        self.project = nn.Linear(hidden_dim, size)
        starts: list[Any] = [self.project]
        if code_dim:
            self.analysis, self.synthesis = nn.Linear(size, code_dim), nn.Linear(code_dim, size)
            self.encoder = nn.Sequential(nn.Linear(near * size, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, code_dim))
            starts.append(self.encoder[-1])
        for layer in starts:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def cut(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch *grid size"]:
        """Windows as segments."""
        pairs = list(zip(self.grid, self.steps, self.sides, strict=True))
        padding = [length for n, step, side in reversed(pairs) for length in (0, n * step - side)]
        x = F.pad(x, padding) if any(padding) else x
        if len(pairs) == 1:
            return x.reshape(*x.shape[:2], -1, self.steps[0]).movedim(1, 2).flatten(2)
        x = x.reshape(*x.shape[:2], self.grid[0], self.steps[0], self.grid[1], self.steps[1])
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def join(self, segments: Float[Tensor, "batch *grid size"]) -> Float[Tensor, "batch channels *sides"]:
        """Segments as windows."""
        x = segments.reshape(*segments.shape[:-1], self.channels, *self.steps)
        if len(self.sides) == 1:
            return x.movedim(2, 1).flatten(2)[..., : self.sides[0]]
        x = x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return x[..., : self.sides[0], : self.sides[1]]

    def near(self, segments: Float[Tensor, "batch *grid size"]) -> Float[Tensor, "batch *grid wide"]:
        """Each segment beside its neighbours, zeros at the ends."""
        if self.whole:
            return segments
        for axis, n in enumerate(self.grid, 1):
            padded = F.pad(segments, [0, 0] * (len(self.grid) + 1 - axis) + [1, 1])
            segments = torch.cat([padded.narrow(axis, start, n) for start in range(3)], dim=-1)
        return segments

    def encode(self, rest: Float[Tensor, "batch *grid size"]) -> Float[Tensor, "batch *grid code"]:
        """Codes of the segments of what coarser scales left."""
        if not self.code_dim:
            return rest[..., :0]
        code: Tensor = self.analysis(rest) + self.encoder(self.near(rest))
        return code

    def decode(
        self, code: Float[Tensor, "batch *grid code"], made: Float[Tensor, "batch *grid size"]
    ) -> tuple[Float[Tensor, "batch *grid size"], Float[Tensor, "batch *grid hidden"]]:
        """What this scale adds to the segments that coarser scales made, clipped, and its hidden values."""
        line = self.synthesis(code) if self.code_dim else torch.zeros_like(made)
        hidden = self.expand(code if self.whole else self.near(torch.cat([made + line, code], dim=-1)))
        return line + self.project(F.gelu(hidden)), hidden

    def adjoint(
        self, rest: Float[Tensor, "batch *grid size"], hidden: Float[Tensor, "batch *grid hidden"]
    ) -> Float[Tensor, "batch *grid code"]:
        """Gradient by the code of the product of what `decode` adds and `rest`; of segments, of the linear path."""
        gradient: Tensor = rest @ self.synthesis.weight
        if not self.whole:
            return gradient
        slope = 0.5 * (1 + torch.erf(hidden / 2**0.5)) + hidden * torch.exp(-(hidden**2) / 2) / (2 * math.pi) ** 0.5
        gradient += ((rest @ self.project.weight) * slope) @ self.expand.weight
        return gradient

    @torch.no_grad()
    def initialize(self, rest: Float[Tensor, "n *grid size"]) -> Float[Tensor, "n *grid size"]:
        """Start the linear path at the principal axes of segments; returns what it leaves of them.

        Where a code has more values than there are axes, the others start without an effect.
        """
        if not self.code_dim:
            return rest
        mean, axes = principal_axes(rest.flatten(0, -2), self.code_dim)
        n = axes.shape[1]
        self.synthesis.weight.zero_()
        self.synthesis.weight[:, :n] = axes
        self.synthesis.bias.copy_(mean)
        self.analysis.weight[:n] = axes.T
        self.analysis.bias[:n] = -(axes.T @ mean)
        return rest - mean - (rest - mean) @ axes @ axes.T


def principal_axes(x: Float[Tensor, "n values"], k: int) -> tuple[Float[Tensor, " values"], Float[Tensor, "values m"]]:
    """Mean and the first k principal axes, or as many as there are, of the most variance first.

    Exact, or of a random projection (Halko et al., arXiv 0909.4061) where there are more than 2,000 windows and values.
    """
    x = x.double()
    mean = x.mean(0)
    k = min(k, *x.shape)
    if min(x.shape) > 2000:
        axes = torch.pca_lowrank(x, q=min(k + 20, *x.shape), niter=8)[2][:, :k]
    elif x.shape[0] > x.shape[1]:
        axes = torch.linalg.eigh((x - mean).T @ (x - mean))[1].flip(1)[:, :k]
    else:
        axes = torch.linalg.svd(x - mean, full_matrices=False)[2][:k].T
    return mean.float(), axes.float()
