"""Reconstructions of whole files: `python -m msae.reconstruct ckpt=RUN data.path=new.csv`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from msae import cli, read, write
from msae.errors import InputError
from msae.whole import whole

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import numpy as np
    from torch import Tensor

    from msae.data.rows import Table
    from msae.data.tables import Format
    from msae.models.reconstructor import Reconstructor


def reconstruct(cfg: DictConfig) -> list[Path]:
    """Write the reconstruction of each file of `data.path`, and a picture beside it; return the paths.

    Raises:
        InputError: a checkpoint, files or values that cannot be used.
    """
    model = read.begin(cfg)
    from msae import plots
    from msae.data import files
    from msae.models import checkpoint

    if cfg.data.stride > model.length:
        raise InputError(f"data.stride={cfg.data.stride}: expected at most {model.length}, the length of a window")
    form, paths = read.form(cfg, model), read.found(cfg)
    output = Path(cfg.out) if cfg.out else checkpoint.find(cfg.ckpt).parent / "reconstruction"
    written = [output / path.name for path in paths]
    if twice := {path.name for path in written if written.count(path) > 1}:
        raise InputError(f"data.path={cfg.data.path}: two files called {min(twice)}; their output would be one")
    if os.path.lexists(output) and not output.is_dir():
        raise InputError(f"out={output}: a file; expected a folder")
    if clash := next((path for path in written if path.resolve() in {p.resolve() for p in paths}), None):
        raise InputError(f"out={output}: {clash} would be written over")
    if clash := next((path for path in written if os.path.lexists(path)), None) if not cfg.overwrite else None:
        raise InputError(f"out={output}: {clash} exists; overwrite=true replaces it, out=FOLDER writes elsewhere")
    for path, out in zip(paths, written, strict=True):
        table = files.read(path, form)
        x_hat = of_table(table, model, cfg)
        output.mkdir(parents=True, exist_ok=True)
        with whole(out) as temporary:
            write_reconstruction(table, form, x_hat, temporary, cfg.escape)
        times = None if table.times is None else table.stamps(table.times).to_numpy(zero_copy_only=False)
        figure = plots.series(table.values, x_hat, table.columns, model.length, times, cfg.data.time_column)
        write.picture(figure, out.with_name(f"{out.name}.png"))
        print(f"{path}: {len(x_hat)} rows, {summary(table.values, x_hat, table.columns)}\n  {out}\n  {out}.png")
    return written


def of_table(table: Table, model: Reconstructor, cfg: DictConfig) -> np.ndarray:
    """The reconstruction, shaped as `table.values`; NaN where a stretch between gaps is shorter than a window."""
    import numpy as np
    import torch

    from msae.data.windows import cut, stitch

    parts = read.spans(table, model, cfg)
    if table.values.ndim == 3:
        return torch.cat(list(outputs(model, torch.from_numpy(table.values).split(read.BATCH)))).numpy()
    x_hat = np.full(table.values.shape, np.nan, dtype=np.float32 if model.base is None else np.float64)
    for _, start, stop in parts:
        series = torch.from_numpy(table.values[start:stop]).T
        windows = outputs(model, cut(series, model.length, cfg.data.stride, read.BATCH))
        x_hat[start:stop] = stitch(windows, stop - start, cfg.data.stride).T.numpy()
    return x_hat


def outputs(model: Reconstructor, batches: Iterator[Tensor] | tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Reconstructions of batches of windows in raw units."""
    import torch

    for x in batches:
        with torch.no_grad():
            yield model(x.to(model.raw_dtype))[0]


def write_reconstruction(table: Table, form: Format, x_hat: np.ndarray, path: Path, escape: bool) -> None:
    """Write the reconstruction in the format of the table's file, with the file's rows in their order."""
    import numpy as np

    from msae.data import files

    if table.place is not None:
        x_hat = x_hat[table.place]
    elif table.order is not None:
        back = np.empty_like(x_hat)
        back[table.order] = x_hat
        x_hat = back
    if path.suffix.lower() in (".npy", ".npz"):
        files.write_array(table.path, path, table.columns, x_hat)
    else:
        source = files.open_table(table.path, form)
        replaced = set(table.columns)
        kept = [name for name in source.names if name not in replaced]
        source.write(path, kept, table.columns, x_hat, escape)


def summary(x: np.ndarray, x_hat: np.ndarray, names: Sequence[str]) -> str:
    """The RMSE of each channel, in its unit; at most eight are listed. Steps with a missing value are left out."""
    import numpy as np

    squares = np.square(x - x_hat, dtype=np.float64).swapaxes(0, 1).reshape(len(names), -1)
    with np.errstate(invalid="ignore"):  # a channel without a value
        rmse = np.sqrt(np.nansum(squares, axis=1) / np.count_nonzero(~np.isnan(squares), axis=1))
    pairs = zip(names, rmse, strict=True)
    listed = ", ".join(f"{name} {value:.4g}" for name, value in list(pairs)[:8])
    return f"RMSE by channel: {listed}{f', and {len(names) - 8} more' if len(names) > 8 else ''}"


def main() -> None:
    """The command."""
    cli.run(reconstruct, "reconstruct")


if __name__ == "__main__":
    cli.start("reconstruct")
