"""New samples from old ones by controlled changes of the latent, in all scales or in some.

Every change moves a latent along one random direction, and `strength` is the distance. All directions have the same
length, in standard deviations of the latent over reference samples or relative to a latent's difference from their
mean, so that a strength means the same for every model and data set. The changes follow L-GTA (arXiv 2507.23615), which
changes a latent sequence by draws of random length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from msae.errors import InputError, check_choice, check_each, check_int, check_number, check_positive
from msae.models.reconstructor import Reconstructor

CHANGES = ("jitter", "scaling", "magnitude_warp", "drift", "mix")
STRONGEST = 100.0
"""The greatest strength, and the greatest distance, in standard deviations; `mix` reaches the neighbour at 1."""
TOLERANCE = 0.01
"""The greatest relative error of the distance of an adaptive change."""
NEIGHBOURS = 5
KNOTS = 4
BATCH = 2048


@dataclass(frozen=True)
class Reference:
    """The latents of samples by which strengths, distances and neighbours are measured.

    Attributes:
        z: the latents.
        y: the labels, or None; only samples of one label are mixed.
        mean: the mean of each latent value.
        deviation: the standard deviation of each latent value.
        spread: the standard deviation of each channel, in normalized units.
    """

    z: Float[Tensor, "n latent"]
    y: Int[Tensor, " n"] | None
    mean: Float[Tensor, " latent"]
    deviation: Float[Tensor, " latent"]
    spread: Float[Tensor, "channels 1"]

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: Reconstructor, x: Float[Tensor, "n channels length"], y: Int[Tensor, " _"] | None = None
    ) -> Reference:
        """The reference of samples in raw units, such as the training split.

        Raises:
            InputError: no samples, or samples whose shape is not the model's.
        """
        if not len(x):
            raise InputError("reference: no sample")
        check_each("y", x if y is None else y, len(x), "samples")
        z = torch.cat([model.encode(part) for part in x.split(BATCH)])
        scaled = model.normalized(x)[0]
        mean = scaled.nanmean((0, 2), keepdim=True)
        spread = (scaled - mean).square().nanmean((0, 2)).sqrt()[:, None]
        return cls(z, y, z.mean(0), z.std(0, correction=0), spread.where(spread > 0, 1.0))


class Augmented(NamedTuple):
    """New samples, and the distance of each from its old sample.

    Attributes:
        x: the samples, in raw units.
        strength: the strength of each sample's change.
        distance: the root mean square of each sample's change, in normalized units divided by `Reference.spread`.
        reached: whether this is the requested distance, within `TOLERANCE`; True if none was requested.
    """

    x: Float[Tensor, "batch channels length"]
    strength: Float[Tensor, " batch"]
    distance: Float[Tensor, " batch"]
    reached: Bool[Tensor, " batch"]


@torch.no_grad()
def augment(
    model: Reconstructor,
    x: Float[Tensor, "batch channels length"],
    reference: Reference,
    change: str = "jitter",
    strength: float = 0.5,
    *,
    y: Int[Tensor, " _"] | None = None,
    scales: Sequence[str] | None = None,
    distance: float | None = None,
    residual: bool = True,
    generator: torch.Generator | None = None,
) -> Augmented:
    """A new sample for each old one; it has the old one's label.

    Args:
        model: in evaluation mode.
        x: samples in raw units.
        reference: see `Reference.of`.
        change: `jitter` moves in a random direction. `drift` does too, further along the values of each code. `scaling`
            moves away from the mean or towards it. `magnitude_warp` does too, by a smooth curve of factors over the
            values of each code, which are in order of time if the code is of segments. `mix` moves towards one of the
            nearest latents of the same label, at most all the way.
        strength: the root mean square of the move, for `jitter` and `drift` relative to that of the deviations, for
            `scaling` and `magnitude_warp` to that of the differences from the mean; for `mix` a fraction of the way.
        y: the labels, for `mix`.
        scales: the names of the codes to change, from `model.codes`; by default all but `level`.
        distance: if given, each sample gets the strength at which `Augmented.distance` is this.
        residual: whether a new sample keeps the reconstruction error of its old one: x + decode(z') - decode(z) instead
            of decode(z'), clipped to the data's range if it has one. Missing values then stay missing. On validation
            splits such samples were harder to tell from real ones in most experiments.
        generator: the random generator, on the CPU; the same state gives the same draws at every strength.

    Raises:
        InputError: an invalid change, scale, strength or distance.

    Examples:
        >>> import torch
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.augmentation import Reference, augment
        >>> model = AutoEncoder((1, 32), latent_dim=4).eval()
        >>> x = torch.randn(8, 1, 32)
        >>> augment(model, x, Reference.of(model, x), "jitter", strength=0.5).x.shape
        torch.Size([8, 1, 32])
    """
    most = check(model, change, strength, scales, distance)
    check_each("y", x if y is None else y, len(x), "samples")
    z = model.encode(x)
    move = directions(model, z, reference, change, y, chosen(model, scales).to(z), generator)
    x_hat, width = model.decode(z), model.level(x)[1] * reference.spread
    bounds = model.value_range.to(x) if residual and model.bounded else x.new_tensor([-math.inf, math.inf])
    low, high = torch.fmin(bounds[0], x), torch.fmax(bounds[1], x)  # a sample beyond the bounds stays where it is
    room = (low - x).nan_to_num(-math.inf), (high - x).nan_to_num(math.inf)

    def decoded(strengths: Tensor) -> Tensor:
        moved = z + strengths[:, None] * move
        if model.per_window:  # a deviation is not negative
            moved[:, -model.channels :].clamp_(min=0)
        return model.decode(moved)

    def difference(made: Tensor) -> Tensor:
        change_made: Tensor = (made - x_hat).clamp(*room)
        return change_made

    def size(made: Tensor) -> Tensor:
        return (difference(made) / width).square().mean((1, 2)).sqrt()

    used = z.new_full((len(z),), strength)
    if distance is not None:
        used = meet(distance, lambda strengths: size(decoded(strengths)), len(z), most).to(z)
    made = decoded(used)
    found = size(made)
    reached = (found - (distance or 0)).abs() <= (TOLERANCE * distance if distance is not None else math.inf)
    if residual:
        made = (x + difference(made)).clamp(low, high)
    return Augmented(made, used, found, reached)


def check(model: Reconstructor, change: Any, strength: Any, scales: Sequence[str] | str | None, distance: Any) -> float:
    """Raise InputError for an invalid argument of `augment`; return the greatest strength of the change."""
    check_choice("change", change, CHANGES)
    most = 1.0 if change == "mix" else STRONGEST
    check_number("strength", strength, most)
    if distance is not None:
        check_positive("distance", distance, STRONGEST)
    if scales is not None and (isinstance(scales, str) or not len(scales)):
        raise InputError(f"scales={scales}: expected a list of {', '.join(model.codes)}, or null for all")
    for name in scales or ():
        check_choice("scales", name, model.codes)
    return most


def chosen(model: Reconstructor, scales: Sequence[str] | None) -> Float[Tensor, " latent"]:
    """1 for the latent values in the codes of these scales, 0 for others; None means all codes but `level`."""
    one = torch.zeros(model.latent_dim)
    for name, code in model.codes.items():
        one[code] = float(name != "level" if scales is None else name in map(str, scales))
    return one


def directions(
    model: Reconstructor,
    z: Float[Tensor, "batch latent"],
    reference: Reference,
    change: str,
    y: Int[Tensor, " batch"] | None,
    moved: Float[Tensor, " latent"],
    generator: torch.Generator | None,
) -> Float[Tensor, "batch latent"]:
    """The move of each latent at strength 1; only values for which `moved` is 1 change."""

    def draw(size: int) -> Tensor:
        return torch.randn(len(z), size, generator=generator).to(z.device, z.dtype)

    if change == "mix":
        return (neighbours(z, reference, y, generator) - z) * moved
    place = places(model).to(z)
    if change in ("jitter", "drift"):
        factors, size = draw(z.shape[1]), reference.deviation * moved
        shape = size * place if change == "drift" else size
    else:
        size = shape = (z - reference.mean) * moved
        if change == "scaling":
            factors = draw(1)
        else:
            waves = torch.cos(torch.pi * place[:, None] * torch.arange(KNOTS).to(z))
            factors = draw(KNOTS) @ (waves / waves.norm(dim=1, keepdim=True)).T
    move = factors * shape
    length = move.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    scaled: Tensor = move * (size.norm(dim=-1, keepdim=True) / length)
    return scaled


def places(model: Reconstructor) -> Float[Tensor, " latent"]:
    """The relative position of each latent value in its code, 1 for the last."""
    sizes = [code.stop - code.start for code in model.codes.values()]
    return torch.cat([torch.arange(1, size + 1) / size for size in sizes])


def neighbours(
    z: Float[Tensor, "batch latent"],
    reference: Reference,
    y: Int[Tensor, " batch"] | None,
    generator: torch.Generator | None,
) -> Float[Tensor, "batch latent"]:
    """For each latent, one of the nearest of the same label, or the latent itself if there is no other.

    Raises:
        InputError: the reference has labels and the latents have none.
    """
    if reference.y is not None and y is None:
        raise InputError("y=None: mix needs labels, since the reference has some; expected a label for each sample")
    unit = reference.deviation.where(reference.deviation > 0, 1.0)
    apart = torch.cdist(z / unit, reference.z / unit, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.masked_fill(apart < 1e-4, math.inf)  # the sample itself
    if reference.y is not None and y is not None:
        apart = apart.masked_fill(y[:, None] != reference.y, math.inf)
    near = apart.topk(min(NEIGHBOURS, apart.shape[1]), largest=False)
    count = near.values.isfinite().sum(1)
    picked = (torch.rand(len(z), generator=generator).to(z) * count).long().clamp(max=NEIGHBOURS - 1)
    other = reference.z[near.indices.gather(1, picked[:, None]).squeeze(1)]
    return other.where(count[:, None] > 0, z)


def meet(distance: float, effect: Callable[[Tensor], Tensor], n: int, most: float) -> Float[Tensor, " n"]:
    """Strengths of n samples at which `effect` is `distance`, by bisection; `most` if the effect is less even there.

    Strengths double up to `most` until the effect is large enough; bisection starts there.
    """
    low, high = torch.zeros(n), torch.full((n,), most / 2**12)
    for _ in range(12):
        short = effect(high).cpu() < distance
        low, high = high.where(short, low), (2 * high).where(short, high)
    middle = high
    for _ in range(30):
        found = effect(middle).cpu()
        done = (found - distance).abs() <= TOLERANCE / 2 * distance
        if (done | ((high == most) & (found < distance) & (high - low < TOLERANCE * most))).all():
            break
        short = found < distance
        low, high = middle.where(short & ~done, low), middle.where(~short & ~done, high)
        middle = middle.where(done, (low + high) / 2)
    return middle


def check_prior(model: Reconstructor) -> None:
    """Raise InputError unless the model's latent has a prior to sample from."""
    if model.regularizer != "kl":
        raise InputError(f"sample: the model was trained with model.regularizer={model.regularizer}; expected kl")


@torch.no_grad()
def sample(
    model: Reconstructor, n: int, reference: Reference | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "n channels length"]:
    """New samples, in raw units: decoded latents from the prior of a model trained with `regularizer=kl`.

    The prior is a normal distribution (arXiv 1312.6114). With `normalize=window` the level has no prior and is taken
    from a random sample of the reference.

    Raises:
        InputError: another regularizer, or `normalize=window` without a reference.

    Examples:
        >>> from msae.models.ae import AutoEncoder
        >>> from msae.uses.augmentation import sample
        >>> sample(AutoEncoder((1, 32), latent_dim=4, regularizer="kl").eval(), n=3).shape
        torch.Size([3, 1, 32])
    """
    check_int("n", n)
    check_prior(model)
    levels = 2 * model.channels if model.per_window else 0
    z = torch.randn(n, model.latent_dim - levels, generator=generator)
    if levels:
        if reference is None:
            raise InputError("reference=None: the model normalizes each window by itself; expected one, for its level")
        picked = torch.randint(len(reference.z), (n,), generator=generator)
        z = torch.cat([z, reference.z[picked, -levels:].cpu()], dim=1)
    return torch.cat([model.decode(part.to(model.device)) for part in z.split(BATCH)])


def statistics(
    x: Float[Tensor, "n channels length"], x_new: Float[Tensor, "m channels length"], lags: int = 3
) -> dict[str, Float[Tensor, "2 channels"]]:
    """Statistics that should be the same for old and new samples: for each channel, of the old and of the new ones.

    Mean, deviation, least and greatest value; autocorrelation within samples at `lags` lags; slope of the logarithm of
    the mean power spectrum over that of the frequency; for several channels the mean correlation with the others.
    Missing values are left out; spectra leave out samples that have some, and give NaN if all samples do.
    """
    both = [summary(samples.double(), min(lags, x.shape[2] - 1)) for samples in (x, x_new)]
    return {name: torch.stack([found[name] for found in both]).float() for name in both[0]}


def summary(x: Float[Tensor, "n channels length"], lags: int) -> dict[str, Float[Tensor, " channels"]]:
    """The statistics of samples."""
    flat = x.movedim(1, 0).flatten(1)
    present = ~flat.isnan()
    mean = flat.nanmean(1)
    rest = (flat - mean[:, None]).nan_to_num()
    found = {
        "mean": mean,
        "deviation": (rest.square().sum(1) / present.sum(1)).sqrt(),
        "least": flat.where(present, math.inf).amin(1),
        "greatest": flat.where(present, -math.inf).amax(1),
    }
    own = (x - x.nanmean(2, keepdim=True)).nan_to_num()
    power = own.square().sum((0, 2)).clamp(min=1e-30)
    for lag in range(1, lags + 1):
        found[f"autocorrelation {lag}"] = (own[..., lag:] * own[..., :-lag]).sum((0, 2)) / power
    if x.shape[2] > 4:
        whole = ~x.isnan().any(2)
        squares = torch.fft.rfft(own, dim=2)[..., 1:].abs().square() * whole[..., None]
        spectrum = squares.sum(0).clamp(min=1e-30).log()
        frequency = torch.arange(1, spectrum.shape[1] + 1).to(x).log()
        frequency -= frequency.mean()
        slope = spectrum @ frequency / frequency.square().sum()
        found["spectral slope"] = slope.where(whole.any(0), math.nan)
    if len(flat) > 1:
        unit = rest / rest.norm(dim=1, keepdim=True).clamp(min=1e-30)
        found["correlation"] = ((unit @ unit.T).sum(1) - unit.square().sum(1)) / (len(flat) - 1)
    return found
