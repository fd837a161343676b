"""What is normal in training data, as the anomaly scores of new data are compared with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from msae.errors import check_int
from msae.models.reconstructor import Reconstructor
from msae.uses.anomaly import Scorer, combined
from msae.uses.bank import Bank, build
from msae.uses.ranges import Data

KEPT = 1 << 24
"""The greatest number of training scores that are kept, of all scales and channels; they are spread evenly."""
BANK = 4000
"""The greatest number of normal windows; they are spread evenly over the training data."""
USUAL = 0.99
"""The quantile of training scores that is the usual value."""
LEAST = 1e-10
"""The least usual value, in normalized units, below which float32 has no digits."""


@dataclass(frozen=True)
class Reference:
    """What is normal, as learned from training series.

    Attributes:
        bank: normal windows.
        usual: the quantile `USUAL` of training scores, for each scale, kind (values, shape) and channel.
        totals: `Scores.total` of evenly spread time steps of the training series, then of fresh ones. Each is scored
            without the normal windows that share a step with its own.
        places: of each of these steps the number of its series, or window, as the bank counts them, and its own in it.
    """

    bank: Bank
    usual: Float[Tensor, "scales 2 channels"]
    totals: Float[Tensor, " n"]
    places: Int[Tensor, "n 2"]


class Thinned:
    """An evenly spread selection of rows: every row at first, then every second, every fourth and so on.

    Args:
        limit: the greatest number of rows that are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.step, self.seen = 1, 0
        self._kept: list[Tensor] = []

    def chosen(self, n: int) -> slice:
        """The slice of the next n rows that is to be added."""
        start = -self.seen % self.step
        self.seen += n
        return slice(start, None, self.step)

    def add(self, rows: Num[Tensor, "n values"]) -> None:
        """Add the rows of the slice that `chosen` returned."""
        self._kept.append(rows)
        while sum(map(len, self._kept)) > self.limit:
            self._kept = [self.rows()[::2]]
            self.step *= 2

    def rows(self) -> Num[Tensor, "m values"]:
        """The rows that are kept."""
        return torch.cat(self._kept) if self._kept else torch.zeros(0, 2)


@dataclass(frozen=True)
class Joined:
    """Data one after the other, which can be read again."""

    parts: tuple[Iterable[Data], ...]

    def __iter__(self) -> Iterator[Data]:
        return chain.from_iterable(self.parts)


def learn(
    model: Reconstructor,
    data: Iterable[Data],
    stride: int = 1,
    seen: Callable[[int], object] = lambda _: None,
    bank_size: int = BANK,
    causal: bool = False,
    fresh: Iterable[Data] = (),
) -> Reference:
    """What is normal in training data: series of at least a window, or windows, in raw units.

    Args:
        model: in evaluation mode.
        data: read twice; memory-mapped data are read piece by piece.
        stride: see `Scorer`.
        seen: called after each piece with its number of time steps.
        bank_size: the greatest number of normal windows, spread evenly over those without a missing value.
        causal: see `Scorer`.
        fresh: normal data on which the model was not trained, such as the validation split. They join the bank. Where
            their median scores are higher than those of `data`, usual values are raised by the same factor.

    Raises:
        InputError: fewer than two windows that have a value.

    Examples:
        >>> import torch
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.reference import learn
        >>> model = AutoEncoder((1, 32), latent_dim=4).eval()
        >>> learn(model, [torch.sin(torch.arange(400) / 5)[None]]).usual.shape
        torch.Size([1, 2, 1])
    """
    bank = build(model, Joined((data, fresh)), stride, check_int("bank_size", bank_size, 2))
    shape = (len(bank.shelves), 2, model.channels)
    none = Reference(bank, torch.ones(shape), torch.zeros(0), torch.zeros(0, 2).long())
    scorer = Scorer(model, none, stride, causal=causal, own=0)
    count = 0

    def scores_of(some: Iterable[Data]) -> tuple[Float[Tensor, "n values"], Int[Tensor, "n 2"]]:
        """Scores of evenly spread steps, a column for each scale, kind and channel; and the places of the steps."""
        nonlocal count
        kept, places = (Thinned(KEPT // math.prod(shape)) for _ in range(2))
        for x in some:
            length, done = x.shape[-1], 0
            for steps, rows in scorer.rows(x, 1 << 16):
                flat = rows.where(~steps.isnan().repeat(2, 1), torch.nan).flatten(0, 1).T.float()
                chosen = kept.chosen(len(flat))
                at = torch.arange(done, done + len(flat))[chosen]
                kept.add(flat[chosen])
                places.add(torch.stack([count + at // length, at % length], dim=1))
                done += len(flat)
                seen(steps.shape[1])
            count += len(x) if x.ndim == 3 else 1
            if x.ndim == 2:
                scorer.own = count
        rows = kept.rows().double()
        there = ~rows.isnan().all(1)
        return rows[there], places.rows().long()[there]

    (rows, places), (others, later) = scores_of(data), scores_of(fresh)
    usual = torch.nanquantile(rows, USUAL, dim=0).nan_to_num(0.0).clamp(min=LEAST)
    ratios = rows / usual
    if len(others):
        usual *= (others.nanmedian(0).values / rows.nanmedian(0).values).nan_to_num(1.0, posinf=1.0).clamp(min=1)
        ratios = torch.cat([ratios, others / usual])
    channels = combined(ratios.T.reshape(*shape, -1))[1]
    totals = channels.nan_to_num(-1.0).max(0).values
    return Reference(bank, usual.reshape(shape).float(), totals, torch.cat([places, later]))
