"""Banks of normal codes: how far a window is from the nearest window that is known to be normal, at each scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from msae.errors import InputError
from msae.models.reconstructor import Reconstructor
from msae.uses.ranges import Data

BLOCK = 512
"""The number of windows that go through a model at once."""
FLOOR = 0.05
"""The least deviation of a window whose shape is compared, relative to the median deviation of normal windows."""
FITTED = 4096
"""The greatest number of windows to which a metric is fitted."""


@dataclass(frozen=True)
class View:
    """What one scale makes of windows: the code and the error of each channel's last steps.

    Attributes:
        name: of the scale.
        length: number of steps.
        code: of each channel by itself, or one of all channels.
        error: mean squared error of the reconstruction by this scale, without missing values.
        deviation: of the values of the steps.
    """

    name: str
    length: int
    code: Float[Tensor, "n groups code"]
    error: Float[Tensor, "n channels"]
    deviation: Float[Tensor, "n channels"]


def parts_of(model: Reconstructor, z: Float[Tensor, "n latent"]) -> dict[str, Float[Tensor, "n channels _"]]:
    """Normalized reconstructions that each scale is judged by: its own of the last steps, or that of all scales."""
    return model.parts_scaled(z) or dict.fromkeys(model.own_codes, model.decode_scaled(z))


@torch.no_grad()
def views(
    model: Reconstructor, x: Float[Tensor, "n channels length"]
) -> list[tuple[View, Float[Tensor, "n channels _"]]]:
    """What each scale makes of windows in raw units, and the normalized steps, NaN where missing, that it describes."""
    x = x.to(model.device, model.raw_dtype)
    scaled = model.normalized(x)[0]
    z = model.encode_scaled(scaled.nan_to_num(0.0))
    found = []
    for name, part in parts_of(model, z).items():
        steps = scaled[..., -part.shape[2] :]
        code = z[:, model.own_codes[name]].reshape(len(x), model.channels if model.separate else 1, -1)
        error = (steps - part).square().nanmean(2).nan_to_num(0.0)
        deviation = (steps - steps.nanmean(2, keepdim=True)).square().nanmean(2).sqrt().nan_to_num(0.0)
        found.append((View(name, part.shape[2], code.cpu(), error.cpu(), deviation.cpu()), steps.cpu()))
    return found


@dataclass(frozen=True)
class Shelf:
    """The normal codes of one scale.

    A distance of codes is that of the windows which they describe, without their means: the metric is the linear map
    from codes to windows that fits normal windows best.

    Attributes:
        metric: gives codes the coordinates in which distances are Euclidean.
        shares: the quadratic form of each channel's share of a squared distance, where the channels are coded together.
        codes: of normal windows, in these coordinates.
        shapes: the same divided by the deviation of each window, at least `floor`.
        floor: of each channel.
    """

    metric: Float[Tensor, "code axes"]
    shares: Float[Tensor, "together axes axes"]
    codes: Float[Tensor, "groups m axes"]
    shapes: Float[Tensor, "groups m axes"]
    floor: Float[Tensor, " channels"]

    def distances(
        self, view: View, barred: Bool[Tensor, "n m"] | None = None
    ) -> tuple[Float[Tensor, "2 n channels"], Int[Tensor, "2 n groups"]]:
        """Mean squared distance a value from the nearest normal window, of raw windows and of their shapes, plus error.

        Args:
            view: of the windows.
            barred: normal windows that do not count for a window; None where all count.

        Returns:
            The distances, and the numbers of the nearest normal windows.
        """
        deviation = view.deviation.maximum(self.floor)
        own = view.code @ self.metric
        both = (own, self.codes), (own / common(deviation, len(self.codes))[..., None], self.shapes)
        found, numbers = [], []
        for code, bank in both:
            rest, number = nearest(code, bank, barred)
            apart = torch.einsum("nga,cab,ngb->ncg", rest, self.shares, rest)  # channels by themselves, or together
            found.append(apart.reshape(deviation.shape) / view.length)
            numbers.append(number)
        far = torch.stack(found) + torch.stack([view.error, view.error / deviation.square()])
        return far, torch.stack(numbers)


def nearest(
    codes: Float[Tensor, "n groups axes"], bank: Float[Tensor, "groups m axes"], barred: Bool[Tensor, "n m"] | None
) -> tuple[Float[Tensor, "n groups axes"], Int[Tensor, "n groups"]]:
    """What each code differs by from the nearest one of its group's bank, and the number of that one.

    Examples:
        >>> nearest(torch.tensor([[[1.0]], [[7.0]]]), torch.tensor([[[0.0], [9.0]]]), None)
        (tensor([[[ 1.]],
        <BLANKLINE>
                [[-2.]]]), tensor([[0],
                [1]]))
    """
    found = []
    for group, kept in enumerate(bank):
        distance = kept.square().sum(1) - 2 * (codes[:, group] @ kept.T)
        distance = distance if barred is None else distance.masked_fill(barred, torch.inf)
        found.append(distance.min(1))
    numbers = torch.stack([number for _, number in found], dim=1)
    close = torch.stack([kept[number] for kept, (_, number) in zip(bank, found, strict=True)], dim=1)
    return codes - close, numbers


@dataclass(frozen=True)
class Bank:
    """Normal windows, as each scale codes them.

    Attributes:
        latents: of the windows.
        shelves: the codes of each scale.
        series: number of the series of each window, in the order of the training data.
        starts: first step of each window in its series.
        reach: number of steps between the starts of training windows within which they are no neighbours: the length of
            a window, so that they share no step, or less where there is one short series.
    """

    latents: Float[Tensor, "m latent"]
    shelves: dict[str, Shelf]
    series: Int[Tensor, " m"]
    starts: Int[Tensor, " m"]
    reach: int

    def barred(self, series: Int[Tensor, " n"], starts: Int[Tensor, " n"]) -> Bool[Tensor, "n m"]:
        """Which normal windows are no neighbours of each of n training windows; none of one that had no other."""
        near = (self.series == series[:, None]) & ((self.starts - starts[:, None]).abs() < self.reach)
        return near & ~near.all(1, keepdim=True)


def build(model: Reconstructor, data: Iterable[Data], stride: int, size: int) -> Bank:
    """The bank of at most `size` windows of training data, spread evenly; see `msae.uses.reference.learn`.

    Raises:
        InputError: fewer than two windows that have a value.
    """
    x, series, starts = normal(model, data, stride, size)
    some = torch.linspace(0, len(x) - 1, min(len(x), FITTED)).long()
    metrics = {view.name: fit(view.code, steps) for view, steps in views(model, x[some])}
    shelves: dict[str, list[tuple[View, Tensor]]] = {name: [] for name in metrics}
    latents = []
    for batch in x.split(BLOCK):
        seen = [view for view, _ in views(model, batch)]
        latents.append(torch.cat([view.code.flatten(1) for view in seen], dim=1))
        for view in seen:
            shelves[view.name].append((view, view.code @ metrics[view.name][0]))
    found = {name: shelf(*metrics[name], *zip(*batches, strict=True)) for name, batches in shelves.items()}
    span = int(starts.max() - starts.min()) if series.unique().numel() == 1 else 3 * model.length
    return Bank(torch.cat(latents), found, series, starts, max(1, min(model.length, span // 3)))


def shelf(metric: Tensor, shares: Tensor, found: Sequence[View], codes: Sequence[Tensor]) -> Shelf:
    """The normal codes of one scale, from batches of windows."""
    deviation, code = torch.cat([view.deviation for view in found]), torch.cat(list(codes))
    floor = FLOOR * deviation.median(0).values
    floor = floor.where(floor > 0, 1.0)
    spread = common(deviation.maximum(floor), code.shape[1])
    return Shelf(
        metric, shares, code.movedim(1, 0).contiguous(), (code / spread[..., None]).movedim(1, 0).contiguous(), floor
    )


def common(deviation: Float[Tensor, "n channels"], groups: int) -> Float[Tensor, "n groups"]:
    """The deviation of each group of channels: of each channel, or of all together."""
    return deviation if groups == deviation.shape[1] else deviation.square().mean(1, keepdim=True).sqrt()


def normal(
    model: Reconstructor, data: Iterable[Data], stride: int, size: int
) -> tuple[Float[Tensor, "m channels length"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Windows of training data, evenly spread; the number of the series of each, and its first step there.

    Windows with missing values are left out, if there are two without.
    """
    total = sum(len(x) if x.ndim == 3 else (x.shape[1] - model.length) // stride + 1 for x in data)
    step = max(1, math.ceil(total / size))
    found, places, seen, count = [], [], 0, 0
    for x in data:
        windows = x if x.ndim == 3 else x.unfold(1, model.length, stride).movedim(1, 0)
        at = torch.arange(-seen % step, len(windows), step)
        found.append(windows[at].to(model.raw_dtype))
        places.append(torch.stack([count + at, 0 * at] if x.ndim == 3 else [0 * at + count, stride * at], dim=1))
        seen, count = seen + len(windows), count + (len(windows) if x.ndim == 3 else 1)
    x, place = torch.cat(found or [torch.zeros(0, 1, 1)]), torch.cat(places or [torch.zeros(0, 2)]).long()
    whole = ~x.isnan().flatten(1).any(1)
    fine = whole if whole.sum() > 1 else ~x.isnan().flatten(1).all(1)
    if fine.sum() < 2:
        raise InputError(f"training series: {int(fine.sum())} windows with a value; expected at least 2")
    place = place[fine]
    return x[fine], place[:, 0], place[:, 1]


def fit(
    code: Float[Tensor, "n groups code"], steps: Float[Tensor, "n channels _"]
) -> tuple[Float[Tensor, "code axes"], Float[Tensor, "together axes axes"]]:
    """The map to coordinates in which the squared distance of codes is that of the windows without their means.

    And the quadratic forms in these coordinates of the channels that are coded together, which add up to 1.
    """
    shape = (steps - steps.nanmean(2, keepdim=True)).nan_to_num(0.0).double()
    code = code.double()
    values = shape.reshape(len(shape) * code.shape[1], -1)
    flat = code.flatten(0, 1)
    flat, values = flat - flat.mean(0), values - values.mean(0)
    weight = torch.linalg.lstsq(flat, values, driver="gelsd").solution
    left, size, right = torch.linalg.svd(weight, full_matrices=False)
    kept = size > 1e-5 * size.max() if size.max() > 0 else size == size.max()
    right = right[kept].unflatten(1, (-1, steps.shape[2])).movedim(1, 0)  # channels, axes, steps
    return (left * size)[:, kept].float(), (right @ right.mT).float()
