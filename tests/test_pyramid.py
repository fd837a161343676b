"""The pyramid: its segments, where it starts, its passes, and that it trains."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msae import InputError
from msae.data.base import DataModule, Windows
from msae.models.layers import Scale, principal_axes
from msae.models.pyramid import PyramidAutoEncoder

Shape = tuple[int, ...]


def windows(n: int, shape: Shape, seed: int = 0) -> Tensor:
    """Windows of a few smooth components and a little noise, scaled to about 1."""
    generator = torch.Generator().manual_seed(seed)
    length = math.prod(shape[1:])
    waves = torch.sin(torch.arange(1.0, 7.0)[:, None] * torch.linspace(0, 6, shape[0] * length))
    x = torch.randn(n, 6, generator=generator) @ waves + 0.1 * torch.randn(n, shape[0] * length, generator=generator)
    return x.reshape(n, shape[0], length)


def model(shape: Shape, **options: Any) -> PyramidAutoEncoder:
    """A small model with parameters that are nowhere zero."""
    torch.manual_seed(0)
    found = PyramidAutoEncoder(shape, **({"segments": [1, 3], "code_dims": [4, 1], "hidden_dims": [8, 5]} | options))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


class TestScale:
    @given(st.integers(1, 3), st.lists(st.integers(1, 20), min_size=1, max_size=2), st.integers(1, 20))
    @settings(deadline=None)
    def test_segments_are_the_window(self, channels: int, sides: list[int], segments: int) -> None:
        """Cut and joined, whatever remains at the end; a segment is a piece of the window."""
        segments = min(segments, *sides)
        scale = Scale((channels, *sides), segments, 1, 2)
        x = torch.randn(2, channels, *sides)
        pieces = scale.cut(x)
        assert pieces.shape == (2, *scale.grid, channels * math.prod(scale.steps))
        assert torch.equal(scale.join(pieces), x)
        first = x[(slice(None), slice(None), *(slice(step) for step in scale.steps))]
        assert torch.equal(pieces[(slice(None), *[0] * len(sides))], first.flatten(1))

    @pytest.mark.parametrize(("shape", "wide"), [((1, 6), 3), ((1, 6, 6), 9)])
    def test_neighbours(self, shape: Shape, wide: int) -> None:
        """Each segment's values stand beside those around it: their sum is that of a box filter over segments."""
        scale = Scale(shape, 3, 1, 2)
        pieces = scale.cut(torch.randn(2, *shape))
        near = scale.near(pieces)
        assert near.shape[-1] == wide * pieces.shape[-1]
        kernel = torch.ones(1, 1, *[3] * (len(shape) - 1))
        conv = torch.nn.functional.conv1d if len(shape) == 2 else torch.nn.functional.conv2d
        torch.testing.assert_close(near.sum(-1), conv(pieces.sum(-1)[:, None], kernel, padding=1)[:, 0])

    def test_adjoint(self) -> None:
        """Of the whole window the gradient; of segments that of the linear path."""
        for segments in (1, 3):
            scale = Scale((2, 9), segments, 4, 8)
            torch.nn.init.normal_(scale.project.weight)
            code = torch.randn(5, segments, 4, requires_grad=True)
            rest, made = torch.randn(5, segments, 18 // segments), torch.randn(5, segments, 18 // segments)
            y, hidden = scale.decode(code, made)
            y = y if segments == 1 else scale.synthesis(code)
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
    assert principal_axes(torch.randn(3, 40), 10)[1].shape == (40, 3)


@pytest.mark.parametrize("shape", [(1, 24), (2, 12), (1, 4, 6)])
def test_it_starts_at_pca(shape: Shape) -> None:
    """One scale: reconstructions of PCA; more passes change nothing before they are trained."""
    x = windows(60, shape)
    flat = x.flatten(1)
    mean, axes = principal_axes(flat, 4)
    for passes in (1, 3):
        start = PyramidAutoEncoder(shape, [1], [4], [8], passes)
        start.initialize(lambda: x)
        x_hat, z = start(x)
        torch.testing.assert_close(z, (flat - mean) @ axes, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(x_hat.flatten(1), (flat - mean) @ axes @ axes.T + mean, atol=1e-4, rtol=1e-4)


def test_finer_scales_start_at_the_axes_of_what_is_left() -> None:
    x = windows(60, (1, 24))
    errors = []
    for segments, dims in (([1], [4]), ([1, 4], [4, 1]), ([1, 4, 8], [4, 1, 1])):
        start = PyramidAutoEncoder((1, 24), segments, dims, [8] * len(dims))
        start.initialize(lambda: x)
        errors.append(start.errors(x)[0].item())
    rest = x.flatten(1) - (x.flatten(1) - x.flatten(1).mean(0)) @ (a := principal_axes(x.flatten(1), 4)[1]) @ a.T
    pieces = (rest - x.flatten(1).mean(0)).reshape(-1, 6)
    mean, axes = principal_axes(pieces, 1)
    assert errors[1] == pytest.approx(
        (pieces - mean - (pieces - mean) @ axes @ axes.T).square().mean().item(), rel=1e-3
    )
    assert errors[0] > errors[1] > errors[2]


def test_fewer_windows_than_codes() -> None:
    """PCA has no more axes than windows; the codes beyond them start without an effect, and can be learned."""
    x = windows(5, (1, 24))
    start = PyramidAutoEncoder((1, 24), [1], [12], [8])
    start.initialize(lambda: x)
    assert start.errors(x)[0] < 1e-6
    start.errors(windows(5, (1, 24), seed=1))[0].backward()
    assert start.scales[0].synthesis.weight.grad[:, 5:].abs().min() > 0


@pytest.mark.parametrize("shape", [(1, 13), (2, 9), (1, 5, 7)])
def test_codes_are_slices_by_scale(shape: Shape) -> None:
    """A scale without a code refines; each code moves what it should, and the latent is all of them."""
    pyramid = model(shape, segments=[1, 2, 5], code_dims=[4, 2, 0], hidden_dims=[8, 5, 3])
    halves = 2 ** (len(shape) - 1)
    names = ["1", "2"] if len(shape) == 2 else ["1x1", "2x2"]
    assert pyramid.codes == {names[0]: slice(0, 4), names[1]: slice(4, 4 + 2 * halves)}
    x = torch.randn(3, shape[0], math.prod(shape[1:]))
    x_hat, z = pyramid(x)
    assert x_hat.shape == x.shape
    assert z.shape == (3, pyramid.latent_dim) == (3, 4 + 2 * halves)


def test_a_change_of_a_segments_code_stays_near_it() -> None:
    """Short-term codes are local: the linear path and hidden layers reach a segment and its neighbours."""
    pyramid = model((1, 40), segments=[1, 8], code_dims=[4, 2], hidden_dims=[8, 5])
    z = pyramid.encode(torch.randn(1, 1, 40))
    other = z.clone()
    other[0, 4 + 2 * 3] += 1.0  # of the fourth segment, steps 15 to 19
    moved = (pyramid.decode(other) - pyramid.decode(z))[0, 0].abs() > 1e-6
    assert moved[15:20].any()
    assert not moved[:10].any()
    assert not moved[25:].any()


def test_reconstructions_are_clipped_to_the_datas_range_and_gradients_pass() -> None:
    pyramid = model((1, 12), segments=[1], code_dims=[4], hidden_dims=[8])
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
        L.seed_everything(0, verbose=False)
        pyramid = PyramidAutoEncoder((1, 24), [1], [3], [32], passes, lr=5e-3)
        pyramid.initialize(lambda: x)
        before = pyramid.errors(x)[0].item()
        trainer = L.Trainer(
            default_root_dir=tmp_path, max_epochs=30, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(pyramid, datamodule=DataModule(Windows(x), Windows(x[:10]), batch_size=50))
        found.append(pyramid.errors(x)[0].item())
        assert found[-1] < before
    assert found[1] < 0.95 * found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"segments": [1, 3, 5]},
            r"segments=\[1, 3, 5\] code_dims=\[4, 1\] hidden_dims=\[8, 5\]: expected one for each",
        ),
        ({"segments": [3, 1]}, r"segments=\[3, 1\]: expected numbers that grow, up to the window's 12 steps"),
        ({"segments": [1, 13]}, "up to the window's 12 steps"),
        ({"code_dims": [0, 0]}, "expected one for each scale"),
        ({"code_dims": [4, -1]}, "code_dims=-1: expected a whole number, at least 0"),
        ({"passes": 0}, "passes=0: expected a whole number, at least 1"),
        ({"schedule": "step"}, "schedule=step: expected one of constant, cosine"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model((1, 12), **options)
