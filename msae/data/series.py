"""A user's own series as windows: split in time, cut into windows, normalized by the training split's statistics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from msae.data import files
from msae.data.module import NORMALIZATIONS, DataModule, Windows
from msae.data.rows import Table, first_hole, has_value, interpolate, stretches
from msae.data.tables import Format
from msae.data.windows import Views
from msae.errors import InputError, check_choice, check_int

log = logging.getLogger(__name__)
MISSING = ("error", "interpolate", "mask")
Span = tuple[int, int, int]
"""A stretch of rows: number of the table, first row, row after the last."""


def series(
    path: str | Sequence[str],
    window: int | None = None,
    stride: int = 1,
    columns: Sequence[str | int] | None = None,
    time_column: str | None = None,
    group_column: str | None = None,
    max_gap: str | float | None = None,
    missing: str = "error",
    normalize: str = "standard",
    split: str = "time",
    split_seed: int = 0,
    val_size: float = 0.15,
    test_size: float = 0.15,
    test_path: str | Sequence[str] | None = None,
    separator: str = ",",
    decimal: str = ".",
    header: Any = None,
    time_format: str | None = None,
    **loader: Any,
) -> DataModule:
    """Windows `(channels, window)` of the series in `.csv`, `.parquet`, `.npy` and `.npz` files.

    Each series is split in time: the first part is for training, the next for validation, the last for the test.
    Windows are cut within each part. Arrays `(n, channels, length)` are windows already, which `split=random` assigns
    to the splits.

    Args:
        path: a file, a folder of files, a glob, or a list of these.
        window: number of time steps of a window.
        stride: number of time steps from the start of a window to the start of the next.
        columns: names of the columns that become channels, in this order; None for all but the next two.
        time_column: name of the column of times, which have to increase.
        group_column: name of the column that names the series of each row, in one long table of several series.
        max_gap: longest step in time within a window, such as `90s` or `4d`, or a number in the units of the time
            column; None to refuse steps longer than 1.5 times the usual one.
        missing: what to do about NaN and empty fields: `error`; `interpolate`, on straight lines and never from one
            split into another; or `mask`, which leaves them out of loss and metrics.
        normalize: see `DataModule`.
        split: `time`, or for arrays of windows `random`.
        split_seed: of the random split.
        val_size: share of the validation split; 0 for none.
        test_size: share of the test split; unused with `test_path`.
        test_path: files that are the test split.
        separator: between the columns of a .csv.
        decimal: decimal point or comma of a .csv.
        header: whether the first line of a .csv names the columns; None: it does unless it is numbers only.
        time_format: format of times that are not ISO 8601, as for `strptime`.
        loader: `batch_size` and `seed` of `DataModule`.

    Raises:
        InputError: a file or value that cannot be used, or too few rows for a window in each split.

    Examples:
        >>> import numpy, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     x = numpy.random.rand(100, 2)
        ...     numpy.savetxt(f"{folder}/a.csv", x, delimiter=",", header="flow,heat", comments="")
        ...     data = series(f"{folder}/a.csv", window=5)
        >>> len(data.train), len(data.val), len(data.test), data.shape, data.names
        (66, 11, 11, (2, 5), ['flow', 'heat'])
    """
    shares = check_options(window, stride, missing, normalize, split, split_seed, val_size, test_size, test_path)
    form = Format(columns, time_column, group_column, separator, decimal, header, time_format)
    paths, test_paths = files.find(path), files.find(test_path, "test_path") if test_path else []
    if both := {file.resolve() for file in paths} & {file.resolve() for file in test_paths}:
        raise InputError(f"test_path={test_path}: {min(both)} is also a file of data.path; expected other files")
    tables = [files.read(file, form) for file in [*paths, *test_paths]]
    check_alike(tables)
    if tables[0].values.ndim == 3:
        check_cut(tables[0], window, stride, split, test_path)
        window, spans = None, deal(tables[: len(paths)], shares, split_seed)
    elif split == "random":
        raise InputError("split=random: windows of one series overlap; expected data.split=time, or data.test_path")
    elif window is None:
        raise InputError("window=null: expected the number of time steps of a window, such as data.window=96")
    else:
        spans = in_time([stretches(table, max_gap) for table in tables[: len(paths)]], shares)
    for number, table in enumerate(tables[len(paths) :], len(paths)):
        spans["test"] += [(number, start, stop) for _, start, stop in stretches(table, max_gap)]
    if window is not None:
        spans = long_enough(tables, spans, window)
    holes = fill(tables, spans, missing)
    blocks = [torch.from_numpy(table.values) for table in tables]
    splits = {name: Windows(Views(blocks, parts, window, stride)) for name, parts in spans.items()}
    names = tables[0].columns
    return DataModule(
        splits["training"],
        splits["test"],
        val=splits["validation"],
        normalize=normalize,
        missing=holes,
        names=names,
        **loader,
    )


def check_options(
    window: Any,
    stride: Any,
    missing: Any,
    normalize: Any,
    split: Any,
    split_seed: Any,
    val_size: Any,
    test_size: Any,
    test_path: Any,
) -> tuple[float, float]:
    """The shares of validation and test; raises InputError for options that are wrong for any file."""
    check_choice("missing", missing, MISSING)
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_choice("split", split, ("time", "random"))
    check_int("split_seed", split_seed, 0, 2**32 - 1)
    check_int("stride", stride)
    if window is not None:
        check_int("window", window, 2)
    shares = (check_share("val_size", val_size), 0.0 if test_path else check_share("test_size", test_size))
    if (not test_path and not shares[1]) or sum(shares) >= 1:
        raise InputError(
            f"test_size={test_size}: expected a share above 0 whose sum with val_size={val_size} is below 1"
        )
    return shares


def check_cut(table: Table, window: Any, stride: Any, split: str, test_path: Any) -> None:
    """Raise InputError for options that do not fit a file of windows."""
    length = table.values.shape[2]
    if window not in (None, length) or stride != 1:
        raise InputError(
            f"window={window} stride={stride}: {table.path} holds windows of {length} steps; leave both out"
        )
    if split != "random" and not test_path:
        raise InputError(f"split={split}: {table.path} holds windows; set data.split=random or data.test_path")


def check_share(name: str, value: Any) -> float:
    """Return `value` if it is a number from 0 to below 1; raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{name}={value}: expected a share from 0 to 1, such as 0.15")
    return float(value)


def check_alike(tables: list[Table]) -> None:
    """Raise InputError unless all tables have the same channels, and all are series, or windows of one length."""
    first = tables[0]
    for table in tables[1:]:
        if table.columns != first.columns or table.values.shape[1:] != first.values.shape[1:]:
            theirs, ours = (f"{t.columns[:8] or 'windows'} {t.values.shape[1:]}" for t in (table, first))
            raise InputError(
                f"{table.path}: {theirs}, but {first.path} has {ours}; choose common columns with data.columns=[...]"
            )


def in_time(tables: list[list[tuple[str, int, int]]], shares: tuple[float, float]) -> dict[str, list[Span]]:
    """Split each series at the same shares of its rows; each stretch between gaps is in the split that it lies in."""
    spans: dict[str, list[Span]] = {"training": [], "validation": [], "test": []}
    for number, parts in enumerate(tables):
        rows: dict[str, tuple[int, int]] = {}
        for name, start, stop in parts:
            rows[name] = (min(start, rows.get(name, (start, 0))[0]), stop)
        for name, start, stop in parts:
            first, last = rows[name]
            test = last - round(shares[1] * (last - first))
            val = test - round(shares[0] * (last - first))
            for split, a, b in (("training", first, val), ("validation", val, test), ("test", test, last)):
                if max(a, start) < min(b, stop):
                    spans[split].append((number, max(a, start), min(b, stop)))
    return spans


def deal(tables: list[Table], shares: tuple[float, float], seed: int) -> dict[str, list[Span]]:
    """Assign windows to the splits at random."""
    every = [(number, row, row + 1) for number, table in enumerate(tables) for row in range(len(table.values))]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    val, test = (max(1, round(share * len(every))) if share else 0 for share in shares)
    if val + test >= len(every):
        raise InputError(f"{tables[0].path}: {len(every)} windows; too few for a training, validation and test split")
    cuts = {"training": order[test + val :], "validation": order[test : test + val], "test": order[:test]}
    return {name: [every[i] for i in sorted(cut)] for name, cut in cuts.items()}


def long_enough(tables: list[Table], spans: dict[str, list[Span]], window: int) -> dict[str, list[Span]]:
    """The stretches that are long enough for a window; InputError where all stretches of a split are too short."""
    kept = {split: [span for span in parts if span[2] - span[1] >= window] for split, parts in spans.items()}
    for split, parts in spans.items():
        longest = max((stop - start for _, start, stop in parts), default=0)
        if not kept[split] and (parts or split != "validation"):
            rows = max(stop - start for table in tables for _, start, stop in table.groups)
            hint = "expected a shorter data.window, or a larger data.val_size or data.test_size"
            if rows < tables[0].values.shape[1]:
                hint = f"it has {tables[0].values.shape[1]} channels: is it transposed? expected (time, channels)"
            raise InputError(
                f"{tables[0].path}: no window of {window} steps in the {split} split, whose longest stretch has "
                f"{longest} of {rows} steps; {hint}"
            )
        if len(kept[split]) < len(parts):
            few = len(parts) - len(kept[split])
            log.info("%s split: left out %d of %d stretches, which are shorter than a window", split, few, len(parts))
    return kept


def fill(tables: list[Table], spans: dict[str, list[Span]], missing: str) -> bool:
    """Interpolate missing values within each stretch, if asked to; returns whether there is NaN left, to be masked.

    Raises:
        InputError: a value is missing and `missing` is `error`; a channel has no value in a stretch, so that there is
            nothing to interpolate; or a split has no value at all.
    """
    left = False
    whole = {n for n, table in enumerate(tables) if first_hole(table.values, 0, len(table.values)) is None}
    for split, parts in spans.items():
        gappy = [span for span in parts if span[0] not in whole]
        for number, start, stop in gappy:
            left |= fill_stretch(tables[number], start, stop, missing)
        if gappy == parts and parts and not any(has_value(tables[n].values, a, b) for n, a, b in parts):
            raise InputError(f"{tables[parts[0][0]].path}: no value at all in the {split} split")
    return left


def fill_stretch(table: Table, start: int, stop: int, missing: str) -> bool:
    """`fill` for one stretch."""
    hole = first_hole(table.values, start, stop)
    if hole is not None and missing == "interpolate":
        interpolate(table.values[start:stop])
        hole = first_hole(table.values, start, stop)
    if hole is not None and missing != "mask":
        row, column = hole
        hint = "data.missing=interpolate or data.missing=mask" if missing == "error" else "data.missing=mask"
        raise InputError(f"{table.where(row)}, column {table.columns[column]}: no value; set {hint}")
    return hole is not None
