"""The baseline of every model: PCA, the best linear autoencoder, on the same windows at the same latent size."""

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from msae.data.batches import spread
from msae.data.module import DataModule
from msae.models.layers import window_level

VALUES = 50_000_000
"""The greatest number of values in the training windows that PCA is fitted to; these are spread evenly."""


def scaled(data: DataModule, x: Float[Tensor, "n channels length"]) -> tuple[Tensor, Tensor]:
    """Normalized windows, 0 where a value is missing, and the scale they were divided by, in the same shape."""
    above = x if data.base is None else x.double() - data.base
    offset, scale = window_level(above) if data.per_window else (data.offset, data.scale)
    return ((above - offset) / scale).float().masked_fill_(x.isnan(), 0), scale.expand_as(x)


def sample(data: DataModule) -> Float[Tensor, "n channels length"]:
    """Normalized training windows: all of them, or an even selection if they have more than `VALUES` values."""
    n = max(1, VALUES // (data.shape[0] * data.shape[1]))
    return scaled(data, data.train.x[spread(len(data.train), n)])[0]


def pca(data: DataModule, latents: list[int]) -> list[dict[str, Any]]:
    """Test MSE of PCA, fitted to normalized training windows, at each latent size.

    If the data are bounded, there is a second row for each size, with reconstructions clipped to the data's range.
    With `normalize=window` the mean and deviation of each window count as latent values, as they do in a model. PCA
    is fitted to at most `VALUES` values, and has at most as many axes as there are windows.

    Returns:
        A row for each size: `model`, `latent`, `test_mse` in raw units, `test_loss` in normalized units, `psnr` in dB.

    Examples:
        >>> import torch
        >>> from msae.data.module import Windows
        >>> x = torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(0))
        >>> [round(row["test_mse"], 2) for row in pca(DataModule(Windows(x), Windows(x)), latents=[1, 3])]
        [0.6, 0.14]
    """
    size, level = data.shape[0] * data.shape[1], 2 * data.shape[0] * data.per_window
    train = sample(data).flatten(1).double().numpy()
    n = len(train)
    latents = [
        k for k in latents if 0 < k - level < size
    ]  # with as many latent values as the window has, PCA would copy it
    if not latents:
        return []
    fitted = PCA(min(max(latents) - level, max(1, n - 1)), svd_solver="covariance_eigh" if n > size else "full")
    fitted.fit(train)
    low, high = data.value_range.tolist()
    outputs = ["PCA", "PCA, clipped"] if data.bounded else ["PCA"]
    sums = {(k, name): np.zeros(2) for k in latents for name in outputs}
    count = 0
    for start in range(0, len(data.test), 4096):
        raw = data.test.x[start : start + 4096]
        x, scale = (values.flatten(1).double().numpy() for values in scaled(data, raw))
        missing = raw.isnan().flatten(1).numpy()
        z = fitted.transform(x)
        count += (~missing).sum()
        for k, name in sums:
            x_hat = z[:, : k - level] @ fitted.components_[: k - level] + fitted.mean_
            if name != "PCA":  # the bounds hold in raw units
                above = data.offset if data.base is None else data.offset + data.base
                offset = above.numpy().repeat(data.shape[1], 1).reshape(-1)
                x_hat = np.clip(x_hat, (low - offset) / scale, (high - offset) / scale)
            error = np.where(missing, 0, x_hat - x)
            sums[k, name] += (error**2).sum(), ((error * scale) ** 2).sum()
    rows = []
    for (k, name), total in sums.items():
        loss, mse = (total / count).tolist()
        psnr = float(10 * np.log10((high - low) ** 2 / mse)) if mse else None
        rows.append({"model": name, "latent": k, "test_mse": mse, "test_loss": loss, "psnr": psnr})
    return rows
