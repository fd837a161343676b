"""The paper's proposal."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from msae.errors import check_choice, check_int
from msae.models.layers import mlp
from msae.models.reconstructor import Reconstructor


@final
class MultiScaleAutoEncoder(Reconstructor):
    """A small-scale encoder of half of the window, a large-scale one of all of it, one decoder (paper III-B, appendix).

    Args:
        shape: (channels, length) of a window.
        small_scale: which half the small scale sees: `first_half` of the time steps, or `strided`, every second one. Of
            an odd length it sees the larger half.
        small_dim: number of values in the small-scale code.
        large_dim: number of values in the large-scale code.
        small_hidden_dim: size of the small-scale encoder's hidden layer.
        large_hidden_dim: size of the hidden layers of the large-scale encoder and of the decoder.
        training: `lr` and the other arguments of `Reconstructor`.

    Examples:
        >>> model = MultiScaleAutoEncoder((1, 16), small_dim=2, large_dim=3)
        >>> z = model.encode(torch.zeros(5, 1, 16))
        >>> z.shape, model.codes
        (torch.Size([5, 5]), {'small': slice(0, 2, None), 'large': slice(2, 5, None)})
    """

    def __init__(
        self,
        shape: Sequence[int],
        small_scale: str = "first_half",
        small_dim: int = 64,
        large_dim: int = 64,
        small_hidden_dim: int = 128,
        large_hidden_dim: int = 256,
        **training: Any,
    ) -> None:
        super().__init__(shape, **training)
        self.save_hyperparameters(logger=False)
        self.small_scale = check_choice("small_scale", small_scale, ("first_half", "strided"))
        for name in ("small_dim", "large_dim", "small_hidden_dim", "large_hidden_dim"):
            check_int(name, self.hparams[name])
        size = self.channels * self.length
        small_size = self.channels * -(-self.length // 2)
        self.small_encoder = mlp(small_size, small_hidden_dim, small_dim)
        self.large_encoder = mlp(size, large_hidden_dim, large_dim)
        self.decoder = mlp(small_dim + large_dim, large_hidden_dim, size)
        self.codes = {"small": slice(0, small_dim), "large": slice(small_dim, small_dim + large_dim)}

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of normalized windows, the small-scale code first."""
        half = x[..., ::2] if self.small_scale == "strided" else x[..., : -(-self.length // 2)]
        return torch.cat([self.small_encoder(half.flatten(1)), self.large_encoder(x.flatten(1))], dim=1)

    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Normalized reconstructions of latents."""
        x_hat: Tensor = self.decoder(z).unflatten(1, (self.channels, self.length))
        return x_hat
