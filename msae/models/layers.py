"""Plain `nn.Module` parts; they know nothing of training."""

from itertools import pairwise

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
