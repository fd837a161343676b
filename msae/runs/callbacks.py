"""The callbacks of a run: curves, checkpoints and progress."""

import logging
import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from torch import Tensor
from tqdm.auto import tqdm

from msae.data.module import DataModule
from msae.errors import InputError
from msae.models.reconstructor import Reconstructor

log = logging.getLogger(__name__)
WITHIN = "within_epoch"
"""The key of a checkpoint for what training needs to continue within an epoch; one of whole epochs lacks it."""


class History(Callback):
    """Metrics of every epoch, and the time spent in training steps; a resumed run keeps those of before.

    The test split is evaluated after each epoch for the curve alone: nothing is selected or stopped by it. So is the
    validation split, to select by, where Lightning leaves it out: after an epoch that `max_steps` ended before its end.

    Args:
        data: whose splits are evaluated.

    Attributes:
        epochs: a dict for each epoch, with the split's name in front: `train/mse`, `val/mse`, `test/mse`, ....
        seconds: time in training, without validation and pictures.
        windows: training windows seen in that time, by all processes.

    Raises:
        InputError: the training loss is not finite.
    """

    def __init__(self, data: DataModule) -> None:
        self.data = data
        self.epochs: list[dict[str, float]] = []
        self.seconds = 0.0
        self.windows = 0
        self._validated = -1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter() - self._waited(pl_module)
        self._seen, self._steps = 0, trainer.global_step

    def resume_within(self, trainer: L.Trainer, pl_module: L.LightningModule, calls: int, seconds: float) -> None:
        """Continue an epoch that has so many calls of `training_step`, and seconds in them, behind it."""
        order: Any = trainer.train_dataloader.sampler  # type: ignore[union-attr]
        order.skip = calls
        self._started = time.perf_counter() - self._waited(pl_module) - seconds
        self._seen, self._steps = min(calls * order.size, len(order.share)), trainer.global_step

    @property
    def epoch_seconds(self) -> float:
        """Seconds in the training steps of the epoch so far."""
        return self._stopped - self._started

    @staticmethod
    def _waited(pl_module: L.LightningModule) -> float:
        assert isinstance(pl_module, Reconstructor)
        return pl_module.stack.waited if pl_module.stack else 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: list[Tensor], batch_idx: int
    ) -> None:
        made = trainer.global_step - self._steps  # of the call's steps, which `max_steps` may cut
        self._seen, self._steps = self._seen + sum(map(len, batch[:made])), trainer.global_step
        self._stopped = time.perf_counter() - self._waited(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += self._stopped - self._started
        self.windows += int(trainer.strategy.reduce(torch.tensor(self._seen, device=pl_module.device), reduce_op="sum"))
        if len(self.data.val) and self._validated != trainer.global_step:
            loss, mse = evaluate(trainer, "judged", self.data.val_dataloader(), trainer.limit_val_batches)
            pl_module.log_dict({"val/loss": loss, "val/mse": mse})
            trainer.callback_metrics.pop("val/psnr", None)  # of earlier weights
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        if not math.isfinite(values["train/loss"]):
            raise InputError(
                f"the training loss is {values['train/loss']} in epoch {trainer.current_epoch + 1}: "
                "try a smaller model.lr, or model.gradient_clip_val=1"
            )
        values["test/loss"], values["test/mse"] = evaluate(
            trainer, "errors", self.data.test_dataloader(), trainer.limit_test_batches
        )
        self.epochs.append(values)
        for logger in trainer.loggers:
            logger.log_metrics({"test/mse_per_epoch": values["test/mse"]}, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "seconds": self.seconds, "windows": self.windows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.__dict__.update(state_dict)


@torch.no_grad()
def evaluate(trainer: L.Trainer, measure: str, loader: Any, limit: float) -> list[float]:
    """Loss and MSE of the present weights over batches, within a limit, a number of them or a share.

    By `Reconstructor.errors` or `judged`, and in the Trainer's precision, so that they compare with Lightning's.
    """
    model = trainer.lightning_module
    assert isinstance(model, Reconstructor)
    batches = islice(loader, limit if isinstance(limit, int) else max(1, int(limit * len(loader))))
    model.eval()
    with trainer.precision_plugin.forward_context():
        errors = [getattr(model, measure)(x.to(model.device)) for x in batches]
    model.train()
    total = max(1.0, float(sum(weight for *_, weight in errors)))
    return [float(sum(error[i] * error[2] for error in errors)) / total for i in (0, 1)]


class Checkpoint(ModelCheckpoint):
    """`last.ckpt` after every epoch, and `best.ckpt`, of the least `val/loss`, where there is a validation split.

    Both exist from the start: a run interrupted in its first epoch can be resumed, and a model that starts from
    data, at PCA say, is never left for a worse one.
    """

    def __init__(self, folder: Path, data: DataModule) -> None:
        self.data, validate = data, len(data.val) > 0
        super().__init__(
            folder,
            filename="best",
            monitor="val/loss" if validate else None,
            save_top_k=1 if validate else 0,
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.ckpt_path:
            return
        if self.monitor:
            loss, _ = evaluate(trainer, "judged", self.data.val_dataloader(), trainer.limit_val_batches)
            self.best_model_path = self.kth_best_model_path = str(Path(str(self.dirpath)) / "best.ckpt")
            self.best_model_score = self.kth_value = torch.tensor(loss)
            self.best_k_models = {self.best_model_path: self.best_model_score}
            trainer.save_checkpoint(self.best_model_path)
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the best checkpoint of a run's folder, also after the folder was moved."""
        folder = Path(str(self.dirpath))
        if (folder / "best.ckpt").exists():
            best = {str(folder / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
            paths = {name: path for name, path in state_dict.items() if name.endswith("_path") and path}
            paths = {name: str(folder / Path(path).name) for name, path in paths.items()}
            state_dict = state_dict | paths | {"best_k_models": best, "dirpath": str(folder)}
        super().load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the epoch as finished: with `max_steps` Lightning would continue within it, where no batch is left."""
        if WITHIN in checkpoint:
            return
        loop = checkpoint["loops"]["fit_loop"]
        for progress in loop["epoch_progress"].values():
            progress["completed"] = progress["processed"]
        batches = loop["epoch_loop.batch_progress"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:  # Lightning saves it beside a new best alone
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class Progress(ProgressBar):
    """One bar of optimizer steps for the whole run; where no bar can be drawn, a line for every tenth of the run.

    Args:
        name: of the run, before each line.
        bar: whether a bar may be drawn; runs side by side would draw over each other.
        data: whose training windows make the steps.
    """

    def __init__(self, name: str, bar: bool, data: DataModule) -> None:
        super().__init__()
        self.data = data
        self.name = name
        self.bar = bar and sys.stderr.isatty()
        self.enabled = True
        self.tqdm: tqdm[None] | None = None
        self.tenths: int | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.enabled and self.bar:
            self.tqdm = tqdm(total=self.data.total_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.tqdm is not None:
            self.tqdm.set_description(f"epoch {trainer.current_epoch + 1}", refresh=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.tqdm is not None:
            self.tqdm.update(trainer.global_step - self.tqdm.n)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = trainer.callback_metrics
        kind = "mse" if self.data.shape[0] == 1 else "loss"  # a mean over units of several channels says nothing
        names = (f"train/{kind}", f"val/{kind}")
        metrics = {name: f"{values[name]:.4g}" for name in names if name in values}
        if self.tqdm is not None:
            self.tqdm.set_postfix(metrics)
            return
        step, steps = trainer.global_step, self.data.total_steps
        tenths = steps and 10 * step // steps
        if self.enabled and tenths != self.tenths:
            self.tenths = tenths
            epoch = f"epoch {trainer.current_epoch + 1}, step {step}{f' of {steps}' if steps else ''}"
            log.info("%s: %s %s", self.name, epoch, " ".join(f"{k}={v}" for k, v in metrics.items()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.tqdm is not None:
            self.tqdm.close()
