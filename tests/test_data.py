"""Splits, order and batches of the DataModule."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import msae.data.windows
from msae import InputError
from msae.data.digits import digits
from msae.data.module import DataModule, Windows
from msae.models.layers import window_level


def numbered(n: int, channels: int = 1) -> Windows:
    """Each value of a window is the window's number, which is its label too."""
    numbers = torch.arange(n)
    return Windows(numbers.float().reshape(-1, 1, 1).expand(n, channels, 2).contiguous(), numbers)


def data(n: int = 100, **options: object) -> DataModule:
    return DataModule(numbered(n), numbered(7), **options)


def order(module: DataModule, epoch: int = 0) -> list[int]:
    """The numbers of the training windows in the order of an epoch."""
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [int(window[0, 0]) for batches in loader for batch in batches for window in batch]


def labels(windows: Windows) -> list[int]:
    assert isinstance(windows.y, Tensor)
    return windows.y.tolist()


def test_without_a_validation_split_all_is_trained_on() -> None:
    module = data()
    assert labels(module.train) == list(range(100))
    assert len(module.val) == 0
    assert module.val_dataloader() == []


def test_the_validation_split_is_taken_out_of_the_training_split() -> None:
    module = data(val_size=30)
    assert len(module.val) == 30
    assert sorted(labels(module.val) + labels(module.train)) == list(range(100))
    assert labels(module.test) == list(range(7))
    for split in (module.train, module.val):
        assert split.x[:, 0, 0].tolist() == labels(split)


def test_the_validation_split_has_a_seed_of_its_own() -> None:
    first = labels(data(val_size=30).val)
    assert first == labels(data(val_size=30, seed=5).val)
    assert first != labels(data(val_size=30, val_seed=1).val)


def test_every_epoch_has_its_own_order_from_the_seed() -> None:
    orders = [order(data(seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(numbers) == list(range(100)) for numbers in orders)
    assert len({tuple(numbers) for numbers in orders}) == 4
    assert order(data(seed=1), 1) == orders[3]


def test_batches() -> None:
    """A call has 32 batches, only the last batch is smaller, and every window comes once."""
    calls = list(data(100, batch_size=3).train_dataloader())
    assert [[len(batch) for batch in call] for call in calls] == [[3] * 32, [3, 1]]
    module = data(100, batch_size=3, val_size=50)
    for loader, split in ((module.val_dataloader(), module.val), (module.test_dataloader(), module.test)):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert torch.equal(torch.cat(batches), split.x)
    assert torch.equal(torch.cat(list(module.predict_dataloader())), module.test.x)


def test_a_share_for_validation() -> None:
    assert len(data(val_size=0.25).val) == 25
    assert len(data(val_size=0.001).val) == 1


def test_statistics_of_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics equal numpy's for pieces of any size; NaN is left out, a constant channel is normalized to 0."""
    x = torch.randn(50, 3, 7, generator=torch.Generator().manual_seed(0)) * 5 + 100
    x[:, 1] = 8
    x[3:9, 2, 4:] = torch.nan
    flat = x.movedim(1, 0).flatten(1).double().numpy()
    low, high, mean, deviation = (f(flat, axis=1) for f in (np.nanmin, np.nanmax, np.nanmean, np.nanstd))
    expected = {
        "none": (np.zeros(3), np.ones(3)),
        "minmax": (low, [high[0] - low[0], 1, high[2] - low[2]]),
        "standard": (mean, [deviation[0], 1, deviation[2]]),
        "window": (np.zeros(3), np.ones(3)),
    }
    for piece in (1 << 22, 40):
        monkeypatch.setattr(msae.data.windows, "PIECE", piece)
        for scale, (offset, width) in expected.items():
            module = DataModule(Windows(x), Windows(x[:9]), normalize=scale, missing=True)
            assert module.offset[:, 0].numpy() == pytest.approx(offset, abs=1e-4)
            assert module.scale[:, 0].numpy() == pytest.approx(width)
            assert module.value_range.tolist() == pytest.approx([np.nanmin(flat), np.nanmax(flat)])
            assert (module.per_window, module.missing, module.bounded) == (scale == "window", True, False)


def test_pictures_show_all_of_the_test_split() -> None:
    x, y = data().shown(4)
    assert (x[:, 0, 0].tolist(), y.tolist()) == ([0, 2, 4, 6], [0, 2, 4, 6])
    assert len(data().shown(100)[0]) == 7


def test_statistics() -> None:
    module = DataModule(numbered(10, channels=2), numbered(20, channels=2), normalize=(1.0, 3.0))
    assert module.shape == (2, 2)
    assert module.offset.tolist() == [[1.0], [1.0]]
    assert module.scale.tolist() == [[3.0], [3.0]]
    assert module.value_range.tolist() == [0.0, 9.0]


def test_the_range_is_that_of_the_training_split_alone() -> None:
    """Neither test nor validation windows change it."""
    module = data(100, val_size=60)
    assert module.value_range.tolist() == [min(labels(module.train)), max(labels(module.train))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number, at least 1"),
        ({"val_size": 100}, "val_size=100: expected a whole number, from 0 to 99"),
        ({"val_size": -1}, "val_size=-1: expected"),
        ({"val_size": 1.5}, "val_size=1.5: expected"),
        ({"normalize": "log"}, "normalize=log: expected one of none, minmax, standard, window"),
        ({"val_seed": -1}, "val_seed=-1: expected"),
        ({"seed": 2**32}, "seed=4294967296: expected"),
        *(
            ({"normalize": pair}, r"normalize=\(.*\): expected an offset and a scale above 0, such as \(20, 5\)")
            for pair in ((0, 0), (0, -1), (0, float("nan")), (float("inf"), 1))
        ),
        *(
            ({"value_range": pair}, r"value_range=\(.*\): expected a least and a greater value, such as \(0, 1\)")
            for pair in ((1, 0), (0, 0), (0, float("nan")))
        ),
        ({"names": ["a", "b"]}, r"names=\['a', 'b'\]: 2 for 1 channels; expected one for each"),
        ({"classes": ["a", "b"]}, r"classes=\['a', 'b'\]: 2 for 100 labels; expected one for each"),
        (
            {"normalize": "window", "value_range": (0.0, 1.0)},
            r"normalize=window value_range=\(0.0, 1.0\): windows .* expected normalize=none, .* or no value_range",
        ),
    ],
)
def test_an_option_that_is_not_possible(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data(**options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(4, 1, 8, dtype=torch.float16),
            r"test windows: expected float32 or float64 .* got torch.float16 \(4, 1, 8\)",
        ),
        (torch.zeros(0, 1, 8), r"got torch.float32 \(0, 1, 8\)"),
        (
            torch.tensor([[[1.0]], [[float("nan")]]]),
            "test windows: 1 hold NaN or infinity, the first of them is window 1",
        ),
        (torch.full((4, 1, 2), 1e300, dtype=torch.float64), "test windows: 4 hold NaN or infinity"),
        (torch.zeros(4, 2, 8), r"windows: \(1, 2\) in training, \(2, 8\) in test"),
    ],
)
def test_windows_that_cannot_be_used(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataModule(numbered(10), Windows(x))


def test_labels_of_another_number() -> None:
    x = torch.zeros(4, 1, 2)
    with pytest.raises(InputError, match="test labels: 3 for 4 windows; expected one for each"):
        DataModule(Windows(x), Windows(x, torch.zeros(3).long()))


def test_a_device_without_float64() -> None:
    x = 1e9 + torch.rand(4, 1, 2, dtype=torch.float64)
    module = DataModule(Windows(x), Windows(x))
    module.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("mps")),
        limit_train_batches=1.0,
        val_check_interval=1.0,
        num_devices=1,
        num_nodes=1,
    )
    with pytest.raises(InputError, match="mps: has no float64"):
        module.train_dataloader()


def test_digits() -> None:
    module = digits(val_size=200)
    assert [len(split) for split in (module.train, module.val, module.test)] == [1237, 200, 360]
    assert module.shape == (1, 64)
    assert (module.test.x.min(), module.test.x.max()) == (0, 1)
    assert module.value_range.tolist() == [0, 1]


def test_pictures_of_more_windows_than_float32_counts() -> None:
    n = 2**24 + 4
    data = DataModule(Windows(torch.zeros(1, 1, 1)), Windows(torch.zeros(1, 1, 1).expand(n, 1, 1)))
    x, _ = data.shown(3)
    assert x.shape == (3, 1, 1)


@pytest.mark.parametrize(("level", "spread"), [(1e4, 0.5), (1e6, 50.0), (0.0, 1e-9), (5.0, 0.0), (0.0, 0.0)])
def test_windows_scaled_each_by_itself(level: float, spread: float) -> None:
    """At any level, neighbours are normalized alike, and constant windows become nearly 0."""
    x = level + spread * torch.randn(500, 1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, deviation = window_level(x.float())
    scaled = (x - mean) / deviation
    if spread:
        assert scaled.std(2, unbiased=False).sub(1).abs().max() < 0.1
    else:
        assert scaled.abs().max() < 0.2
    assert (deviation > 0).all()


@pytest.mark.parametrize(("n", "steps", "passes"), [(10, 7, 3), (10, 1, 1), (3, 1, 1), (100, 7, 1)])
def test_an_epoch_of_few_windows_goes_through_them_several_times(n: int, steps: int, passes: int) -> None:
    data = DataModule(
        Windows(torch.arange(float(n)).reshape(n, 1, 1)), Windows(torch.zeros(1, 1, 1)), batch_size=4, epoch_steps=steps
    )
    batches = [batch for call in data.train_dataloader() for batch in call]
    assert len(batches) == data.steps_per_epoch >= steps
    assert (torch.cat(batches).flatten().long().bincount() == passes).all()
