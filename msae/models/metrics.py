"""How good reconstructions and latents are, as numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric


def squared_error(
    x_hat: Float[Tensor, "batch channels length"],
    x: Float[Tensor, "batch channels length"],
    scale: Float[Tensor, "levels channels 1"],
    present: Bool[Tensor, "batch channels length"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean squared error of a batch in normalized units and in raw units, and the weight of the batch.

    The weight makes means over batches exact. It is the number of windows, or the number of values that are present
    where some may be missing.

    Args:
        x_hat: normalized reconstructions.
        x: normalized windows.
        scale: the factor from normalized to raw values: one value a channel for all windows, or for each window.
        present: False where a value is missing and does not count; None where no value is missing.

    Examples:
        >>> x = torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]])
        >>> squared_error(torch.zeros(2, 1, 2), x, scale=torch.full((1, 1, 1), 10.0))
        (tensor(0.2500), tensor(25.), tensor(2., dtype=torch.float64))
    """
    if present is None:
        error = F.mse_loss(x_hat, x, reduction="none").mean(2)
        return error.mean(), (error * scale.squeeze(2) ** 2).mean(), error.new_full((), len(x), dtype=torch.float64)
    error = F.mse_loss(x_hat.where(present, 0.0), x, reduction="none").sum(2)
    count = present.sum().clamp(min=1)
    return error.sum() / count, (error * scale.squeeze(2) ** 2).sum() / count, count.double()


class MeanPSNR(Metric):
    """The peak signal-to-noise ratio, in dB, of the mean MSE of all windows.

    The mean of the batches' PSNRs would be another number, since the logarithm is not linear.

    Examples:
        >>> psnr = MeanPSNR()
        >>> psnr.update(torch.tensor(0.01), weight=torch.tensor(64.0), data_range=torch.tensor(1.0))
        >>> round(psnr.compute().item(), 3)
        20.0
    """

    full_state_update = False
    squared_error: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("squared_error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("data_range", torch.tensor(1.0), dist_reduce_fx="max")

    def update(self, mse: Float[Tensor, ""], weight: Float[Tensor, ""], data_range: Float[Tensor, ""]) -> None:
        """Add a batch.

        Args:
            mse: mean squared error of the batch, in the square of the units of `data_range`.
            weight: number of windows, or of values, that the error is a mean of.
            data_range: greatest minus least value that the data can have.
        """
        self.squared_error += mse.double() * weight
        self.weight += weight
        self.data_range = data_range

    def compute(self) -> Float[Tensor, ""]:
        """10 log10(range^2 / MSE)."""
        mse = self.squared_error / self.weight
        return 10 * torch.log10(self.data_range**2 / mse).float()


def active_units(z: Float[Tensor, "n latent"]) -> int:
    """The number of latent values whose variance over windows is above .01 (arXiv 1509.00519).

    Few active units in a variational autoencoder mean posterior collapse.

    Examples:
        >>> active_units(torch.tensor([[0.0, 5.0], [1.0, 5.0]]))
        1
    """
    return int((z.var(0) > 0.01).sum())
