"""The pyramid: its segments, where it starts, its passes, and that it trains."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msae import InputError
from msae.data.module import DataModule, Windows
from msae.models.layers import Scale, principal_axes
from msae.models.pyramid import PyramidAutoEncoder, choose_shares, held_out

Shape = tuple[int, ...]


def windows(n: int, shape: Shape, seed: int = 0) -> Tensor:
    """Windows of a few smooth components and a little noise, scaled to about 1."""
    generator = torch.Generator().manual_seed(seed)
    length = math.prod(shape[1:])
    waves = torch.sin(torch.arange(1.0, 7.0)[:, None] * torch.linspace(0, 6, shape[0] * length))
    x = torch.randn(n, 6, generator=generator) @ waves + 0.1 * torch.randn(n, shape[0] * length, generator=generator)
    return x.reshape(n, shape[0], length)


def sized(shape: Shape, segments: list[int], code_dims: list[int], *rest: Any, **options: Any) -> PyramidAutoEncoder:
    """A model whose latent has as many values as its codes together."""
    latent = sum(Scale(shape, n, dim, 1).dim for n, dim in zip(segments, code_dims, strict=False))
    return PyramidAutoEncoder(shape, latent, segments, *rest, code_dims=code_dims, **options)


def model(shape: Shape, **options: Any) -> PyramidAutoEncoder:
    """A small model with parameters that are nowhere zero."""
    torch.manual_seed(0)
    found = sized(shape, **({"segments": [1, 3], "code_dims": [4, 1], "hidden_dim": 8} | options))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


class TestScale:
    @given(st.integers(1, 3), st.lists(st.integers(1, 20), min_size=1, max_size=2), st.integers(1, 20))
    @settings(deadline=None)
    def test_segments_are_the_window(self, channels: int, sides: list[int], segments: int) -> None:
        """Cutting and joining restores the window, with any remainder; a segment is a piece of the window."""
        segments = min(segments, *sides)
        scale = Scale((channels, *sides), segments, 1, 2)
        x = torch.randn(2, channels, *sides)
        pieces = scale.cut(x)
        assert pieces.shape == (2, *scale.grid, channels * math.prod(scale.steps))
        assert torch.equal(scale.join(pieces), x)
        first = x[(slice(None), slice(None), *(slice(step) for step in scale.steps))]
        assert torch.equal(pieces[(slice(None), *[0] * len(sides))], first.flatten(1))

    @pytest.mark.parametrize(("shape", "side"), [((1, 12), 8), ((2, 12, 12), 8)])
    def test_margins(self, shape: Shape, side: int) -> None:
        """A segment of 4 steps is seen with 2 more at each side: the sums are those of a strided box filter."""
        scale = Scale(shape, 3, 1, 2)
        x = torch.randn(2, *shape, requires_grad=True)
        seen = scale.around(x)
        dims = len(shape) - 1
        assert seen.shape == (2, *[3] * dims, shape[0] * side**dims)
        conv = torch.nn.functional.conv1d if dims == 1 else torch.nn.functional.conv2d
        sums = conv(x.sum(1, keepdim=True), torch.ones(1, 1, *[side] * dims), stride=4, padding=2)[:, 0]
        torch.testing.assert_close(seen.sum(-1), sums)
        assert not seen.requires_grad

    def test_adjoint(self) -> None:
        """The adjoint is the gradient when only the code has one."""
        for segments in (1, 3):
            scale = Scale((2, 9), segments, 4, 8)
            torch.nn.init.normal_(scale.synthesis.weight)
            code = torch.randn(5, segments, 4, requires_grad=True)
            rest, made = torch.randn(5, 2, 9), torch.randn(5, 2, 9)
            y, hidden = scale.decode(code, made)
            [gradient] = torch.autograd.grad(y, code, rest)
            torch.testing.assert_close(scale.adjoint(rest, hidden), gradient)


def test_principal_axes_are_those_of_the_covariance() -> None:
    for n, size in ((50, 6), (5, 40)):
        x = torch.randn(n, size) @ torch.randn(size, size)
        mean, axes = principal_axes(x, 4)
        values, vectors = torch.linalg.eigh(x.double().T.cov())
        torch.testing.assert_close(mean, x.mean(0))
        torch.testing.assert_close(axes.T @ axes, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close((axes.T @ vectors.flip(1)[:, :4].float()).abs(), torch.eye(4), atol=1e-4, rtol=0)
        assert values[-1] > 0
    assert principal_axes(torch.randn(3, 40), 10)[1].shape == (40, 2)


@pytest.mark.parametrize("shape", [(1, 24), (2, 12), (1, 4, 6)])
def test_it_starts_at_pca(shape: Shape) -> None:
    """One scale reconstructs like PCA; more passes change nothing before training."""
    x = windows(60, shape)
    flat = x.flatten(1)
    mean, axes = principal_axes(flat, 4)
    for passes in (1, 3):
        start = PyramidAutoEncoder(shape, 4, [1], 8, passes=passes)
        start.initialize(lambda: x)
        x_hat, z = start(x)
        torch.testing.assert_close(z, (flat - mean) @ axes, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(x_hat.flatten(1), (flat - mean) @ axes @ axes.T + mean, atol=1e-4, rtol=1e-4)


def test_finer_scales_start_at_the_axes_of_what_is_left() -> None:
    x = windows(60, (1, 24))
    errors = []
    for segments, dims in (([1], [4]), ([1, 4], [4, 1]), ([1, 4, 8], [4, 1, 1])):
        start = sized((1, 24), segments, dims, 8)
        start.initialize(lambda: x)
        errors.append(start.errors(x)[0].item())
    assert errors[0] > errors[1] > errors[2]
    [rest] = held_out(x, Scale((1, 24), 1, 4, 1), [4])
    mean, axes = principal_axes(rest.reshape(-1, 6), 1)
    assert torch.equal(start.scales[1].synthesis.weight[:, :1], axes)
    assert torch.equal(start.scales[1].synthesis.bias, mean)


def test_held_out_windows_are_explained_by_the_others() -> None:
    """The error equals that by hand for five windows; without axes all of the variance is left."""
    x = torch.randn(5, 1, 6)
    scale = Scale((1, 6), 1, 2, 1)
    rests = list(held_out(x, scale, [0, 2]))
    assert torch.equal(rests[0], x)
    for i in range(5):
        others = torch.cat([x[:i], x[i + 1 :]]).flatten(1)
        mean, axes = principal_axes(others, 2)
        own = x[i].flatten() - mean
        torch.testing.assert_close(rests[1][i].flatten(), own - axes @ axes.T @ own)


def test_folds_hold_neighbours_and_every_stretch() -> None:
    """Neighbours, which may overlap, share a fold except at the ends of stretches; a fold has several stretches."""
    x = torch.arange(1000.0)[:, None, None].expand(1000, 1, 2)
    [rest] = held_out(x, Scale((1, 2), 1, 1, 1), [1])
    assert rest.abs().max() < 1e-2
    alike = torch.zeros(1000, 1, 2)
    alike[:20] = torch.tensor([1.0, 0.0])  # a stretch alone, in a direction that no other has
    alike[20:] = torch.randn(980, 1, 1) * torch.tensor([0.0, 1.0])
    [rest] = held_out(alike, Scale((1, 2), 1, 1, 1), [1])
    assert rest[:20, 0, 0].min() > 0.9


class TestShares:
    def test_many_windows_of_few_components_need_one_scale(self) -> None:
        assert chosen(windows(500, (1, 48)), 8) == [8, 0]

    def test_few_windows_that_differ_in_their_pieces_need_segments(self) -> None:
        """Each segment is one of few shapes, in any combination: few windows show the shapes, not the combinations."""
        generator = torch.Generator().manual_seed(0)
        shapes = torch.sin(torch.tensor([[1.0], [2.0]]) * torch.linspace(0, 3.1, 12))
        few, more = ((torch.randn(n, 8, 2, generator=generator) @ shapes).reshape(n, 1, 96) for n in (12, 50))
        errors = []
        for segments in ([1, 8], [1]):
            pyramid = PyramidAutoEncoder((1, 96), 17, segments, 16)
            pyramid.initialize(lambda: few)
            errors.append(pyramid.errors(more)[0].item())
            assert pyramid.hparams["code_dims"] == ([1, 2] if len(segments) == 2 else [17])
        assert errors[0] < 0.1 * errors[1]

    def test_a_scale_that_gets_the_whole_latent_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        pyramid = PyramidAutoEncoder((1, 48), 8, [1, 4])
        pyramid.initialize(lambda: torch.randn(40, 1, 48, generator=torch.Generator().manual_seed(1)))
        assert pyramid.hparams["code_dims"] == [8, 0]
        assert "one scale, 1, gets the whole latent; to share it, choose model.code_dims" in caplog.text

    def test_noise_chooses_the_coarsest(self) -> None:
        """A gain within its standard error does not count."""
        assert chosen(torch.randn(40, 1, 48, generator=torch.Generator().manual_seed(1)), 8)[0] == 8

    def test_one_window_has_nothing_to_choose_by(self) -> None:
        pyramid = PyramidAutoEncoder((1, 48), 8, [1, 4])
        pyramid.initialize(lambda: windows(1, (1, 48)))
        assert pyramid.hparams["code_dims"] == [8, 0]

    def test_what_is_given_is_kept(self) -> None:
        pyramid = PyramidAutoEncoder((1, 48), 8, [1, 4], code_dims=[4, 1])
        pyramid.initialize(lambda: windows(500, (1, 48)))
        assert pyramid.hparams["code_dims"] == [4, 1]


def chosen(x: Tensor, latent_dim: int) -> list[int]:
    """The shares of the whole window and of its quarters."""
    return choose_shares(x, [Scale(tuple(x.shape[1:]), n, 1, 1) for n in (1, 4)], latent_dim)


@given(
    st.integers(1, 3),
    st.integers(16, 200),
    st.integers(1, 16),
    st.integers(8, 64),
    st.sampled_from([[1, 4], [1, 2, 8]]),
)
@settings(deadline=None, max_examples=50)
def test_scales_cost_no_parameters(channels: int, length: int, latent: int, hidden: int, segments: list[int]) -> None:
    """The number differs from that of one scale by less than one more value in the hidden layers would add."""
    one, several = (PyramidAutoEncoder((channels, length), latent, s, hidden) for s in ([1], segments))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (one, several)]
    step = 2 * (channels * length + latent + 1)
    assert abs(sizes[0] - sizes[1]) <= step / 2 or several.scales[0].expand.out_features == 1


def test_a_share_of_the_window_as_latent() -> None:
    for length, expected in ((200, 25), (24, 8)):
        pyramid = PyramidAutoEncoder((1, length), 0.125, [1, 4])
        assert pyramid.latent_dim == pyramid.hparams["latent_dim"] == expected


@pytest.mark.parametrize(("shape", "kept"), [((1, 8), [1, 4]), ((1, 16), [1, 4, 16]), ((1, 4, 100), [1, 4])])
def test_scales_finer_than_steps_are_left_out(shape: Shape, kept: list[int]) -> None:
    assert PyramidAutoEncoder(shape, 4, [1, 4, 16]).segments == kept


def test_stages_add_up() -> None:
    """The last is the reconstruction; the first is that of the coarsest scale alone; all in raw units."""
    pyramid = model((1, 12), segments=[1, 2, 4], code_dims=[3, 1, 0])
    pyramid.set_statistics(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([-1.0, 1.0]))
    z = pyramid.encode(torch.randn(5, 1, 12))
    stages = pyramid.stages(z)
    assert list(stages) == ["1", "2", "4"]
    assert torch.equal(stages["4"], pyramid.decode(z))
    without = z.clone()
    without[:, 3:] = 0
    assert torch.equal(pyramid.stages(without)["1"], stages["1"])
    assert not torch.equal(stages["1"], stages["2"])


def test_fewer_windows_than_codes() -> None:
    """PCA has no more axes than windows; the codes beyond them start without an effect, and can be learned."""
    x = windows(5, (1, 24))
    start = PyramidAutoEncoder((1, 24), 12, [1], 8)
    start.initialize(lambda: x)
    assert start.errors(x)[0] < 1e-6
    start.errors(windows(5, (1, 24), seed=1))[0].backward()
    assert start.scales[0].synthesis.weight.grad[:, 5:].abs().min() > 0


@pytest.mark.parametrize("shape", [(1, 13), (2, 9), (1, 5, 7)])
def test_codes_are_slices_by_scale(shape: Shape) -> None:
    """A scale without a code refines; each code moves what it should, and the latent is all of them."""
    pyramid = model(shape, segments=[1, 2, 5], code_dims=[4, 2, 0], hidden_dim=20)
    halves = 2 ** (len(shape) - 1)
    names = ["1", "2"] if len(shape) == 2 else ["1x1", "2x2"]
    assert pyramid.codes == {names[0]: slice(0, 4), names[1]: slice(4, 4 + 2 * halves)}
    x = torch.randn(3, shape[0], math.prod(shape[1:]))
    x_hat, z = pyramid(x)
    assert x_hat.shape == x.shape
    assert z.shape == (3, pyramid.latent_dim) == (3, 4 + 2 * halves)


def test_a_change_of_a_segments_code_stays_near_it() -> None:
    """Short-term codes are local: the linear path and hidden layers reach a segment and its neighbours."""
    pyramid = model((1, 40), segments=[1, 8], code_dims=[4, 2], hidden_dim=20)
    z = pyramid.encode(torch.randn(1, 1, 40))
    other = z.clone()
    other[0, 4 + 2 * 3] += 1.0  # of the fourth segment, steps 15 to 19
    moved = (pyramid.decode(other) - pyramid.decode(z))[0, 0].abs() > 1e-6
    assert moved[15:20].any()
    assert not moved[:10].any()
    assert not moved[25:].any()


def test_reconstructions_are_clipped_to_the_datas_range_and_gradients_pass() -> None:
    pyramid = model((1, 12), segments=[1], code_dims=[4])
    statistics = (torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([-1.0, 1.0]))
    z = 50 * torch.randn(20, 4)
    pyramid.set_statistics(*statistics)
    assert pyramid.decode(z).abs().max() > 1
    pyramid.set_statistics(*statistics, bounded=True)
    x_hat = pyramid.decode(z)
    assert x_hat.min() == -1
    assert x_hat.max() == 1
    [straight] = torch.autograd.grad(x_hat.sum(), pyramid.scales[0].synthesis.bias)
    assert (straight == 20 * 4).all()


def test_passes_lower_the_error(tmp_path: Any) -> None:
    """Trained on windows of a curved manifold, each further pass explains more, at next to no parameters."""
    import lightning as L

    generator = torch.Generator().manual_seed(0)
    phase, frequency = 6.3 * torch.rand(400, 1, generator=generator), 2 + 3 * torch.rand(400, 1, generator=generator)
    x = torch.sin(phase + frequency * torch.linspace(0, 1, 24))[:, None].relu()
    found = []
    for passes in (1, 3):
        ends = []
        for seed in range(3):  # one run alone varies with the number of threads
            L.seed_everything(seed, verbose=False)
            pyramid = PyramidAutoEncoder((1, 24), 3, [1], 8, passes=passes, lr=1e-2)
            pyramid.initialize(lambda: x)
            before = pyramid.errors(x)[0].item()
            trainer = L.Trainer(
                default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(pyramid, datamodule=DataModule(Windows(x), Windows(x[:10]), batch_size=50, epoch_steps=160))
            ends.append(pyramid.errors(x)[0].item())
            assert ends[-1] < before
        found.append(sum(ends))
    assert found[1] < 0.95 * found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": [1, 3, 5]}, r"segments=\[1, 3, 5\] code_dims=\[4, 1\]: expected one number for each"),
        (
            {"latent_dim": 9},
            r"code_dims=\[4, 1\]: 7 latent values in all, 4 for .* expected latent_dim=9 in all, and at least 1",
        ),
        ({"latent_dim": 1.5}, "latent_dim=1.5: expected a whole number, at least 1"),
        ({"segments": [2, 3], "code_dims": None, "latent_dim": 9}, "latent_dim=9: expected a multiple of 2"),
        (
            {"segments": [3, 1]},
            r"segments=\[3, 1\]: expected growing numbers, the first at most the window's 12 steps",
        ),
        ({"segments": [1, 7, 8]}, r"segments=\[1, 7, 8\]: two of them give the same segments"),
        ({"segments": [13]}, "at most the window's 12 steps"),
        ({"code_dims": [0, 1]}, "3 latent values in all, 0 for a coarsest segment"),
        ({"code_dims": [4, -1]}, "code_dims=-1: expected a whole number, at least 0"),
        ({"passes": 0}, "passes=0: expected a whole number, from 1 to 1000"),
        ({"schedule": "step"}, "schedule=step: expected one of constant, cosine"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    given = {"latent_dim": 7, "segments": [1, 3], "code_dims": [4, 1]}
    with pytest.raises(InputError, match=message):
        PyramidAutoEncoder((1, 12), **(given | options))


def test_a_variational_model_does_not_keep_its_start(command: Command) -> None:
    """The start at PCA has the least MSE, and no variance that was learned: validation counts the divergence too."""
    args = ("model=pyramid", "data=digits", "model.latent_dim=8", "model.regularizer=kl", "trainer.max_epochs=2")
    assert command(*args, "trainer=cpu", "hydra.run.dir=run").code == 0
    checkpoint = torch.load("run/best.ckpt", weights_only=True)
    assert checkpoint["global_step"] > 0
    assert checkpoint["state_dict"]["log_variance.weight"].any()
    [_, epoch] = json.loads(Path("run/metrics.json").read_text())["history"]
    assert epoch["val/loss"] > 1.1 * epoch["val/mse"]
