"""What models share of the units of their data: raw windows in, raw windows out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msae.models.layers import window_level
from msae.models.steps import MultiStepModule

GREATEST = 1e12
"""The greatest normalized value; those further out, which training data never are, are taken for it."""
ORDINARY = (1e-15, 1e15)
"""Scales whose squares float32 holds."""
KEPT = ("per_window", "missing", "bounded", "names", "data_options", "base", "channel_range", "unit")
"""Attributes that a checkpoint holds beside the buffers."""


class RawUnits(MultiStepModule):
    """A module that takes and gives windows in raw units: raw = base + offset + scale * normalized.

    `normalized` is the one place where raw windows become float32: what float32 cannot hold, `base`, is subtracted
    before, in float64. `raw` is the one place where it is added again.

    Args:
        channels: of a window.
        training: see `MultiStepModule`.

    Attributes:
        base: float64 levels of the channels; None where float32 holds the training data as they are.
        offset: of each channel, above `base`.
        scale: of each channel.
        value_range: least and greatest value of the training data, or with `bounded` the limits of all data.
        channel_range: least and greatest value of each channel in the training data; None in older checkpoints.
        bounded: whether no value of the data can leave `value_range`, so that reconstructions may be clipped to it.
        per_window: whether each channel of each window is normalized by its own mean and deviation. Since raw units
            cannot be restored without these, they are appended to the latent, as the code `level`.
        missing: whether windows may hold NaN, which is encoded as a normalized 0 and left out of loss and metrics.
        unit: a power of two by which raw units are divided where the square of `scale` would leave float32.
        names: names of the channels of the training data, or None.
        data_options: the config of the training data as plain values by name, `_target_` among them, by which a use
            reads new files; None after training without a config.

    Examples:
        >>> from msae.models.ae import AutoEncoder
        >>> model = AutoEncoder((1, 2))
        >>> base = torch.tensor([[1e9]], dtype=torch.float64)
        >>> model.set_statistics(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.0, 1.0]), base=base)
        >>> x = torch.tensor([[[1e9 + 0.25, 1e9 + 0.5]]], dtype=torch.float64)
        >>> model.normalized(x)[0]
        tensor([[[0.2500, 0.5000]]])
        >>> torch.equal(model.raw(model.normalized(x)[0]), x)
        True
    """

    offset: Tensor
    scale: Tensor
    value_range: Tensor

    def __init__(self, channels: int, *training: Any) -> None:
        super().__init__(*training)
        self.register_buffer("offset", torch.zeros(channels, 1))
        self.register_buffer("scale", torch.ones(channels, 1))
        self.register_buffer("value_range", torch.tensor([0.0, 1.0]))
        self.base: Tensor | None = None  # no buffer: it stays float64, on devices that have none too
        self.channel_range: Tensor | None = None
        self.per_window = False
        self.bounded = False
        self.unit = 1.0
        self.names: Sequence[str] | None = None
        self.data_options: dict[str, Any] | None = None

    def set_statistics(
        self,
        offset: Float[Tensor, "channels 1"],
        scale: Float[Tensor, "channels 1"],
        value_range: Float[Tensor, " 2"],
        per_window: bool = False,
        missing: bool = False,
        bounded: bool = False,
        names: Sequence[str] | None = None,
        base: Float64[Tensor, "channels 1"] | None = None,
        channel_range: Float64[Tensor, "channels 2"] | None = None,
    ) -> None:
        """Store facts about the training data; see `Attributes`."""
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        self.per_window, self.missing, self.bounded, self.names = per_window, missing, bounded, names
        self.base, self.channel_range, self.unit = base, channel_range, 1.0
        if base is None:
            self.value_range.copy_(value_range)
            return
        self.value_range = value_range.double().to(self.offset.device)
        size = float(value_range[1] - value_range[0]) if per_window else float(scale.max())
        if size > 0 and not ORDINARY[0] < size < ORDINARY[1]:
            self.unit = 2.0 ** round(math.log2(size))

    @property
    def raw_dtype(self) -> torch.dtype:
        """The type that raw windows need: float64 where there is a `base`."""
        return self.offset.dtype if self.base is None else torch.float64

    def normalized(
        self, x: Float[Tensor, "batch channels length"]
    ) -> tuple[
        Float[Tensor, "batch channels length"], Float[Tensor, "levels channels 1"], Float[Tensor, "levels channels 1"]
    ]:
        """Raw windows as the nets see them, NaN where a value is missing, with their offset, above `base`, and scale.

        Offset and scale are one pair for all windows, or with `per_window` one for each.
        """
        dtype = self.offset.dtype
        x = x.to(dtype) if self.base is None else x.double() - self.base.to(x.device)
        offset, scale = window_level(x) if self.per_window else (self.offset[None], self.scale[None])
        return ((x - offset) / scale).to(dtype).clamp(-GREATEST, GREATEST), offset.to(dtype), scale.to(dtype)

    def raw(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch channels length"]:
        """Windows above `base` in raw units: float64 where there is a base."""
        return x if self.base is None else x.double() + self.base.to(x.device)

    def level(
        self, x: Float[Tensor, "batch channels length"]
    ) -> tuple[Float[Tensor, "levels channels 1"], Float[Tensor, "levels channels 1"]]:
        """Offset, above `base`, and scale of raw windows; see `normalized`."""
        return self.normalized(x)[1:] if self.per_window else (self.offset[None], self.scale[None])

    def scaled(self, x: Float[Tensor, "batch channels length"]) -> Float[Tensor, "batch channels length"]:
        """Raw windows, normalized as the nets see them, with 0 where a value is missing."""
        scaled = self.normalized(x)[0]
        return scaled.where(~x.isnan(), 0.0) if self.missing else scaled

    def clip(self, x: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        """Normalized values, clipped to the range of the data where it is bounded."""
        if not self.bounded:
            return x
        limits = self.value_range if self.base is None else self.value_range - self.base.to(x.device)
        low, high = (((limits[..., i : i + 1] - self.offset) / self.scale).to(x.dtype) for i in (0, 1))
        sides = (-1, *[1] * (x.ndim - 2))
        return x.clamp(low.view(sides), high.view(sides))

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the training data, beside weights and buffers."""
        state = {key: getattr(self, key) for key in KEPT}
        return state if self.base is None else state | {"value_range": self.value_range.cpu()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` gave; an older checkpoint lacks some keys, and its model has no `base`."""
        self.base, self.channel_range, self.unit = None, None, 1.0
        self.__dict__.update({key: state[key] for key in KEPT if key in state})
        if "value_range" in state:  # the buffer of a new model, into which the weights were loaded, is float32
            self.value_range = state["value_range"].to(self.offset.device)
