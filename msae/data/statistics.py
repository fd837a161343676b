"""Statistics of the training split: what is subtracted before float32, offset and scale, and what float32 loses."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from msae.data.batches import spread
from msae.data.windows import Views, values
from msae.errors import InputError

log = logging.getLogger(__name__)
FAR = 1000.0
"""A level of so many times a channel's variation is subtracted in float64: float32 has seven digits."""
ORDINARY = (1e-15, 1e15)
"""Variations whose squares float32 holds."""
GREATEST = 1e12
"""The greatest normalized value that the squares and sums of models hold in float32."""
SAMPLE = 1 << 20
"""Number of values by which levels and variations are measured, about."""


@dataclass(frozen=True)
class Statistics:
    """What a model has to know of the values of its training split; raw = base + offset + scale * normalized.

    Attributes:
        base: what is subtracted from raw windows in float64; None if float32 holds all channels as they are.
        offset: of each channel, above `base`.
        scale: of each channel.
        value_range: least and greatest value of all channels, raw; float64 if there is a `base`.
        channel_range: least and greatest value of each channel, raw.
    """

    base: Float64[Tensor, "channels 1"] | None
    offset: Float[Tensor, "channels 1"]
    scale: Float[Tensor, "channels 1"]
    value_range: Float[Tensor, " 2"]
    channel_range: Float64[Tensor, "channels 2"]


def channel_statistics(
    x: Float[Tensor, "n channels length"] | Views,
    normalize: str | tuple[float, float],
    names: Sequence[str] | None = None,
) -> Statistics:
    """The statistics of the windows of the training split, without NaN.

    The log names each channel that cannot be held: one whose scale is set by a few values far from the rest, one whose
    variation is below the steps of its numbers, and one that is constant.

    Args:
        x: windows of the training split.
        normalize: `minmax` maps a channel to [0, 1]; `standard` gives it mean 0 and standard deviation 1 (a constant
            channel becomes 0); `none` and `window` give offset 0 and scale 1; or (offset, scale).
        names: of the channels, for the log.

    Raises:
        InputError: normalized values that float32 cannot square.

    Examples:
        >>> found = channel_statistics(torch.tensor([[[2.0, 4.0]]]), "minmax")
        >>> found.base, found.offset, found.scale, found.value_range
        (None, tensor([[2.]]), tensor([[2.]]), tensor([2., 4.]))
        >>> found = channel_statistics(torch.tensor([[[1e9, 1e9 + 1, 1e9 + 2]]], dtype=torch.float64), "minmax")
        >>> found.base.item(), found.offset.item(), found.scale.item()
        (1000000001.0, -1.0, 2.0)
    """
    x = x.cast(torch.float64) if isinstance(x, Views) else x
    middle, variation, away = levels(x, normalize == "window")
    base = base_of(x, middle, variation)
    count, mean, squares = (torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(3))
    low, high = torch.full_like(mean, math.inf), torch.full_like(mean, -math.inf)
    for raw in values(x):
        piece = raw.float().double() if base is None else raw.double() - base  # as the model sees them
        present = ~piece.isnan()
        low = torch.minimum(low, piece.where(present, math.inf).amin(1))
        high = torch.maximum(high, piece.where(present, -math.inf).amax(1))
        if normalize == "standard":  # merges mean and sum of squares of two sets (Chan, Golub, LeVeque 1983)
            n = present.sum(1)
            its_mean = piece.nanmean(1).nan_to_num()
            its_squares = (piece - its_mean[:, None]).square().nansum(1)
            total = (count + n).clamp(min=1)
            squares += its_squares + (its_mean - mean).square() * count * n / total
            mean += (its_mean - mean) * n / total
            count += n
    above = torch.zeros_like(mean) if base is None else base[:, 0]
    if normalize == "minmax":
        offset, width = low, high - low
    elif normalize == "standard":
        offset, width = mean, (squares / count).sqrt()
    elif isinstance(normalize, str):
        offset, width = torch.zeros_like(mean), torch.ones_like(mean)
    else:
        offset, width = (torch.full_like(mean, float(value)) for value in normalize)
        offset = offset - above
    if isinstance(normalize, str):
        width = width.where((width > 0) & width.isfinite() & (high > low), 1.0)
    offset = offset.where(offset.isfinite(), 0.0)
    listed = list(map(str, names if names is not None else range(len(mean))))
    if normalize != "window":
        check_size(listed, normalize, torch.maximum((low - offset).abs(), (high - offset).abs()) / width, high > low)
    fine = (2.0**-24 if base is None else 2.0**-53) * middle.abs()
    if normalize == "window":  # the level of a window is a latent value, in float32
        fine = torch.maximum(fine, 2.0**-24 * away)
    tell(listed, low + above, high + above, middle, variation, width, fine, normalize in ("minmax", "standard"))
    span = torch.stack([(low + above).min(), (high + above).max()])
    return Statistics(
        base,
        offset[:, None].float(),
        width[:, None].float(),
        span.float() if base is None else span,
        torch.stack([low, high], 1) + above[:, None],
    )


def levels(x: Float[Tensor, "n channels length"] | Views, per_window: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Median and variation of each channel, and how far windows are from the median; `(channels,)`, float64.

    The variation is the median distance from the median, of the values that differ from it, or with `per_window` the
    median deviation within a window. A few values far off change none of these. A constant channel has variation 0.
    """
    channels, length = x.shape[1:]
    some = x[spread(len(x), max(16, SAMPLE // (channels * length)))].double()
    flat = some.movedim(1, 0).flatten(1)
    middle = flat.nanmedian(1).values.nan_to_num()
    apart = (flat - middle[:, None]).abs()
    variation = apart.where(apart > 0, math.nan).nanmedian(1).values
    means = some.nanmean(2)
    if per_window:
        deviation = (some - means[..., None]).square().nanmean(2).sqrt()
        variation = deviation.where(deviation > 0, math.nan).nanmedian(0).values
    away = (means - middle).abs().nanmedian(0).values
    return middle, variation.nan_to_num(), away.nan_to_num()


def base_of(
    x: Float[Tensor, "n channels length"] | Views, middle: Tensor, variation: Tensor
) -> Float64[Tensor, "channels 1"] | None:
    """What to subtract in float64: the median of a channel that varies little around it, 0 for other channels.

    None if this is 0 for all channels of ordinary size, and for data that are float32 or shorter already.
    """
    dtype = x.blocks[0].dtype if isinstance(x, Views) else x.dtype
    if dtype in (torch.float64, torch.int64, torch.int32):
        scale = variation.where(variation > 0, 1.0)
        base = middle.where(middle.abs() > FAR * scale, 0.0)
    else:
        base = torch.zeros_like(middle)
    size = variation[variation > 0]
    ordinary = bool(((size > ORDINARY[0]) & (size < ORDINARY[1])).all())
    return None if ordinary and not base.any() else base[:, None]


def check_size(names: Sequence[str], normalize: Any, greatest: Tensor, varies: Tensor) -> None:
    """Raise InputError for a channel whose normalized values are too great or too small to be squared in float32."""
    for name, value in zip(names, greatest.tolist(), strict=True):
        if value > GREATEST:
            raise InputError(
                f"normalize={normalize}: channel {name} is normalized to {value:.3g}, whose square float32 cannot "
                "hold; expected normalize=standard or minmax"
            )
    if varies.any() and float(greatest.max()) < 1 / GREATEST:
        raise InputError(
            f"normalize={normalize}: all values are normalized to {float(greatest.max()):.3g} or less, whose square "
            "float32 cannot hold; expected normalize=standard or minmax"
        )


def tell(
    names: list[str],
    low: Tensor,
    high: Tensor,
    middle: Tensor,
    variation: Tensor,
    width: Tensor,
    step: Tensor,
    by_width: bool,
) -> None:
    """Log a warning for each kind of channel whose variation is lost: the first one with its numbers, others by name.

    Args:
        names: of the channels.
        low: least value of each channel.
        high: greatest value of each channel.
        middle: median of each channel.
        variation: see `levels`.
        width: what each channel is divided by.
        step: the distance of the numbers that hold a channel.
        by_width: whether `width` is measured by the channel's values.
    """
    constant = high == low
    lost = ~constant & (step > 0.1 * variation)
    spoiled = ~constant & ~lost & (width > FAR * variation) & by_width
    texts = {
        "constant, {low:.10g}, in the training split: another value is scored by its distance in raw units": constant,
        "varies by {variation:.3g} at a level of {middle:.10g}, where numbers are {step:.3g} apart: subtract a "
        "constant, from numbers that hold the difference, before the data are stored": lost,
        "a few values between {low:.10g} and {high:.10g} are far from the others, which are within about "
        "{variation:.3g} of {middle:.10g}: they set the scale, {width:.3g}, by which the others hardly vary; leave "
        "such values empty and set data.missing": spoiled,
    }
    columns = {"low": low, "high": high, "middle": middle, "variation": variation, "width": width, "step": step}
    for text, which in texts.items():
        if which.any():
            [first, *others] = which.nonzero()[:, 0].tolist()
            more = f" (also {', '.join(names[i] for i in others[:20])})" if others else ""
            told = text.format(**{key: float(value[first]) for key, value in columns.items()})
            log.warning("channel %s: %s%s", names[first], told, more)
