"""Windows of several lengths that end together."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from torch import Tensor

from msae import load
from msae.errors import InputError
from msae.models.nested import NestedAutoEncoder


def waves(n: int, channels: int = 2, length: int = 32) -> Tensor:
    """Windows of waves on levels of their own."""
    generator = torch.Generator().manual_seed(0)
    phase, level = torch.rand(2, n, channels, 1, generator=generator)
    return torch.sin(torch.arange(length) / 3 + 6 * phase) + 3 * level


def model(x: Tensor, **knobs: Any) -> NestedAutoEncoder:
    """A model that starts at windows."""
    made = NestedAutoEncoder((x.shape[1], x.shape[2]), **{"lengths": [8, 32], "code_dim": 4, "hidden_dim": 8} | knobs)
    made.initialize(lambda: x)
    return made


@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_a_code_is_that_of_the_last_steps(channels: str) -> None:
    """The code of a length changes with the last steps alone, and with `separate` each channel's with that channel."""
    x = waves(5)
    made = model(x, channels=channels)
    z, changed = made.encode(x), x.clone()
    changed[:, 0, :24] += torch.randn(24)
    again = made.encode(changed)
    assert torch.equal(again[:, made.codes["8"]], z[:, made.codes["8"]])
    assert not torch.equal(again[:, made.codes["32"]], z[:, made.codes["32"]])
    if channels == "separate":
        code = made.codes["32"]
        halves = again[:, code].unflatten(1, (2, -1)), z[:, code].unflatten(1, (2, -1))
        assert torch.equal(halves[0][:, 1], halves[1][:, 1])
    size = 2 * (4 + 1) if channels == "separate" else 4 + 2
    assert {name: code.stop - code.start for name, code in made.codes.items()} == {"32": size, "8": size}


@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_it_starts_at_the_principal_axes(channels: str) -> None:
    """Waves without their levels have two axes a channel, so that each length is reconstructed."""
    x = waves(60)
    made = model(x, channels=channels, code_dim=4)
    for name, part in made.parts_scaled(made.encode(x)).items():
        torch.testing.assert_close(part, x[..., -int(name) :], atol=2e-3, rtol=0)


def test_each_step_is_decoded_by_the_shortest_length() -> None:
    x = waves(3)
    made = model(x, code_dim=1)
    z = made.encode(x)
    parts, stages = made.parts_scaled(z), made.stages(z)
    assert list(stages) == ["32", "8"]
    assert torch.equal(stages["32"], parts["32"])
    assert torch.equal(stages["8"], torch.cat([parts["32"][..., :24], parts["8"]], dim=2))
    assert torch.equal(made.decode(z), stages["8"])


@pytest.mark.parametrize("missing", [False, True])
def test_the_loss_is_the_mean_of_the_errors_of_all_lengths(missing: bool) -> None:
    x = waves(6)
    made = model(x, code_dim=1)
    made.missing = missing
    if missing:
        x[0, 0, 3] = x[2, 1, 30] = torch.nan
    parts = made.parts_scaled(made.encode_scaled(x.nan_to_num(0.0)))
    errors = [(part - x[..., -part.shape[2] :]).square().nanmean() for part in parts.values()]
    loss, mse, _ = made.errors(x)
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    torch.testing.assert_close(mse, (made.decode(made.encode(x)) - x).square().nanmean())


def test_training_lowers_the_error_of_every_length() -> None:
    """Windows that no plane holds: the hidden layers and the passes learn what the linear start leaves."""
    x = waves(400, 1).abs()
    made = model(x, code_dim=2)

    def errors() -> list[float]:
        with torch.no_grad():
            parts = made.parts_scaled(made.encode(x))
        return [float((part - x[..., -part.shape[2] :]).square().mean()) for part in parts.values()]

    before = errors()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        made.errors(x)[0].backward()
        optimizer.step()
    for was, now in zip(before, errors(), strict=True):
        assert now < 0.9 * was


@pytest.mark.parametrize(("length", "expected"), [(96, [96, 48, 24, 12]), (25, [25, 12, 8]), (8, [8]), (5, [5])])
def test_lengths_by_the_window(length: int, expected: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = NestedAutoEncoder((1, length))
    assert made.lengths == made.hparams["lengths"] == expected
    assert f"lengths of the scales: {', '.join(map(str, sorted(expected)))} steps" in caplog.text
    assert made.encode(torch.randn(2, 1, length)).shape == (2, made.latent_dim)


def test_values_outside_of_the_range_are_clipped() -> None:
    made = model(waves(60))
    made.bounded = True
    z = 10 * made.encode(waves(60))
    assert all(part.min() >= 0 and part.max() <= 1 for part in made.parts_scaled(z).values())


def test_the_longest_length_is_the_window(command: Command) -> None:
    """Without `data.window`; and without lengths two periods of the training split are."""
    x = torch.sin(torch.arange(1500) / 40 * 6.2832) + 0.01 * waves(1, 1, 1500)[0, 0]
    Path("a.csv").write_text("value\n" + "\n".join(map(str, x.tolist())))
    args = ("model=nested", "data=series", "data.path=a.csv", "trainer=cpu", "trainer.max_epochs=1")
    for more, lengths in (("model.lengths=[10,30]", [30, 10]), ("model.lengths=auto", [80, 40, 20, 10])):
        code, _, err = command(*args, more, f"out={len(lengths)}")
        assert code == 0, err
        found = load(str(len(lengths)))
        assert (found.lengths, found.length) == (lengths, lengths[0])
        assert found.data_options is not None
        assert found.data_options["window"] == lengths[0]
    code, _, err = command(*args, "model.lengths=[10,30]", "data.window=40", "out=x")
    assert code == 2
    assert "lengths=[10, 30]: expected distinct numbers of steps, the longest of them the window's 40 steps" in err


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"lengths": [8, 8, 32]}, "lengths=\\[8, 8, 32\\]: expected distinct numbers"),
        ({"lengths": [8, 64]}, "the window's 32 steps"),
        ({"lengths": [1, 32]}, "lengths=1: expected a whole number, at least 2"),
        ({"lengths": "long"}, "lengths=long"),
        ({"channels": "both"}, "channels=both: expected one of separate, joint"),
        ({"code_dim": 0}, "code_dim=0"),
        ({"passes": 0}, "passes=0"),
    ],
)
def test_mistakes(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NestedAutoEncoder((2, 32), **knobs)
