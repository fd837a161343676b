"""What a trained model makes of whole files: `python -m msae.reconstruct ckpt=... data=series data.path=...`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from msae import cli
from msae.errors import InputError, check_choice, check_int

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import numpy as np
    from torch import Tensor

    from msae.data.rows import Table
    from msae.data.tables import Format
    from msae.models.base import Reconstructor

BATCH = 2048
FORMAT = ("columns", "time_column", "group_column", "separator", "decimal", "header", "time_format")


def reconstruct(cfg: DictConfig) -> list[Path]:
    """Write each file of `data.path` anew with its reconstruction, and a picture beside it; return the files.

    Raises:
        InputError: a checkpoint, files or values that cannot be used.
    """
    if not {"path", "window"} <= set(cfg.data):
        raise InputError("data: expected series, or an option made of it, such as ecg")
    options = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise InputError("ckpt: no value; expected a run's best.ckpt or last.ckpt, such as ckpt=runs/msae/best.ckpt")
    check_int("threads", cfg.threads)
    check_int("data.stride", cfg.data.stride)
    check_choice("data.missing", cfg.data.missing, ("error", "interpolate", "mask"))
    import torch

    from msae import load, plots
    from msae.data import files
    from msae.data.tables import Format

    torch.set_num_threads(cfg.threads)
    model = load(cfg.ckpt)
    if cfg.data.stride > model.length:
        raise InputError(f"data.stride={cfg.data.stride}: expected at most {model.length}, the length of a window")
    form = Format(**{name: options[name] for name in FORMAT})
    if form.columns is None and model.names is not None:  # those it was trained on, in their order
        form = replace(form, columns=list(model.names))
    paths = files.find(cfg.data.path, "data.path")
    output = Path(cfg.output or Path(cfg.ckpt).parent / "reconstruction")
    written = [output / path.name for path in paths]
    if twice := {path.name for path in written if written.count(path) > 1}:
        raise InputError(f"data.path={cfg.data.path}: two files called {min(twice)}; their output would be one")
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output}: a file; expected a folder")
    if clash := next((path for path in written if path.resolve() in {p.resolve() for p in paths}), None):
        raise InputError(f"output={output}: {clash} would be written over")
    if clash := next((path for path in written if path.exists()), None) if not cfg.overwrite else None:
        raise InputError(f"output={output}: {clash} exists; overwrite=true replaces it, output=FOLDER goes elsewhere")
    for path, out in zip(paths, written, strict=True):
        table = files.read(path, form)
        x_hat = of_table(table, model, cfg)
        output.mkdir(parents=True, exist_ok=True)
        write(table, form, x_hat, out)
        figure = plots.series(table.values, x_hat, table.columns, model.length)
        figure.savefig(out.with_name(f"{out.name}.png"), dpi=110)
        print(f"{path}: {len(x_hat)} rows, {summary(table.values, x_hat)}\n  {out}\n  {out}.png")
    return written


def of_table(table: Table, model: Reconstructor, cfg: DictConfig) -> np.ndarray:
    """The reconstruction, like `table.values`: NaN where a stretch between gaps is shorter than a window."""
    import numpy as np
    import torch

    from msae.data import rows
    from msae.data.series import fill
    from msae.data.windows import cut, stitch

    channels = table.values.shape[1]
    if channels != model.channels or (table.values.ndim == 3 and table.values.shape[2] != model.length):
        shape = table.values.shape[1:] if table.values.ndim == 3 else (channels,)
        raise InputError(
            f"{table.path}: {shape[0]} channels, {', '.join(table.columns[:8])}"
            + (f", in windows of {shape[1]} steps" if len(shape) == 2 else "")
            + f"; the model takes {model.channels}, in windows of {model.length} steps"
        )
    stretches = rows.stretches(table, cfg.data.max_gap)
    if table.values.ndim == 2:
        stretches = [stretch for stretch in stretches if stretch[2] - stretch[1] >= model.length]
    fill([table], {"whole": [(0, start, stop) for _, start, stop in stretches]}, cfg.data.missing)
    if table.values.ndim == 3:
        return torch.cat(list(outputs(model, torch.from_numpy(table.values).split(BATCH)))).numpy()
    x_hat = np.full(table.values.shape, np.nan, dtype=np.float32)
    for _, start, stop in stretches:
        series = torch.from_numpy(table.values[start:stop]).T
        windows = outputs(model, cut(series, model.length, cfg.data.stride, BATCH))
        x_hat[start:stop] = stitch(windows, stop - start, cfg.data.stride).T.numpy()
    if not stretches:
        raise InputError(f"{table.path}: no stretch of {model.length} steps, the length of a window")
    return x_hat


def outputs(model: Reconstructor, batches: Iterator[Tensor] | tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Reconstructions of batches of windows in raw units."""
    import torch

    for x in batches:
        with torch.no_grad():
            yield model(x.float())[0]


def write(table: Table, form: Format, x_hat: np.ndarray, path: Path) -> None:
    """The reconstruction in the format of the table's file, its rows in the order they have there."""
    import numpy as np

    from msae.data import files

    if table.order is not None:
        back = np.empty_like(x_hat)
        back[table.order] = x_hat
        x_hat = back
    if path.suffix.lower() in (".npy", ".npz"):
        files.write_array(table.path, path, table.columns, x_hat)
    else:
        source = files.open_table(table.path, form)
        kept = [name for name in source.names if name not in table.columns]
        source.write(path, kept, table.columns, x_hat)


def summary(x: np.ndarray, x_hat: np.ndarray) -> str:
    """What a line of the command says of a file."""
    import numpy as np

    return f"MSE {np.nanmean(np.square(x - x_hat, dtype=np.float64)):.6g} in raw units"


def main() -> None:
    """The command."""
    cli.run(reconstruct, "reconstruct")


if __name__ == "__main__":
    importlib.import_module("msae.reconstruct").main()
