"""scikit-learn's digits: no download, for tests and a first look in seconds."""

from typing import Any

import torch
from sklearn.datasets import load_digits

from msae.data.module import DataModule, Windows

TEST_SIZE = 360


def digits(**loader: Any) -> DataModule:
    """1,797 images of 8 x 8 pixels as windows `(1, 64)` in [0, 1], labels 0 to 9; the last 360 are the test split.

    Args:
        loader: `batch_size`, `val_size`, `val_seed` and `seed` of `DataModule`.

    Examples:
        >>> data = digits(val_size=200)
        >>> len(data.train), len(data.val), len(data.test), data.shape
        (1237, 200, 360, (1, 64))
    """
    images, labels = load_digits(return_X_y=True)
    samples = Windows(torch.from_numpy(images / 16).float().unsqueeze(1), torch.from_numpy(labels).long())
    return DataModule(samples[:-TEST_SIZE], samples[-TEST_SIZE:], value_range=(0.0, 1.0), image_shape=(8, 8), **loader)
