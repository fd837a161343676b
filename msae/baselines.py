"""What a model has to beat: PCA, the best linear autoencoder, on the same windows at the same latent size."""

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from msae.data.module import DataModule, spread
from msae.models.layers import window_level

VALUES = 50_000_000
"""As many values of training windows are fitted at most, evenly spread."""


def scaled(data: DataModule, x: Float[Tensor, "n channels length"]) -> tuple[Tensor, Tensor]:
    """Windows as models see them, 0 where a value is missing, and what they were divided by, in the same shape."""
    offset, scale = window_level(x) if data.per_window else (data.offset, data.scale)
    return ((x - offset) / scale).masked_fill_(x.isnan(), 0), scale.expand_as(x)


def sample(data: DataModule) -> Float[Tensor, "n channels length"]:
    """Scaled training windows: all, or of many as many as hold `VALUES`, evenly spread."""
    n = max(1, VALUES // (data.shape[0] * data.shape[1]))
    return scaled(data, data.train.x[spread(len(data.train), n)])[0]


def pca(data: DataModule, latents: list[int]) -> list[dict[str, Any]]:
    """Test MSE of PCA, fitted to scaled training windows, at each latent size; also clipped to a data set's range.

    Windows scaled each by itself have their mean and deviation in the latent, for PCA as for a model. Of many windows,
    as many as hold `VALUES` are fitted, evenly spread. Few windows have no more axes than windows.
    """
    size, level = data.shape[0] * data.shape[1], 2 * data.shape[0] * data.per_window
    train = sample(data).flatten(1).double().numpy()
    n = len(train)
    latents = [k for k in latents if 0 < k - level < size]  # as many as values would copy them
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
            if name != "PCA":  # bounded data has one range and one scale for all windows
                offset = data.offset.numpy().repeat(data.shape[1], 1).reshape(-1)
                x_hat = np.clip(x_hat, (low - offset) / scale, (high - offset) / scale)
            error = np.where(missing, 0, x_hat - x)
            sums[k, name] += (error**2).sum(), ((error * scale) ** 2).sum()
    rows = []
    for (k, name), total in sums.items():
        loss, mse = (total / count).tolist()
        psnr = float(10 * np.log10((high - low) ** 2 / mse)) if mse else None
        rows.append({"model": name, "latent": k, "test_mse": mse, "test_loss": loss, "psnr": psnr})
    return rows
