"""The UCR/UEA archive of labelled time series (Dau et al., arXiv:1810.07758; Bagnall et al., arXiv:1811.00075)."""

from __future__ import annotations

import difflib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from msae.data.mnist import cache_folder
from msae.data.module import NORMALIZATIONS, DataModule, Windows
from msae.data.rows import first_hole, interpolate
from msae.errors import InputError, check_choice, needs, one_line

SUFFIXES = (".ts", ".tsv")
PARTS = {"training": "TRAIN", "test": "TEST"}


def ucr(
    name: str,
    root: str | None = None,
    pad: str | None = None,
    missing: str = "error",
    normalize: str = "standard",
    **loader: Any,
) -> DataModule:
    """The official training and test split of a data set of the archive, windows `(channels, length)`, with labels.

    Labels count from 0 in the sorted order of the class names, which are `classes`.

    Args:
        name: of the data set, such as GunPoint.
        root: folder of a local archive, with `NAME/NAME_TRAIN.ts` or `NAME_TRAIN.ts`, or the same with `.tsv`; None for
            a data set that aeon includes, or else aeon's download into the user's cache.
        pad: `end` or `start`: where windows shorter than the longest one are padded; the padding is masked.
        missing: what to do about missing values: `error`; `interpolate`, on straight lines; or `mask`, which leaves
            them out of loss and metrics.
        normalize: see `DataModule`.
        loader: `batch_size`, `val_size`, `val_seed`, `seed` and `epoch_steps` of `DataModule`.

    Raises:
        InputError: there is no such data set; aeon is not installed or cannot download it; or series differ in length
            or have missing values, and no option says what to do about it.

    Examples:
        A data set that aeon includes (msae's extra `ucr`):

        >>> from msae.data.ucr import ucr
        >>> ucr("GunPoint").shape
        (1, 150)
    """
    check_choice("pad", pad, (None, "end", "start"))
    check_choice("missing", missing, ("error", "interpolate", "mask"))
    check_choice("normalize", normalize, NORMALIZATIONS)
    splits = read(str(name), root)
    lengths = [[x.shape[1] for x in windows] for windows, _ in splits.values()]
    shortest, longest = min(map(min, lengths)), max(map(max, lengths))
    if pad is None and shortest < longest:
        raise InputError(
            f"name={name}: series of {shortest} to {longest} steps; data.pad=end or data.pad=start pads them"
        )
    classes = sorted({label for _, labels in splits.values() for label in labels})
    found: dict[str, Windows] = {}
    holes = False
    for split, (windows, labels) in splits.items():
        x = np.full((len(windows), windows[0].shape[0], longest), np.nan)
        for i, window in enumerate(windows):
            x[i] = padded(window, longest, pad, f"name={name}: series {i} of the {split} split", missing)
        holes |= bool(np.isnan(x).any())
        y = torch.tensor([classes.index(label) for label in labels]) if labels else None
        found[split] = Windows(torch.from_numpy(x), y)
    loader |= {"normalize": normalize, "missing": holes, "classes": classes or None}
    return DataModule(found["training"], found["test"], **loader)


def padded(window: np.ndarray, length: int, pad: str | None, name: str, missing: str) -> np.ndarray:
    """A window `(channels, time)` as `(channels, length)`, with NaN as padding, and missing values interpolated."""
    window = window.astype(np.float64)
    if missing == "interpolate":
        interpolate(window[None])
    if missing != "mask" and (hole := first_hole(window[None], 0, 1)) is not None:
        step = int(np.flatnonzero(np.isnan(window[hole[1]]))[0])
        hint = "data.missing=interpolate or data.missing=mask" if missing == "error" else "data.missing=mask"
        raise InputError(f"{name}: no value in channel {hole[1]} at step {step}; set {hint}")
    extra = length - window.shape[1]
    before, after = (extra, 0) if pad == "start" else (0, extra)
    return np.pad(window, ((0, 0), (before, after)), constant_values=np.nan)


def read(name: str, root: str | None) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """Windows `(channels, time)` and class names of the two splits; no names where there are no classes."""
    try:
        import aeon  # noqa: F401  (before anything is looked for)
    except ImportError:
        raise needs("data=ucr", "aeon", "ucr") from None
    folder = archive(name) if root is None else Path(root).expanduser()
    return {split: read_file(path) for split, path in in_folder(name, folder).items()}


def archive(name: str) -> Path:
    """The folder of a data set: in aeon itself, or in the user's cache, into which it is downloaded once.

    If several processes call it at once, one downloads and the others wait. A data set appears only when complete.
    """
    from aeon import datasets
    from aeon.datasets import tsc_datasets

    known = sorted({*tsc_datasets.univariate, *tsc_datasets.multivariate})
    wheel = Path(datasets.__file__).parent / "data"
    within = {path.name for path in wheel.iterdir() if (path / f"{path.name}_TRAIN.ts").is_file()}
    if name not in {*known, *within}:
        raise InputError(f"name={name}: no such set{nearest(name, {*known, *within})}")
    if name in within:
        return wheel
    cache = cache_folder() / "ucr"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):
            if not (cache / name).is_dir():
                with TemporaryDirectory(dir=cache) as temporary:
                    for part in PARTS.values():
                        datasets.load_classification(name, split=part.lower(), extract_path=temporary)
                    (Path(temporary) / name).rename(cache / name)
    except (OSError, ValueError) as error:  # aeon's own, whatever went wrong with the download
        reason = one_line(error)
        raise InputError(f"name={name}: aeon cannot download it ({reason}); data.root reads a local archive") from None
    return cache


def in_folder(name: str, root: Path) -> dict[str, Path]:
    """The files of a data set in a local archive."""
    if not root.is_dir():
        raise InputError(f"root={root}: no such folder")
    for suffix in SUFFIXES:
        for folder in (root / name, root):
            files = {split: folder / f"{name}_{part}{suffix}" for split, part in PARTS.items()}
            if all(file.is_file() for file in files.values()):
                return files
    names = {path.name.rpartition("_")[0] for suffix in SUFFIXES for path in root.glob(f"**/*_TRAIN{suffix}")}
    raise InputError(f"name={name}: no {name}_TRAIN and {name}_TEST, .ts or .tsv, in {root}{nearest(name, names)}")


def read_file(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Read a `.ts` or `.tsv` file. NaN at the end of all channels of a `.tsv` series is padding, and is cut off."""
    from aeon.datasets import load_from_ts_file, load_from_tsv_file

    try:
        windows, labels = (load_from_ts_file if path.suffix == ".ts" else load_from_tsv_file)(str(path))
        windows = [np.asarray(window, dtype=np.float64) for window in windows]
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a file of the archive: {one_line(error)}") from None
    if not windows:
        raise InputError(f"{path}: no series in it")
    if path.suffix == ".tsv":
        ends = [np.append(-1, np.flatnonzero(~np.isnan(window).all(0)))[-1] + 1 for window in windows]
        windows = [window[:, : max(1, end)] for window, end in zip(windows, ends, strict=True)]
    return windows, [str(label) for label in labels if len(labels) == len(windows)]


def nearest(name: str, names: set[str]) -> str:
    """The text `; nearest: ...` with similar names, upper or lower case alike, or an empty one."""
    lower = {known.lower(): known for known in sorted(names)}
    near = difflib.get_close_matches(name.lower(), lower, n=5, cutoff=0.5)
    return f"; nearest: {', '.join(lower[key] for key in near)}" if near else ""
