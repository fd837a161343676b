"""The LightningDataModule of every data set: windows in tensors, of which a batch is a slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from msae.data.batches import Batches, InOrder, Shuffled, spread
from msae.data.rows import Table
from msae.data.statistics import channel_statistics
from msae.data.windows import Views
from msae.errors import InputError, check_choice, check_each, check_int, repeated

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
    y: Int[Tensor, " _"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Shaped[Tensor, " m"] | slice) -> Windows:
        return Windows(self.x[index], None if self.y is None else self.y[index])

    def cast(self, dtype: torch.dtype) -> Windows:
        """The same windows in another type."""
        return Windows(self.x.cast(dtype) if isinstance(self.x, Views) else self.x.to(dtype), self.y)


def check_windows(splits: dict[str, Windows], missing: bool) -> None:
    """Raise InputError unless all splits are floats `(n, channels, length)`, of one shape, and finite in float32.

    With `missing` NaN is allowed. The values of `Views` are not checked here, but where their files are read.
    """
    for name, windows in splits.items():
        x, y = windows.x, windows.y
        check_each(f"{name} labels", x if y is None else y, len(x), "windows")
        if isinstance(x, Views):
            continue
        if not isinstance(x, Tensor):
            raise InputError(f"{name} windows: expected a tensor, got {type(x).__name__}; try torch.as_tensor")
        if x.ndim != 3 or x.dtype not in (torch.float32, torch.float64) or not len(x):
            raise InputError(
                f"{name} windows: expected float32 or float64 (n, channels, length), got {x.dtype} {tuple(x.shape)}"
            )
        bad = ~(x.abs() <= torch.finfo(torch.float32).max)
        bad = ((bad & ~x.isnan()) if missing else bad).flatten(1).any(1).nonzero()
        if len(bad):
            raise InputError(
                f"{name} windows: {len(bad)} hold NaN or infinity, the first of them is window {int(bad[0])}"
            )
    sizes = {name: tuple(windows.x.shape[1:]) for name, windows in splits.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"windows: {', '.join(f'{size} in {name}' for name, size in sizes.items())}")


def check_pair(name: str, pair: Any, expected: str) -> tuple[float, float]:
    """Return two numbers if they are finite; raises InputError otherwise, which says what is expected."""
    numbers = tuple(pair) if isinstance(pair, Sequence) and not isinstance(pair, str) else ()
    if len(numbers) != 2 or not all(isinstance(value, Real) and math.isfinite(value) for value in numbers):
        raise InputError(f"{name}={pair}: expected {expected}")
    return float(numbers[0]), float(numbers[1])


def check_names(key: str, names: Sequence[str] | None, n: int, what: str) -> list[str] | None:
    """Names as a list of `n` or, of labels, more; raises InputError for fewer, or for a name that is there twice."""
    if names is None:
        return None
    found = list(names)
    if len(found) != n if key == "names" else len(found) < n:
        raise InputError(f"{key}={found[:8]}: {len(found)} for {n} {what}; expected one for each")
    if twice := repeated(found):
        raise InputError(f"{key}={found[:8]}: {twice[0]} is named twice")
    return found


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
        base: what models subtract from windows in float64, `(channels, 1)`; None if float32 holds the windows as they
            are. Windows, and batches, are float64 where there is a base, else float32.
        chosen: options of the data set that its files chose, by name, such as `window`; a run keeps them.
        tables: the files of a user's series, with their times; the blocks of `Views` are their values.

    Raises:
        InputError: an argument out of range, or windows that are not floats, finite and of one shape.

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
        splits = {"training": train, "test": test} | ({"validation": val} if val else {})
        check_windows(splits, missing)
        self.batch_size = check_int("batch_size", batch_size)
        self.seed = check_int("seed", seed, 0, 2**32 - 1)
        self._resident: dict[str, Tensor | Views] = {}
        self.chosen: dict[str, Any] = {}
        self.tables: list[Table] = []
        if val is None:
            train, val = self._without_validation(train, val_size, val_seed)
        self.epoch_steps = check_int("epoch_steps", epoch_steps)
        self.shape: tuple[int, int] = (train.x.shape[1], train.x.shape[2])
        self.image_shape = image_shape
        self.bounded = value_range is not None
        self.missing = missing
        self.names = check_names("names", names, self.shape[0], "channels")
        last = max((int(windows.y.max()) for windows in splits.values() if windows.y is not None), default=-1)
        self.classes = check_names("classes", classes, last + 1, "labels")
        self.per_window = normalize == "window"
        if isinstance(normalize, str):
            check_choice("normalize", normalize, NORMALIZATIONS)
        else:
            expected = "an offset and a scale above 0, such as (20, 5)"
            normalize = check_pair("normalize", normalize, expected)
            if normalize[1] <= 0:
                raise InputError(f"normalize={normalize}: expected {expected}")
        if self.per_window and value_range is not None:
            raise InputError(
                f"normalize=window value_range={value_range}: windows that are normalized each by itself have no "
                "common range; expected normalize=none, minmax, standard or (offset, scale), or no value_range"
            )
        found = channel_statistics(train.x, normalize, self.names)
        self.base, self.offset, self.scale, self.value_range = found.base, found.offset, found.scale, found.value_range
        self.channel_range = found.channel_range
        if value_range is not None:
            expected = "a least and a greater value, such as (0, 1)"
            low, high = check_pair("value_range", value_range, expected)
            if low >= high:
                raise InputError(f"value_range={value_range}: expected {expected}")
            self.value_range = torch.tensor([low, high], dtype=self.value_range.dtype)
        dtype = torch.float32 if self.base is None else torch.float64
        self.train, self.val, self.test = (windows.cast(dtype) for windows in (train, val, test))

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
        keys = ("base", "offset", "scale", "value_range", "channel_range", "per_window", "missing", "bounded", "names")
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
        if self.base is not None and self.trainer is not None and self.trainer.strategy.root_device.type == "mps":
            raise InputError("mps: has no float64, which these data need for their levels or units; expected cpu")
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
