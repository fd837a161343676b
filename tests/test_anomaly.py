"""Scores of time steps."""

from collections.abc import Sequence
from typing import final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msae.errors import InputError
from msae.models.ae import AutoEncoder
from msae.models.layers import window_level
from msae.models.pyramid import PyramidAutoEncoder
from msae.models.reconstructor import Reconstructor
from msae.uses import anomaly
from msae.uses.anomaly import Scorer, Scores

LENGTH = 12


def series(time: int, seed: int = 0) -> Tensor:
    """Two channels: waves with noise, one of them on a level of 1,000."""
    noise = torch.randn(2, time, generator=torch.Generator().manual_seed(seed))
    return torch.sin(torch.arange(time) / 2) + 0.1 * noise + torch.tensor([[0.0], [1000.0]])


def pyramid(per_window: bool = False) -> Reconstructor:
    """Three scales, two of them with a code."""
    torch.manual_seed(0)
    model = PyramidAutoEncoder((2, LENGTH), 12, (1, 2, 4), 8, code_dims=(4, 4, 0))
    model.set_statistics(torch.tensor([[0.0], [1000.0]]), torch.tensor([[0.7], [2.0]]), torch.tensor([0.0, 1.0]))
    model.per_window = per_window
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


MODEL = pyramid()


def naive(model: Reconstructor, x: Tensor, starts: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Errors of each channel and of each stage, window by window in float64."""
    model = pyramid(model.per_window).double()
    names = list(model.stages(torch.zeros(1, model.latent_dim, dtype=torch.float64)))
    total = {name: torch.zeros(2, x.shape[1], dtype=torch.float64) for name in names}
    count = torch.zeros(x.shape[1])
    for start in starts:
        window = x[None, :, start : start + LENGTH].double()
        for name, x_hat in model.stages(model.encode(window)).items():
            error = ((window - x_hat) / model.level(window)[1]).square()
            total[name][:, start : start + LENGTH] += error[0]
        count[start : start + LENGTH] += 1
    means = {name: error / count for name, error in total.items()}
    return means[names[-1]], {name: error.nanmean(0) for name, error in means.items()}


@pytest.mark.parametrize("per_window", [False, True])
@pytest.mark.parametrize(("stride", "last"), [(1, 28), (5, 28), (7, 28), (12, 28)])
def test_errors_are_the_mean_of_all_windows_that_hold_a_step(stride: int, last: int, per_window: bool) -> None:
    x, model = series(40), pyramid(per_window)
    starts = sorted({*range(0, last + 1, stride), last})
    channels, scales = naive(model, x, starts)
    found = anomaly.joined(list(anomaly.scores(Scorer(model, stride=stride, block=3), x)))
    assert len(found) == 40
    torch.testing.assert_close(found.channels, channels.float(), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found.total, found.channels.mean(0))
    assert list(found.scales) == ["error_1", "error_2", "error_4"]
    for name, error in scales.items():
        torch.testing.assert_close(found.scales[f"error_{name}"], error.float(), atol=2e-4, rtol=1e-3)


def pushed(scorer: Scorer, x: Tensor, cuts: list[int]) -> Scores:
    """Scores of a series that comes in pieces, cut at these steps."""
    pieces = torch.tensor_split(x, sorted(cuts), dim=1)
    return anomaly.joined([*(scorer.push(piece) for piece in pieces), scorer.finish()])


REFERENCE = anomaly.learn(MODEL, [series(150, 1), series(80, 2)])


@settings(deadline=None, max_examples=25)
@given(
    time=st.integers(LENGTH, 90),
    stride=st.integers(1, LENGTH),
    block=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 90), max_size=12),
    holes=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 89)), max_size=20),
)
def test_scores_do_not_depend_on_calls(
    time: int, stride: int, block: int, cuts: list[int], holes: list[tuple[int, int]]
) -> None:
    """The scores are the same to the bit."""
    x = series(time)
    for channel, step in holes:
        x[channel, step % time] = torch.nan
    scorer = Scorer(MODEL, REFERENCE.codes, stride, block)
    once, cut = pushed(scorer, x, []), pushed(scorer, x, [min(c, time) for c in cuts])
    assert len(once) == len(cut) == time
    for a, b in ((once.total, cut.total), (once.channels, cut.channels)):
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
    assert list(once.scales) == ["error_1", "error_2", "error_4", "code_1", "code_2"]
    for name, row in once.scales.items():
        assert torch.equal(row.nan_to_num(-1), cut.scales[name].nan_to_num(-1))
    assert torch.equal(once.channels.isnan(), x.isnan())
    assert torch.equal(once.total.isnan(), x.isnan().all(0))


def test_blocks_and_pieces_change_no_score_beyond_rounding() -> None:
    x = series(200)
    results = [anomaly.joined(list(anomaly.scores(Scorer(MODEL, block=b), x, size))) for b, size in ((1, 7), (64, 999))]
    torch.testing.assert_close(results[0].total, results[1].total, atol=1e-5, rtol=1e-4)


def test_a_certain_score_comes_a_window_later() -> None:
    scorer = Scorer(MODEL, block=1)
    assert [len(scorer.push(series(20)[:, i : i + 1])) for i in range(20)] == [0] * LENGTH + [1] * 8
    assert len(scorer.finish()) == LENGTH


def test_missing_values_do_not_count() -> None:
    """The error is that of the present values, and a missing one is encoded as the channel's mean."""
    x = series(60)
    x[0, 20:24] = torch.nan
    x[:, 40] = torch.nan
    channels, _ = naive(MODEL, x, range(49))
    found = pushed(Scorer(MODEL), x, [])
    torch.testing.assert_close(found.channels, channels.float(), atol=2e-4, rtol=1e-3, equal_nan=True)
    assert found.total[20:24].equal(found.channels[1, 20:24])
    assert found.total.isnan().nonzero().flatten().tolist() == [40]


def test_windows_stand_alone() -> None:
    x = series(3 * LENGTH)
    windows = torch.stack(x.split(LENGTH, dim=1))
    found = anomaly.joined(list(anomaly.scores(Scorer(MODEL, REFERENCE.codes), windows, 25)))
    stitched = pushed(Scorer(MODEL, REFERENCE.codes, LENGTH), x, [])
    torch.testing.assert_close(found.total, stitched.total, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.scales, stitched.scales, atol=1e-5, rtol=1e-4)


def test_distance_is_mahalanobis() -> None:
    """Values may depend on each other, have any units, and one never changes."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 3, generator=generator) @ torch.tensor([[1.0, 0.5, 0], [0, 1e4, 0], [0, 0, 1e-3]])
    code = torch.cat([z, torch.full((len(z), 1), 7.0)], dim=1)
    fitted = anomaly.fit(code)
    precision = torch.from_numpy(np.linalg.inv(np.cov(z.double().numpy().T)))
    centered = (z - z.mean(0)).double()
    expected = torch.einsum("ni,ij,nj->n", centered, precision, centered) / 4
    torch.testing.assert_close(fitted.distance(code), expected, rtol=0.01, atol=0.01)
    assert fitted.distance(code[:1] + torch.tensor([0, 0, 0, 1.0])) > 100


def test_few_windows_have_a_distance() -> None:
    z = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    distance = anomaly.fit(z).distance(torch.cat([z, 10 * z]))
    assert distance.isfinite().all()
    assert (distance[5:] > 20 * distance[:5]).all()


@final
class Averages(Reconstructor):
    """Scale `coarse` reconstructs a window's mean, and `fine` the difference of its halves from it."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.save_hyperparameters(logger=False)
        self.codes = {"coarse": slice(0, 1), "fine": slice(1, 3)}

    def encode_scaled(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2))
        return torch.stack([mean, *(half.mean((1, 2)) - mean for half in x.chunk(2, dim=2))], dim=1)

    def stages_scaled(self, z: Tensor) -> dict[str, Tensor]:
        coarse = z[:, :1, None].expand(-1, 1, self.length)
        return {"coarse": coarse, "fine": coarse + z[:, 1:].repeat_interleave(self.length // 2, 1)[:, None]}

    def decode_scaled(self, z: Tensor) -> Tensor:
        return self.stages_scaled(z)["fine"]


def test_strangest_scale() -> None:
    """A shift of the level is strange to the coarse code, a jump within a window to the fine one."""
    model = Averages((1, 8))
    noise = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    learned = anomaly.learn(model, [noise[:, :2000]])
    assert set(learned.usual) == {"error_coarse", "error_fine", "code_coarse", "code_fine"}
    shifted, jump = noise[:, 2000:2500] + 5, noise[:, 2500:].clone()
    jump[:, 250:253] += 5
    jump[:, 253:256] -= 5
    for x, step, scale in ((shifted, 250, "coarse"), (jump, 252, "fine")):
        found = pushed(Scorer(model, learned.codes), x, [])
        names, number, times = anomaly.strangest(found.scales, learned.usual)
        assert names[int(number[step])] == scale
        assert times[step] > 2
    x = noise[:, :100].clone()
    x[:, 50] = torch.nan
    _, number, times = anomaly.strangest(pushed(Scorer(model, learned.codes), x, []).scales, learned.usual)
    assert (number == -1).nonzero().flatten().tolist() == times.isnan().nonzero().flatten().tolist() == [50]


def test_learn_thins_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "KEPT", 100)
    x = series(1000)
    every = pushed(Scorer(MODEL), x, []).total
    assert torch.equal(anomaly.learn(MODEL, [x]).totals, every[::16])


def test_learn_from_windows_and_of_one_code() -> None:
    """A model of one scale has one code, and windows that all lack a value are left out."""
    torch.manual_seed(0)
    model = AutoEncoder((2, LENGTH), latent_dim=3).eval()
    windows = torch.stack(series(40 * LENGTH).split(LENGTH, dim=1))
    windows[7] = torch.nan
    learned = anomaly.learn(model, [windows])
    assert list(learned.usual) == ["code_whole"]
    assert len(learned.totals) == 39 * LENGTH
    with pytest.raises(InputError, match="1 windows; expected at least 2"):
        anomaly.learn(model, [windows[:1]])


def test_level_is_a_code_of_windows_scaled_by_themselves() -> None:
    """Only this code sees that the level of a series has changed."""
    model = pyramid(per_window=True)
    x = series(300)
    learned = anomaly.learn(model, [x])
    found = pushed(Scorer(model, learned.codes), x[:, :60] + 50, [])
    names, number, _ = anomaly.strangest(found.scales, learned.usual)
    assert names[int(number[30])] == "level"
    usual = pushed(Scorer(model, learned.codes), x[:, :60], [])
    torch.testing.assert_close(found.total, usual.total, atol=0.01, rtol=0.01)


def test_usual_level_of_windows() -> None:
    """`level` is the mean and the deviation, as `window_level` gives them."""
    model = pyramid(per_window=True)
    x = series(300)
    mean, deviation = window_level(x.unfold(1, LENGTH, 1).movedim(1, 0))
    code = torch.cat([mean, deviation], dim=1).squeeze(2)
    torch.testing.assert_close(anomaly.learn(model, [x]).codes["level"].mean.float(), code.mean(0))


def test_mistakes() -> None:
    for piece in (torch.zeros(3, 20), torch.zeros(20)):
        with pytest.raises(InputError, match=r"expected \(2, time\)"):
            Scorer(MODEL)._add(piece)
    with pytest.raises(InputError, match="series of 5 steps: expected at least 12"):
        pushed(Scorer(MODEL), series(5), [])
    with pytest.raises(InputError, match="stride=13"):
        Scorer(MODEL, stride=13)
