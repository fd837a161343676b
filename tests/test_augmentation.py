"""New samples: changes grow with strength, change only the named scales and reach the requested distance."""

import math
from collections.abc import Sequence
from typing import final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from msae import InputError
from msae.data.digits import digits
from msae.data.module import DataModule
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses.augmentation import (
    CHANGES,
    TOLERANCE,
    Augmented,
    Reference,
    augment,
    chosen,
    directions,
    meet,
    places,
    sample,
    statistics,
)


@final
class Halves(Reconstructor):
    """Codes are the two halves of a window's values, decoded exactly except for an offset that is not encoded."""

    def __init__(self, shape: Sequence[int], regularizer: str = "none") -> None:
        super().__init__(shape, regularizer=regularizer)
        self.save_hyperparameters(logger=False)
        self.off = nn.Parameter(torch.tensor(0.25))
        half, values = self.channels * self.length // 2, self.channels * self.length
        self.codes = {"first": slice(0, half), "second": slice(half, values)}

    def encode_scaled(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode_scaled(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (self.channels, self.length)) + self.off


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(200, 1, 8, generator=seeded()) * torch.arange(1.0, 9.0)
Y = torch.arange(200) % 3
EXACT = Halves((1, 8)).eval()
EXACT.set_statistics(torch.tensor([[1.0]]), torch.tensor([[5.0]]), torch.tensor([-9.0, 9.0]))
BY = Reference.of(EXACT, X, Y)


@pytest.fixture(scope="module")
def data() -> DataModule:
    return digits(val_size=200)


@pytest.fixture(scope="module")
def trained(data: DataModule) -> PyramidAutoEncoder:
    """Of three scales with codes, after 300 steps."""
    torch.manual_seed(0)
    model = PyramidAutoEncoder((1, 8, 8), 26, [1, 2, 4], code_dims=[2, 2, 1], hidden_dim=32)
    model.set_statistics(**data.statistics)
    model.initialize(lambda: data.train.x)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(300):
        optimizer.zero_grad()
        loss, _, _ = model.errors(data.train.x[step * 64 % 1100 :][:64])
        loss.backward()
        optimizer.step()
    return model.eval()


def augmented(change: str, strength: float = 0.5, seed: int = 0, **options: object) -> Augmented:
    return augment(EXACT, X, BY, change, strength, y=Y, generator=seeded(seed), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", CHANGES)
def test_effect_grows_with_strength(change: str, trained: PyramidAutoEncoder, data: DataModule) -> None:
    """Strength and decoded change of a sample have a high rank correlation along one draw, on a trained model."""
    x, y = data.val.x, data.val.y
    by = Reference.of(trained, data.train.x, data.train.y)
    strengths = torch.linspace(0.05, 1 if change == "mix" else 3, 12).tolist()
    effect = torch.stack([augment(trained, x, by, change, s, y=y, generator=seeded()).distance for s in strengths])
    for correlations in (spearmanr(strengths, column).statistic for column in effect.T.numpy()):
        assert correlations >= 0.95


@pytest.mark.parametrize("change", CHANGES)
def test_distances_are_met(change: str, trained: PyramidAutoEncoder, data: DataModule) -> None:
    """Distances differ far less than with one strength; those out of reach get the greatest, and `reached` is False."""
    x, y = data.val.x, data.val.y
    by = Reference.of(trained, data.train.x, data.train.y)
    made = augment(trained, x, by, change, y=y, distance=0.2, generator=seeded())
    met = (made.distance / 0.2 - 1).abs() <= TOLERANCE
    assert torch.equal(met, made.reached)
    assert met.float().mean() > 0.9
    assert made.strength[~met].ge(0.98 if change == "mix" else 98).all()
    change_made = (made.x - x) / by.spread  # of what is written, within the digits' range; they have no scale
    assert change_made.square().mean((1, 2)).sqrt() == pytest.approx(made.distance, abs=1e-5)
    z = trained.encode(x)
    move = directions(trained, z, by, change, y, torch.ones(26), seeded())
    moved = trained.decode(z + made.strength[:, None] * move)
    assert made.x == pytest.approx((x + moved - trained(x)[0]).clamp(0, 1).detach(), abs=1e-5)


def test_a_sample_beyond_the_range_stays_there(trained: PyramidAutoEncoder, data: DataModule) -> None:
    x = data.val.x.clone()
    x[:, :, 0] = 1.5
    by = Reference.of(trained, data.train.x)
    still = augment(trained, x, by, strength=0.0)
    assert torch.equal(still.x, x)
    assert not still.distance.any()
    assert augment(trained, x, by, strength=3.0, generator=seeded()).x[:, :, 0].max() == 1.5


@given(st.floats(0.01, 50), st.floats(0.1, 3), st.floats(0.5, 4))
@settings(deadline=None)
def test_meet_is_the_inverse(distance: float, factor: float, power: float) -> None:
    found = meet(distance, lambda s: factor * s**power, 3, 100.0)
    expected = min(100.0, (distance / factor) ** (1 / power))
    reached = factor * found**power
    if factor * 100.0**power < distance * (1 - TOLERANCE):
        assert found.min() >= 98
    else:
        assert reached == pytest.approx(torch.full((3,), distance), rel=TOLERANCE)
    assert expected <= 100


def test_strength_is_in_deviations() -> None:
    """A move is the same in all units of a value, and proportional to the strength."""
    made = augmented("jitter", 0.5)
    moves = (made.x - X).squeeze(1) / BY.deviation / EXACT.scale.squeeze()
    assert moves.std(0) == pytest.approx(torch.full((8,), 0.5), rel=0.25)
    twice = augmented("jitter", 1.0).x - X
    assert twice == pytest.approx(2 * (made.x - X), abs=1e-4)
    many = augment(EXACT, X * 1000, Reference.of(EXACT, X * 1000), "jitter", 0.5, generator=seeded())
    assert (many.x / 1000 - X) == pytest.approx(made.x - X, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("change", ["jitter", "scaling", "magnitude_warp", "drift"])
@pytest.mark.parametrize("scales", [None, ["first"], ["second"]])
def test_all_draws_are_of_one_length(change: str, scales: list[str] | None) -> None:
    """With a decoder that keeps lengths, the effect is the strength for every draw, of all scales or some."""
    z, moved = EXACT.encode(X), chosen(EXACT, scales)
    away = BY.deviation.expand(200, 8) if change in ("jitter", "drift") else z - BY.mean
    for seed in range(3):
        made = augmented(change, 0.7, seed, scales=scales)
        moves = (made.x - X).squeeze(1) / EXACT.scale.squeeze()
        assert moves.norm(dim=1) == pytest.approx(0.7 * (away * moved).norm(dim=1), rel=1e-3)


def test_what_the_changes_are() -> None:
    z = EXACT.encode(X)

    def drawn(change: str) -> Tensor:
        return directions(EXACT, z, BY, change, None, torch.ones(8), seeded())

    jitter = drawn("jitter") / BY.deviation
    assert jitter.mean(0) == pytest.approx(torch.zeros(8), abs=0.25)
    scaling = drawn("scaling") / (z - BY.mean)
    assert scaling.abs() == pytest.approx(torch.ones(200, 8), rel=1e-3)
    assert scaling == pytest.approx(scaling[:, :1].expand(-1, 8), rel=1e-3)
    assert (scaling[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    warp = drawn("magnitude_warp") / (z - BY.mean)
    assert warp[:, :4] == pytest.approx(warp[:, 4:], rel=1e-2, abs=1e-3)  # one curve over each code
    near, far = (torch.corrcoef(warp[:, [0, i]].T)[0, 1] for i in (1, 3))
    assert near > far
    drift = drawn("drift") / BY.deviation
    assert drift.std(0)[3] / drift.std(0)[0] == pytest.approx(4, rel=0.3)
    assert places(EXACT).tolist() == [0.25, 0.5, 0.75, 1.0] * 2


def test_mixtures_stay_within_a_label() -> None:
    """At strength 1 a mixture is one of the five nearest samples of its label, never the sample itself."""
    made = augmented("mix", 1.0, residual=False).x - 5 * EXACT.off.detach()
    apart = ((made[:, None] - X) / X.std(0)).flatten(2).norm(dim=2)
    found = apart.argmin(1)
    assert apart.min(1).values.max() < 1e-4
    assert torch.equal(Y[found], Y)
    assert (found != torch.arange(200)).all()
    own = ((X[:, None] - X) / X.std(0)).flatten(2).norm(dim=2)
    rank = ((own <= own.gather(1, found[:, None]) + 1e-5) & (Y[:, None] == Y)).sum(1)
    assert rank.max() <= 6
    alone = torch.arange(200)
    same = augment(EXACT, X, Reference.of(EXACT, X, alone), "mix", 1.0, y=alone, generator=seeded())
    assert torch.equal(same.x, X)
    assert not same.distance.any()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("scale", "changed"), [("first", slice(0, 4)), ("second", slice(4, 8))])
def test_only_the_scales_named_change(change: str, scale: str, changed: slice) -> None:
    moved = (augmented(change, scales=[scale]).x != X).squeeze(1)
    assert moved[:, changed].float().mean() > 0.9
    moved[:, changed] = False
    assert not moved.any()


def test_the_same_generator_gives_the_same() -> None:
    assert torch.equal(augmented("jitter").x, augmented("jitter").x)
    assert not torch.equal(augmented("jitter").x, augmented("jitter", seed=1).x)


def test_residual() -> None:
    """A sample keeps its reconstruction error and its missing values, and stays within the data's range."""
    assert torch.equal(augmented("jitter", 0.0).x, X)
    assert torch.equal(augmented("jitter", 0.0, residual=False).x, EXACT(X)[0])
    gap = X.clone()
    gap[0, 0, 3] = math.nan
    made = augment(EXACT, gap, BY, generator=seeded())
    assert made.x.isnan().nonzero().tolist() == [[0, 0, 3]]
    bounded = Halves((1, 8)).eval()
    bounded.set_statistics(EXACT.offset, EXACT.scale, torch.tensor([-9.0, 9.0]), bounded=True)
    assert augment(bounded, X.clamp(-9, 9), BY, strength=3.0).x.abs().max() == 9


def test_the_level_changes_only_if_named() -> None:
    model = Halves((1, 8)).eval()
    model.set_statistics(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.0, 1.0]), per_window=True)
    by = Reference.of(model, X)
    assert chosen(model, None).tolist() == [1.0] * 8 + [0.0] * 2
    level = augment(model, X, by, strength=1.0, scales=["level"], residual=False, generator=seeded())
    shape, mean = level.x - level.x.mean(2, keepdim=True), X.mean(2)
    assert not torch.allclose(level.x.mean(2), mean, atol=0.1)
    assert ((shape * X).sum(2) >= -1e-3).all()  # turned round by no negative deviation
    assert augment(model, X, by, strength=1e2, scales=["level"]).x.isfinite().all()


def test_samples_of_the_prior() -> None:
    model = Halves((1, 8), regularizer="kl").eval()
    model.set_statistics(torch.tensor([[1.0]]), torch.tensor([[5.0]]), torch.tensor([-9.0, 9.0]))
    x = sample(model, 3000, generator=seeded())
    assert x.shape == (3000, 1, 8)
    assert x.mean().item() == pytest.approx(1 + 5 * 0.25, abs=0.15)
    assert x.std(0).squeeze() == pytest.approx(torch.full((8,), 5.0), rel=0.05)
    model.set_statistics(model.offset, model.scale, model.value_range, per_window=True)
    with pytest.raises(InputError, match="expected one, for its level"):
        sample(model, 3)
    levels = sample(model, 3000, Reference.of(model, X), seeded()).mean(2)
    assert levels.std() > 1
    with pytest.raises(InputError, match=r"model.regularizer=none; expected kl"):
        sample(EXACT, 3)


def test_statistics() -> None:
    time = torch.arange(64.0)
    wave = torch.sin(2 * torch.pi * time / 16 + torch.rand(50, 1, 1, generator=seeded()) * 6)
    noise = torch.randn(50, 1, 64, generator=seeded())
    both = torch.cat([wave, -2 * wave + 3], dim=1)
    found = statistics(both, both + torch.cat([noise, noise], 1))
    assert found["mean"][0].tolist() == pytest.approx([0, 3], abs=1e-4)
    assert found["deviation"][0].tolist() == pytest.approx([0.5**0.5, 2 * 0.5**0.5], abs=1e-3)
    assert found["least"][0].tolist() == pytest.approx([-1, 1], abs=1e-2)
    assert found["greatest"][0].tolist() == pytest.approx([1, 5], abs=1e-2)
    for lag in (1, 2, 3):
        assert found[f"autocorrelation {lag}"][0, 0].item() == pytest.approx(math.cos(math.pi * lag / 8), abs=0.05)
    assert (found["autocorrelation 1"][1] < found["autocorrelation 1"][0]).all()
    assert found["correlation"][0].tolist() == pytest.approx([-1, -1], abs=1e-4)
    walk = torch.randn(400, 1, 256, generator=seeded()).cumsum(2)
    slopes = statistics(walk, torch.randn(400, 1, 256, generator=seeded()))["spectral slope"]
    assert slopes.squeeze().tolist() == pytest.approx([-2, 0], abs=0.35)
    gap = both.clone()
    gap[3, 0, 5] = math.nan
    assert all(value.isfinite().all() for value in statistics(gap, both).values())
    gap[:, 0, 5] = math.nan
    slope, full = (statistics(x, x)["spectral slope"][0] for x in (gap, both))
    assert slope[0].isnan()
    assert slope[1] == full[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": "noise"}, "change=noise: expected one of jitter, scaling, magnitude_warp, drift, mix"),
        ({"strength": -0.1}, "strength=-0.1: expected a number from 0 to 100"),
        ({"strength": 101}, "strength=101: expected a number from 0 to 100"),
        ({"strength": math.nan}, "strength=nan: expected a number from 0 to 100"),
        ({"change": "mix", "strength": 1.5}, "strength=1.5: expected a number from 0 to 1"),
        ({"scales": ["small"]}, "scales=small: expected one of first, second"),
        ({"scales": ["level"]}, "scales=level: expected one of first, second"),
        ({"scales": []}, r"scales=\[\]: expected a list of first, second, or null"),
        ({"scales": "first"}, "scales=first: expected a list of first, second, or null"),
        ({"distance": 0}, "distance=0: expected a number above 0, to 100"),
        ({"distance": 1e9}, r"distance=1000000000\.0: expected a number above 0, to 100"),
        ({"change": "mix"}, "y=None: mix needs labels, since the reference has some; expected a label for each sample"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        augment(EXACT, X, BY, **options)  # type: ignore[arg-type]


def test_no_reference() -> None:
    with pytest.raises(InputError, match="reference: no sample"):
        Reference.of(EXACT, X[:0])
