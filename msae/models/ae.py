"""The paper's baseline."""

from collections.abc import Sequence
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from msae.errors import check_int, check_ints
from msae.models.layers import mlp
from msae.models.reconstructor import Reconstructor


@final
class AutoEncoder(Reconstructor):
    """One encoder, one latent, one decoder (paper III-A): length - hidden - latent - hidden - length, with ReLU.

    Args:
        shape: (channels, length) of a window.
        latent_dim: number of values in the latent.
        hidden_dims: sizes of the encoder's hidden layers; the decoder has them in reverse order.
        training: `lr` and the other arguments of `Reconstructor`.

    Examples:
        >>> import torch
        >>> model = AutoEncoder((2, 16), latent_dim=4, hidden_dims=[32])
        >>> x_hat, z = model(torch.zeros(5, 2, 16))
        >>> x_hat.shape, z.shape
        (torch.Size([5, 2, 16]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int = 64,
        hidden_dims: Sequence[int] = (256,),
        **training: Any,
    ) -> None:
        super().__init__(shape, **training)
        self.save_hyperparameters(logger=False)
        check_int("latent_dim", latent_dim)
        sizes = [self.channels * self.length, *check_ints("hidden_dims", hidden_dims), latent_dim]
        self.encoder = mlp(*sizes)
        self.decoder = mlp(*reversed(sizes))
        self.codes = {"whole": slice(0, latent_dim)}

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of normalized windows."""
        z: Tensor = self.encoder(x.flatten(1))
        return z

    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Normalized reconstructions of latents."""
        x_hat: Tensor = self.decoder(z).unflatten(1, (self.channels, self.length))
        return x_hat
