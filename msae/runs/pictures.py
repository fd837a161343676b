"""TensorBoard's pictures of a run: reconstructions, the part of each scale, the latent."""

import shutil
from pathlib import Path

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from msae import plots
from msae.data.module import DataModule
from msae.models.reconstructor import Reconstructor

TAGS = """
- `reconstructions`: test windows, their reconstructions and the absolute errors. A model of several scales has a
  reconstruction for each: that from the coarsest scale up to this one.
- `mse_up_to_scale/NAME`: the mean squared error, in raw units, of that reconstruction.
- `explained_by_scale/NAME`: how much of the explained error the code of this scale accounts for. Each code in turn is
  replaced by its mean over windows; the rises of the error are divided by their sum, so that the shares add up to 1.
- A scale's name is the number of segments that it cuts the window into: `4`, or `4x4` for an image. Of `nested` it is
  the number of steps, the last ones of the window: `24`.
"""
"""What TensorBoard's tags mean."""


class Pictures(Callback):
    """Reconstructions at epochs 1, 2, 5, 10, 20, 50, ... and the last; latents at the end of training.

    The reconstructions come with two numbers for each scale, `mse_up_to_scale/...` and `explained_by_scale/...`, which
    `TAGS` describes; TensorBoard shows that description under "Text".

    Args:
        data: whose test windows are shown.
        draw: whether pictures are drawn; without them there are the numbers alone.
    """

    shown = 8
    embedded = 500

    def __init__(self, data: DataModule, draw: bool = True) -> None:
        self.data, self.draw = data, draw

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not trainer.is_global_zero:
            return
        last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if last or str(epoch).rstrip("0") in ("1", "2", "5"):
            pl_module.eval()  # else batch norm would learn from the pictures' windows
            self._reconstructions(trainer, pl_module)
            pl_module.train()

    @torch.no_grad()
    def _reconstructions(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        assert isinstance(model, Reconstructor)
        x = self.data.shown(self.embedded)[0].to(model.device)
        z = model.encode(x)
        values = {f"explained_by_scale/{name}": share for name, share in code_shares(model, x, z).items()}
        values |= {f"mse_up_to_scale/{name}": float(squared_error(x_hat, x)) for name, x_hat in model.stages(z).items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
            if isinstance(logger, TensorBoardLogger) and self.draw:
                logger.experiment.add_figure("reconstructions", self._figure(trainer, model), trainer.global_step)
                if trainer.current_epoch == 0:
                    logger.experiment.add_text("tags", TAGS)

    def _figure(self, trainer: L.Trainer, model: Reconstructor) -> Figure:
        x, _ = self.data.shown(self.shown)
        stages = {name: x_hat.cpu() for name, x_hat in model.stages(model.encode(x.to(model.device))).items()}
        outputs = {f"up to {name}": x_hat for name, x_hat in stages.items()}
        if len(outputs) == 1:
            outputs = {"reconstruction": stages.popitem()[1]}
        title = f"epoch {trainer.current_epoch + 1}: {len(x)} test windows"
        title += ", reconstructed from the coarsest scale up to each scale" if len(outputs) > 1 else ""
        return plots.reconstructions(x, outputs, self.data.image_shape, model.names, title)

    @torch.no_grad()
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Reconstructor)
        if not trainer.is_global_zero or not self.draw:
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
                # a run that is tested again writes the latents again, and torch would print a warning
                shutil.rmtree(Path(logger.log_dir) / f"{trainer.global_step:05d}", ignore_errors=True)
                logger.experiment.add_embedding(z, labels, sprites, trainer.global_step, tag="latent")


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """The mean squared error over the values of x that are not NaN."""
    return (x_hat - x).square().nanmean()


def code_shares(
    model: Reconstructor, x: Float[Tensor, "n channels length"], z: Float[Tensor, "n latent"]
) -> dict[str, float]:
    """The rise of the MSE when a code is replaced by its mean over windows, for each code, as shares of their sum."""
    least = squared_error(model.decode(z), x)
    rises = {}
    for name, code in model.codes.items():
        without = z.clone()
        without[:, code] = z[:, code].mean(0)
        rises[name] = float((squared_error(model.decode(without), x) - least).clamp(min=0))
    total = sum(rises.values())
    return {name: rise / total if total else 0.0 for name, rise in rises.items()}
