"""Thresholds, events, when they are known, and rules on raw values."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import genpareto
from torch import Tensor

from msae.errors import InputError
from msae.models.ae import AutoEncoder
from msae.uses import anomaly, events, rules, suspects
from msae.uses.anomaly import Scores
from msae.uses.bank import Bank
from msae.uses.events import Event, Limits
from msae.uses.reference import Reference


def test_threshold_by_quantile() -> None:
    totals = torch.cat([torch.arange(1000.0), torch.full((50,), torch.nan)])
    assert events.threshold(totals, 0.1, "quantile") == pytest.approx(899.1)
    assert events.threshold(totals, 0.1, "evt") == pytest.approx(899.1)  # below the tail


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3])
def test_threshold_by_extreme_values(shape: float) -> None:
    """For a known tail, the threshold beyond the sample is closer to the truth than the sample's greatest value."""
    rng = np.random.default_rng(0)
    errors, greatest = [], []
    for _ in range(20):
        sample = genpareto.rvs(shape, size=5000, random_state=rng)
        truth = genpareto.isf(1e-5, shape)
        errors.append(np.log(events.threshold(torch.from_numpy(sample), 1e-5) / truth))
        greatest.append(np.log(sample.max() / truth))
    assert abs(np.median(errors)) < 0.12
    assert abs(np.median(errors)) < abs(np.median(greatest))


def test_alarms_are_as_rare_as_wanted() -> None:
    rng = np.random.default_rng(1)
    train, new = (torch.from_numpy(rng.chisquare(3, n)) for n in (20_000, 1_000_000))
    for method in events.METHODS:
        rate = (new > events.threshold(train, 1e-3, method)).double().mean()
        assert 0.0006 < rate < 0.0015


def test_scores_that_are_all_alike() -> None:
    assert events.threshold(torch.full((5000,), 2.0), 1e-4) == 2


@pytest.mark.parametrize("method", events.METHODS)
@pytest.mark.parametrize("n", [1, 100, 630])
def test_few_scores_have_a_quantile(n: int, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """The threshold is close to the greatest score, and the log says so."""
    totals = torch.rand(n, generator=torch.Generator().manual_seed(0))
    found = events.threshold(totals, 1e-3, method)
    assert found == pytest.approx(float(np.quantile(totals.double(), 1 - 1e-3)))
    assert found <= totals.max()
    [line] = caplog.messages
    assert line.startswith(f"{n} training scores are too few for ")
    assert f"expect an alarm in about {n} steps" in line


def test_few_scores_are_enough_for_a_high_probability(caplog: pytest.LogCaptureFixture) -> None:
    totals = torch.arange(100.0)
    assert events.threshold(totals, 0.1, "evt") == events.threshold(totals, 0.1, "quantile") == pytest.approx(89.1)
    assert not caplog.messages


def bursts(time: int, seed: int) -> Tensor:
    """Scores that are high for a while: an autoregression."""
    noise = np.random.default_rng(seed).normal(size=time)
    return torch.from_numpy(lfilter([1.0], [1.0, -0.95], noise)).float()


@pytest.mark.parametrize("method", events.METHODS)
def test_a_budget_of_events(method: str) -> None:
    """About as many events as were asked for, where as many alarms come in fewer events."""
    gap, train, new = 20, bursts(100_000, 0), bursts(1_000_000, 1)
    by_events, by_steps = (events.threshold(train, 1e-3, method, gap=apart) for apart in (gap, None))
    assert by_events < by_steps
    low = float(train.quantile(events.LEVEL))
    found, fewer = (events.count(new, Limits(above, low, gap)) for above in (by_events, by_steps))
    assert 700 < found < 1400
    assert fewer < found / 2


def test_few_events_for_a_budget(caplog: pytest.LogCaptureFixture) -> None:
    """Where there are too few peaks for a tail, the training scores have no more events than the budget."""
    totals = bursts(1500, 2)
    low = float(totals.quantile(events.LEVEL))
    for probability, most in ((1e-4, 0), (1 / 750, 2), (1 / 300, 5)):
        above = events.threshold(totals, probability, gap=10)
        assert events.count(totals, Limits(above, low, 10)) == most
    assert "separate peaks are too few for extreme value theory" in caplog.text


@pytest.mark.parametrize(
    ("n", "probability", "method", "message"),
    [
        (0, 1e-3, "evt", "training scores: none is a number"),
        (100, 0, "evt", "probability=0: expected a number between 0 and 1"),
        (100, 1, "evt", "probability=1: expected a number between 0 and 1"),
        (100, -0.1, "evt", "probability=-0.1: expected a number from 0 to 1"),
        (100, 0.1, "pot", "threshold=pot: expected one of evt, quantile"),
    ],
)
def test_thresholds_that_cannot_be(n: int, probability: float, method: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        events.threshold(torch.rand(n), probability, method)


def scored(total: list[float]) -> Scores:
    row = torch.tensor(total)
    return Scores(row, torch.stack([row * 2, torch.zeros_like(row)]), {})


def found(total: list[float], above: float, low: float, gap: int = 0, length: int | None = None) -> list[Event]:
    limits = Limits(above, low, gap)
    return events.merged(events.events(scored(total), limits, length=length), limits, length)


def test_events() -> None:
    nan = float("nan")
    scores = scored([9, 0, 3, 5, 4, 0, nan, 6, 1])
    scale = torch.tensor([1, 0, 0, 2, 0, 0, -1, 1, 0])
    every = events.events(scores, Limits(2, 2), scale, first=100)
    assert every == [
        Event(100, 100, 100, 9, 1, 0, 100),
        Event(102, 104, 103, 5, 2, 0, 102),
        Event(107, 107, 107, 6, 1, 0, 107),
    ]
    assert events.merged(every, Limits(2, 2)) == every
    assert events.merged(every, Limits(2, 2, 1)) == [Event(100, 104, 100, 9, 1, 0, 100), every[2]]
    assert events.merged(every, Limits(2, 2, 2)) == [Event(100, 107, 100, 9, 1, 0, 100)]
    assert found([0, nan], 0, 0) == found([], 0, 0) == []


def test_an_event_lasts_until_scores_are_low() -> None:
    """A run between the thresholds that contains no alarm is none, and bridges none."""
    total = [0.0, 2, 6, 2, 2, 7, 2, 0, 2, 2, 0, 6, 0]
    assert [(run.start, run.end, run.peak, run.known) for run in found(total, 5, 1)] == [(1, 6, 5, 2), (11, 11, 11, 11)]
    assert [(run.start, run.end) for run in found(total, 5, 5)] == [(2, 2), (5, 5), (11, 11)]
    assert [(run.start, run.end) for run in found(total, 5, 1, gap=3)] == [(1, 6), (11, 11)]
    assert [(run.start, run.end) for run in found(total, 5, 1, gap=4)] == [(1, 11)]
    assert found(total, 8, 1, gap=4) == []


def test_events_end_with_a_window_that_stands_alone() -> None:
    total = [0.0, 3, 4, 5, 0, 6]
    assert [(run.start, run.end) for run in found(total, 2, 2, 0, 3)] == [(1, 2), (3, 3), (5, 5)]
    assert [(run.start, run.end) for run in found(total, 2, 2, 1, 3)] == [(1, 2), (3, 5)]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0]), min_size=1, max_size=40), st.integers(0, 4))
def test_tops_are_thresholds_of_so_many_events(total: list[float], gap: int) -> None:
    tops = events.tops(np.array(total), 0.0, gap).tolist()
    assert tops == sorted(tops, reverse=True)
    counts = {above: len(found(total, above, 0.0, gap)) for above in (0.0, 1.0, 2.0, 3.0)}
    assert len(tops) == max(0, *counts.values())
    for i, above in enumerate(tops):
        assert counts.get(above, 0) <= i


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=40),
    st.lists(st.integers(1, 39), max_size=5),
    st.integers(0, 3),
)
def test_events_do_not_depend_on_calls(total: list[float], cuts: list[int], gap: int) -> None:
    limits = Limits(1.5, 0.5, gap)
    bounds = sorted({0, len(total), *(cut for cut in cuts if cut < len(total))})
    parts = [run for a, b in pairwise(bounds) for run in events.events(scored(total[a:b]), limits, first=a)]
    assert events.merged(parts, limits) == found(total, 1.5, 0.5, gap)


@pytest.mark.parametrize(("stride", "time"), [(1, 40), (3, 42), (3, 40), (5, 12), (12, 50)])
def test_a_score_is_certain_when_no_later_value_changes_it(stride: int, time: int) -> None:
    """Values after that step do not change the score, and the value at that step does."""
    torch.manual_seed(0)
    model, length = AutoEncoder((1, 12), latent_dim=2).eval(), 12
    x = torch.randn(1, time)

    def total(series: Tensor) -> Tensor:
        return anomaly.joined(list(anomaly.scores(anomaly.Scorer(model, stride=stride), series))).total

    scores, known = total(x), events.certain(torch.arange(time), time, length, stride)
    for step in range(time):
        last = int(known[step])
        later, then = x.clone(), x.clone()
        later[:, last + 1 :] += 5
        then[:, last] += 5
        assert step <= last < time
        torch.testing.assert_close(total(later)[step], scores[step])
        assert not torch.isclose(total(then)[step], scores[step], rtol=1e-3)


def noisy(time: int, seed: int = 0) -> Tensor:
    """A wave, pure noise and a constant, `(3, time)`, in float64."""
    noise = torch.randn(2, time, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wave = torch.sin(torch.arange(time) / 8) + noise[0] / 10
    return torch.stack([wave, noise[1], torch.full((time,), 1e-4, dtype=torch.float64)])


KNOWN = rules.learn([noisy(3000)], 3)


def told(x: Tensor, known: rules.Rules = KNOWN) -> list[tuple[str, int, int, int, int]]:
    return [(run.rule, run.channel, run.start, run.end, run.known) for run in rules.events(known, x)]


def test_rules() -> None:
    """A sensor that stands still, with less noise than usual; values beyond the range; and missing ones."""
    x = noisy(1000, seed=1)
    assert told(x) == []
    x[1, 100:160] = x[1, 100]
    x[0, 300:340] = x[0, 300] + 1e-5 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    x[1, 500] = 9
    x[0, 600:602] = -4
    x[2, 700:720] = 3e-4
    x[1, 800:830] = torch.nan
    x[0, 900:903] = torch.nan  # too short
    x[1, 950:954] = x[1, 950]  # too short
    assert told(x) == [
        ("stands still", 1, 100, 159, 105),
        ("stands still", 0, 300, 339, 305),
        ("out of range", 1, 500, 500, 500),
        ("out of range", 0, 600, 601, 600),
        ("out of range", 2, 700, 719, 700),
        ("missing", 1, 800, 829, 804),
    ]


def test_what_happened_in_training_is_normal() -> None:
    """Rounded values that repeat, long holes, and a channel of the numbers 0 and 1; twice as long is still normal."""
    x = noisy(2000)
    x[1, 50:70] = torch.nan
    x[0, 1000:1030] = x[0, 1000]
    x[2] = (torch.arange(2000) // 100 % 2).double()
    known = rules.learn([x[:, :1200], x[:, 1200:]], 3)
    new = noisy(1000, seed=1)
    new[2] = (torch.arange(1000) // 150 % 2).double()
    new[0, 100:150] = new[0, 100]
    new[1, 300:340] = torch.nan
    assert told(new, known) == []
    new[0, 100:170] = new[0, 100]
    new[1, 300:341] = torch.nan
    new[2, 600:] = 1
    assert [run[:4] for run in told(new, known)] == [
        ("stands still", 0, 100, 169),
        ("missing", 1, 300, 340),
        ("stands still", 2, 450, 999),
    ]


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_rules_do_not_depend_on_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noisy(400, seed=1)
    x[1, 90:200] = x[1, 90]
    x[0, 250:] = torch.nan
    whole = told(x)
    assert len(whole) == 2
    monkeypatch.setattr(rules, "PIECE", piece)
    assert told(x) == whole


def test_rules_of_windows() -> None:
    """No run extends from one window to the next."""
    windows = noisy(600, seed=1).unfold(1, 20, 20).movedim(1, 0).clone()
    windows[3, 1, 12:] = windows[4, 1, :10] = 0.5
    windows[6, 1, 17:] = windows[7, 1, :3] = 0.5  # too short
    known = rules.learn([noisy(3000).unfold(1, 20, 20).movedim(1, 0)], 3)
    assert [run[1:4] for run in told(windows, known)] == [(1, 72, 79), (1, 80, 89)]


def test_rules_of_a_channel_without_values() -> None:
    """It may be missing, and no value of it is out of range."""
    x = noisy(500)
    x[1] = torch.nan
    known = rules.learn([x], 3)
    assert told(x, known) == []
    assert told(noisy(500), known) == []


def test_without_a_reference_only_missing_channels_are_told() -> None:
    x = noisy(500)
    x[0, 10:100] = 99
    x[1, 10:100] = torch.nan
    assert told(x, rules.unknown(3)) == [("missing", 1, 10, 99, 14)]


@pytest.mark.parametrize("n", [3000, 30_000])
def test_rules_are_rarely_wrong(n: int) -> None:
    """Less than once in 100,000 steps of noise, as it is and rounded."""
    for places in (0, 1, 6):
        wrong = 0
        for seed in range(10):
            train, new = (torch.from_numpy(np.random.default_rng([seed, part]).normal(size=(1, n))) for part in (0, 1))
            known = rules.learn([train.round(decimals=places)], 1)
            wrong += len(rules.events(known, new.round(decimals=places)))
        assert wrong <= 10 * n / 100_000 + 1


def test_events_of_rules_and_scores_together() -> None:
    nan = float("nan")
    spike, other = Event(8, 14, 10, 5.0, 1, 0, 60), Event(8, 14, 10, 5.0, 1, 1, 60)
    out, still = (
        Event(a, b, a, nan, -1, 0, c, rule)
        for a, b, c, rule in ((10, 10, 10, "out of range"), (13, 30, 18, "stands still"))
    )
    assert events.together([other], [out], 0) == [other, out]
    assert events.together([spike], [out], 0) == [Event(8, 14, 10, 5.0, 1, 0, 10, "out of range")]
    inside = Event(12, 13, 12, nan, -1, 0, 12, "stands still")
    assert events.together([spike], [inside], 0) == [Event(8, 14, 10, 5.0, 1, 0, 12, "stands still")]
    assert events.together([spike], [still], 0) == events.together([spike], [still], 1) == [spike, still]
    assert events.together([spike], [still], 2) == [Event(8, 30, 10, 5.0, 1, 0, 18, "stands still")]
    assert events.together([], [still, out], 2) == [Event(10, 30, 10, nan, -1, 0, 10, "out of range, stands still")]
    assert events.together([spike], [still, out], 2) == [Event(8, 30, 10, 5.0, 1, 0, 10, "out of range, stands still")]


def test_a_threshold_of_few_scores_is_raised() -> None:
    assert [events.raised(2.0, windows) for windows in (0.5, 8, 80)] == [18.0, 4.0, pytest.approx(2.2)]


@pytest.mark.parametrize(("cycles", "wider"), [(5, 3.0), (20, 1.5), (100, 1.1)])
def test_the_range_of_few_cycles_is_wider(cycles: int, wider: float) -> None:
    """The outer tenth is added twice to a range of ten cycles, and once to that of many."""
    x = torch.sin(torch.arange(cycles * 40) * np.pi / 20 + 0.01).double()[None]
    known = rules.learn([x], 1)
    tail = 1 - float(x.quantile(0.9))
    assert float(known.high[0]) == pytest.approx(1 + wider * tail, rel=0.01)
    assert float(known.low[0]) == pytest.approx(-1 - wider * tail, rel=0.01)


def reference_of(totals: Tensor) -> Reference:
    """What is normal, of which only the scores count; two series."""
    n = len(totals) // 2
    places = torch.stack([torch.arange(2 * n) // n, torch.arange(2 * n) % n], dim=1)
    bank = Bank(torch.zeros(1, 1), {}, places[:1, 0], places[:1, 1], 1)
    return Reference(bank, torch.ones(1, 2, 1), totals.float(), places)


def test_suspects_by_scores() -> None:
    """A score that stands alone is told with its place; one with another as high elsewhere is not."""
    totals = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    assert suspects.by_scores(reference_of(totals), 50) is None
    totals[1300:1340] = 6
    found = suspects.by_scores(reference_of(totals), 50)
    assert found is not None
    assert (found.series, found.step, found.why) == (1, 300, "its score is 6 times the highest of all others")
    totals[100] = 2
    assert suspects.by_scores(reference_of(totals), 50) is None


@pytest.mark.parametrize("place", [0, 777, 1999])
@pytest.mark.parametrize("sign", [1, -1])
def test_suspects_by_values(place: int, sign: int) -> None:
    """A failure of two windows at any place of two series and channels; clean series are not suspected."""
    x = torch.stack([noisy(2000)[0], noisy(2000, seed=5)[0] * 10 + 3])
    data = [x[:, :1000], x[:, 1000:]]
    assert suspects.by_values(data, ["a", "b"]) is None
    x[1, max(0, place - 30) : place + 30] = 3 + 60 * sign
    found = suspects.by_values(data, ["a", "b"])
    assert found is not None
    assert abs(1000 * found.series + found.step - place) <= 30
    limit = "most" if sign > 0 else "least"
    assert found.why.startswith(f"b is {3 + 60 * sign}, where all other values are at {limit} ")
    assert suspects.by_values([torch.full((1, 100), torch.nan)], ["a"]) is None
    assert suspects.by_values([torch.rand(30, 1, 12)], ["a"]) is None


@pytest.mark.parametrize("seed", range(5))
def test_clean_series_are_rarely_suspected(seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 20_000)))
    assert suspects.by_values([x], ["a", "b"]) is None
