"""Scores of time steps by the distance from the nearest normal window."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msae.errors import InputError
from msae.models.ae import AutoEncoder
from msae.models.nested import NestedAutoEncoder
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses import anomaly, bank, reference
from msae.uses.anomaly import Scorer, Scores

LENGTH = 12


def series(time: int, seed: int = 0) -> Tensor:
    """Two channels: waves with noise, one of them on a level of 1,000."""
    noise = torch.randn(2, time, generator=torch.Generator().manual_seed(seed))
    return torch.sin(torch.arange(time) / 2) + 0.1 * noise + torch.tensor([[0.0], [1000.0]])


def prepared(model: Reconstructor) -> Any:
    """The model with statistics of `series`, started at its windows."""
    model.set_statistics(torch.tensor([[0.0], [1000.0]]), torch.tensor([[0.7], [2.0]]), torch.tensor([0.0, 1.0]))
    model.initialize(lambda: model.scaled(series(300).unfold(1, LENGTH, 1).movedim(1, 0)))
    return model.eval()


torch.manual_seed(0)
MODELS = {
    "separate": prepared(NestedAutoEncoder((2, LENGTH), [4, LENGTH], 2, hidden_dim=8)),
    "joint": prepared(NestedAutoEncoder((2, LENGTH), [4, LENGTH], 3, "joint", hidden_dim=8)),
    "pyramid": prepared(PyramidAutoEncoder((2, LENGTH), 12, (1, 2), 8, code_dims=(4, 4))),
    "ae": prepared(AutoEncoder((2, LENGTH), latent_dim=3)),
}
TRAINING = [series(150, 1), series(80, 2)]
KNOWN = {name: reference.learn(model, TRAINING) for name, model in MODELS.items()}


def pushed(scorer: Scorer, x: Tensor, cuts: list[int]) -> Scores:
    """Scores of a series that comes in pieces, cut at these steps."""
    pieces = torch.tensor_split(x, sorted(cuts), dim=1)
    return anomaly.joined([*(scorer.push(piece) for piece in pieces), scorer.finish()])


def same(a: Scores, b: Scores) -> None:
    """Assert that scores are the same to the bit."""
    for one, other in (
        (a.total, b.total),
        (a.channels, b.channels),
        *zip(a.scales.values(), b.scales.values(), strict=True),
    ):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@torch.no_grad()
def naive(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of each scale and channel at each step, window by window."""
    model, known = MODELS[name], KNOWN[name]
    sums = torch.zeros(2, 2, 2, x.shape[1], dtype=torch.float64)
    count = torch.zeros(2, x.shape[1])
    for start in range(x.shape[1] - LENGTH + 1):
        z = model.encode_scaled(model.scaled(x[None, :, start : start + LENGTH]))
        for scale, (key, made) in enumerate(model.parts_scaled(z).items()):
            steps = model.scaled(x[None, :, start : start + LENGTH])[..., -made.shape[2] :]
            shelf = known.bank.shelves[key]
            code = z[:, model.codes[key]].reshape(1, 2 if model.separate else 1, -1)[0] @ shelf.metric
            for channel in range(2):
                own = code[channel if model.separate else 0]
                spread = steps[0, channel].std(correction=0).clamp(min=shelf.floor[channel])
                together = torch.stack([steps[0, c].std(correction=0).clamp(min=shelf.floor[c]) for c in range(2)])
                unit = spread if model.separate else together.square().mean().sqrt()
                group = channel if model.separate else 0
                share = shelf.shares[0 if model.separate else channel]
                error = (steps - made)[0, channel].square().mean()
                far = []
                for kept, at, add in ((shelf.codes, own, error), (shelf.shapes, own / unit, error / spread**2)):
                    rest = kept[group] - at
                    rest = rest[rest.square().sum(1).argmin()]
                    far.append(rest @ share @ rest / made.shape[2] + add)
                for kind in range(2):
                    sums[scale, kind, channel, start + LENGTH - made.shape[2] : start + LENGTH] += far[kind]
            count[scale, start + LENGTH - made.shape[2] : start + LENGTH] += 1
    ratios = (sums / count[:, None, None] / known.usual[..., None]).mean(1)
    channels = [
        [ratios[:, c, step][~ratios[:, c, step].isnan()].square().mean().sqrt() for step in range(x.shape[1])]
        for c in range(2)
    ]
    return ratios.nan_to_num(-1).amax(1), torch.tensor(channels)


@pytest.mark.parametrize("name", ["separate", "joint"])
def test_scores_are_those_of_a_naive_rewrite(name: str) -> None:
    x = series(40, 3)
    x[0, 20] += 3
    scales, channels = naive(name, x)
    found = pushed(Scorer(MODELS[name], KNOWN[name]), x, [])
    torch.testing.assert_close(found.channels, channels.float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.total, channels.amax(0).float(), atol=1e-4, rtol=1e-3)
    for row, expected in zip(found.scales.values(), scales, strict=True):
        torch.testing.assert_close(row.nan_to_num(-1), expected.float(), atol=1e-4, rtol=1e-3)
    assert list(found.scales) == ["12", "4"]
    assert found.scales["4"].isnan().nonzero()[:, 0].tolist() == list(range(LENGTH - 4))
    assert found.total[20] > 3 > found.total[:5].max()
    assert found.channels[:, 20].argmax() == 0


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["separate", "pyramid", None])
@settings(deadline=None, max_examples=12)
@given(
    time=st.integers(LENGTH, 90),
    stride=st.integers(1, LENGTH),
    block=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 90), max_size=12),
    holes=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 89)), max_size=20),
)
def test_scores_do_not_depend_on_calls(
    name: str | None, causal: bool, time: int, stride: int, block: int, cuts: list[int], holes: list[tuple[int, int]]
) -> None:
    """The scores are the same to the bit."""
    x = series(time)
    for channel, step in holes:
        x[channel, step % time] = torch.nan
    known = KNOWN[name] if name else None
    scorer = Scorer(MODELS[name or "ae"], known, 1 if causal else stride, block, causal)
    once, cut = pushed(scorer, x, []), pushed(scorer, x, [min(c, time) for c in cuts])
    assert len(once) == len(cut) == time
    same(once, cut)
    assert bool(once.scales) == bool(name)
    judged = torch.arange(time) >= (LENGTH - 1 if causal else 0)
    assert torch.equal(once.channels.isnan(), x.isnan() | ~judged)
    assert torch.equal(once.total.isnan(), x.isnan().all(0) | ~judged)


def test_a_causal_score_needs_no_later_step() -> None:
    x = series(60)
    for name, known in KNOWN.items():
        whole = pushed(Scorer(MODELS[name], known, causal=True, block=1), x, [])
        cut = pushed(Scorer(MODELS[name], known, causal=True, block=1), x[:, :40], [])
        torch.testing.assert_close(whole.total[:40], cut.total, equal_nan=True)


def test_when_scores_are_final() -> None:
    """A step later than the delay, which is told; with `causal` at once."""
    scorer = Scorer(MODELS["separate"], KNOWN["separate"], block=1)
    assert scorer.delay == LENGTH - 1
    assert [len(scorer.push(series(20)[:, i : i + 1])) for i in range(20)] == [0] * (LENGTH - 1) + [1] * 9
    assert len(scorer.finish()) == LENGTH - 1
    scorer = Scorer(MODELS["separate"], KNOWN["separate"], block=1, causal=True)
    assert scorer.delay == 0
    assert [len(scorer.push(series(20)[:, i : i + 1])) for i in range(20)] == [0] * (LENGTH - 1) + [LENGTH] + [1] * 8


def test_windows_stand_alone() -> None:
    x = series(3 * LENGTH)
    windows = torch.stack(x.split(LENGTH, dim=1))
    for name, known in KNOWN.items():
        found = anomaly.joined(list(anomaly.scores(Scorer(MODELS[name], known), windows, 25)))
        stitched = pushed(Scorer(MODELS[name], known, LENGTH), x, [])
        torch.testing.assert_close(found.total, stitched.total, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.scales, stitched.scales, atol=1e-5, rtol=1e-4, equal_nan=True)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 9), steps=st.integers(1, 7), stride=st.integers(1, 7))
def test_over_steps(n: int, steps: int, stride: int) -> None:
    rows = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = torch.zeros(2, (n - 1) * stride + steps, dtype=torch.float64)
    for i in range(n):
        expected[:, i * stride : i * stride + steps] += rows[:, i : i + 1]
    torch.testing.assert_close(anomaly.over_steps(rows, steps, stride), expected)


def test_distances_of_codes_are_those_of_windows() -> None:
    """The metric measures codes by the windows without their means, however the code is scaled or mixed."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(500, 3, generator=generator)
    windows = hidden @ torch.randn(3, 20, generator=generator)
    windows = windows - windows.mean(1, keepdim=True)
    code = torch.cat([hidden @ torch.tensor([[1.0, 100, 0], [0, 1, 0], [0, 0.01, 5]]), torch.ones(500, 1)], dim=1)
    level = torch.randn(500, 1, 1, generator=generator)
    halves = torch.stack([windows[:, ::2], windows[:, 1::2]], dim=1)
    for steps in (windows[:, None], halves - halves.mean(2, keepdim=True)):
        metric, shares = bank.fit(code[:, None], steps + level)
        own = code @ metric
        torch.testing.assert_close(
            torch.cdist(own, own)[:50, :50], distances(steps).sum(2).sqrt(), atol=2e-2, rtol=1e-3
        )
        rest = own[:50, None] - own[None, :50]
        apart = torch.einsum("ija,cab,ijb->ijc", rest, shares, rest)
        torch.testing.assert_close(apart, distances(steps), atol=2e-2, rtol=1e-2)


def distances(steps: Tensor) -> Tensor:
    """Squared distances of the first 50 windows, for each channel."""
    return (steps[:50, None] - steps[None, :50]).square().sum(3)


def test_training_windows_are_not_their_own_neighbours() -> None:
    """They are scored as new windows are, with a distance from windows that share no step with them."""
    model, known = MODELS["separate"], KNOWN["separate"]
    starts = torch.tensor([0, 40, 100])
    barred = known.bank.barred(torch.zeros(3, dtype=torch.long), starts)
    others = (known.bank.series == 1) | ((known.bank.starts - starts[:, None]).abs() >= LENGTH)
    assert torch.equal(barred, ~others)
    windows = TRAINING[0].unfold(1, LENGTH, 1).movedim(1, 0)[starts]
    for view, _ in bank.views(model, windows):
        shelf = known.bank.shelves[view.name]
        torch.testing.assert_close(shelf.distances(view)[0][0], view.error)
        far, numbers = shelf.distances(view, barred)
        assert (far[0] > view.error).all()
        assert others.gather(1, numbers[0]).all()


def test_a_window_without_another_is_its_own_neighbour() -> None:
    known = KNOWN["separate"].bank
    alone = replace(known, series=torch.zeros_like(known.series), reach=10**6)
    assert not alone.barred(torch.tensor([0]), torch.tensor([40])).any()
    assert alone.barred(torch.tensor([1]), torch.tensor([40])).sum() == 0


def test_windows_far_outside_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """By `scores` as by `windows`, once a scorer."""
    model = prepared(NestedAutoEncoder((2, LENGTH), [4, LENGTH], 2, hidden_dim=8))
    model.channel_range = torch.tensor([[-2.0, 2.0], [990.0, 1010.0]], dtype=torch.float64)
    windows = torch.stack(series(4 * LENGTH).split(LENGTH, dim=1))
    windows[2, 1, 5] = 1e7
    for score in (lambda scorer: anomaly.scores(scorer, windows), lambda scorer: [scorer.windows(windows)]):
        caplog.clear()
        assert len(anomaly.joined(list(score(Scorer(model))))) == 4 * LENGTH
        [record] = caplog.records
        assert "channel 1: 1e+07 is far outside of the training data" in record.getMessage()


def test_a_short_series_has_neighbours() -> None:
    known = reference.learn(MODELS["separate"], [series(LENGTH + 4)])
    assert known.bank.reach == 1
    assert known.totals.isfinite().all()
    assert known.usual.max() < 10


def test_scores_of_data_the_model_was_not_trained_on_raise_what_is_usual() -> None:
    """By the ratio of the medians, and never lower it; they join the bank."""
    model, x = MODELS["separate"], series(400)
    alone = reference.learn(model, [x])
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(5)) * torch.tensor([[0.0], [0.5]])
    known = reference.learn(model, [x], fresh=[x + noise])
    assert known.bank.series.unique().tolist() == [0, 1]
    raised = known.usual / alone.usual
    assert (raised[:, 0, 1] > 2).all()  # the channel with the noise
    torch.testing.assert_close(raised[:, 0, 0], torch.ones(2), atol=0.3, rtol=0)
    assert len(known.totals) == 800
    assert 0.5 < known.totals.quantile(0.99) < 2


def test_a_bank_is_spread_evenly_and_small() -> None:
    known = reference.learn(MODELS["ae"], TRAINING, bank_size=21)
    places = list(zip(known.bank.series.tolist(), known.bank.starts.tolist(), strict=True))
    assert places == [(0, 10 * i) for i in range(14)] + [(1, 1 + 10 * i) for i in range(7)]
    assert known.bank.shelves["whole"].codes.shape[:2] == (1, 21)


def test_windows_with_missing_values_are_not_normal() -> None:
    x = series(150)
    x[0, 50] = torch.nan
    starts = reference.learn(MODELS["separate"], [x]).bank.starts
    assert set(starts.tolist()) == {*range(150 - LENGTH + 1)} - {*range(50 - LENGTH + 1, 51)}
    x[1, ::3] = torch.nan
    assert len(reference.learn(MODELS["separate"], [x]).bank.starts) == 150 - LENGTH + 1  # there are no others


def test_missing_values_do_not_count() -> None:
    x = series(60)
    x[0, 20:24] = torch.nan
    x[:, 40] = torch.nan
    found = pushed(Scorer(MODELS["separate"], KNOWN["separate"]), x, [])
    assert found.total[20:24].equal(found.channels[1, 20:24])
    assert found.total.isnan().nonzero().flatten().tolist() == [40]
    assert (found.strangest() == -1).nonzero().flatten().tolist() == [40]


def test_each_scale_sees_faults_of_its_length() -> None:
    """A spike is strangest at the short scale; a slow change of the usual pace at the long one."""
    time = torch.arange(1200)
    model = NestedAutoEncoder((1, 64), [8, 64], 4, hidden_dim=8).eval()
    normal = torch.sin(time / 5)[None] + 0.05 * torch.randn(1, 1200, generator=torch.Generator().manual_seed(0))
    model.initialize(lambda: normal.unfold(1, 64, 1).movedim(1, 0))
    known = reference.learn(model, [normal[:, :800]])
    spike, slow = normal[:, 800:].clone(), normal[:, 800:].clone()
    spike[:, 200] += 1
    slow[:, 200:260] = torch.sin(time[1000] / 5 + torch.arange(60) / 6.5)
    for x, step, scale in ((spike, 200, 1), (slow, 235, 0)):
        found = pushed(Scorer(model, known), x, [])
        assert found.strangest()[step] == scale
        assert found.total[step] > 1.5


def test_windows_scaled_by_themselves_do_not_see_a_level() -> None:
    model = prepared(PyramidAutoEncoder((2, LENGTH), 12, (1, 2), 8, code_dims=(4, 4)))
    model.per_window = True
    x = series(300)
    known = reference.learn(model, [x])
    assert list(known.bank.shelves) == ["1", "2"]
    shifted, usual = (pushed(Scorer(model, known), x[:, :60] + level, []) for level in (50, 0))
    torch.testing.assert_close(shifted.total, usual.total, atol=0.05, rtol=0.05)


def test_windows_are_each_a_series() -> None:
    windows = torch.stack(series(40 * LENGTH).split(LENGTH, dim=1))
    windows[7] = torch.nan
    known = reference.learn(MODELS["ae"], [windows[:20], windows[20:]])
    assert known.usual.shape == (1, 2, 2)
    assert len(known.totals) == 39 * LENGTH
    assert known.bank.series.tolist() == [*range(7), *range(8, 40)]
    assert known.totals.median() > 0.05  # of a window that is its own neighbour it would be the error alone


def test_mistakes() -> None:
    model = MODELS["separate"]
    with pytest.raises(InputError, match=r"expected \(2, time\)"):
        Scorer(model).push(torch.zeros(3, 20))
    with pytest.raises(InputError, match="series of 5 steps: expected at least 12"):
        pushed(Scorer(model), series(5), [])
    with pytest.raises(InputError, match="stride=13"):
        Scorer(model, stride=13)
    with pytest.raises(InputError, match="stride=2"):
        Scorer(model, stride=2, causal=True)
    with pytest.raises(InputError, match="1 windows with a value; expected at least 2"):
        reference.learn(model, [series(LENGTH)])
    with pytest.raises(InputError, match="0 windows with a value"):
        reference.learn(model, [])
    with pytest.raises(InputError, match="bank_size=1"):
        reference.learn(model, TRAINING, bank_size=1)
