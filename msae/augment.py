"""New samples made by changes of the latent: `python -m msae.augment ckpt=RUN data.path=new.csv out=new.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from msae import cli, read, write
from msae.errors import InputError, check_choice, check_int

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from msae.models.reconstructor import Reconstructor
    from msae.uses.augmentation import Augmented, Reference

KEPT = 4000
"""Old samples, evenly chosen, that serve as the reference and for the statistics, at most."""
SHOWN = 6
"""Old samples in the picture, at most."""


class Batch(NamedTuple):
    """Old samples.

    Attributes:
        x: the samples, in raw units.
        y: the numbers of their labels; None without labels.
        about: the columns of the table that identify them.
    """

    x: Float[Tensor, "m channels length"]
    y: Int[Tensor, " m"] | None
    about: dict[str, Any]


def augment(cfg: DictConfig) -> Path:
    """Write a table with a row for each new sample, and a picture beside it; return the table's path.

    Raises:
        InputError: a checkpoint, data, a change or an output that cannot be used.
    """
    model = read.begin(cfg, files=False)
    out = check(cfg)
    import torch

    from msae import plots
    from msae.uses import augmentation

    scales = cfg.scales if cfg.scales is None or isinstance(cfg.scales, str) else list(map(str, cfg.scales))
    options = {"change": cfg.change, "strength": cfg.strength, "scales": scales}
    options["distance"] = cfg.distance if cfg.adaptive else None
    if cfg.sample is None:
        augmentation.check(model, **options)
    else:
        augmentation.check_prior(model)
    source = Source(cfg, model)
    x, y = source.some(KEPT)
    reference = augmentation.Reference.of(model, x, y)
    generator = torch.Generator().manual_seed(cfg.seed)
    with write.Writer(out, cfg.escape) as table:
        if cfg.sample is None:
            kept, note = changed(cfg, model, source, reference, options, generator, table)
        else:
            kept, note = sampled(cfg.sample, model, reference, generator, table)
    shown = torch.linspace(0, len(x) - 1, min(SHOWN, len(x))).long()
    if cfg.sample is None:
        made = variants(model, x[shown], reference, None if y is None else y[shown], options, cfg)
    else:
        made = {"prior": kept[: len(shown)]}
        shown = shown[: len(kept)]
    figure = plots.variants(x[shown], made, model.grid if len(model.grid) == 2 else None, channels(model))
    write.picture(figure, out.with_name(f"{out.name}.png"))
    print(f"{table.rows} new samples{note}\n  {out}\n  {out}.png\n{comparison(model, x, kept)}")
    return out


def check(cfg: DictConfig) -> Path:
    """The path of the table; raises InputError for values that no model can use."""
    out = write.check_out(cfg, ".png")
    check_int("seed", cfg.seed, 0, 2**32 - 1)
    check_int("n", cfg.n)
    for key in ("adaptive", "residual"):
        check_choice(key, cfg[key], (True, False))
    if cfg.sample is not None:
        check_int("sample", cfg.sample)
    if cfg.adaptive and cfg.distance is None:
        raise InputError("distance=null: adaptive=true needs a distance; expected a number above 0")
    if cfg.label is not None and not read.has_files(cfg):
        raise InputError(f"label={cfg.label}: a column of files; expected null, as this data set has its own labels")
    if not OmegaConf.is_list(cfg.scales) and cfg.scales is not None:
        raise InputError(f"scales={cfg.scales}: expected a list, such as scales=[{cfg.scales}], or null for all")
    return out


class Source:
    """The old samples: windows of files, every `data.stride` steps, or the training split of a data set."""

    def __init__(self, cfg: DictConfig, model: Reconstructor) -> None:
        self.cfg, self.length = cfg, model.length
        self.names: dict[str, int] = {}
        if read.has_files(cfg):
            self.stretches = list(read.stretches(cfg, model, cfg.label))  # memory-mapped
            self.count = sum(part.count(model.length, cfg.data.stride) for part in self.stretches)
        else:
            self.samples = [batch for batch in read.samples(cfg, model) if batch.split == "train"]
            self.count = sum(len(batch.x) for batch in self.samples)

    def __iter__(self) -> Iterator[Batch]:
        import numpy as np

        if not read.has_files(self.cfg):
            for batch in self.samples:
                index = np.arange(batch.first, batch.first + len(batch.x))
                labels = {} if batch.labels is None else {"label": batch.labels}
                yield Batch(batch.x, batch.y, {"index": index} | labels)
            return
        for part in self.stretches:
            for starts, x in part.windows(self.length, self.cfg.data.stride):
                yield self._of_file(part, starts, x)

    def _of_file(self, part: read.Stretch, starts: Int[Tensor, " m"], x: Float[Tensor, "m channels length"]) -> Batch:
        """A batch of windows with their file, group, rows and labels."""
        import torch

        ends = starts + (self.length - 1 if part.x.ndim == 2 else 0)
        about: dict[str, Any] = {"file": [str(part.table.path)] * len(x)}
        if self.cfg.data.group_column is not None:
            about["group"] = [part.group] * len(x)
        about |= {"start": part.rows(starts), "stop": part.rows(ends) + 1}
        if part.labels is None:
            return Batch(x, None, about)
        about["label"] = part.labels.of(part.rows(ends))
        numbers = [self.names.setdefault(name, len(self.names)) for name in about["label"]]
        return Batch(x, torch.tensor(numbers), about)

    def some(self, n: int) -> tuple[Float[Tensor, "m channels length"], Int[Tensor, " m"] | None]:
        """At most n evenly chosen samples, and the numbers of their labels."""
        import torch

        step, seen = -(-self.count // n), 0
        found: list[Tensor] = []
        numbers: list[Tensor] = []
        for x, y, _ in self:
            found.append(x[-seen % step :: step])
            numbers += [] if y is None else [y[-seen % step :: step]]
            seen += len(x)
        return torch.cat(found), torch.cat(numbers) if numbers else None


def changed(
    cfg: DictConfig,
    model: Reconstructor,
    source: Source,
    reference: Reference,
    options: dict[str, Any],
    generator: torch.Generator,
    table: write.Writer,
) -> tuple[Float[Tensor, "m channels length"], str]:
    """Write the changed samples; returns evenly chosen ones, and the end of the command's message."""
    import torch

    from msae.uses import augmentation

    kept: list[Tensor] = []
    total, seen, missed, alone, changes = cfg.n * source.count, 0, 0, 0, 0.0
    step = -(-total // KEPT)
    with write.Progress("samples") as progress:
        progress.begin(cfg.change, total)
        for x, y, about in source:
            for copy in range(cfg.n):
                made = augmentation.augment(
                    model, x, reference, y=y, residual=cfg.residual, generator=generator, **options
                )
                table.write(about | {"copy": [copy] * len(x)} | measures(made) | values(made.x, model))
                kept.append(made.x[-seen % step :: step])
                seen += len(x)
                missed += int((~made.reached).sum())
                alone += int(((made.distance == 0) & (made.strength > 0)).sum())
                changes += float(made.distance.sum())
                progress.update(len(x))
    note = f" by {cfg.change}, at a distance of {changes / seen:.3g} deviations on average"
    if missed:
        note += f"; {missed} cannot reach distance={cfg.distance} and have the greatest strength"
    if alone and cfg.change == "mix":
        note += f"; {alone} have no neighbour of their label and are unchanged"
    return torch.cat(kept), note


def sampled(
    n: int, model: Reconstructor, reference: Reference, generator: torch.Generator, table: write.Writer
) -> tuple[Float[Tensor, "m channels length"], str]:
    """Write samples of the prior; returns the first of them, and the end of the command's message."""
    import torch

    from msae.uses import augmentation

    kept: list[Tensor] = []
    with write.Progress("samples") as progress:
        progress.begin("prior", n)
        for first in range(0, n, read.BATCH):
            x = augmentation.sample(model, min(read.BATCH, n - first), reference, generator)
            table.write({"index": list(range(first, first + len(x)))} | values(x, model))
            kept += [x] if first < KEPT else []
            progress.update(len(x))
    return torch.cat(kept)[:KEPT], " of the prior"


def measures(made: Augmented) -> dict[str, Tensor]:
    """The columns that report how far each sample was changed."""
    return {"strength": made.strength, "distance": made.distance, "reached": made.reached}


def values(x: Float[Tensor, "m channels length"], model: Reconstructor) -> dict[str, Float[Tensor, " m"]]:
    """A column for each time step: t0, t1, ...; with several channels NAME_t0, NAME_t1, ..."""
    names = [""] if x.shape[1] == 1 else [f"{name}_" for name in channels(model)]
    return {f"{name}t{i}": x[:, c, i].contiguous() for c, name in enumerate(names) for i in range(x.shape[2])}


def channels(model: Reconstructor) -> list[str]:
    """The names of the channels, or their numbers where they have none."""
    return list(map(str, model.names or range(model.channels)))


def variants(
    model: Reconstructor,
    x: Float[Tensor, "m channels length"],
    reference: Reference,
    y: Int[Tensor, " m"] | None,
    options: dict[str, Any],
    cfg: DictConfig,
) -> dict[str, Float[Tensor, "m channels length"]]:
    """The same samples with all chosen scales changed, and with each scale alone, from the same random draw."""
    import torch

    from msae.uses import augmentation

    names = options["scales"] or [name for name in model.codes if name != "level"]
    pictures: dict[str, list[str]] = {"changed": names} | ({name: [name] for name in names} if len(names) > 1 else {})
    return {
        label: augmentation.augment(
            model,
            x,
            reference,
            y=y,
            residual=cfg.residual,
            generator=torch.Generator().manual_seed(cfg.seed),
            **(options | {"scales": scales}),
        ).x
        for label, scales in pictures.items()
    }


def comparison(
    model: Reconstructor, x: Float[Tensor, "n channels length"], x_new: Float[Tensor, "m channels length"]
) -> str:
    """A line for each statistic and each of the first four channels, with its value for old and new samples."""
    from msae.uses import augmentation

    lines = [f"{'statistic':<24}{'channel':<16}{'old':>12}{'new':>12}"]
    for name, (old, new) in augmentation.statistics(x, x_new).items():
        pairs = zip(channels(model)[:4], old.tolist(), new.tolist(), strict=False)
        lines += [f"{name:<24}{channel:<16.15}{a:>12.5g}{b:>12.5g}" for channel, a, b in pairs]
    if model.channels > 4:
        lines.append(f"of the first 4 of {model.channels} channels")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    cli.run(augment, "augment")


if __name__ == "__main__":
    cli.start("augment")
