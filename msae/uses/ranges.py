"""New values and the range of the training data: which are far outside, and which channels have none."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Shaped
from torch import Tensor

from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)
FAR = 100.0
"""Widths of a channel's training range by which a value may leave it before the log says so."""
PIECE = 1 << 16
"""Time steps, or windows, looked at together."""

Data = Shaped[Tensor, "channels _"] | Shaped[Tensor, "_ channels length"]
"""A series, or windows."""


def names(model: Reconstructor) -> list[str]:
    """The names of the channels, or their numbers where they have none."""
    return list(map(str, model.names or range(model.channels)))


def warn_of_far(model: Reconstructor, x: Data, told: set[str]) -> None:
    """Log a warning for each channel with a value far outside of the training range, unless it is in `told` already.

    Args:
        model: of an older checkpoint the range is not known, and nothing is logged.
        x: new data in raw units.
        told: names of channels; those with a warning are added.
    """
    if model.channel_range is None or not x.numel():
        return
    flat = x.movedim(-2, 0).flatten(1).double().cpu()
    low, high = model.channel_range.unbind(1)
    width = (high - low).where(high > low, model.scale[:, 0].cpu().double())
    beyond = torch.maximum(flat - high[:, None], low[:, None] - flat).nan_to_num(0.0).max(1)
    for i in (beyond.values > FAR * width).nonzero()[:, 0].tolist():
        if (name := names(model)[i]) not in told:
            told.add(name)
            value = float(flat[i, beyond.indices[i]])
            log.warning(
                "channel %s: %.6g is far outside of the training data, %.6g to %.6g; its score says no more than that",
                name,
                value,
                float(low[i]),
                float(high[i]),
            )


def without_values(x: Data) -> list[int]:
    """The numbers of the channels that are NaN throughout.

    Examples:
        >>> without_values(torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]))
        [1]
    """
    empty = torch.ones(x.shape[-2], dtype=torch.bool)
    for piece in torch.split(x, PIECE, 1 if x.ndim == 2 else 0):
        empty &= piece.isnan().movedim(-2, 0).flatten(1).all(1)
        if not empty.any():
            break
    return empty.nonzero()[:, 0].tolist()
