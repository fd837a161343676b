"""Forecasts from the latent: `python -m msae.forecast ckpt=RUN data.path=new.csv out=forecast.csv`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from msae import cli, read, write
from msae.errors import InputError, check_ints

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import pyarrow as pa
    from jaxtyping import Float
    from torch import Tensor

    from msae.data.rows import Table
    from msae.models.reconstructor import Reconstructor
    from msae.uses.forecasting import Errors, Forecaster, Part


def forecast(cfg: DictConfig) -> Path:
    """Fit, print the errors on the test split, and write the forecasts after the end of each series, and a picture.

    Raises:
        InputError: a checkpoint, data, horizons or an output that cannot be used.
    """
    model = read.begin(cfg)
    horizons = sorted(check_ints("horizons", cfg.horizons))
    if not horizons:
        raise InputError("horizons=[]: expected steps to forecast, such as [24,48]")
    out = write.check_out(cfg, ".png")
    from msae.uses import forecasting

    tables, last, parts = series_of(cfg, model)
    for split, its in parts.items():
        forecasting.check_horizons(split, its, model.length, horizons)
    steps = sum(series.shape[1] - first for its in parts.values() for series, first in its)
    with write.Progress("windows") as progress:
        progress.begin("latents", max(1, steps // cfg.data.stride))
        encode = encoder(model, progress.update)
        stride = cfg.data.stride
        found = forecasting.fit(encode, parts["training"], parts["validation"], model.length, horizons, stride)
        errors = forecasting.evaluate(encode, found, parts["test"], model.length, stride)
    print("\n".join(table_of(found, errors, tables[0].columns)))
    shown = write_forecasts(cfg, out, last, model, found)
    from msae import plots

    x, y_hat, times = shown
    write.picture(
        plots.forecast(x, y_hat, tables[0].columns, times, cfg.data.time_column), out.with_name(f"{out.name}.png")
    )
    print(f"\n{len(last)} series\n  {out}\n  {out}.png")
    return out


def series_of(
    cfg: DictConfig, model: Reconstructor
) -> tuple[list[Table], list[tuple[Table, str, int, int]], dict[str, list[Part]]]:
    """Read the files and split their series.

    Returns:
        The tables of all files; the last stretch of each series, as table, group, first row and row after the last; and
        the parts of each split, as the series and the number of steps that only serve as past.

    Raises:
        InputError: see `msae.data.series`; also a missing value, or a series that ends with less than a window.
    """
    import torch

    from msae.data import files, rows, series

    names = ("window", "stride", "missing", "normalize", "split", "split_seed", "val_size", "test_size", "test_path")
    given = dict(cfg.data) | {"window": model.length}
    shares = series.check_options(*(given[name] for name in names))
    if cfg.data.split != "time":
        raise InputError(f"data.split={cfg.data.split}: expected time, as the future of a series is forecast")
    form, paths = read.form(cfg, model), read.found(cfg)
    test_paths = files.find(cfg.data.test_path, "data.test_path") if cfg.data.test_path else []
    if both := {file.resolve() for file in paths} & {file.resolve() for file in test_paths}:
        raise InputError(f"data.test_path={cfg.data.test_path}: {min(both).name} is among the files of data.path too")
    check_unseen(cfg, model, paths, test_paths)
    tables = [files.read(path, form) for path in [*paths, *test_paths]]
    for table in tables:
        read.check_channels(table, model)
        if table.values.ndim == 3:
            raise InputError(f"{table.path}: windows already cut; expected series, whose windows have a future")
        if hole := rows.first_hole(table.values, 0, len(table.values)):
            raise InputError(
                f"{table.where(hole[0])}, column {table.columns[hole[1]]}: no value; expected one in every row, such "
                f"as the last before; data.missing={cfg.data.missing} is not used: a line to the next tells the future"
            )
    stretches = [rows.stretches(table, cfg.data.max_gap) for table in tables]
    spans = series.in_time(stretches[: len(paths)], shares)
    spans["test"] += [(i, a, b) for i in range(len(paths), len(tables)) for _, a, b in stretches[i]]
    parts: dict[str, list[Part]] = {split: [] for split in spans}
    for split, its in spans.items():
        for number, start, stop in its:
            begins = [first for _, first, _ in stretches[number]]
            first = max(begins[bisect_right(begins, start) - 1], start - model.length)
            parts[split].append((torch.from_numpy(tables[number].values[first:stop]).T, start - first))
    last = {(i, name): (a, b) for i in range(len(paths)) for name, a, b in stretches[i]}
    for (i, name), (start, stop) in last.items():
        if stop - start < model.length:
            what = f"{tables[i].path}{f', {name}' if name else ''}"
            raise InputError(f"{what}: the last stretch has {stop - start} steps; expected a window, {model.length}")
    return tables, [(tables[i], name, start, stop) for (i, name), (start, stop) in last.items()], parts


def check_unseen(cfg: DictConfig, model: Reconstructor, paths: list[Path], test_paths: list[Path]) -> None:
    """Raise InputError where the test split contains steps that the model was trained on."""
    from msae.data import files

    trained: Any = OmegaConf.create(model.data_options)
    if not {"path", "test_path", "test_size", "group_column"} <= set(trained):
        return

    def known(path: Path) -> bool:
        return path.resolve() in seen or path.name in moved

    seen: set[Path] = set()
    moved: set[str] = set()
    for text in [trained.path] if isinstance(trained.path, str) else trained.path:
        try:
            seen |= {path.resolve() for path in files.find(text)}
        except InputError:  # relative to another folder
            moved.add(Path(text).name)
    if both := [path for path in test_paths if known(path)]:
        raise InputError(f"data.test_path={cfg.data.test_path}: the model was trained on {both[0].name}")
    if test_paths or not any(map(known, paths)):
        return
    share = 0 if trained.test_path else trained.test_size
    if cfg.data.test_size > share or (share and cfg.data.group_column != trained.group_column):
        key = "test_size" if cfg.data.test_size > share else "group_column"
        raise InputError(
            f"data.{key}={cfg.data[key]}: the model was trained on steps of this test split; expected "
            + (f"data.{key}={trained[key]}, as in training" if share else f"data.test_path={trained.test_path}")
        )


def encoder(
    model: Reconstructor, seen: Callable[[int], Any]
) -> Callable[[Float[Tensor, "n channels length"]], Float[Tensor, "n latent"]]:
    """The model's `encode` without gradients; it calls `seen` with the number of windows."""
    import torch

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            z = model.encode(x)
        seen(len(x))
        return z

    return encode


def table_of(found: dict[int, Forecaster], errors: dict[int, Errors], names: list[str]) -> Iterator[str]:
    """Lines with the errors of each horizon and channel, and their mean over channels in normalized units."""
    wide = max(map(len, [*names, "channel"]))
    yield "errors on the test split, in normalized units (by the training split's deviation) and in raw units"
    yield f"horizon  windows  alpha  {'channel':{wide}}       MSE       MAE     MSE, raw     MAE, raw"
    for horizon, its in errors.items():
        head = f"{horizon:7}  {its.n:7}  {found[horizon].alpha:5g}"
        for i, name in enumerate(names):
            width = float(found[horizon].deviation[i])
            mse, mae = float(its.mse[i]), float(its.mae[i])
            yield f"{head}  {name:{wide}}  {mse:8.4f}  {mae:8.4f}  {mse * width**2:11.5g}  {mae * width:11.5g}"
        yield f"{head}  {'all':{wide}}  {float(its.mse.mean()):8.4f}  {float(its.mae.mean()):8.4f}"


def write_forecasts(
    cfg: DictConfig,
    out: Path,
    last: list[tuple[Table, str, int, int]],
    model: Reconstructor,
    found: dict[int, Forecaster],
) -> tuple[Any, Any, Any]:
    """Write the forecasts; returns the values for the picture.

    Returns:
        The end of the first series and its longest forecast, both `(time, channels)`, and the times of all their steps.
    """
    import numpy as np
    import torch

    shown = None
    with write.Writer(out, cfg.escape) as rows:
        for table, group, begin, stop in last:
            x = torch.from_numpy(table.values[stop - model.length : stop]).T[None].to(model.raw_dtype)
            z = encoder(model, lambda _: None)(x)
            for horizon, forecaster in found.items():
                y_hat = forecaster(z)[0].to(model.raw_dtype)
                about: dict[str, Any] = {"file": [str(table.path)] * horizon}
                if cfg.data.group_column is not None:
                    about["group"] = [group] * horizon
                about |= {"horizon": np.full(horizon, horizon), "step": np.arange(1, horizon + 1)}
                if table.times is not None:
                    about["time"] = following(table, stop, horizon)
                names = [name if name not in about else f"{name}_value" for name in table.columns]
                rows.write(about | dict(zip(names, y_hat.contiguous(), strict=True)))
            if shown is None:
                start = max(begin, stop - max(2 * model.length, *found))
                times = None
                if table.times is not None:
                    known = table.stamps(table.times[start:stop])
                    times = np.concatenate([np.asarray(known), np.asarray(following(table, stop, horizon))])
                shown = np.asarray(table.values[start:stop]), y_hat.T.numpy(), times
    assert shown is not None
    return shown


def following(table: Table, stop: int, n: int) -> pa.Array:
    """The times of the n steps after row `stop`: monthly if the last steps were, else at their median distance."""
    import numpy as np

    assert table.times is not None
    start = next(first for _, first, end in table.groups if first < stop <= end)
    times = np.asarray(table.times[max(start, stop - 1000) : stop])
    step = float(np.median(np.diff(times)))
    if table.origin is not None:
        stamps = table.origin.astype("M8[us]") + np.round(times * 1e6).astype("m8[us]")
        months = stamps.astype("M8[M]")
        apart, days = np.unique(np.diff(months)), np.unique(stamps - months)
        if len(apart) == len(days) == 1 and apart[0] > np.timedelta64(0, "M"):
            after = months[-1] + apart[0] * np.arange(1, n + 1)
            return table.stamps((after + days[0] - table.origin) / np.timedelta64(1, "s"))
    return table.stamps(times[-1] + step * np.arange(1, n + 1))


def main() -> None:
    """The command."""
    cli.run(forecast, "forecast")


if __name__ == "__main__":
    cli.start("forecast")
