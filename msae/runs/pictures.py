"""What TensorBoard shows of a run beside its curves: reconstructions, scales, the latent."""

import shutil
from pathlib import Path

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from msae import plots
from msae.data.module import DataModule
from msae.models.reconstructor import Reconstructor


class Pictures(Callback):
    """TensorBoard's pictures: reconstructions at epochs 1, 2, 5, 10, 20, 50, ... and the last; latents at the end.

    Beside those of reconstructions, by as many scales as a model tells apart, is the MSE up to each scale, `scale/...`,
    and what share of the explained error each code has, `share/...`.
    """

    shown = 8
    embedded = 500

    def __init__(self, data: DataModule) -> None:
        self.data = data

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not trainer.is_global_zero:
            return
        last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if last or str(epoch).rstrip("0") in ("1", "2", "5"):
            self._reconstructions(trainer, pl_module)

    @torch.no_grad()
    def _reconstructions(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        assert isinstance(model, Reconstructor)
        x, _ = self.data.shown(self.shown)
        stages = {name: x_hat.cpu() for name, x_hat in model.stages(model.encode(x.to(model.device))).items()}
        outputs = stages if len(stages) > 1 else {"": stages.popitem()[1]}
        figure = plots.reconstructions(x, outputs, self.data.image_shape)
        x = self.data.shown(self.embedded)[0].to(model.device)
        z = model.encode(x)
        values = {f"share/{name}": share for name, share in code_shares(model, x, z).items()}
        values |= {f"scale/{name}": float(squared_error(x_hat, x)) for name, x_hat in model.stages(z).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("reconstructions", figure, trainer.global_step)

    @torch.no_grad()
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Reconstructor)
        if not trainer.is_global_zero:
            return
        x, y = self.data.shown(self.embedded)
        z = pl_module.encode(x.to(pl_module.device)).cpu()
        labels = None if y is None else self.data.labels(y)
        low, high = self.data.value_range
        sprites = None
        if self.data.image_shape:
            sprites = ((x - low) / (high - low)).reshape(-1, 1, *self.data.image_shape).expand(-1, 3, -1, -1)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # a run that is tested again writes it again, and torch would print a warning
                shutil.rmtree(Path(logger.log_dir) / f"{trainer.global_step:05d}", ignore_errors=True)
                logger.experiment.add_embedding(z, labels, sprites, trainer.global_step, tag="latent")


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error; NaN in x is left out."""
    return (x_hat - x).square().nanmean()


def code_shares(
    model: Reconstructor, x: Float[Tensor, "n channels length"], z: Float[Tensor, "n latent"]
) -> dict[str, float]:
    """For each code, how far the MSE rises where it is replaced by its mean over windows; the shares add up to 1."""
    least = squared_error(model.decode(z), x)
    rises = {}
    for name, code in model.codes.items():
        without = z.clone()
        without[:, code] = z[:, code].mean(0)
        rises[name] = float((squared_error(model.decode(without), x) - least).clamp(min=0))
    total = sum(rises.values())
    return {name: rise / total if total else 0.0 for name, rise in rises.items()}
