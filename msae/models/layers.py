"""Parts of the models: plain `nn.Module`s and functions that know nothing of training."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them, and none after the last (paper, appendix)."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def window_level(
    x: Float[Tensor, "batch channels length"],
) -> tuple[Float[Tensor, "batch channels 1"], Float[Tensor, "batch channels 1"]]:
    """Mean and standard deviation of each channel of each window, without the values that are NaN.

    The deviation is at least a millionth of the mean, below which float32 has no digits; for a window of zeros it is 1.
    """
    mean = x.nanmean(2, keepdim=True).nan_to_num()
    deviation = (x - mean).square().nanmean(2, keepdim=True).sqrt().nan_to_num()
    deviation = deviation.maximum(1e-6 * mean.abs())
    return mean, deviation.where(deviation > 0, 1.0)


def nested(parts: Sequence[Float[Tensor, "batch channels _"]]) -> Float[Tensor, "batch channels length"]:
    """Windows from parts of them that end together, the longest first: each step is from the shortest that has it.

    Examples:
        >>> nested([torch.zeros(1, 1, 4), torch.ones(1, 1, 2), torch.full((1, 1, 1), 5.0)])
        tensor([[[0., 0., 1., 5.]]])
    """
    shorter = [part.shape[2] for part in parts[1:]] + [0]
    return torch.cat([part[..., : part.shape[2] - n] for part, n in zip(parts, shorter, strict=True)], dim=2)


class Scale(nn.Module):
    """An autoencoder of the segments of a window; all segments share one encoder and one decoder.

    Each of the two has a linear path and a hidden layer beside it, which has no effect before training. Where a window
    has several segments, the hidden layers also see half a segment on either side: the encoder's of its input, the
    decoder's of the reconstruction by the coarser scales. No gradient flows through these margins, so that a coarser
    scale is trained by its own reconstruction only.

    Args:
        shape: (channels, length) or (channels, rows, columns) of a window.
        segments: number of segments along each axis; the last segment is padded with zeros.
        code_dim: number of values in the code of a segment; 0 for a scale that only refines the reconstruction of the
            coarser scales.
        hidden_dim: size of the hidden layers.

    Attributes:
        grid: number of segments: (n,) or (rows, columns).
        dim: number of values in the codes of all segments.
        name: the grid as a text, such as 4 or 7x7.
    """

    def __init__(self, shape: Sequence[int], segments: int, code_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.channels, *self.sides = shape
        self.steps = [math.ceil(side / segments) for side in self.sides]
        self.grid = tuple(math.ceil(side / step) for side, step in zip(self.sides, self.steps, strict=True))
        self.margins = [0 if segments == 1 else math.ceil(step / 2) for step in self.steps]
        self.code_dim = code_dim
        self.dim = math.prod(self.grid) * code_dim
        self.name, self.whole = "x".join(map(str, self.grid)), segments == 1
        size = self.channels * math.prod(self.steps)
        wide = self.channels * math.prod(step + 2 * m for step, m in zip(self.steps, self.margins, strict=True))
        self.expand = nn.Linear(code_dim + (0 if self.whole else wide), hidden_dim)
        self.synthesis = nn.Linear(
            code_dim + hidden_dim, size
        )  # its first columns are the linear path of the code, the others that of the hidden values
        nn.init.zeros_(self.synthesis.weight[:, code_dim:])
        if code_dim:
            self.analysis = nn.Linear(size, code_dim)
            last = nn.Linear(hidden_dim, code_dim)
            self.encoder = nn.Sequential(nn.Linear(wide, hidden_dim), nn.GELU(), last)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        else:
            nn.init.zeros_(self.synthesis.bias)

    def cut(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch *grid size"]:
        """Cut windows into segments."""
        pairs = list(zip(self.grid, self.steps, self.sides, strict=True))
        padding = [length for n, step, side in reversed(pairs) for length in (0, n * step - side)]
        x = F.pad(x, padding) if any(padding) else x
        if len(pairs) == 1:
            return x.reshape(*x.shape[:2], -1, self.steps[0]).movedim(1, 2).flatten(2)
        x = x.reshape(*x.shape[:2], self.grid[0], self.steps[0], self.grid[1], self.steps[1])
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3)

    def join(self, segments: Float[Tensor, "batch *grid size"]) -> Float[Tensor, "batch channels *sides"]:
        """Put segments together to windows; the inverse of `cut`."""
        x = segments.reshape(*segments.shape[:-1], self.channels, *self.steps)
        if len(self.sides) == 1:
            return x.movedim(2, 1).flatten(2)[..., : self.sides[0]]
        x = x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return x[..., : self.sides[0], : self.sides[1]]

    def around(self, x: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch *grid wide"]:
        """Cut windows into segments with their margins, which are 0 beyond the ends; without a gradient."""
        sizes = list(zip(self.grid, self.steps, self.margins, self.sides, strict=True))
        x = F.pad(x.detach(), [n for g, step, m, side in reversed(sizes) for n in (m, g * step - side + m)])
        for axis, (_, step, margin, _) in enumerate(sizes, 2):
            x = x.unfold(axis, step + 2 * margin, step)
        return x.movedim(1, len(sizes) + 1).flatten(len(sizes) + 1)

    def encode(self, rest: Float[Tensor, "batch channels *sides"]) -> Float[Tensor, "batch *grid code"]:
        """Codes of the segments of a residual: the window minus the reconstruction by the coarser scales."""
        segments = self.cut(rest)
        if not self.code_dim:
            return segments[..., :0]
        code: Tensor = self.analysis(segments) + self.encoder(segments if self.whole else self.around(rest))
        return code

    def decode(
        self, code: Float[Tensor, "batch *grid code"], made: Float[Tensor, "batch channels *sides"]
    ) -> tuple[Float[Tensor, "batch channels *sides"], Float[Tensor, "batch *grid hidden"]]:
        """What this scale adds to `made`, the clipped reconstruction by the coarser scales, and its hidden values."""
        line = made
        if self.code_dim and not self.whole:
            line = made + self.join(F.linear(code, self.synthesis.weight[:, : self.code_dim], self.synthesis.bias))
        hidden = self.expand(code if self.whole else beside(code, self.around(line)))
        return self.join(self.synthesis(beside(code, F.gelu(hidden)))), hidden

    def adjoint(
        self, rest: Float[Tensor, "batch channels *sides"], hidden: Float[Tensor, "batch *grid hidden"]
    ) -> Float[Tensor, "batch *grid code"]:
        """The gradient, with respect to the code, of the scalar product of `rest` and what `decode` adds."""
        line, bent = (self.cut(rest) @ self.synthesis.weight).tensor_split([self.code_dim], dim=-1)
        bent = torch.ops.aten.gelu_backward(bent, hidden)
        gradient: Tensor = line + bent @ self.expand.weight[:, : self.code_dim]
        return gradient

    @torch.no_grad()
    def initialize(self, rest: Float[Tensor, "n channels *sides"]) -> None:
        """Set the linear path to the principal axes of the segments of a residual.

        Where a code has more values than there are axes, the other values have no effect before training.
        """
        if not self.code_dim:
            return
        mean, axes = principal_axes(self.cut(rest).flatten(0, -2), self.code_dim)
        n = axes.shape[1]
        self.synthesis.weight.zero_()
        self.synthesis.weight[:, :n] = axes
        self.synthesis.bias.copy_(mean)
        self.analysis.weight[:n] = axes.T
        self.analysis.bias[:n] = -(axes.T @ mean)


def beside(code: Float[Tensor, "*batch code"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch both"]:
    """Concatenate both along the last axis; without a copy where the code is empty."""
    return torch.cat([code, x], dim=-1) if code.shape[-1] else x


def principal_axes(x: Float[Tensor, "n values"], k: int) -> tuple[Float[Tensor, " values"], Float[Tensor, "values m"]]:
    """Mean and the first k principal axes, in order of falling variance; n windows have at most n - 1 axes.

    They are exact, or where there are few of many, computed by random projection (Halko et al., arXiv 0909.4061).

    Examples:
        >>> mean, axes = principal_axes(torch.tensor([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]), k=1)
        >>> mean, axes.abs()
        (tensor([2., 2.]), tensor([[0.7071],
                [0.7071]]))
    """
    x = x.double()
    mean = x.mean(0)
    k = min(k, max(1, len(x) - 1), x.shape[1])
    if min(x.shape) > max(1000, 10 * (k + 20)):
        axes = torch.pca_lowrank(x, q=min(k + 20, *x.shape), niter=8)[2][:, :k]
    elif x.shape[0] > x.shape[1]:
        axes = torch.linalg.eigh((x - mean).T @ (x - mean))[1].flip(1)[:, :k]
    else:  # from the scalar products of windows, a smaller matrix
        weights = torch.linalg.eigh((x - mean) @ (x - mean).T)[1].flip(1)[:, :k]
        axes = torch.linalg.qr((x - mean).T @ weights)[0]
    return mean.float(), axes.float()
