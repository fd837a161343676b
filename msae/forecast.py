"""Forecasts of series: `python -m msae.forecast ckpt=RUN data.path=new.csv out=forecast.csv`."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from msae import cli, read, write
from msae.errors import InputError, check_choice, check_ints

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import pyarrow as pa
    from torch import Tensor

    from msae.data.rows import Table
    from msae.models.reconstructor import Reconstructor
    from msae.uses.forecasting import Errors, Forecaster, Part
    from msae.uses.look_back import Features

log = logging.getLogger(__name__)
Last = tuple["Table", str, int, int]
"""The last stretch of a series: its table, the name of the series, the first row, and the row after the last."""


def forecast(cfg: DictConfig) -> Path:
    """Fit, print errors, and write the forecasts after the end of each series with their intervals, and a picture.

    Raises:
        InputError: a checkpoint, data, horizons or an output that cannot be used.
    """
    model = read.begin(cfg)
    from msae.uses import forecasting

    horizons = sorted(check_ints("horizons", cfg.horizons))
    check_choice("use", cfg.use, forecasting.USES)
    out = write.check_out(cfg, ".png")
    forecasting.check_level(cfg.level)
    tables, last, parts = series_of(cfg, model)
    for split, its in parts.items():
        forecasting.check_horizons(split, its, model.length, horizons)
    steps = sum(series.shape[1] - first for split in ("training", "validation") for series, first in parts[split])
    with write.Progress("windows") as progress:
        progress.begin("forecasts", max(1, steps // cfg.data.stride))
        features = features_of(model, progress.update)
        stride = cfg.data.stride
        found = forecasting.fit(
            features, parts["training"], parts["validation"], model.length, horizons, stride, cfg.use, cfg.level
        )
        errors = forecasting.evaluate(found, parts["test"], model.length, stride)
    print("\n".join(table_of(found, errors, tables[0].columns, cfg.level)))
    shown = write_forecasts(cfg, out, last, model, found)
    from msae import plots

    x, y_hat, times = shown
    figure = plots.forecast(x, y_hat, tables[0].columns, times, cfg.data.time_column)
    write.picture(figure, out.with_name(f"{out.name}.png"))
    print(f"\n{len(last)} series\n  {out}\n  {out}.png")
    return out


def series_of(cfg: DictConfig, model: Reconstructor) -> tuple[list[Table], list[Last], dict[str, list[Part]]]:
    """Read the files and split their series.

    Returns:
        The tables of all files; the last stretch of each series; and the parts of each split, as the series and the
        number of steps that only serve as past.

    Raises:
        InputError: see `msae.data.series`; also a missing value with `data.missing=error`, or no series that ends with
            a window.
    """
    import torch

    from msae.data import files, series

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
    stretches = [carried(cfg, table, split_at_gaps(cfg, table)) for table in tables]
    spans = series.in_time(stretches[: len(paths)], shares)
    spans["test"] += [(i, a, b) for i in range(len(paths), len(tables)) for _, a, b in stretches[i]]
    parts: dict[str, list[Part]] = {split: [] for split in spans}
    for split, its in spans.items():
        for number, start, stop in its:
            begins = [first for _, first, _ in stretches[number]]
            first = max(begins[bisect_right(begins, start) - 1], start - model.length)
            parts[split].append((torch.from_numpy(tables[number].values[first:stop]).T, start - first))
    last = {(i, name): (a, b) for i in range(len(paths)) for name, a, b in stretches[i]}
    kept = {key: (start, stop) for key, (start, stop) in last.items() if stop - start >= model.length}
    for (i, name), (start, stop) in last.items():
        what = f"{tables[i].path}{f', {name}' if name else ''}"
        text = f"{what}: the last stretch has {stop - start} steps; expected a window, {model.length}"
        if not kept:
            raise InputError(text)
        if (i, name) not in kept:
            log.warning("%s; its future is not forecast", text)
    return tables, [(tables[i], name, start, stop) for (i, name), (start, stop) in kept.items()], parts


def split_at_gaps(cfg: DictConfig, table: Table) -> list[tuple[str, int, int]]:
    """The stretches of a table; without `data.max_gap`, one begins after each step above 1.5 times the usual one."""
    from msae.data import rows

    if table.times is None or cfg.data.max_gap is not None:
        return rows.stretches(table, cfg.data.max_gap)
    import numpy as np

    usual = max(
        float(np.median(np.diff(table.times[a : min(b, a + 100_000)]))) for _, a, b in table.groups if b > a + 1
    )
    limit = 1.5 * usual
    if usual == rows.SECONDS["d"] and table.origin is not None:
        days = (table.origin + (1e6 * table.times[:100_000]).astype("m8[us]")).astype("M8[D]")
        if np.is_busday(days).all():
            limit = rows.SECONDS["w"]  # over week-ends and holidays
    parts = rows.stretches(table, limit)
    if gaps := len(parts) - len(table.groups):
        log.warning(
            "%s: a new stretch begins after each of %d gaps; data.max_gap=TIME lets windows cross shorter ones",
            table.path,
            gaps,
        )
    return parts


def carried(cfg: DictConfig, table: Table, parts: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Carry the last value on to the missing ones, in place; returns the stretches from the first row that is whole.

    A line to the next value would tell the future.
    """
    from msae.data import rows

    if (hole := rows.first_hole(table.values, 0, len(table.values))) is None:
        return parts
    if cfg.data.missing == "error":
        raise InputError(
            f"{table.where(hole[0])}, column {table.columns[hole[1]]}: no value; data.missing=interpolate carries the "
            "last value on (a line to the next one would tell the future)"
        )
    import pandas as pd

    found = []
    for name, start, stop in parts:
        first = start
        for column in table.values[start:stop].T:
            column[:] = pd.Series(column).ffill()
            first = max(first, start + int(pd.isna(column).sum()))  # only the first rows have no value left
        if first < stop:
            found.append((name, first, stop))
    if not found:
        raise InputError(f"{table.path}: no row from which each channel has a value")
    return found


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


def features_of(model: Reconstructor, seen: Callable[[int], Any]) -> dict[str, Features]:
    """What forecasts can be made of: the latent, and the raw values of the same look-backs.

    Args:
        model: the model.
        seen: called with the number of windows that were encoded.
    """
    from msae.uses import look_back

    latent = look_back.latent(model)

    def compute(x: Tensor) -> Tensor:
        seen(len(x))
        return latent.compute(x)

    return {"latent": replace(latent, compute=compute), "raw": look_back.raw(latent.sizes)}


def table_of(found: dict[int, Forecaster], errors: dict[int, Errors], names: list[str], level: float) -> Iterator[str]:
    """Lines with what the validation split chose, and the test errors of each horizon and channel."""
    from msae.uses.forecasting import USES

    yield "MSE on the validation split, in normalized units (by the training split's deviation), and what is used"
    yield f"horizon  {''.join(f'{name:>8}  ' for name in USES[1:])}used    look-back  regressions          penalty"
    for horizon, its in found.items():
        mse = "".join(f"{its.errors[name]:8.4f}  " for name in USES[1:])
        ways = "one a channel" if its.each else "one for all"
        yield f"{horizon:7}  {mse}{its.use:6}  {its.look_back:9}  {ways:13}  {its.alpha:14g}"
    yield ""
    wide = max(map(len, [*names, "channel"]))
    yield "errors on the test split, in normalized and raw units, and the share of values in their intervals"
    head = f"horizon  windows  {'channel':{wide}}       MSE       MAE     MSE, raw     MAE, raw  in {100 * level:g} %"
    yield head
    for horizon, of in errors.items():
        for i, name in enumerate(names):
            square, size, share = (float(value[i]) for value in (of.mse, of.mae, of.coverage))
            width = float(found[horizon].deviation[i])
            raw = f"{square * width**2:11.5g}  {size * width:11.5g}"
            yield f"{horizon:7}  {of.n:7}  {name:{wide}}  {square:8.4f}  {size:8.4f}  {raw}  {100 * share:5.1f} %"
        square, size, share = (float(value.mean()) for value in (of.mse, of.mae, of.coverage))
        yield f"{horizon:7}  {of.n:7}  {'all':{wide}}  {square:8.4f}  {size:8.4f}{'':28}{100 * share:5.1f} %"


def write_forecasts(
    cfg: DictConfig, out: Path, last: list[Last], model: Reconstructor, found: dict[int, Forecaster]
) -> tuple[Any, Any, Any]:
    """Write the forecasts; returns the values for the picture.

    Returns:
        The end of the first series, `(time, channels)`; its longest forecast and the ends of the intervals, `(3, time,
        channels)`; and the times of all their steps.
    """
    import numpy as np
    import torch

    shown = None
    with write.Writer(out, cfg.escape) as rows:
        for table, group, begin, stop in last:
            x = torch.from_numpy(table.values[stop - model.length : stop]).T[None].to(model.raw_dtype)
            for horizon, forecaster in found.items():
                y_hat, margin = forecaster(x)[0], forecaster.margins(x)[0]
                values = {"": y_hat, "_low": y_hat - margin, "_high": y_hat + margin}
                columns: dict[str, Any] = {"file": [str(table.path)] * horizon}
                if cfg.data.group_column is not None:
                    columns["group"] = [group] * horizon
                columns |= {"horizon": np.full(horizon, horizon), "step": np.arange(1, horizon + 1)}
                if table.times is not None:
                    columns["time"] = following(table, stop, horizon)
                for i, name in enumerate(table.columns):
                    for end, value in values.items():
                        key = name + end
                        while key in columns or (end and key in table.columns):
                            key += "_value"
                        columns[key] = value[i].to(model.raw_dtype).contiguous()
                rows.write(columns)
            if shown is None:
                start = max(begin, stop - max(2 * model.length, *found))
                times = None
                if table.times is not None:
                    known = table.stamps(table.times[start:stop])
                    times = np.concatenate([np.asarray(known), np.asarray(following(table, stop, horizon))])
                shown = np.asarray(table.values[start:stop]), torch.stack([*values.values()]).mT.numpy(), times
    assert shown is not None
    return shown


def following(table: Table, stop: int, n: int) -> pa.Array:
    """The times of the n steps after row `stop`: time stamps by the calendar, numbers at their median distance."""
    import numpy as np
    import pyarrow as pa

    assert table.times is not None
    start = next(first for _, first, end in table.groups if first < stop <= end)
    times = np.asarray(table.times[max(start, stop - 1000) : stop])
    if table.origin is None:
        return table.stamps(times[-1] + float(np.median(np.diff(times))) * np.arange(1, n + 1))
    import pandas as pd

    from msae.data import calendar

    stamps = table.stamps(times)
    after = calendar.following(pd.DatetimeIndex(stamps.to_pandas()), n)
    return pa.array(after.to_series(), stamps.type)


def main() -> None:
    """The command."""
    cli.run(forecast, "forecast")


if __name__ == "__main__":
    cli.start("forecast")
