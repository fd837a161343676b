"""Pictures of reconstructions, of latents, of forecasts and of learning curves."""

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from torch import Tensor

CHANNELS = 4
"""The greatest number of channels in a picture; the first ones are shown."""
STRETCHES = 1000
"""The number of stretches in an envelope, about one for each column of pixels."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
"""The line styles of `curves`."""


def reconstructions(
    x: Float[Tensor, "n channels length"],
    outputs: Mapping[str, Float[Tensor, "n channels length"]],
    image_shape: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """A row for the input, then two rows for each model: its output and its absolute error; a column for each window.

    Inputs and outputs share one axis range; all errors share another, which starts at 0.

    Args:
        x: the windows, in raw units.
        outputs: the reconstructions of each model, or up to each scale, by its name.
        image_shape: (rows, columns) of windows to draw as images; None draws a line for each channel.
        names: the names of the channels, for the legend.
        title: the title of the picture; by default it gives the number of windows.
    """
    greatest = max((float((x - x_hat).abs().nan_to_num().max()) for x_hat in outputs.values()), default=0.0) or 1.0
    low, high = bounds(x)
    rows = [("input", x)]
    for name, x_hat in outputs.items():
        rows += [(name, x_hat), (f"{name}: error" if name else "error", (x - x_hat).abs())]
    height = 0.9 if image_shape else 1.2
    figure = Figure(figsize=(2.4 + 0.9 * len(x), 0.5 + height * len(rows)), layout="constrained")
    # an axis for each window would take eight times as long
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for (name, windows), axis in zip(rows, axes, strict=True):
        if image_shape:
            axis.imshow(side_by_side(windows.reshape(-1, *image_shape)), cmap="gray", vmin=low, vmax=high)
            axis.set_frame_on(False)
            axis.set_yticks([])
        else:
            axis.plot(side_by_side(windows).T, linewidth=0.8)
            separate(axis, len(x), windows.shape[2])
            axis.set_ylim((0.0, greatest) if name.endswith("error") else (low, high))
            axis.yaxis.set_major_locator(MaxNLocator(3))
            axis.tick_params(labelsize=7)
        axis.set_xticks([])
        axis.set_ylabel(name or "output", rotation=0, ha="right", va="center", fontsize=8)
    if not image_shape:
        axes[-1].set_xlabel(f"{len(x)} windows side by side, {x.shape[2]} steps each", fontsize=8)
        if names and 1 < len(names) <= 8:
            figure.legend(axes[0].lines[: len(names)], names, loc="outside right upper", fontsize=7)
    figure.suptitle(f"{len(x)} windows and their reconstructions" if title is None else title, fontsize=9)
    return figure


def bounds(x: Float[Tensor, "..."]) -> tuple[float, float]:
    """The least and the greatest value that is not NaN, or limits around the only one; 0 and 1 if all are NaN."""
    low, high = (float(f(x[~x.isnan()])) for f in (torch.min, torch.max)) if not x.isnan().all() else (0.0, 1.0)
    return (low, high) if low < high else (low - max(1.0, abs(low)), high + max(1.0, abs(high)))


def gap(length: int) -> int:
    """Steps between windows drawn side by side."""
    return max(1, length // 12)


def side_by_side(windows: Float[Tensor, "n rows columns"]) -> Float[np.ndarray, "rows all"]:
    """Windows, or images, in one array, with a gap of NaN after each but the last."""
    apart = F.pad(windows, (0, gap(windows.shape[2])), value=torch.nan)
    return apart.movedim(0, 1).flatten(1)[:, : -gap(windows.shape[2])].numpy()


def separate(axis: Axes, n: int, length: int) -> None:
    """Draw a line between neighbours of n windows side by side, and end the axis where the last window ends."""
    width = length + gap(length)
    for edge in range(1, n):
        axis.axvline(edge * width - (gap(length) + 1) / 2, color="0.8", linewidth=0.8)
    axis.set_xlim(-gap(length), n * width - 1)


def curves(runs: Mapping[str, Mapping[str, Float[np.ndarray, "seeds epochs"]]]) -> Figure:
    """MSE per epoch, an axis for each split: for each model the mean over seeds and a band of one standard deviation.

    Models differ in colour, line style and width, so that overlapping curves can be told apart.
    """
    splits = list(dict.fromkeys(split for model in runs.values() for split in model))
    figure = Figure(figsize=(5 * len(splits), 3.6), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(splits), squeeze=False)[0])
    for split, axis in zip(splits, axes, strict=True):
        for i, (name, model) in enumerate(runs.items()):
            if split not in model:
                continue
            mean, spread = model[split].mean(0), model[split].std(0)
            epochs = np.arange(1, len(mean) + 1)
            look = {"color": f"C{i % 10}", "linestyle": LINES[i % len(LINES)], "linewidth": max(1.2, 3.2 - 0.6 * i)}
            axis.plot(epochs, mean, label=f"{name} (n = {len(model[split])})", **look)
            axis.fill_between(epochs, mean - spread, mean + spread, color=f"C{i % 10}", alpha=0.2, linewidth=0)
        axis.set(yscale="log", xlabel="epoch", ylabel=f"{split} MSE", title=f"{split} split")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8, handlelength=3)
    return figure


def series(
    x: Float[np.ndarray, "time channels"] | Float[np.ndarray, "n channels length"],
    x_hat: Float[np.ndarray, "time channels"] | Float[np.ndarray, "n channels length"],
    names: Sequence[str],
    length: int,
    times: Shaped[np.ndarray, " time"] | None = None,
    clock: str | None = None,
) -> Figure:
    """A row for each of the first four channels: a whole series and its reconstruction, and four windows of both.

    A long series is drawn as its envelope: the least and the greatest value of each of up to 1,000 stretches.

    Args:
        x: the series, or windows, which are drawn one after the other; in raw units.
        x_hat: the reconstruction.
        names: the names of the channels, for the axes.
        length: time steps of a window.
        times: the times of the rows, time stamps or numbers; None for row numbers.
        clock: the name of the times.
    """
    if x.ndim == 3:
        x, x_hat = (array.transpose(0, 2, 1).reshape(-1, array.shape[1]) for array in (x, x_hat))
    shown = min(CHANNELS, x.shape[1])
    figure = Figure(figsize=(11, 0.9 + 2 * shown), layout="constrained")
    axes = figure.subplots(shown, 2, squeeze=False, sharex="col", width_ratios=(3, 2))
    at, name = positions(np.arange(len(x)), times, clock, "row")
    middle = slice(max(0, len(x) // 2 - 2 * length), len(x) // 2 + 2 * length)
    for channel, (whole, near) in enumerate(axes):
        envelope(whole, at, x[:, channel], color="0.72", linewidth=2.2, label="input")
        envelope(whole, at, x_hat[:, channel], color="tab:red", linewidth=0.7, label="reconstruction", outline=True)
        near.plot(at[middle], x[middle, channel], color="0.72", linewidth=3)
        near.plot(at[middle], x_hat[middle, channel], color="tab:red", linewidth=1)
        whole.set_ylabel(names[channel] if channel < len(names) else f"channel {channel}")
    axes[0, 0].set_title("whole series" + ", least and greatest values" * (len(x) > 2 * STRETCHES), fontsize=9)
    axes[0, 1].set_title(f"four windows of {length} steps", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    for axis in axes.flat:
        ticks(axis, at)
    for axis in axes[-1]:
        axis.set_xlabel(name)
    return figure


def envelope(axis: Axes, at: np.ndarray, values: Float[np.ndarray, " n"], outline: bool = False, **look: Any) -> None:
    """Draw values at positions: a line or, for a long series, the band between each stretch's least and greatest value.

    With `outline` the two edges of the band are drawn instead of the band; `look` is colour, line width and label.
    """
    if len(values) <= 2 * STRETCHES:
        axis.plot(at, values, **look)
        return
    edges = np.linspace(0, len(values), STRETCHES + 1).astype(int)
    x = at[(edges[:-1] + edges[1:]) // 2]
    low, high = (bound.reduceat(values, edges[:-1]) for bound in (np.fmin, np.fmax))
    if outline:
        axis.plot(x, low, **look)
        axis.plot(x, high, **(look | {"label": None}))
    else:
        axis.fill_between(x, low, high, **(look | {"linewidth": 0.6}))


def positions(steps: np.ndarray, times: np.ndarray | None, clock: str | None, unit: str) -> tuple[np.ndarray, str]:
    """The positions of steps and the label of their axis: the times if they never step back, otherwise the steps."""
    if times is None or np.any(times[1:] < times[:-1]):
        return steps, unit
    return times, clock or "time"


def ticks(axis: Axes, at: np.ndarray, zone: tzinfo | None = None) -> None:
    """Give an axis few ticks: short dates, in a time zone, where its positions are time stamps, otherwise numbers."""
    axis.margins(x=0.01)
    if at.dtype.kind == "M":
        locator = AutoDateLocator(zone, minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, zone))  # type: ignore[no-untyped-call]
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))


def latents(z: Float[np.ndarray, "n latent"], by: Shaped[np.ndarray, " n"], name: str) -> Figure:
    """Latents in two dimensions, by PCA, coloured `by` labels or times, which `name` names.

    There is a legend for up to 20 values of `label`, otherwise a colour bar.
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
    axis.set(
        xlabel=f"first principal component, {share[0]:.0%} of the variance",
        ylabel=f"second, {share[1]:.0%}",
        title=f"latents of {len(z)} windows",
    )
    return figure


def forecast(
    x: Float[np.ndarray, "time channels"],
    y_hat: Float[np.ndarray, "3 horizon channels"],
    names: Sequence[str],
    times: Shaped[np.ndarray, " all"] | None = None,
    clock: str | None = None,
) -> Figure:
    """A row for each of the first four channels: the end of a series, and the forecast of the steps after it.

    Args:
        x: the end of the series, in raw units.
        y_hat: the forecast, and the lower and upper ends of its intervals.
        names: the names of the channels, for the axes.
        times: the times of all steps, time stamps or numbers; None for the number of steps after the end.
        clock: the name of the times, for the axis.
    """
    shown, n = min(CHANNELS, x.shape[1]), len(x)
    figure = Figure(figsize=(9, 0.6 + 1.8 * shown), layout="constrained")
    axes = figure.subplots(shown, squeeze=False, sharex=True)[:, 0]
    at, name = positions(np.arange(1 - n, y_hat.shape[1] + 1), times, clock, "steps after the end")
    for channel, axis in enumerate(axes):
        axis.plot(at[:n], x[:, channel], linewidth=1, color="0.4", label="series")
        axis.plot(at[n:], y_hat[0, :, channel], linewidth=1.6, color="tab:red", label="forecast")
        axis.fill_between(at[n:], *y_hat[1:, :, channel], color="tab:red", alpha=0.2, linewidth=0)
        axis.set_ylabel(names[channel])
        ticks(axis, at)
    axes[0].set_title(f"forecast of the {y_hat.shape[1]} steps after the end", fontsize=9)
    axes[0].legend(fontsize=8, loc="upper left")
    axes[-1].set_xlabel(name)
    return figure


def variants(
    x: Float[Tensor, "n channels length"],
    made: Mapping[str, Float[Tensor, "n channels length"]],
    image_shape: tuple[int, ...] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Old samples side by side, and in the same places the new samples of each change.

    With `image_shape` there is a row of images for the old samples and one for each change. Otherwise there is a row of
    lines for each change and each of the first four channels, with the old samples in grey behind the new ones.

    Args:
        x: the old samples, in raw units.
        made: the new samples, by the name of the change.
        image_shape: (rows, columns) of a sample that is an image.
        names: the names of the channels, for the axes.
    """
    if image_shape:
        images = {"old": x, **made}
        figure = Figure(figsize=(1.6 + 0.9 * len(x), 0.9 * len(images)), layout="constrained")
        low, high = bounds(x)
        for (name, samples), axis in zip(
            images.items(), figure.subplots(len(images), squeeze=False)[:, 0], strict=True
        ):
            axis.imshow(side_by_side(samples.reshape(-1, *image_shape)), cmap="gray", vmin=low, vmax=high)
            axis.set_frame_on(False)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        return figure
    shown = min(CHANNELS, x.shape[1])
    rows = [(name, channel) for name in made for channel in range(shown)]
    figure = Figure(figsize=(1.6 + 1.6 * len(x), 0.8 + 0.9 * len(rows)), layout="constrained")
    for (name, channel), axis in zip(rows, figure.subplots(len(rows), squeeze=False)[:, 0], strict=True):
        for samples, look in (
            (x, {"color": "0.65", "linewidth": 2.2, "label": "old"}),
            (made[name], {"color": f"C{channel}", "linewidth": 0.9, "label": "new"}),
        ):
            axis.plot(side_by_side(samples[:, channel : channel + 1])[0], **look)
        separate(axis, len(x), x.shape[2])
        axis.set_xticks([])
        axis.tick_params(labelsize=7)
        axis.yaxis.set_major_locator(MaxNLocator(3))
        axis.set_ylabel(names[channel] if names else f"channel {channel}", fontsize=8)
        if channel == 0:
            axis.set_title(name, fontsize=9, loc="left")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    figure.axes[-1].set_xlabel(f"{len(x)} samples side by side, {x.shape[2]} steps each", fontsize=8)
    return figure
