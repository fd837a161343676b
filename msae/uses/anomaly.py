"""Anomaly scores of the time steps of a series, by channel and by scale. High scores are anomalous."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from msae.errors import InputError, check_int
from msae.models.reconstructor import Reconstructor
from msae.uses.ranges import Data, warn_of_far

BLOCK = 512
"""The number of windows that go through a model at once."""
KEPT = 1 << 18
"""The greatest number of training scores that are kept; they are spread evenly."""
WINDOWS = 20_000
"""The greatest number of training windows whose codes are used; they are spread evenly."""
USUAL = 0.99
"""The quantile of a scale's training scores that is its usual value."""


@dataclass(frozen=True)
class Scores:
    """Scores of time steps, NaN where no channel has a value; high scores are anomalous.

    Attributes:
        total: the mean score of the channels that have a value.
        channels: the squared error of the reconstruction in normalized units, averaged over the windows that contain
            the step; NaN where the channel has no value.
        scales: `error_SCALE`, for models whose scales add up: the squared error, averaged over channels, when the
            scales up to this one reconstruct; and `code_SCALE`, for each code: its distance from the training codes.
    """

    total: Float[Tensor, " time"]
    channels: Float[Tensor, "channels time"]
    scales: dict[str, Float[Tensor, " time"]]

    def __len__(self) -> int:
        return len(self.total)


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of consecutive parts as one."""
    return Scores(
        torch.cat([part.total for part in parts]),
        torch.cat([part.channels for part in parts], dim=1),
        {name: torch.cat([part.scales[name] for part in parts]) for name in parts[0].scales},
    )


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution of a code over training windows.

    Attributes:
        mean: the mean of each value.
        whiten: the matrix that gives differences from the mean a covariance of 1.
    """

    mean: Float[Tensor, " code"]
    whiten: Float[Tensor, "code code"]

    def distance(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, " batch"]:
        """Squared Mahalanobis distance divided by the number of values: about 1 on the training windows."""
        return ((code.double() - self.mean) @ self.whiten).square().mean(1)


def fit(code: Float[Tensor, "n code"]) -> Gaussian:
    """The distribution of a code, with the covariance of its standardized values shrunk (Ledoit and Wolf, 2004).

    Shrinkage makes it invertible even if there are fewer windows than values, or if values depend on each other.
    """
    from sklearn.covariance import ledoit_wolf

    code = code.double()
    mean, deviation = code.mean(0), code.std(0, correction=0)
    deviation = deviation.where(deviation > 1e-6 * mean.abs(), 1.0)
    covariance, _ = ledoit_wolf(((code - mean) / deviation).numpy(), assume_centered=True)
    values, axes = torch.linalg.eigh(torch.from_numpy(covariance))
    return Gaussian(mean, axes / (values.clamp(min=0) + 1e-6).sqrt() / deviation[:, None])


class Scorer:
    """Scores the time steps of a series that comes in pieces.

    The model sees the same windows in the same blocks however the series is cut into pieces, so the scores are the
    same to the bit. A call returns the scores that later windows can no longer change, up to about a block of windows
    before the end of its input. `finish` returns the rest.

    Args:
        model: in evaluation mode.
        codes: the distributions of the training codes, `Reference.codes`; without them codes are not scored.
        stride: time steps from the start of a window to that of the next, at most the length of a window.
        block: the number of windows in a block; 1 gives scores as soon as they are final, a window after the step.

    Attributes:
        names: the keys of `Scores.scales`.

    Raises:
        InputError: a stride or block that is out of range.
    """

    def __init__(
        self, model: Reconstructor, codes: Mapping[str, Gaussian] | None = None, stride: int = 1, block: int = BLOCK
    ) -> None:
        self.model = model
        self.codes = dict(codes or {})
        self.stride = check_int("stride", stride, 1, model.length)
        self.block = check_int("block", block)
        with torch.no_grad():
            stages = list(model.stages(torch.zeros(1, model.latent_dim, device=model.device)))
        self.names = [f"error_{name}" for name in stages] if len(stages) > 1 else []
        self.names += [f"code_{name}" for name in self.codes]
        self._told: set[str] = set()
        self._start()

    def _start(self) -> None:
        """Start a new series."""
        rows = self.model.channels + len(self.names)
        self._x = torch.zeros(self.model.channels, 0, dtype=self.model.raw_dtype)
        self._sums, self._counts = torch.zeros(rows, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        self._next = 0  # first step, in `_x`, of the next window

    def push(self, piece: Float[Tensor, "channels time"]) -> Scores:
        """Add the next time steps, in raw units and NaN where missing; return the scores that are final now."""
        length = self.model.length
        self._add(piece)
        width = (self.block - 1) * self.stride + length
        while self._next + width <= self._x.shape[1]:
            self._count(self._next, self.block)
            self._next += self.block * self.stride
        return self._take(min(self._next, max(0, self._x.shape[1] - length)))

    def finish(self) -> Scores:
        """Return the remaining scores, with a last window that ends with the series; then a new series begins.

        Raises:
            InputError: the series was shorter than a window.
        """
        time, length = self._x.shape[1], self.model.length
        if time < length:
            raise InputError(f"series of {time} steps: expected at least {length}, the length of a window")
        n = max(0, (time - length - self._next) // self.stride + 1)
        if n:
            self._count(self._next, n)
        if self._next + n * self.stride - self.stride != time - length:
            self._count(time - length, 1)
        scores = self._take(time)
        self._start()
        return scores

    def windows(self, x: Float[Tensor, "n channels length"]) -> Scores:
        """Scores of the steps of windows that do not overlap, one window after the other."""
        warn_of_far(self.model, x, self._told)
        parts = [self._errors(batch).movedim(0, 1).flatten(1) for batch in x.split(self.block)]
        return self._scores(x.movedim(0, 1).flatten(1), torch.cat(parts, dim=1))

    def _add(self, piece: Tensor) -> None:
        if piece.ndim != 2 or len(piece) != self.model.channels:
            raise InputError(f"series of shape {tuple(piece.shape)}: expected ({self.model.channels}, time)")
        warn_of_far(self.model, piece, self._told)
        self._x = torch.cat([self._x, piece.to(self._x)], dim=1)
        self._sums, self._counts = (F.pad(sums, (0, piece.shape[1])) for sums in (self._sums, self._counts))

    def _count(self, start: int, n: int) -> None:
        """Add the errors of n windows to the sums of their steps; the first window starts at step `start` of `_x`."""
        length = self.model.length
        width = (n - 1) * self.stride + length
        windows = self._x[:, start : start + width].unfold(1, length, self.stride).movedim(0, 1)
        errors = torch.cat([self._errors(windows).movedim(0, 2), torch.ones(1, length, n, dtype=torch.float64)])
        sums = F.fold(errors, (1, width), (1, length), stride=(1, self.stride))[:, 0, 0]
        self._sums[:, start : start + width] += sums[:-1]
        self._counts[start : start + width] += sums[-1]

    @torch.no_grad()
    def _errors(self, x: Float[Tensor, "n channels length"]) -> Float[Tensor, "n rows length"]:
        """Each channel's squared error, the mean over channels of each stage, each code's distance; 0 for missing."""
        x = x.to(self.model.device, self.model.raw_dtype)
        z, scaled = self.model.encode(x), self.model.normalized(x)[0]
        latent = z[:, : -2 * self.model.channels] if self.model.per_window else z
        stages = [(scaled - x_hat).square() for x_hat in self.model.stages_scaled(latent).values()]
        rows = [stages[-1]]
        if len(stages) > 1:
            rows += [error.nanmean(1, keepdim=True) for error in stages]
        z = z.cpu()
        rows = [row.cpu().double().nan_to_num(0.0) for row in rows]
        for name, code in self.codes.items():
            distance = code.distance(z[:, self.model.codes[name]])
            rows.append(distance[:, None, None].expand(-1, 1, x.shape[2]))
        return torch.cat(rows, dim=1)

    def _take(self, n: int) -> Scores:
        """Return the scores of the first n steps, and drop these steps."""
        scores = self._scores(self._x[:, :n], self._sums[:, :n] / self._counts[:n])
        self._x, self._sums, self._counts = self._x[:, n:], self._sums[:, n:], self._counts[n:]
        self._next -= n
        return scores

    def _scores(self, x: Float[Tensor, "channels time"], rows: Float[Tensor, "rows time"]) -> Scores:
        rows = rows.clamp(max=torch.finfo(torch.float32).max)
        channels = rows[: len(x)].where(~x.isnan(), torch.nan)
        rest = rows[len(x) :].where(~x.isnan().all(0), torch.nan).float()
        return Scores(channels.nanmean(0).float(), channels.float(), dict(zip(self.names, rest, strict=True)))


def scores(
    scorer: Scorer, x: Float[Tensor, "channels time"] | Float[Tensor, "n channels length"], size: int = 1 << 16
) -> Iterator[Scores]:
    """The scores of a whole series, or of windows that do not overlap, `size` time steps at a time.

    Memory-mapped data are read piece by piece.

    Examples:
        >>> import torch
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.anomaly import Scorer, joined, learn, scores
        >>> model = AutoEncoder((1, 32), latent_dim=4).eval()
        >>> series = torch.sin(torch.arange(400) / 5)[None]
        >>> known = learn(model, [series])
        >>> found = joined(list(scores(Scorer(model, known.codes), series)))
        >>> found.total.shape, found.channels.shape
        (torch.Size([400]), torch.Size([1, 400]))
    """
    if x.ndim == 3:
        for batch in torch.split(x, max(1, size // x.shape[2])):
            yield scorer.windows(batch)
        return
    for piece in torch.split(x, size, 1):
        yield scorer.push(piece)
    yield scorer.finish()


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

    def add(self, rows: Float[Tensor, "n values"]) -> None:
        """Add the rows of the slice that `chosen` returned."""
        self._kept.append(rows)
        while sum(map(len, self._kept)) > self.limit:
            self._kept = [self.rows()[::2]]
            self.step *= 2

    def rows(self) -> Float[Tensor, "m values"]:
        """The rows that are kept."""
        return torch.cat(self._kept)


@dataclass(frozen=True)
class Reference:
    """The distribution of scores in training series.

    Attributes:
        codes: the distribution of each code.
        usual: the quantile `USUAL` of each of `Scores.scales`.
        totals: `Scores.total` of evenly spread time steps.
        times: at the same steps, the greatest ratio of a scale's error or distance to its usual value.
    """

    codes: dict[str, Gaussian]
    usual: dict[str, float]
    totals: Float[Tensor, " n"]
    times: Float[Tensor, " n"]


def learn(
    model: Reconstructor, data: Iterable[Data], stride: int = 1, seen: Callable[[int], object] = lambda _: None
) -> Reference:
    """The distribution of the scores of training data: series of at least a window, or windows, in raw units.

    Args:
        model: in evaluation mode.
        data: read twice; memory-mapped data are read piece by piece.
        stride: see `Scorer`.
        seen: called after each piece with its number of time steps.

    Raises:
        InputError: fewer than two windows that have a value.

    Examples:
        >>> import torch
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.anomaly import learn
        >>> model = AutoEncoder((1, 32), latent_dim=4).eval()
        >>> sorted(learn(model, [torch.sin(torch.arange(400) / 5)[None]]).usual)
        ['code_whole']
    """
    kept = Thinned(WINDOWS)
    for x in data:
        windows = x if x.ndim == 3 else x.unfold(1, model.length, stride).movedim(1, 0)
        for batch in windows.split(BLOCK):
            some = batch[kept.chosen(len(batch))].to(model.raw_dtype)
            some = some[~some.isnan().all(2).all(1)]
            if len(some):
                with torch.no_grad():
                    kept.add(model.encode(some.to(model.device)).cpu())
    if not kept.seen or (z := kept.rows()).shape[0] < 2:
        raise InputError(f"training series: {kept.seen} windows; expected at least 2")
    codes = {name: fit(z[:, code]) for name, code in model.codes.items()}
    scorer = Scorer(model, codes, stride)
    totals = Thinned(KEPT)
    for x in data:
        for part in scores(scorer, x):
            totals.add(torch.stack([part.total, *part.scales.values()], dim=1)[totals.chosen(len(part))])
            seen(len(part))
    rows = totals.rows()
    rows = rows[~rows[:, 0].isnan()]
    usual = np.quantile(rows[:, 1:].numpy(), USUAL, axis=0).tolist()
    named = dict(zip(scorer.names, usual, strict=True))
    times = strangest(dict(zip(scorer.names, rows[:, 1:].unbind(1), strict=True)), named)[2]
    return Reference(codes, named, rows[:, 0], times)


def strangest(
    scales: Mapping[str, Float[Tensor, " time"]], usual: Mapping[str, float]
) -> tuple[list[str], Int[Tensor, " time"], Float[Tensor, " time"]]:
    """The scale with the greatest ratio of its error or distance to its usual value, at each step.

    Returns:
        The names of the scales; for each step the number of its scale, -1 where no channel has a value; and the
        ratio.
    """
    names = list(dict.fromkeys(name.partition("_")[2] for name in scales))
    least = torch.finfo(torch.float32).tiny
    times = torch.stack([row / max(usual[name], least) for name, row in scales.items()])
    missing = times[0].isnan()
    found, view = times.nan_to_num(-1.0).max(0)
    scale_of = torch.tensor([names.index(name.partition("_")[2]) for name in scales])
    return names, scale_of[view].where(~missing, -1), found.where(~missing, torch.nan)
