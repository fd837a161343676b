"""The latents of a trained model as a table: `python -m msae.embed ckpt=RUN data.path=new.csv out=z.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from msae import cli, read, write
from msae.errors import InputError, check_choice

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from jaxtyping import Float
    from torch import Tensor

    from msae.estimators.pooler import MultiScalePooler
    from msae.models.reconstructor import Reconstructor

POINTS = 4000
"""The picture shows at least this many latents if there are enough."""
Piece = tuple["Float[Tensor, 'm channels length']", dict[str, Any]]
"""Windows, and the columns of the table that describe them."""


def embed(cfg: DictConfig) -> Path:
    """Write a table with a row for each window or sample, and a picture beside it; return the table's path.

    Raises:
        InputError: a checkpoint, data or an output that cannot be used.
    """
    model = read.begin(cfg, files=False)
    out = write.check_out(cfg, ".png")
    if cfg.label is not None and not read.has_files(cfg):
        raise InputError(f"label={cfg.label}: a column of files; expected null, as this data set has its own labels")
    check_choice("pool", cfg.pool, (True, False))
    import torch

    from msae import plots

    pieces = of_files if read.has_files(cfg) else of_samples
    pooler = learned(pieces(cfg, model), cfg.seed) if cfg.pool else None
    shown = Shown()
    with write.Writer(out, cfg.escape) as table:
        for x, about in pieces(cfg, model):
            with torch.no_grad():
                z = model.encode(x)
            named = columns(z, model)
            if pooler is not None:
                named |= dict(zip(pooler.get_feature_names_out(), torch.from_numpy(pooler.transform(x)).T, strict=True))
            table.write(about | named)
            shown.add(z, about)
    write.picture(plots.latents(*shown.points()), out.with_name(f"{out.name}.png"))
    pooled = "" if pooler is None else f"; {len(pooler.get_feature_names_out())} pooled features"
    print(f"{table.rows} rows, {model.latent_dim} values each: {sizes(model)}{pooled}\n  {out}\n  {out}.png")
    return out


def learned(pieces: Iterator[Piece], seed: int) -> MultiScalePooler:
    """The pooled features, learned from windows of the files, or of the training split, drawn evenly."""
    import torch

    from msae.estimators.pooler import MultiScalePooler

    seen = Shown()
    for x, about in pieces:
        if about.get("split", ["train"])[0] == "train":
            seen.add(x, about)
    if len(seen.z) < 2:
        raise InputError(f"pool=true: {len(seen.z)} windows to learn from; expected at least 2")
    return MultiScalePooler(random_state=seed).fit(torch.stack(seen.z))


def of_files(cfg: DictConfig, model: Reconstructor) -> Iterator[Piece]:
    """The windows of the files, with their file, group, rows, times and labels."""
    with write.Progress("windows") as progress:
        for stretch in read.stretches(cfg, model, cfg.label):
            whole = stretch.x.ndim == 2
            name = f"{stretch.table.path} {stretch.group}".strip()
            progress.begin(name, stretch.count(model.length, cfg.data.stride))
            for starts, x in stretch.windows(model.length, cfg.data.stride):
                ends = starts + (model.length - 1 if whole else 0)
                about: dict[str, Any] = {"file": [str(stretch.table.path)] * len(x)}
                if cfg.data.group_column is not None:
                    about["group"] = [stretch.group] * len(x)
                about |= {"start": stretch.rows(starts), "stop": stretch.rows(ends) + 1}
                if stretch.table.times is not None:
                    about |= {"start_time": stretch.times(starts), "stop_time": stretch.times(ends)}
                if stretch.labels is not None:
                    about["label"] = stretch.labels.of(stretch.rows(ends))
                yield x, about
                progress.update(len(x))


def of_samples(cfg: DictConfig, model: Reconstructor) -> Iterator[Piece]:
    """The samples of a data set, with their split, number in the split, and label."""
    import numpy as np

    with write.Progress("samples") as progress:
        for batch in read.samples(cfg, model):
            progress.begin(f"{batch.split}, from {batch.first}", len(batch.x))
            index = np.arange(batch.first, batch.first + len(batch.x))
            about: dict[str, Any] = {"split": [batch.split] * len(batch.x), "index": index}
            yield batch.x, about if batch.labels is None else about | {"label": batch.labels}
            progress.update(len(batch.x))


def columns(z: Float[Tensor, "n latent"], model: Reconstructor) -> dict[str, Float[Tensor, " n"]]:
    """The values of the latents, by name."""
    return dict(zip(names(model), z.T.contiguous(), strict=True))


def names(model: Reconstructor) -> list[str]:
    """The names of a latent's values, such as `small_0`: the scale and the place in its code."""
    return [f"{scale}_{i}" for scale, code in model.codes.items() for i in range(code.stop - code.start)]


def sizes(model: Reconstructor) -> str:
    """The number of latent values of each scale, as text."""
    return ", ".join(f"{scale} {code.stop - code.start}" for scale, code in model.codes.items())


class Shown:
    """Latents, or windows, chosen evenly from a stream: between `POINTS` and twice as many, or all if fewer."""

    def __init__(self) -> None:
        self.z: list[Tensor] = []
        self.by: list[Any] = []
        self.name = ""
        self.step = 1
        self.seen = 0

    def add(self, z: Float[Tensor, "m latent"], about: dict[str, Any]) -> None:
        """Take more latents and the values that colour them: labels, times or numbers."""
        self.name = next((name for name in ("label", "start_time", "start") if name in about), "index")
        first = -self.seen % self.step
        values = about[self.name]
        values = values.to_numpy(zero_copy_only=False) if hasattr(values, "to_numpy") else values
        self.z += list(z[first :: self.step])
        self.by += list(values[first :: self.step])
        self.seen += len(z)
        while len(self.z) >= 2 * POINTS:
            self.z, self.by, self.step = self.z[::2], self.by[::2], 2 * self.step

    def points(self) -> tuple[Any, Any, str]:
        """Latents `(n, latent)`, the values that colour them `(n,)`, and the name of these values."""
        import numpy as np
        import torch

        return torch.stack(self.z).numpy(), np.array(self.by), self.name


def main() -> None:
    """The command."""
    cli.run(embed, "embed")


if __name__ == "__main__":
    cli.start("embed")
