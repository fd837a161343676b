"""What holds for every Reconstructor, and for the two models of the paper."""

import copy
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import lightning as L
import pytest
import torch
from conftest import Command
from torch import Tensor, nn
from torch.utils.data import DataLoader

import msae
from msae import InputError
from msae.data.module import DataModule, Windows
from msae.models import recording
from msae.models.ae import AutoEncoder
from msae.models.checkpoint import find
from msae.models.contract import check_model
from msae.models.metrics import MeanPSNR, active_units
from msae.models.msae import MultiScaleAutoEncoder
from msae.models.reconstructor import Reconstructor


@final
class Shift(Reconstructor):
    """Reconstructs perfectly, except for a constant, in normalized units."""

    def __init__(self, shape: Sequence[int], by: float = 0.0) -> None:
        super().__init__(shape)
        self.save_hyperparameters(logger=False)
        self.by = nn.Parameter(torch.tensor(by))
        self.codes = {"whole": slice(0, self.channels * self.length)}

    def encode_scaled(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode_scaled(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (self.channels, self.length)) + self.by


@final
class Lines(Reconstructor):
    """y = w, to follow the optimizer by hand: loss (w - x)^2, gradient 2 (w - x)."""

    def __init__(self, shape: Sequence[int], lr: float = 0.1, clip: float | None = None, scheduler: str = "") -> None:
        super().__init__(shape, lr, clip)
        self.save_hyperparameters(logger=False)
        self.scheduler = scheduler
        self.w = nn.Parameter(torch.tensor(0.0))
        self.codes = {"whole": slice(0, 1)}
        self.lrs: list[float] = []

    def encode_scaled(self, x: Tensor) -> Tensor:
        return x[:, 0, :1]

    def decode_scaled(self, z: Tensor) -> Tensor:
        return self.w.expand(len(z), self.channels, self.length) + 0 * z[:, :, None]

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        optimizer.register_step_pre_hook(lambda o, *_: self.lrs.append(o.param_groups[0]["lr"]))
        if not self.scheduler:
            return optimizer
        if self.scheduler == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=0.5, patience=0, threshold=9.0, threshold_mode="abs"
            )
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        halving = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving, "interval": self.scheduler}}


@pytest.mark.parametrize(
    ("changed", "replayed"),
    [
        ({}, True),
        ({"x": torch.zeros(2, 1, 4)}, False),
        ({"noise": torch.zeros(3)}, False),
        ({"weight": 2.0}, False),
        ({"lr": 0.5}, True),
        ({"betas": (0.5, 0.9)}, False),
    ],
)
def test_only_the_recorded_step_is_replayed(changed: dict[str, Any], replayed: bool) -> None:
    """A graph holds all but tensors and the learning rate as they were when it was recorded."""
    made: list[str] = []

    def step(*_: object) -> dict[str, Tensor]:
        made.append("made")
        return {"loss": torch.zeros(())}

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    recorder = copy.deepcopy(recording.Recorder(step, optimizer))
    optimizer = recorder.optimizer
    recorder._inputs = (torch.zeros(3, 1, 4), None, 1.0)
    recorder._rates, recorder._fixed = [torch.zeros(())], recording.fixed(optimizer)
    recorder._names, recorder._terms = ["loss"], torch.zeros(1)
    recorder._graph = SimpleNamespace(replay=lambda: made.append("replayed"))  # type: ignore[assignment]
    optimizer.param_groups[0].update({key: value for key, value in changed.items() if key in ("lr", "betas")})
    given = {"x": torch.ones(3, 1, 4), "noise": None, "weight": 1.0} | changed
    names, _ = recorder(given["x"], given["noise"], given["weight"])
    assert (names, made) == (["loss"], ["replayed" if replayed else "made"])
    assert not replayed or recorder._rates[0] == optimizer.param_groups[0]["lr"]


def windows(n: int = 10, channels: int = 1, length: int = 4) -> Windows:
    return Windows(torch.rand(n, channels, length, generator=torch.Generator().manual_seed(0)))


def fit(model: Reconstructor, data: DataModule, folder: Path, **knobs: object) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, **({"max_epochs": 1} | knobs),
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


@pytest.mark.parametrize("by", [0.0, 0.5, -2.0])
def test_loss_of_a_constant_offset_is_its_square(by: float) -> None:
    x = windows(channels=3).x
    loss, mse, weight = Shift((3, 4), by).errors(x)
    assert (loss.item(), mse.item(), weight) == (pytest.approx(by**2, abs=1e-6), pytest.approx(by**2, abs=1e-6), 10)


def test_units() -> None:
    """Inputs and outputs are in raw units; the loss is in normalized units, the MSE in raw units."""
    model = Shift((2, 4), 0.5)
    offset, scale = torch.tensor([[10.0], [-3.0]]), torch.tensor([[2.0], [4.0]])
    model.set_statistics(offset, scale, torch.tensor([0.0, 1.0]))
    x = 20 * windows(channels=2).x
    x_hat, z = model(x)
    torch.testing.assert_close(z.unflatten(1, (2, 4)), (x - offset) / scale)
    torch.testing.assert_close(x_hat - x, torch.tensor([[1.0], [2.0]]).expand(10, 2, 4))
    loss, mse, _ = model.errors(x)
    torch.testing.assert_close(loss, torch.tensor(0.25))
    torch.testing.assert_close(mse, torch.tensor(2.5))
    torch.testing.assert_close(mse, (x_hat - x).square().mean())


LEVELS = torch.tensor([[[5.0], [-300.0]], [[0.1], [1e4]]])


@pytest.mark.parametrize("missing", [False, True])
def test_windows_scaled_each_by_itself(missing: bool) -> None:
    """The nets see shapes without a level; the level is in the latent, and brings raw units back."""
    model = Shift((2, 4), 0.5)
    model.set_statistics(
        torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 1.0]), per_window=True, missing=missing
    )
    shape = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 0.0, -2.0, 0.0]])
    x = LEVELS + shape * torch.tensor([[[3.0], [4.0]], [[1.0], [2.0]]])
    x_hat, z = model(x)
    assert model.codes == {"whole": slice(0, 8), "level": slice(8, 12)}
    assert model.latent_dim == z.shape[1] == 12
    torch.testing.assert_close(z[:, 8:10], LEVELS.squeeze(2))
    torch.testing.assert_close(z[:, 10:], torch.tensor([[3.0, 4 * 2**0.5], [1.0, 2 * 2**0.5]]), rtol=1e-3, atol=0)
    torch.testing.assert_close(z[:, :8].unflatten(1, (2, 4))[:, 0], shape[0].expand(2, 4), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x_hat - x, 0.5 * z[:, 10:, None].expand(2, 2, 4), rtol=1e-2, atol=1e-3)
    loss, mse, _ = model.errors(x)
    torch.testing.assert_close(loss, torch.tensor(0.25), rtol=1e-3, atol=0)
    torch.testing.assert_close(mse, (x_hat - x).square().mean(), rtol=1e-3, atol=0)
    flat = torch.full((1, 2, 4), 7.0)  # a constant window has no shape
    torch.testing.assert_close(model(flat)[0], flat, rtol=1e-5, atol=0)


class TestRegularizers:
    Z = torch.tensor([[1.0, 2.0, 0.0, 1.0], [3.0, 0.0, 0.0, -1.0]])

    def test_none(self) -> None:
        z, penalty = Shift((1, 4)).regularized(self.Z)
        assert z is self.Z
        assert penalty == 0

    def test_kl_by_hand(self) -> None:
        """With a variance of 1 the divergence is half of the squared mean: 5, 2, 0 and 1 over the batch, halved."""
        model = AutoEncoder((2, 4), latent_dim=4, regularizer="kl")
        assert model.regularized(self.Z)[1].item() == pytest.approx((2.5 + 1 + 0 + 0.5) / 8)
        model = AutoEncoder((2, 4), latent_dim=4, regularizer="kl", free_bits=0.75)
        assert model.regularized(self.Z)[1].item() == pytest.approx((2.5 + 1 + 0.75 + 0.75) / 8)

    def test_kl_is_that_of_the_sampled_distribution(self) -> None:
        """It equals torch's divergence, and samples have its mean and variance."""
        torch.manual_seed(0)
        model = AutoEncoder((1, 1), latent_dim=2, regularizer="kl")
        torch.nn.init.normal_(model.log_variance.weight)
        mean = torch.tensor([[0.5, -1.0]])
        scale = (model.log_variance(mean) / 2).exp()
        theirs = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, scale), torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        )
        assert model.regularized(mean)[1].item() == pytest.approx(theirs.sum().item(), rel=1e-5)
        z, _ = model.regularized(mean.expand(100_000, 2))
        torch.testing.assert_close(z.mean(0), mean[0], atol=0.03, rtol=0.02)
        torch.testing.assert_close(z.std(0), scale[0], atol=0.03, rtol=0.02)

    def test_decorrelate_by_hand(self) -> None:
        """Column 0 grows, 1 and 3 fall, 2 is constant: squared correlations of 1 between 0, 1 and 3."""
        model = AutoEncoder((1, 4), latent_dim=4, regularizer="decorrelate")
        assert model.regularized(self.Z)[1].item() == pytest.approx(6 / 12)
        model.codes = {"coarse": slice(0, 2), "fine": slice(2, 4)}  # 0 and 3, 1 and 3, of four pairs of codes
        assert model.regularized(self.Z)[1].item() == pytest.approx(2 / 4)

    def test_only_training_samples(self, tmp_path: Path) -> None:
        """Metrics are of the mean, whatever was sampled; the penalty is logged, and its weight rises."""
        torch.manual_seed(0)
        model = AutoEncoder((1, 4), latent_dim=2, hidden_dims=[3], regularizer="kl", beta=2.0, anneal=0.5)
        weights: list[float | Tensor] = []
        of_steps = model.penalty_weights
        model.penalty_weights = lambda n: weights.extend(found := of_steps(n)) or found  # type: ignore[method-assign,func-returns-value]
        trainer = fit(model, DataModule(windows(20), windows(4), batch_size=2), tmp_path, max_epochs=2)
        assert [*map(float, weights)] == pytest.approx([2 * min(1, i / 10) for i in range(20)])
        assert trainer.callback_metrics["train/penalty"] > 0
        x = windows(8).x
        assert model.errors(x) == model.errors(x)
        assert torch.equal(model(x)[0], model(x)[0])

    def test_active_units(self) -> None:
        z = torch.randn(500, 3) * torch.tensor([1.0, 0.05, 0.2])
        assert active_units(z) == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"regularizer": "l1"}, "regularizer=l1: expected one of none, kl, decorrelate"),
            ({"beta": -1}, "beta=-1: expected a number from 0"),
            ({"free_bits": True}, "free_bits=True: expected a number from 0"),
            ({"anneal": 1.5}, "anneal=1.5: expected a number from 0 to 1"),
        ],
    )
    def test_mistakes(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            AutoEncoder((1, 4), **options)


def test_missing_values_are_left_out() -> None:
    """Loss, metrics and gradients are those of the present values; NaN is encoded as the channel's mean."""
    model = Lines((1, 4))
    model.set_statistics(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([0.0, 1.0]), missing=True)
    x = torch.tensor([[[6.0, torch.nan, 10.0, torch.nan]], [[2.0, 2.0, 2.0, torch.nan]]])
    loss, mse, weight = model.errors(x)  # scaled: 1, 2; 0, 0, 0; and the model says 0
    assert (loss.item(), mse.item(), weight) == (1.0, 16.0, 5)
    loss.backward()
    assert model.w.grad == -2 * (1 + 2) / 5
    assert model.encode(x).tolist() == [[1.0], [0.0]]
    assert model(x)[0].isfinite().all()
    padded = torch.cat([x, torch.full((3, 1, 4), torch.nan)])
    assert [torch.as_tensor(value).item() for value in model.errors(padded)] == [1.0, 16.0, 5]


def test_means_over_batches_are_exact_where_values_are_missing(tmp_path: Path) -> None:
    """Batches have unequal numbers of values; each value has the same weight."""
    x = torch.arange(28.0).reshape(7, 1, 4)
    x[0, 0, :3] = torch.nan
    data = DataModule(Windows(x), Windows(x), batch_size=2, missing=True, normalize="standard")
    model = Lines((1, 4))
    model.set_statistics(**data.statistics)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    [metrics] = trainer.test(model, DataLoader(list(x.split(2)), batch_size=None), verbose=False)
    expected = ((x - data.offset) / data.scale).square().nanmean()  # the model says 0
    assert metrics["test/loss"] == pytest.approx(expected.item())
    assert metrics["test/mse"] == pytest.approx((x - data.offset).square().nanmean().item())


def test_psnr_is_that_of_the_mean_mse() -> None:
    psnr = MeanPSNR()
    psnr.update(torch.tensor(0.01), torch.tensor(30.0), torch.tensor(1.0))
    psnr.update(torch.tensor(0.09), torch.tensor(10.0), torch.tensor(1.0))
    assert psnr.compute().item() == pytest.approx(10 * torch.log10(torch.tensor(1 / 0.03)).item())


@pytest.mark.parametrize("shape", [(1, 8), (1, 9), (3, 17), (2, 1)])
@pytest.mark.parametrize("small_scale", ["first_half", "strided"])
def test_msae_takes_any_shape(shape: tuple[int, int], small_scale: str) -> None:
    model = MultiScaleAutoEncoder(shape, small_scale, small_dim=3, large_dim=5)
    x = torch.rand(2, *shape)
    x_hat, z = model(x)
    assert x_hat.shape == x.shape
    assert z.shape == (2, 8)


@pytest.mark.parametrize(("small_scale", "seen"), [("first_half", [0, 1, 2, 3]), ("strided", [0, 2, 4, 6])])
def test_the_small_scale_sees_half(small_scale: str, seen: list[int]) -> None:
    model = MultiScaleAutoEncoder((1, 7), small_scale)
    x = torch.rand(1, 1, 7)
    z = model.encode(x)[:, model.codes["small"]]
    changed = [i for i in range(7) if not torch.equal(z, model.encode(x + torch.eye(7)[i])[:, model.codes["small"]])]
    assert changed == seen


def test_one_batch_can_be_overfitted(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    data = DataModule(windows(16, length=8), windows(4, length=8), batch_size=16, epoch_steps=600)
    model = MultiScaleAutoEncoder((1, 8), lr=3e-3)
    fit(model, data, tmp_path)
    assert model.errors(data.train.x)[0] < 1e-4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoEncoder((0, 8)), r"channels of shape=0: expected a whole number, at least 1"),
        (lambda: AutoEncoder((1, 8), latent_dim=0), r"latent_dim=0: expected"),
        (lambda: AutoEncoder((1, 8), hidden_dims=[4, -1]), r"hidden_dims=-1: expected"),
        (lambda: AutoEncoder((1, 8), lr=float("inf")), r"lr=inf: expected a number above 0"),
        (lambda: AutoEncoder((1, 8), gradient_clip_val=0.0), r"gradient_clip_val=0.0: expected a number above 0"),
        (lambda: MultiScaleAutoEncoder((1, 8), "half"), r"small_scale=half: expected one of first_half, strided"),
        (lambda: MultiScaleAutoEncoder((1, 8), small_dim=True), r"small_dim=True: expected"),
    ],
)
def test_a_bad_argument_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


class TestOptimizerSteps:
    """Several optimizer steps in a call of training_step mean what one step a call means."""

    x = Windows(torch.ones(40, 1, 2))

    def data(self) -> DataModule:
        return DataModule(self.x, self.x, batch_size=1)  # 40 steps an epoch, two calls

    def test_global_step_counts_optimizer_steps(self, tmp_path: Path) -> None:
        model = Lines((1, 2))
        assert fit(model, self.data(), tmp_path, max_epochs=3).global_step == len(model.lrs) == 120

    def test_sgd_by_hand(self, tmp_path: Path) -> None:
        model = Lines((1, 2), lr=0.1)
        fit(model, self.data(), tmp_path)
        assert model.w.item() == pytest.approx(1 - 0.8**40)

    def test_clipping(self, tmp_path: Path) -> None:
        model = Lines((1, 2), lr=0.1, clip=0.01)
        fit(model, self.data(), tmp_path)
        assert model.w.item() == pytest.approx(40 * 0.1 * 0.01)

    @pytest.mark.parametrize("max_steps", [1, 7, 32, 45])
    def test_max_steps(self, max_steps: int, tmp_path: Path) -> None:
        model = Lines((1, 2))
        trainer = fit(model, self.data(), tmp_path, max_epochs=-1, max_steps=max_steps)
        assert trainer.global_step == len(model.lrs) == max_steps

    def test_step_scheduler(self, tmp_path: Path) -> None:
        model = Lines((1, 2), scheduler="step")
        fit(model, self.data(), tmp_path)
        assert model.lrs == pytest.approx([0.1 * 0.5**k for k in range(40)])

    def test_epoch_scheduler(self, tmp_path: Path) -> None:
        model = Lines((1, 2), scheduler="epoch")
        fit(model, self.data(), tmp_path, max_epochs=3)
        assert model.lrs == pytest.approx([0.1] * 40 + [0.05] * 40 + [0.025] * 40)

    def test_plateau_scheduler(self, tmp_path: Path) -> None:
        """A threshold that no improvement meets halves the rate after the second epoch."""
        model = Lines((1, 2), scheduler="plateau")
        fit(model, self.data(), tmp_path, max_epochs=3)
        assert model.lrs == pytest.approx([0.1] * 80 + [0.05] * 40)

    @pytest.mark.parametrize("limit", [1, 5])
    def test_limit_train_batches_counts_batches(self, limit: int, tmp_path: Path) -> None:
        assert fit(Lines((1, 2)), self.data(), tmp_path, limit_train_batches=limit).global_step == limit

    @pytest.mark.parametrize(
        ("knobs", "steps"),
        [({"max_epochs": 5}, 195), ({"max_steps": 50}, 50), ({"limit_train_batches": 7, "max_epochs": 3}, 21)],
    )
    def test_cosine(self, knobs: dict[str, int], steps: int, tmp_path: Path) -> None:
        """The rate rises from nearly 0 in 200 steps and falls to 0 at the last step."""
        rates: list[float] = []
        model = AutoEncoder((1, 4), latent_dim=2, hidden_dims=[3], lr=0.1, schedule="cosine")
        configure = model.configure_optimizers

        def observed() -> Any:
            found = configure()
            found["optimizer"].register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
            return found

        model.configure_optimizers = observed  # type: ignore[method-assign]
        fit(model, DataModule(windows(77), windows(4), batch_size=2), tmp_path, **({"max_epochs": -1} | knobs))
        expected = [0.1 * min(1, (i + 1) / 200) * 0.5 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
        assert rates == pytest.approx(expected)

    def test_cosine_without_an_end(self, tmp_path: Path) -> None:
        model = AutoEncoder((1, 4), latent_dim=2, hidden_dims=[3], schedule="cosine")
        with pytest.raises(
            InputError, match=r"schedule=cosine: needs .* set trainer\.max_epochs or trainer\.max_steps"
        ):
            fit(model, DataModule(windows(8), windows(4)), tmp_path, max_epochs=-1, max_time="00:00:00:05")

    def test_as_one_step_a_call(self, tmp_path: Path) -> None:
        """Windows, order and logged means do not depend on the number of steps in a call."""
        trained = []
        for knobs in ({}, {"limit_train_batches": 39}):
            L.seed_everything(0, verbose=False)
            model = AutoEncoder((1, 4), latent_dim=2, hidden_dims=[3])
            trainer = fit(model, DataModule(windows(77), windows(4), batch_size=2), tmp_path, max_epochs=2, **knobs)
            trained.append((model.state_dict(), trainer.callback_metrics))
        (weights, metrics), (others, other_metrics) = trained
        assert all(torch.equal(weights[name], others[name]) for name in weights if "." in name and "psnr" not in name)
        for name in ("train/loss", "train/mse", "train/psnr"):
            torch.testing.assert_close(metrics[name], other_metrics[name])


def test_half_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 needs a loss scaler, which works through Lightning's wrapped optimizer only."""
    model = AutoEncoder((1, 2))
    monkeypatch.setattr(model, "_trainer", SimpleNamespace(precision="16-mixed"))
    with pytest.raises(InputError, match=r"trainer\.precision=16-mixed: not supported"):
        model.configure_optimizers()


def test_predict_gives_reconstructions_and_latents(tmp_path: Path) -> None:
    data = DataModule(windows(), windows(6), batch_size=2)
    model = Shift((1, 4), 0.5)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    [(x_hat, z)] = trainer.predict(model, datamodule=data) or []
    torch.testing.assert_close(x_hat, data.test.x + 0.5)
    torch.testing.assert_close(z, data.test.x.flatten(1))


class TestLoad:
    """`msae.load` needs nothing but a file, and says what is wrong with a bad one."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        fit(Shift((2, 4), 1.0), DataModule(windows(channels=2), windows(channels=2)), tmp_path).save_checkpoint(
            path := tmp_path / "a.ckpt"
        )
        return path

    def test_statistics_come_back(self, tmp_path: Path) -> None:
        model = Shift((2, 4))
        statistics = (torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]), torch.tensor([-1.0, 5.0]))
        model.set_statistics(*statistics, per_window=True, missing=True)
        trainer = fit(model, DataModule(windows(channels=2), windows(channels=2)), tmp_path)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        loaded = msae.load(tmp_path / "a.ckpt")
        assert not loaded.training
        assert (loaded.per_window, loaded.missing) == (True, True)
        for mine, theirs in zip(statistics, (loaded.offset, loaded.scale, loaded.value_range), strict=True):
            assert torch.equal(mine, theirs)

    def test_missing_file(self) -> None:
        with pytest.raises(InputError, match=r"checkpoint nowhere\.ckpt: no such file; expected the folder of a run"):
            msae.load("nowhere.ckpt")

    def test_folder(self, path: Path) -> None:
        """A run's folder means its best.ckpt, or else its last.ckpt."""
        with pytest.raises(
            InputError, match=r"a folder without best\.ckpt or last\.ckpt; expected the folder of a run"
        ):
            msae.load(path.parent)
        for name in ("last.ckpt", "best.ckpt"):
            (path.parent / name).write_bytes(path.read_bytes())
            assert find(path.parent) == path.parent / name
        assert torch.equal(msae.load(path.parent).by, msae.load(path).by)

    def test_older_file(self, path: Path) -> None:
        """It is from before `data_options` were saved."""
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["state_dict"]["_extra_state"]["data_options"]
        torch.save(checkpoint, path)
        assert msae.load(path).data_options is None

    def test_windows_of_another_shape(self) -> None:
        with pytest.raises(InputError, match=r"x of shape \(8, 1, 4\): expected \(batch, 2, 4\)"):
            Shift((2, 4))(torch.zeros(8, 1, 4))

    def test_other_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.ckpt").write_text("not a checkpoint")
        with pytest.raises(InputError, match="not one that msae wrote"):
            msae.load(tmp_path / "a.ckpt")


def test_the_package_has_no_other_names() -> None:
    assert not hasattr(msae, "laod")


@final
class Wrong(Reconstructor):
    """A new model, with a mistake."""

    def __init__(
        self, shape: Sequence[int], mistake: str, latent_dim: int, hidden_dims: object, **training: Any
    ) -> None:
        super().__init__(shape, **training)
        if mistake != "hparams":
            self.save_hyperparameters(logger=False)
        self.mistake, self.size = mistake, self.channels * self.length
        self.w = nn.Parameter(torch.tensor(1.0))
        start = {"gap": 1, "overlap": -1}.get(mistake, 0)
        if mistake != "no codes":
            self.codes = {"coarse": slice(0, 4), "fine": slice(4 + start, self.size + (mistake == "long"))}

    def encode_scaled(self, x: Tensor) -> Tensor:
        return self.w * x.flatten(1)

    def decode_scaled(self, z: Tensor) -> Tensor:
        if self.mistake == "none":
            return None  # type: ignore[return-value]
        return z if self.mistake == "flat" else z.unflatten(1, (self.channels, self.length))

    def penalties(self, z: Tensor) -> dict[str, Tensor]:
        own = {"vector": z.mean(1), "float": 1.0}.get(self.mistake, z.sum())
        return {"own": own}  # type: ignore[dict-item]

    def stages_scaled(self, z: Tensor) -> dict[str, Tensor]:
        if self.mistake == "no stages":
            return {}
        part = z[:, None, :4] if self.mistake == "stage" else self.decode_scaled(z)
        return {"coarse": part, "fine": self.decode_scaled(z)}


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("hparams", "call self.save_hyperparameters(logger=False) in its constructor"),
        ("no codes", "set self.codes in its constructor, such as"),
        ("gap", "encode_scaled returns (2, 64) for 2 windows, and its codes are coarse 0:4, fine 5:64; return"),
        ("overlap", "its codes are coarse 0:4, fine 3:64; return"),
        ("long", "its codes are coarse 0:4, fine 4:65; return"),
        ("flat", "decode_scaled returns (2, 64) for windows (2, 1, 64)"),
        ("none", "decode_scaled returns NoneType for windows (2, 1, 64); return a tensor (2, 1, 64)"),
        ("no stages", "stages_scaled returns {}; return a dict of tensors by name"),
        ("vector", "penalties['own'] returns (2,) for windows (2, 1, 64); return a tensor ()"),
        ("float", "penalties['own'] returns float for"),
        ("stage", "stages_scaled['coarse'] returns (2, 1, 4) for windows (2, 1, 64)"),
    ],
)
def test_a_mistake_in_a_new_model_is_named(mistake: str, told: str) -> None:
    with pytest.raises(InputError, match=f"^model Wrong: .*{re.escape(told)}"):
        check_model(Wrong((1, 64), mistake, 0, None), torch.rand(2, 1, 64))


def test_a_new_model_is_checked_before_it_trains(command: Command) -> None:
    new = (f"model._target_={__name__}.Wrong", "+model.mistake=flat")
    code, out, err = command("data=digits", "trainer=cpu", "model=ae", *new, "hydra.run.dir=run")
    assert (code, err.count("\n"), err.startswith("error: model Wrong: decode_scaled")) == (2, 1, True), out + err
    assert not Path("run").exists()
