"""The LightningDataModule of every data set: windows in tensors, of which a batch is a slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from msae.data.batches import Batches, InOrder, Shuffled, spread
from msae.data.windows import Views, values
from msae.errors import InputError, check_choice, check_int

NORMALIZATIONS = ("none", "minmax", "standard", "window")
STEPS_PER_CALL = 32
"""Number of batches in one call of `training_step`, which makes an optimizer step on each."""


@dataclass(frozen=True)
class Windows:
    """The windows of one split, in raw units, with a label for each where the data have labels.

    NaN marks a missing value, or padding.

    Examples:
        >>> windows = Windows(torch.zeros(10, 2, 16), y=torch.arange(10))
        >>> len(windows), windows[:3].x.shape, windows[torch.tensor([4, 7])].y
        (10, torch.Size([3, 2, 16]), tensor([4, 7]))
    """

    x: Float[Tensor, "n channels length"] | Views
    y: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Shaped[Tensor, " m"] | slice) -> Windows:
        return Windows(self.x[index], None if self.y is None else self.y[index])


def check_windows(splits: dict[str, Windows], missing: bool) -> None:
    """Raise InputError unless all splits are float32 `(n, channels, length)`, of one shape, and finite.

    With `missing` NaN is allowed. The values of `Views` are not checked here, but where their files are read.
    """
    for name, windows in splits.items():
        x = windows.x
        if isinstance(x, Views):
            continue
        if x.ndim != 3 or x.dtype != torch.float32 or not len(x):
            raise InputError(f"{name} windows: expected float32 (n, channels, length), got {x.dtype} {tuple(x.shape)}")
        bad = (x.isinf() if missing else ~x.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            raise InputError(
                f"{name} windows: {len(bad)} hold NaN or infinity, the first of them is window {int(bad[0])}"
            )
    sizes = {name: tuple(windows.x.shape[1:]) for name, windows in splits.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"windows: {', '.join(f'{size} in {name}' for name, size in sizes.items())}")


def channel_statistics(x: Float[Tensor, "n channels length"] | Views, normalize: str) -> tuple[Tensor, Tensor, Tensor]:
    """Offset and scale of each channel, `(channels, 1)`, and the least and greatest value of all channels, without NaN.

    Args:
        x: windows of the training split.
        normalize: `minmax` maps a channel to [0, 1]; `standard` gives it mean 0 and standard deviation 1 (a constant
            channel becomes 0); `none` and `window` give offset 0 and scale 1.

    Examples:
        >>> channel_statistics(torch.tensor([[[2.0, 4.0]]]), "minmax")
        (tensor([[2.]]), tensor([[2.]]), tensor([2., 4.]))
    """
    count, mean, squares = (torch.zeros(x.shape[1], dtype=torch.float64) for _ in range(3))
    low, high = torch.full_like(mean, math.inf), torch.full_like(mean, -math.inf)
    for piece in values(x):
        present = ~piece.isnan()
        low = torch.minimum(low, piece.double().where(present, math.inf).amin(1))
        high = torch.maximum(high, piece.double().where(present, -math.inf).amax(1))
        if normalize == "standard":  # merges mean and sum of squares of two sets (Chan, Golub, LeVeque 1983)
            n = present.sum(1)
            its_mean = piece.double().nanmean(1).nan_to_num()
            its_squares = (piece.double() - its_mean[:, None]).square().nansum(1)
            total = (count + n).clamp(min=1)
            squares += its_squares + (its_mean - mean).square() * count * n / total
            mean += (its_mean - mean) * n / total
            count += n
    value_range = torch.stack([low.min(), high.max()]).float()
    if normalize == "minmax":
        offset, width = low, high - low
    elif normalize == "standard":
        offset, width = mean, (squares / count).sqrt()
    else:
        offset, width = torch.zeros_like(mean), torch.ones_like(mean)
    width = width.where((width > 0) & width.isfinite() & (high > low), 1.0)
    return offset.where(offset.isfinite(), 0.0)[:, None].float(), width[:, None].float(), value_range


class DataModule(L.LightningDataModule):
    """Windows of a training, a validation and a test split, in raw units.

    A data set is a function that reads files and returns a DataModule, and a yaml in `conf/data` that names it.

    Args:
        train: the official training split; the validation split is taken out of it.
        test: the official test split, which training never sees.
        batch_size: number of windows in a batch, for each process.
        val_size: number of windows in the validation split, or below 1 its share of the training split; 0 for none.
        val_seed: chooses the validation windows. It is independent of `seed`, so that all runs have the same ones.
        seed: of the order of the training windows.
        normalize: how a model normalizes windows: `none`; `minmax` or `standard`, by statistics of each channel of the
            training split; `window`, each channel of each window by its own mean and deviation; or (offset, scale).
        value_range: least and greatest value that data can have, if they are bounded; not with `normalize=window`.
        image_shape: (rows, columns), if a window is an image that is read row by row.
        missing: whether windows may hold NaN.
        val: the validation split, if it is not to be taken out of the training split.
        names: of the channels.
        classes: names of the labels 0, 1, ....
        epoch_steps: least number of optimizer steps in an epoch; an epoch goes through few windows several times.

    Attributes:
        bounded: whether `value_range` was given; otherwise it is the range of the training split.

    Raises:
        InputError: an argument out of range, or windows that are not float32, finite and of one shape.

    Examples:
        >>> x = torch.rand(100, 1, 16)
        >>> data = DataModule(Windows(x[:80]), Windows(x[80:]), batch_size=32, val_size=0.25, normalize="standard")
        >>> len(data.train), len(data.val), len(data.test), data.shape
        (60, 20, 20, (1, 16))
        >>> [tuple(batch.shape) for batch in next(iter(data.train_dataloader()))]
        [(32, 1, 16), (28, 1, 16)]
    """

    def __init__(
        self,
        train: Windows,
        test: Windows,
        batch_size: int = 64,
        val_size: float = 0,
        val_seed: int = 0,
        seed: int = 0,
        normalize: str | tuple[float, float] = "none",
        value_range: tuple[float, float] | None = None,
        image_shape: tuple[int, int] | None = None,
        missing: bool = False,
        val: Windows | None = None,
        names: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        epoch_steps: int = 1,
    ) -> None:
        super().__init__()
        check_windows({"training": train, "test": test} | ({"validation": val} if val else {}), missing)
        self.batch_size = check_int("batch_size", batch_size)
        self.seed = check_int("seed", seed, 0, 2**32 - 1)
        self._resident: dict[str, Tensor | Views] = {}
        self.train, self.test = train, test
        if val is None:
            self.train, val = self._without_validation(train, val_size, val_seed)
        self.val = val
        self.epoch_steps = check_int("epoch_steps", epoch_steps)
        self.shape: tuple[int, int] = (train.x.shape[1], train.x.shape[2])
        self.image_shape = image_shape
        self.bounded = value_range is not None
        self.missing = missing
        self.names = None if names is None else list(names)
        self.classes = None if classes is None else list(classes)
        self.per_window = normalize == "window"
        name = check_choice("normalize", normalize, NORMALIZATIONS) if isinstance(normalize, str) else "none"
        if self.per_window and value_range is not None:
            raise InputError(
                f"normalize=window value_range={value_range}: windows that are normalized each by itself have no "
                "common range; expected normalize=none, minmax, standard or (offset, scale), or no value_range"
            )
        self.offset, self.scale, self.value_range = channel_statistics(self.train.x, name)
        if not isinstance(normalize, str):
            self.offset, self.scale = (torch.full((self.shape[0], 1), float(value)) for value in normalize)
        if value_range:
            self.value_range = torch.tensor([float(value) for value in value_range])

    @staticmethod
    def _without_validation(train: Windows, size: float, seed: int) -> tuple[Windows, Windows]:
        """Divide the training split into what remains of it and the validation split."""
        check_int("val_seed", seed, 0, 2**32 - 1)
        if isinstance(size, float) and 0 < size < 1:
            size = max(1, round(size * len(train)))
        size = check_int("val_size", size, 0, len(train) - 1)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        return train[order[size:].sort().values] if size else train, train[order[:size]]

    @property
    def statistics(self) -> dict[str, Any]:
        """The arguments of a model's `set_statistics`."""
        keys = ("offset", "scale", "value_range", "per_window", "missing", "bounded", "names")
        return {key: getattr(self, key) for key in keys}

    def labels(self, y: Int[Tensor, " m"]) -> list[str] | list[int]:
        """The names of labels' classes, or the labels as numbers where classes have no names."""
        numbers: list[int] = y.tolist()
        return numbers if self.classes is None else [self.classes[i] for i in numbers]

    def shown(self, n: int) -> tuple[Float[Tensor, "m channels length"], Int[Tensor, " m"] | None]:
        """Up to n windows of the test split, evenly spread, and their labels; for pictures."""
        index = spread(len(self.test), n)
        return self.test.x[index], None if self.test.y is None else self.test.y[index]

    @property
    def steps_per_call(self) -> int:
        """Number of batches in a call of `training_step`: 1 where the Trainer counts batches within an epoch."""
        if self.trainer is None:
            return STEPS_PER_CALL
        knobs = (self.trainer.limit_train_batches, self.trainer.val_check_interval)
        return STEPS_PER_CALL if all(isinstance(knob, float) and knob == 1.0 for knob in knobs) else 1

    @property
    def processes(self) -> int:
        """Number of processes that share the batches."""
        return 1 if self.trainer is None else self.trainer.num_devices * self.trainer.num_nodes

    @property
    def passes(self) -> int:
        """Number of times that an epoch goes through all windows."""
        size = self.batch_size * self.processes
        return math.ceil(self.epoch_steps * size / len(self.train)) if self.epoch_steps > 1 else 1

    @property
    def epoch_windows(self) -> int:
        """Number of windows in an epoch, without a last batch of fewer windows than there are processes."""
        total = self.passes * len(self.train)
        rest = total % (self.batch_size * self.processes)
        return total - rest if rest < self.processes else total

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return math.ceil(self.epoch_windows / (self.batch_size * self.processes))

    @property
    def total_steps(self) -> int | None:
        """Number of optimizer steps in the Trainer's whole run, or None if it has no end that is known."""
        assert self.trainer is not None
        if self.trainer.max_steps != -1:
            return self.trainer.max_steps
        steps = self.steps_per_epoch
        limit = self.trainer.limit_train_batches
        steps = min(steps, limit) if isinstance(limit, int) else int(steps * limit)
        epochs = self.trainer.max_epochs or -1
        return steps * epochs if epochs > 0 else None

    def train_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Lists of up to `steps_per_call` batches, of the windows that are this process's share."""
        if not self.steps_per_epoch:
            raise InputError(
                f"{len(self.train)} training windows: expected at least one for each of {self.processes} processes"
            )
        process = 0 if self.trainer is None else self.trainer.global_rank
        share = range(process, self.epoch_windows, self.processes)
        order = Shuffled(len(self.train), self.batch_size * self.steps_per_call, self.seed, self.passes, share)
        return DataLoader(
            Batches(self._at_hand("train"), self.batch_size),
            sampler=order,
            batch_size=None,
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader[Tensor | list[Tensor]] | list[DataLoader[Tensor | list[Tensor]]]:
        """Batches of the validation split; an empty list where there is none."""
        return self._in_order("val") if len(self.val) else []

    def test_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Batches of the test split."""
        return self._in_order("test")

    def predict_dataloader(self) -> DataLoader[Tensor | list[Tensor]]:
        """Batches of the test split, in order."""
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader[Tensor | list[Tensor]]:
        size, x = self.batch_size * STEPS_PER_CALL, self._at_hand(split)
        return DataLoader(Batches(x, size), sampler=InOrder(len(x), size), batch_size=None, generator=torch.Generator())

    def _at_hand(self, split: str) -> Float[Tensor, "n channels length"] | Views:
        """The windows of a split; on a GPU, a copy in its memory where there is room, so that no step waits for them.

        Splits of the same series share one copy.
        """
        x: Tensor | Views = getattr(self, split).x
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type != "cuda":
            return x
        if isinstance(x, Views) and split not in self._resident:
            there = [(getattr(self, of).x, views) for of, views in self._resident.items()]
            same = [v for of, v in there if isinstance(of, Views) and isinstance(v, Views) and of.blocks is x.blocks]
            if same:
                self._resident[split] = x.to(device, same[0])
        if split not in self._resident and 4 * x.nbytes < torch.cuda.mem_get_info(device)[0]:
            self._resident[split] = x.to(device)
        return self._resident.get(split, x)
