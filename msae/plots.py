"""Pictures of reconstructions, of latents, of forecasts and of learning curves."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from torch import Tensor


def reconstructions(
    x: Float[Tensor, "n channels length"],
    outputs: Mapping[str, Float[Tensor, "n channels length"]],
    image_shape: tuple[int, int] | None = None,
) -> Figure:
    """A column for each of the n windows: the input, then every model's output and absolute error.

    Windows are drawn as images where `image_shape`, (rows, columns), is given, else as lines, one a channel. Inputs and
    outputs have one scale, images of errors too; lines of errors have one of their own.
    """
    greatest = max((float((x - x_hat).abs().nan_to_num().max()) for x_hat in outputs.values()), default=0.0) or 1.0
    present = x[~x.isnan()]
    low, high = (float(bound) for bound in present.aminmax()) if len(present) else (0.0, 1.0)
    rows = [("input", x)]
    for name, x_hat in outputs.items():
        rows += [(name, x_hat), (f"{name}: error" if name else "error", (x - x_hat).abs())]
    height = 0.9 if image_shape else 1.2
    figure = Figure(figsize=(1.6 + 0.9 * len(x), height * len(rows)), layout="constrained")
    # an axis for each window would take eight times as long
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for (name, windows), axis in zip(rows, axes, strict=True):
        if image_shape:
            axis.imshow(side_by_side(windows.reshape(-1, *image_shape)), cmap="gray", vmin=low, vmax=high)
            axis.set_frame_on(False)
        else:
            axis.plot(side_by_side(windows).T, linewidth=0.8)
            width = windows.shape[2] + gap(windows.shape[2])
            for edge in range(1, len(x)):
                axis.axvline(edge * width - (gap(windows.shape[2]) + 1) / 2, color="0.8", linewidth=0.8)
            bounds = (0.0, greatest) if name.endswith("error") else (low, high)
            axis.set(xlim=(-gap(windows.shape[2]), len(x) * width - 1), ylim=bounds)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name or "output", rotation=0, ha="right", va="center", fontsize=8)
    return figure


def gap(length: int) -> int:
    """Steps between windows drawn side by side."""
    return max(1, length // 12)


def side_by_side(windows: Float[Tensor, "n rows columns"]) -> Float[np.ndarray, "rows all"]:
    """Windows, or images, in one, with a gap of NaN after each but the last."""
    apart = F.pad(windows, (0, gap(windows.shape[2])), value=torch.nan)
    return apart.movedim(0, 1).flatten(1)[:, : -gap(windows.shape[2])].numpy()


def curves(runs: Mapping[str, Mapping[str, Float[np.ndarray, "seeds epochs"]]]) -> Figure:
    """MSE per epoch, an axis a split: a line for each model's mean over seeds, in a band of one standard deviation."""
    splits = list(dict.fromkeys(split for model in runs.values() for split in model))
    figure = Figure(figsize=(5 * len(splits), 3.6), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(splits), squeeze=False)[0])
    for split, axis in zip(splits, axes, strict=True):
        for name, model in runs.items():
            if split not in model:
                continue
            mean, spread = model[split].mean(0), model[split].std(0)
            epochs = np.arange(1, len(mean) + 1)
            axis.plot(epochs, mean, label=f"{name} (n = {len(model[split])})", linewidth=1.2)
            axis.fill_between(epochs, mean - spread, mean + spread, alpha=0.25, linewidth=0)
        axis.set(yscale="log", xlabel="epoch", ylabel=f"{split} MSE", title=f"{split} split")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    return figure


def series(
    x: Float[np.ndarray, "time channels"] | Float[np.ndarray, "n channels length"],
    x_hat: Float[np.ndarray, "time channels"] | Float[np.ndarray, "n channels length"],
    names: Sequence[str],
    length: int,
) -> Figure:
    """A row for each of the first four channels: all of a series with its reconstruction, and four windows up close.

    The whole is drawn from the least and greatest value of each of up to 1,000 stretches. Windows already cut are
    drawn one after the other.
    """
    if x.ndim == 3:
        x, x_hat = (array.transpose(0, 2, 1).reshape(-1, array.shape[1]) for array in (x, x_hat))
    shown = min(4, x.shape[1])
    figure = Figure(figsize=(11, 0.6 + 2 * shown), layout="constrained")
    axes = figure.subplots(shown, 2, squeeze=False, width_ratios=(3, 2))
    middle = slice(max(0, len(x) // 2 - 2 * length), len(x) // 2 + 2 * length)
    for channel, (whole, near) in enumerate(axes):
        for array, label, width in ((x, "input", 1.4), (x_hat, "reconstruction", 0.8)):
            whole.plot(*envelope(array[:, channel]), label=label, linewidth=width)
            near.plot(np.arange(len(x))[middle], array[middle, channel], linewidth=width)
        near.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        whole.set_ylabel(names[channel] if channel < len(names) else f"channel {channel}")
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("row")
    return figure


def latents(z: Float[np.ndarray, "n latent"], by: Shaped[np.ndarray, " n"], name: str) -> Figure:
    """Latents in two dimensions, by PCA; a colour for each of up to 20 texts or whole numbers, else a colour bar.

    Args:
        z: the latents.
        by: what they are coloured by, such as labels or times.
        name: of that.
    """
    pca = PCA(min(2, *z.shape), svd_solver="full").fit(z)
    x, y = np.pad(pca.transform(z), ((0, 0), (0, 2 - pca.n_components_))).T
    share = np.append(np.nan_to_num(pca.explained_variance_ratio_), 0.0)
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axis = figure.subplots()
    kinds, number = np.unique(by, return_inverse=True)
    if len(kinds) <= 20 and name == "label":
        for i, kind in enumerate(kinds):
            axis.scatter(x[number == i], y[number == i], s=6, color=colormaps["tab20"](i), label=str(kind))
        axis.legend(title=name, fontsize=8, markerscale=2)
    else:
        stamps = by.dtype.kind == "M"
        values = by.astype("M8[s]").astype(float) if stamps else number if by.dtype.kind in "OU" else by
        bar = figure.colorbar(axis.scatter(x, y, s=6, c=values, cmap="viridis"), label=name)
        if stamps:
            bar.ax.yaxis.set_major_formatter(lambda second, _: str(np.datetime64(int(second), "s"))[:16])
    axis.set(xlabel=f"first component, {share[0]:.0%} of the variance", ylabel=f"second, {share[1]:.0%}")
    return figure


def forecast(
    x: Float[np.ndarray, "time channels"], y_hat: Float[np.ndarray, "horizon channels"], names: Sequence[str]
) -> Figure:
    """A row for each of the first four channels: the end of a series, and the forecast of what follows it."""
    shown = min(4, x.shape[1])
    figure = Figure(figsize=(9, 0.6 + 1.8 * shown), layout="constrained")
    axes = figure.subplots(shown, squeeze=False, sharex=True)[:, 0]
    for channel, axis in enumerate(axes):
        axis.plot(np.arange(1 - len(x), 1), x[:, channel], linewidth=1, label="series")
        axis.plot(np.arange(1, len(y_hat) + 1), y_hat[:, channel], linewidth=1, label="forecast")
        axis.axvline(0.5, color="gray", linewidth=0.6)
        axis.set_ylabel(names[channel])
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("steps after the end")
    return figure


def anomalies(
    x: Float[np.ndarray, "time channels"],
    score: Float[np.ndarray, " time"],
    threshold: float,
    events: Sequence[tuple[int, int]],
    names: Sequence[str],
) -> Figure:
    """A row for each of the first four channels and one for the score, with the threshold; events are shaded.

    Args:
        x: the series.
        score: of each step, drawn on a logarithmic axis where it is above 0.
        threshold: above which an event is.
        events: first and last step of each.
        names: of the channels.
    """
    shown = min(4, x.shape[1])
    figure = Figure(figsize=(11, 2.2 + 1.4 * shown), layout="constrained")
    axes: list[Axes] = list(figure.subplots(shown + 1, 1, sharex=True, height_ratios=[*[1] * shown, 1.4]))
    for channel, axis in enumerate(axes[:-1]):
        axis.plot(*envelope(x[:, channel]), linewidth=0.8)
        axis.set_ylabel(names[channel])
    axes[-1].plot(*envelope(score), linewidth=0.8, color="black", label="score")
    axes[-1].axhline(threshold, color="tab:red", linestyle="--", linewidth=1, label="threshold")
    if np.nanmax(score, initial=0) > 0:
        axes[-1].set_yscale("log", nonpositive="mask")
    axes[-1].set(ylabel="score", xlabel="step")
    axes[-1].legend(fontsize=8, loc="upper left")
    bars = [(start - 0.5, end - start + 1) for start, end in events]
    for axis in axes:
        axis.broken_barh(bars, (0, 1), transform=axis.get_xaxis_transform(), color="tab:red", alpha=0.25, linewidth=1)
    return figure


def envelope(values: Float[np.ndarray, " time"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of a line that shows the least and greatest value of each of up to 1,000 stretches."""
    if len(values) <= 2000:
        return np.arange(len(values)), np.asarray(values)
    edges = np.linspace(0, len(values), 1001).astype(int)
    with np.errstate(all="ignore"):
        bounds = [(np.fmin.reduce(piece), np.fmax.reduce(piece)) for piece in np.split(values, edges[1:-1])]
    return np.repeat(edges[:-1], 2), np.array(bounds).reshape(-1)


def variants(
    x: Float[Tensor, "n channels length"],
    made: Mapping[str, Float[Tensor, "n channels length"]],
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """A column for each of n old samples, first as it is, then what each of `made` has in its place, before it in grey.

    Samples are drawn as images where `image_shape`, (rows, columns), is given, else as lines, one a channel, four at
    most.
    """
    rows = [("old", x), *made.items()]
    height = 0.9 if image_shape else 1.2
    figure = Figure(figsize=(1.6 + (0.9 if image_shape else 1.8) * len(x), height * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(x), squeeze=False)
    present = x[~x.isnan()]
    low, high = (float(bound) for bound in present.aminmax()) if len(present) else (0.0, 1.0)
    for (name, samples), line in zip(rows, axes, strict=True):
        for old, new, axis in zip(x, samples, line, strict=True):
            if image_shape:
                axis.imshow(new.reshape(image_shape).numpy(), cmap="gray", vmin=low, vmax=high)
            else:
                axis.plot(old[:4].T.numpy(), color="0.75", linewidth=0.8)
                axis.set_prop_cycle(None)
                axis.plot(new[:4].T.numpy(), linewidth=0.8)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
