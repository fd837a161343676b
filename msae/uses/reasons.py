"""Why a time step is anomalous: what a window looks like, and the normal window that is nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from msae.uses.anomaly import Scorer
from msae.uses.bank import parts_of, views

KINDS = ("values", "shape")


@dataclass(frozen=True)
class Reason:
    """The window with the highest score among those that contain a step, beside the nearest normal window.

    Where scores are causal it is the window that ends with the step.

    Attributes:
        scale: the name of the scale.
        kind: `values`, if the values are further from normal than the shape is, else `shape`.
        start, end: first and last step of the window.
        expected: the nearest normal window as the model reconstructs it, at the mean (for `shape`, also the deviation)
            of this window, in raw units.
        band: the usual distance from the nearest normal window, in raw units.
        normal: number of the nearest normal window in the bank.
    """

    scale: str
    kind: str
    start: int
    end: int
    expected: Float[Tensor, " steps"]
    band: float
    normal: int


@torch.no_grad()
def reason(
    scorer: Scorer,
    x: Float[Tensor, "channels time"] | Float[Tensor, "n channels length"],
    step: int,
    channel: int,
    scale: str,
) -> Reason:
    """Why a channel is anomalous at a step.

    Args:
        scorer: with a reference.
        x: the series, or windows whose steps are numbered one after the other, in raw units.
        step: the number of the step.
        channel: the number of the channel.
        scale: the name of the scale.
    """
    model, known = scorer.model, scorer.known
    assert known is not None
    length, reach = model.length, scorer.lengths[scale]
    if x.ndim == 3:
        number = step // length
        starts, windows, first = torch.tensor([0]), x[number : number + 1], number * length
    else:
        last = 1 if scorer.causal else reach  # the first and the last window that the score is made of
        least, most = (max(0, min(step - length + n, x.shape[1] - length)) for n in (1, last))
        starts, first = torch.arange(least, most + 1), 0
        windows = x[:, least : most + length].unfold(1, length, 1).movedim(1, 0)
    windows = windows.to(model.raw_dtype)
    [(view, steps)] = [each for each in views(model, windows) if each[0].name == scale]
    barred = None
    if scorer.own is not None and x.ndim == 2:
        barred = known.bank.barred(torch.full((len(starts),), scorer.own), scorer.first + starts)
    far, numbers = known.bank.shelves[scale].distances(view, barred)
    usual = known.usual[scorer.names.index(scale), :, channel]
    ratios = far[:, :, channel] / usual[:, None]
    best = int(ratios.mean(0).argmax())
    kind = int(ratios[:, best].argmax())
    nearest = int(numbers[kind, best, channel if numbers.shape[2] > 1 else 0])
    z = known.bank.latents[nearest : nearest + 1].to(model.device)
    made = parts_of(model, z)[scale][0, channel].cpu()
    own = steps[best, channel]
    size = view.deviation[best, channel] / made.std(correction=0).clamp(min=1e-6) if kind else 1.0
    expected = (made - made.mean()) * size + own.nanmean()
    offset, unit = (level[..., channel, 0].cpu() for level in model.level(windows[best : best + 1].to(model.device)))
    raw = torch.zeros(1, model.channels, reach)
    raw[0, channel] = expected * unit + offset
    band = float(usual[kind].sqrt() * unit * (view.deviation[best, channel] if kind else 1.0))
    start = first + int(starts[best]) + length - reach
    return Reason(scale, KINDS[kind], start, start + reach - 1, model.raw(raw)[0, channel], band, nearest)
