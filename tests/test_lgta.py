"""What is particular to L-GTA and its global code: whose change goes where, and the equivariance loss."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from msae import InputError
from msae.data.module import DataModule, Windows
from msae.models.lgta import LGTA, perturbation


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """An LSTM's products are small: threads cost far more than they gain, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def waves(n: int = 256, channels: int = 1, length: int = 32) -> torch.Tensor:
    """Levels of their own and sines whose frequency, phase and size vary, `(n, channels, length)`."""
    generator = torch.Generator().manual_seed(0)
    level, size, phase = torch.randn(3, n, channels, 1, generator=generator)
    frequency = 2 + 3 * torch.rand(n, channels, 1, generator=generator)
    return level + size * torch.sin(6.28 * frequency * torch.linspace(0, 1, length) + 3 * phase)


def fit(model: LGTA, x: torch.Tensor, folder: Path, missing: bool = False, **knobs: Any) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    data = DataModule(Windows(x), Windows(x[:8]), batch_size=32, missing=missing)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, **knobs,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LGTA:
    """With both codes, on waves of 32 steps, 8 latent steps of 4."""
    L.seed_everything(0, verbose=False)
    model = LGTA((1, 32), steps=8, step_dim=2, global_dim=2, hidden_dim=8, lr=0.01, beta=0.01)
    fit(model, waves(), tmp_path_factory.mktemp("lgta"), max_steps=400, max_epochs=-1)
    return model.eval()


def changes(model: LGTA, part: slice) -> torch.Tensor:
    """Mean squared change of each time step when a part of the latent changes by its usual variation."""
    x = waves()
    with torch.no_grad():
        z = model.encode(x)
        moved = z.clone()
        moved[:, part] += z[:, part].std(0)
        return (model.decode(moved) - model.decode(z)).square().mean((0, 1))


class TestShapes:
    @pytest.mark.parametrize(
        ("shape", "steps", "stretch"),
        [
            ((1, 8), 8, 1),
            ((3, 33), 17, 2),
            ((1, 784), 32, 25),
            ((2, 5000), 32, 157),
            ((1, 8, 8), 8, 8),
            ((2, 70, 3), 24, 9),
            ((1, 1), 1, 1),
        ],
    )
    @pytest.mark.parametrize("global_dim", [0, 3])
    def test_any_window(self, shape: tuple[int, ...], steps: int, stretch: int, global_dim: int) -> None:
        """There are at most 32 latent steps; for images each is a number of whole rows."""
        model = LGTA(shape, global_dim=global_dim, hidden_dim=4, equivariance=1.0)
        x = torch.rand(3, model.channels, model.length)
        x_hat, z = model(x)
        assert (model.steps, model.stretch) == (steps, stretch)
        assert x_hat.shape == x.shape
        assert z.shape == (3, global_dim + 2 * steps)
        assert list(model.codes) == ["global", "steps"][not global_dim :]
        assert model.penalties(z)["equivariance"] > 0

    def test_windows_scaled_each_by_itself_and_missing_values(self, tmp_path: Path) -> None:
        """The level is in the latent; NaN changes only the values that are left out."""
        x = 100 + 5 * waves(64)
        x[:, :, 5:9] = torch.nan
        model = LGTA((1, 32), steps=8, global_dim=2, hidden_dim=8, equivariance=0.1)
        model.set_statistics(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.0, 1.0]), True, True)
        fit(model, x, tmp_path, missing=True, max_epochs=1)
        x_hat, z = model.eval()(x)
        assert list(model.codes) == ["global", "steps", "level"]
        torch.testing.assert_close(z[:, -2], x.nanmean((1, 2)))
        assert x_hat.isfinite().all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps=0: expected a whole number, at least 1"),
            ({"global_dim": -1}, "global_dim=-1: expected a whole number, at least 0"),
            ({"hidden_dim": 7}, "hidden_dim=7: expected an even number"),
            ({"equivariance": -1}, "equivariance=-1: expected a number from 0"),
        ],
    )
    def test_mistakes(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            LGTA((1, 8), **options)


class TestCodes:
    def test_it_learns(self, trained: LGTA) -> None:
        """It explains most of the variance, and no latent value collapses."""
        x = waves()
        with torch.no_grad():
            x_hat, z = trained(x)
        assert (x_hat - x).square().mean() < 0.05 * x.var()
        assert z.var(0).min() > 0.01

    @pytest.mark.parametrize("step", [0, 3, 7])
    def test_a_step_changes_its_stretch(self, trained: LGTA, step: int) -> None:
        start = trained.codes["steps"].start + 2 * step
        change = changes(trained, slice(start, start + 2)).unflatten(0, (8, 4)).sum(1)
        assert change[step] > 0.9 * change.sum()

    def test_the_global_code_changes_all(self, trained: LGTA) -> None:
        """It changes each stretch by about the same, and more than half as much as a step's code changes the window."""
        change = changes(trained, trained.codes["global"]).unflatten(0, (8, 4)).mean(1)
        assert change.min() > change.mean() / 2
        assert change.max() < change.mean() * 2
        assert change.mean() > 0.5 * changes(trained, slice(2, 4)).mean()

    def test_stages(self, trained: LGTA) -> None:
        """The global stage does not depend on the steps' code, and explains more than half of the variance."""
        x = waves()
        with torch.no_grad():
            z = trained.encode(x)
            stages = trained.stages(z)
            z[:, trained.codes["steps"]] = 0
            assert torch.equal(stages["global"], trained.decode(z))
        errors = [(x_hat - x).square().mean() for x_hat in (torch.zeros_like(x), *stages.values())]
        assert list(stages) == ["global", "steps"]
        assert errors[2] < errors[1] < errors[0] / 2
        assert list(LGTA((1, 8)).stages(torch.zeros(1, 16))) == ["steps"]


def linear(global_dim: int) -> LGTA:
    """A decoder that is a linear map, in which a number added to a step's latent is added to its values."""
    torch.manual_seed(0)
    model = LGTA((2, 30), steps=8, step_dim=3, global_dim=global_dim, hidden_dim=4, equivariance=2.0)
    with torch.no_grad():
        model.output.bias.zero_()
        model.output.weight[:, :8] = 0
        steps = model.output.weight[:, 8:11]
        steps += (1 - steps.sum(1, keepdim=True)) / 3
    return model


class TestEquivariance:
    @pytest.mark.parametrize("global_dim", [0, 3])
    def test_of_a_decoder_that_is_equivariant(self, global_dim: int) -> None:
        """Its loss is zero for scaling, jitter and warp; a map that adds something else has a loss."""
        model = linear(global_dim)
        z = torch.randn(64, model.latent_dim)
        assert model.penalties(z)["equivariance"] < 1e-10
        with torch.no_grad():
            model.output.weight[:, 8] += 1
        assert model.penalties(z)["equivariance"] > 0.01

    def test_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The decoder always gives 3; when all is doubled, 6 is expected, and the weight is 2."""
        model = linear(0)
        with torch.no_grad():
            model.output.weight.zero_()
            model.output.bias.fill_(3.0)
        doubled = (torch.full((5, 8), 2.0), torch.zeros(5, 8), torch.ones(5, 1, dtype=torch.bool))
        monkeypatch.setattr("msae.models.lgta.perturbation", lambda *_: doubled)
        assert model.penalties(torch.randn(5, 24))["equivariance"].item() == pytest.approx(2 * 9)

    def test_only_the_decoder_learns_from_it(self) -> None:
        model = LGTA((1, 16), global_dim=2, hidden_dim=4, equivariance=1.0)
        model.penalties(model.encode_scaled(waves(8, 1, 16)))["equivariance"].backward()
        learn = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert learn == {"decoder", "output"}

    def test_off_is_off(self, tmp_path: Path) -> None:
        model = LGTA((1, 16), hidden_dim=4)
        assert model.penalties(torch.zeros(2, model.latent_dim)) == {}
        trainer = fit(model, waves(64, 1, 16), tmp_path, max_epochs=1)
        assert "train/equivariance" not in trainer.callback_metrics

    def test_falls_in_training(self, tmp_path: Path, trained: LGTA) -> None:
        """It falls far below that of the same model trained without it, and it is logged."""
        torch.manual_seed(0)
        options = trained.hparams | {"equivariance": 5.0}
        model = LGTA(**options)
        trainer = fit(model, waves(), tmp_path, max_steps=400, max_epochs=-1)
        assert trainer.callback_metrics["train/equivariance"] > 0
        found = []
        for each in (model.eval(), trained):
            torch.manual_seed(0)
            each.equivariance = 1.0
            with torch.no_grad():
                found.append(each.penalties(each.encode(waves()))["equivariance"].item())
        trained.equivariance = 0.0
        assert found[0] < found[1] / 3
        assert model.errors(waves())[0] < 0.1 * waves().var()

    def test_changes(self) -> None:
        """A third of the windows each has one factor for all steps, a shift of each, or a smooth curve; at most .5."""
        factor, shift, scaling = perturbation(3000, 32, torch.device("cpu"))
        alike, shifted = (factor.std(1) < 1e-6), shift.abs().amax(1) > 0
        warped = ~alike & ~shifted
        assert torch.equal(scaling.squeeze(1), alike & ~shifted)
        for kind in (alike & ~shifted, shifted, warped):
            assert 0.3 < kind.float().mean() < 0.37
        assert torch.equal(factor[shifted], torch.ones_like(factor[shifted]))
        assert factor[warped].diff().abs().mean() < 0.3 * (factor[warped] - 1).abs().mean()
        for values in (factor[scaling.squeeze(1), 0], shift[shifted]):
            assert values.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.1)
