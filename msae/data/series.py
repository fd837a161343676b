"""A user's own series as windows: split in time, cut into windows, normalized by the training split's statistics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from msae.data import files
from msae.data.clock import AUTO
from msae.data.holes import MISSING, Span, bridged, check_gaps, fill, warn_of_codes
from msae.data.module import NORMALIZATIONS, DataModule, Windows
from msae.data.period import window_of
from msae.data.rows import Table, stretches
from msae.data.tables import Format
from msae.data.windows import Views
from msae.errors import InputError, check_choice, check_int

log = logging.getLogger(__name__)
LABELS = frozenset(("label", "labels", "class", "target", "anomaly", "is_anomaly", "outlier", "is_outlier", "fault"))
"""Names of columns that are labels where they hold only 0 and 1, in small letters."""


def series(
    path: str | Sequence[str],
    window: int | None = None,
    stride: int = 1,
    columns: Sequence[str | int] | None = None,
    time_column: str | None = AUTO,
    group_column: str | None = None,
    freq: str | float | None = AUTO,
    max_gap: str | float | None = None,
    missing: str = "auto",
    missing_values: Any = None,
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
    time_zone: str | None = None,
    **loader: Any,
) -> DataModule:
    """Windows `(channels, window)` of the series in `.csv`, `.parquet`, `.npy` and `.npz` files.

    Each series is split in time: the first part is for training, the next for validation, the last for the test.
    Windows are cut within each part. Arrays `(n, channels, length)` are windows already, which `split=random` assigns
    to the splits.

    Args:
        path: a file, a folder of files, a glob, or a list of these.
        window: number of time steps of a window; None for twice the dominant period of the training split, at least 32
            (see `msae.data.period`).
        stride: number of time steps from the start of a window to the start of the next.
        columns: names of the columns that become channels, in this order; None for all but the next two.
        time_column: name of the column of times, which have to increase; `auto` for the only one there is.
        group_column: name of the column that names the series of each row, in one long table of several series.
        freq: step of the grid that the rows of a table with times are put on: `auto` for the usual step, or such as
            `5min`, `1h`, `weekday`, `month`; None to take rows as even steps.
        max_gap: longest step in time within a window, such as `90s` or `4d`, or a number in the units of the time
            column; None for `msae.data.rows.SHORT` missing rows. Without `freq`, None refuses steps longer than 1.5
            times the usual one.
        missing: what to do about missing rows and values: `auto` interpolates short holes, and ends a stretch at longer
            ones; `error`; `interpolate`, on straight lines and never from one split into another; or `mask`, which
            leaves them out of loss and metrics.
        missing_values: numbers that stand for no value, such as -200.
        normalize: see `DataModule`.
        split: `time`, or for arrays of windows `random`.
        split_seed: of the random split.
        val_size: share of the validation split; 0 for none.
        test_size: share of the test split; unused with `test_path`.
        test_path: files that are the test split.
        separator: between the columns of a .csv.
        decimal: decimal point or comma of a .csv.
        header: whether the first line of a .csv names the columns; None: it does unless it is numbers only.
        time_format: format of times, as for `strptime`; None: ISO 8601, or the only format by which all are times.
        time_zone: zone of times without an offset, such as `Europe/Berlin`.
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
    form = Format(
        columns, time_column, group_column, separator, decimal, header, time_format, time_zone, freq, max_gap,
        missing_values,
    )  # fmt: skip
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
    else:
        parts = [stretches(table, max_gap) for table in tables]
        for table, its in zip(tables, parts, strict=True):
            check_gaps(table, its, missing, max_gap)
        spans = in_time(parts[: len(paths)], shares)
    for number, table in enumerate(tables[len(paths) :], len(paths)):
        spans["test"] += [(number, start, stop) for _, start, stop in stretches(table, max_gap)]
    warn_of_labels(tables[0])
    warn_of_codes(tables)
    cut = tables[0].values.ndim == 3
    if not cut:
        spans = bridged(tables, spans, missing, max_gap)
        window = window_of(tables, spans) if window is None else window
        spans = long_enough(tables, spans, window)
    holes = fill(tables, spans, missing)
    blocks = [torch.from_numpy(table.values) for table in tables]
    splits = {name: Windows(Views(blocks, parts, window, stride)) for name, parts in spans.items()}
    names = tables[0].columns
    data = DataModule(
        splits["training"],
        splits["test"],
        val=splits["validation"],
        normalize=normalize,
        missing=holes,
        names=names,
        **loader,
    )
    data.tables = tables
    data.chosen = {"window": window}
    for key, given, found in (
        ("time_column", time_column, {table.clock for table in tables}),
        ("freq", freq, {table.freq for table in tables}),
    ):
        data.chosen[key] = min(found) if given == AUTO and len(found) == 1 and None not in found else given
    return data


def warn_of_labels(table: Table) -> None:
    """Warn of a channel that holds labels, by its name and its values 0 and 1."""
    for number, name in enumerate(table.columns):
        if name.lower() in LABELS and np.isin(table.values[:100_000, number], (0, 1)).all():
            others = ",".join(one for one in table.columns if one != name)
            log.warning(
                "channel %s holds only 0 and 1, as labels do; data.columns=[%s] leaves it out", name, others or "..."
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
