"""Regularizers of the latent: penalties that are added to the reconstruction loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

REGULARIZERS = ("none", "kl", "decorrelate")


def kl_divergence(
    mean: Float[Tensor, "batch latent"], log_variance: Float[Tensor, "batch latent"], free_bits: float = 0.0
) -> Float[Tensor, ""]:
    """The divergence, in nats, of Gaussian latents from the standard normal distribution (arXiv 1312.6114).

    Args:
        mean: of each latent value.
        log_variance: of each latent value.
        free_bits: nats below which the divergence of a latent value, averaged over the batch, is not reduced further
            (arXiv 1606.04934).

    Returns:
        The sum over latent values of the mean over the batch.

    Examples:
        >>> kl_divergence(torch.tensor([[1.0, 2.0]]), log_variance=torch.zeros(1, 2))
        tensor(2.5000)
    """
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)
    return divergence.clamp(min=free_bits).sum()


def squared_correlation(z: Float[Tensor, "batch latent"], codes: Sequence[slice]) -> Float[Tensor, ""]:
    """The mean squared correlation, within a batch, of pairs of latent values that are in different codes.

    Where there is one code only, the mean is over all pairs of different values.

    Args:
        z: latents.
        codes: the slice of the latent of each code.

    Examples:
        Two values that grow together, and one that does not change:

        >>> z = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 1.0]])
        >>> squared_correlation(z, [slice(0, 3)])
        tensor(0.3333)
    """
    centered = z - z.mean(0)
    centered = centered / (centered.square().sum(0) + 1e-12).sqrt()
    code = torch.zeros(z.shape[1], device=z.device)
    for number, part in enumerate(codes):
        code[part] = number
    if len(codes) == 1:
        code = torch.arange(z.shape[1], device=z.device)
    apart = (code[:, None] != code).float()
    return ((centered.T @ centered).square() * apart).sum() / apart.sum().clamp(min=1)
