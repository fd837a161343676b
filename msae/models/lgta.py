"""L-GTA, with which the paper compares its proposal, and an extension of it by a global code."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from msae.errors import InputError, check_int, check_number
from msae.models.reconstructor import Reconstructor

HEADS = 4
"""Number of attention heads."""
CYCLES = (0.5, 1, 2, 4)
"""Frequencies, in cycles per window, of the sines and cosines that encode the position in the window."""
COARSE = 0.1
"""Weight of the loss of the reconstruction by the global code alone."""
STRENGTH = 0.5
"""Greatest standard deviation of the perturbations in the equivariance loss."""
KNOTS = 4
"""Number of knots of the curves of magnitude warping."""


@final
class LGTA(Reconstructor):
    """L-GTA (arXiv 2507.23615): a conditional variational autoencoder with a latent for each time step.

    The encoder is a bidirectional LSTM over the window and its condition, self-attention over all of its states, and a
    linear map to the mean of each step's latent. The decoder is a second bidirectional LSTM over latents and condition,
    and a linear map of its states and of the latents to the values. With `global_dim` there is a second code, of the
    whole window: a linear map of the mean of the attention's outputs. The decoder sees it at every step, and a loss
    term makes it reconstruct as much as it can by itself.

    Differences from the paper: the condition is the position in the window, since windows have no calendar; the steps
    of a long window are stretches of it, since an LSTM processes them one after another; the log variance is linear in
    the mean, as in every model of this package with `regularizer=kl`.

    Args:
        shape: (channels, length) of a window, or (channels, rows, columns) of one whose steps are rows.
        steps: greatest number of latent steps; a longer window is divided into stretches of equal length, the last
            padded with zeros.
        step_dim: number of values in the latent of a step.
        global_dim: number of values in the code of the whole window; 0 is L-GTA as published.
        hidden_dim: size of the state of each direction of the LSTMs, an even number.
        equivariance: weight of the equivariance loss, see `penalties`; 0 to leave it out.
        regularizer: of the latent, as in `Reconstructor`.
        training: `lr` and the other arguments of `Reconstructor`.

    Attributes:
        stretch: number of time steps in a latent step.
        steps: number of latent steps, at most the argument; the code `steps` is their latents in order.

    Raises:
        InputError: a size that is not a positive whole number, or an odd `hidden_dim`.

    Examples:
        >>> model = LGTA((1, 24), steps=8, step_dim=2, global_dim=3, hidden_dim=4)
        >>> x_hat, z = model(torch.zeros(5, 1, 24))
        >>> x_hat.shape, model.codes
        (torch.Size([5, 1, 24]), {'global': slice(0, 3, None), 'steps': slice(3, 19, None)})
    """

    def __init__(
        self,
        shape: Sequence[int],
        steps: int = 32,
        step_dim: int = 2,
        global_dim: int = 0,
        hidden_dim: int = 32,
        equivariance: float = 0.0,
        regularizer: str = "kl",
        **training: Any,
    ) -> None:
        super().__init__(shape, regularizer=regularizer, **training)
        self.save_hyperparameters(logger=False)
        self.step_dim, self.global_dim = check_int("step_dim", step_dim), check_int("global_dim", global_dim, 0)
        self.equivariance = check_number("equivariance", equivariance)
        if check_int("hidden_dim", hidden_dim) % (HEADS // 2):
            raise InputError(f"hidden_dim={hidden_dim}: expected an even number, for {HEADS} heads of two directions")
        row = self.grid[-1] if len(self.grid) > 1 else 1
        self.stretch = row * math.ceil(self.length / row / check_int("steps", steps))
        self.steps = math.ceil(self.length / self.stretch)
        angles = math.pi * torch.arange(self.steps)[:, None] / self.steps * 2 * torch.tensor(CYCLES)
        self.register_buffer("position", torch.cat([angles.sin(), angles.cos()], dim=1), persistent=False)
        values, code = self.channels * self.stretch, step_dim + global_dim
        self.encoder = nn.LSTM(values + 2 * len(CYCLES), hidden_dim, batch_first=True, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(
            2 * hidden_dim, HEADS, 4 * hidden_dim, dropout=0.0, activation="gelu", batch_first=True
        )
        self.to_steps = nn.Linear(2 * hidden_dim, step_dim)
        if global_dim:
            self.to_global = nn.Linear(2 * hidden_dim, global_dim)
        self.decoder = nn.LSTM(code + 2 * len(CYCLES), hidden_dim, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * hidden_dim + code, values)
        steps_code = {"steps": slice(global_dim, global_dim + self.steps * step_dim)}
        self.codes = ({"global": slice(0, global_dim)} if global_dim else {}) | steps_code

    def encode_scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch latent"]:
        """Latents of normalized windows, the global code first."""
        x = F.pad(x, (0, self.steps * self.stretch - self.length)).unflatten(2, (self.steps, self.stretch))
        states, _ = self.encoder(torch.cat([x.movedim(1, 2).flatten(2), self._condition(x)], dim=2))
        states = self.attention(states)
        steps: Tensor = self.to_steps(states).flatten(1)
        return torch.cat([self.to_global(states.mean(1)), steps], dim=1) if self.global_dim else steps

    def decode_scaled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels length"]:
        """Normalized reconstructions of latents."""
        whole, steps = self._parts(z)
        code = torch.cat([steps, whole[:, None].expand(-1, self.steps, -1)], dim=2)
        states, _ = self.decoder(torch.cat([code, self._condition(z)], dim=2))
        x: Tensor = self.output(torch.cat([states, code], dim=2)).unflatten(2, (self.channels, self.stretch))
        return x.movedim(2, 1).flatten(2)[..., : self.length]

    def stages_scaled(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, "batch channels length"]]:
        """Normalized reconstructions by the global code alone, where there is one, and by both codes."""
        alone = {"global": self.decode_scaled(self._alone(z))} if self.global_dim else {}
        return alone | {"steps": self.decode_scaled(z)}

    def penalties(self, z: Float[Tensor, "batch latent"]) -> dict[str, Float[Tensor, ""]]:
        """The error of the global code alone against dec(z), and the equivariance loss, each times its weight.

        Without the first term the steps' code, which can hold everything, would leave the global code unused.

        The equivariance loss is ||dec(T(z)) - T(dec(z))||^2 over the values of a window. T is drawn for each window
        from three transformations of random strength: scaling, of all codes; jitter, which adds one random number to
        all values of a step; and magnitude warping by a smooth curve. The last two change the steps' code only. In the
        window, jitter therefore adds the numbers to the values, and warping multiplies the difference between the
        reconstruction and the part of the global code. As in the authors' code, the gradient reaches dec(T(z)) only.
        """
        found = {}
        with torch.no_grad():
            x_hat = self.decode_scaled(z) if self.global_dim or self.equivariance else z
        coarse = torch.zeros_like(x_hat)
        if self.global_dim:
            coarse = self.decode_scaled(self._alone(z))
            found["coarse"] = COARSE * F.mse_loss(coarse, x_hat)
        if self.equivariance:
            factor, shift, scaling = perturbation(len(z), self.steps, z.device)
            over_time, added = (
                field.repeat_interleave(self.stretch, 1)[:, None, : self.length] for field in (factor, shift)
            )
            kept = coarse.detach() * ~scaling[:, None]
            whole, steps = self._parts(z.detach())
            steps = (steps * factor[:, :, None] + shift[:, :, None]).flatten(1)
            moved = self.decode_scaled(torch.cat([whole * factor[:, :1].where(scaling, 1.0), steps], dim=1))
            loss = F.mse_loss(moved, kept + over_time * (x_hat - kept) + added)
            found["equivariance"] = self.equivariance * loss
        return found

    def _condition(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch steps features"]:
        return self.get_buffer("position").expand(x.shape[0], -1, -1)

    def _parts(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, "batch global"], Float[Tensor, "batch steps step"]]:
        """The global code, and the code of the steps."""
        return z[:, : self.global_dim], z[:, self.global_dim :].unflatten(1, (self.steps, self.step_dim))

    def _alone(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        """Latents whose steps' code is the mean of the prior, 0."""
        return torch.cat([z[:, : self.global_dim], torch.zeros_like(z[:, self.global_dim :])], dim=1)


def perturbation(
    batch: int, steps: int, device: torch.device
) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps"], Bool[Tensor, "batch 1"]]:
    """A random transformation for each window: scaling, jitter or magnitude warping (arXiv 2507.23615).

    Returns:
        The factor of each step, the number then added to each step, and whether the transformation is scaling.
    """
    kind, strength = torch.randint(3, (batch, 1), device=device), STRENGTH * torch.rand(batch, 1, device=device)
    curve = F.interpolate(torch.randn(batch, 1, 1, KNOTS, device=device), (1, steps), mode="bicubic")[:, 0, 0]
    noise = torch.where(kind == 0, torch.randn(batch, 1, device=device), curve)
    jitter = strength * torch.randn(batch, steps, device=device)
    return 1 + strength * noise.where(kind != 2, 0.0), jitter.where(kind == 2, 0.0), kind == 0
