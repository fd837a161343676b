"""Every model yaml x data yaml composes, fits a batch, and comes back from its checkpoint; so does a new one."""

from pathlib import Path

import hydra
import lightning as L
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import msae
from msae.cli import CONF
from msae.help import options
from msae.models.contract import check_model

CLASSES = [name for name in options("model") if "_target_" in (CONF / "model" / f"{name}.yaml").read_text()]
"""A model for each class; the other files are settings of these."""
PRESETS = {name for name in options("data") if "defaults" in OmegaConf.load(CONF / "data" / f"{name}.yaml")}
"""Data sets that are another one with other options: one model will do."""
PAIRS = [
    (model, data)
    for model in options("model")
    for data in options("data")
    if data not in PRESETS or model == options("model")[0]
]


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(overrides))


def small(data_name: str, folder: Path) -> list[str]:
    """Overrides with which a data set is served in little time; one that reads the user's files gets a file."""
    data, overrides = compose(f"data={data_name}").data, [f"data={data_name}"]
    if OmegaConf.is_missing(data, "path"):
        t = np.arange(3000)
        np.savetxt(
            folder / "readings.csv", np.stack([np.sin(t / 9), t % 50], 1), delimiter=",", header="a,b", comments=""
        )
        overrides.append(f"data.path={folder}/readings.csv")
        if data.window is None:
            overrides.append("data.window=25")  # odd
    if isinstance(data.val_size, int):
        overrides.append("data.val_size=20")
    return overrides


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(("model_name", "data_name"), PAIRS)
def test_every_model_fits_every_data_set(model_name: str, data_name: str, tmp_path: Path) -> None:
    given = small(data_name, tmp_path)
    cfg = compose(f"model={model_name}", *given, "trainer=smoke", "trainer.accelerator=cpu")
    data = instantiate(cfg.data)
    model = instantiate(cfg.model, shape=data.shape)
    model.set_statistics(**data.statistics)
    check_model(model, data.train.x[:2])  # a mistake is one line
    before = [p.detach().clone() for p in model.parameters()]
    del cfg.trainer.save_seconds  # msae's own
    trainer: L.Trainer = instantiate(cfg.trainer, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == min(2, len(data.train_dataloader()))
    assert all(
        torch.isfinite(trainer.callback_metrics[f"{split}/{m}"]) for split in ("train", "val") for m in ("mse", "psnr")
    )
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))

    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    loaded = msae.load(path)
    x = data.test.x[:5]
    kept = x.clone()
    x_hat, z = loaded(x)
    assert x_hat.shape == x.shape
    assert z.shape == (len(x), loaded.latent_dim)
    assert torch.equal(x, kept)
    for mine, theirs in zip(model.eval()(x), (x_hat, z), strict=True):
        assert torch.equal(mine, theirs)
    covered = [i for code in loaded.codes.values() for i in range(loaded.latent_dim)[code]]
    assert covered == list(range(loaded.latent_dim))


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes(name: str) -> None:
    trainer = compose(f"experiment={name}").trainer
    assert trainer.max_epochs > 0 or trainer.max_steps > 0


@pytest.mark.parametrize("name", options("trainer"))
def test_every_trainer_has_the_common_knobs(name: str) -> None:
    knobs = {"max_epochs", "max_steps", "precision", "devices", "accelerator", "deterministic", "limit_train_batches"}
    assert knobs <= set(compose(f"trainer={name}").trainer)


def test_sizes_are_the_papers() -> None:
    def sizes(name: str) -> list[tuple[int, ...]]:
        model = instantiate(compose(f"model={name}").model, shape=(1, 784))
        return [tuple(p.shape) for p in model.parameters() if p.ndim == 2]

    assert sizes("ae") == [(256, 784), (64, 256), (256, 64), (784, 256)]
    assert sizes("msae") == [(128, 392), (64, 128), (256, 784), (64, 256), (256, 128), (784, 256)]


def test_controls_have_equal_latent_and_parameters() -> None:
    msae_, same, wide = (
        instantiate(compose(f"model={name}").model, shape=(1, 784)) for name in ("msae", "ae128", "ae128wide")
    )
    assert same.latent_dim == wide.latent_dim == msae_.latent_dim == 128
    parameters, control = (sum(p.numel() for p in m.parameters()) for m in (msae_, wide))
    assert abs(control / parameters - 1) < 0.01
