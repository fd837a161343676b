"""What `python -m msae.detect` scores: stretches of files, or samples of a data set, and where their steps are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from msae import read
from msae.errors import InputError

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from jaxtyping import Float, Int
    from torch import Tensor

    from msae.models.reconstructor import Reconstructor


@dataclass(frozen=True)
class Part:
    """A stretch of a series, or separate windows, whose steps are numbered from one window to the next.

    Attributes:
        x: the values in raw units.
        name: the name that progress and the picture show.
        channels: the names of the channels.
        owner: gives the columns that identify the file, series or sample of a step.
        place: gives the columns that locate a step in it; the first of them is a number.
        stretch: of a file, that the steps are of.
    """

    x: Float[Tensor, "channels time"] | Float[Tensor, "n channels length"]
    name: str
    channels: list[str]
    owner: Callable[[Int[Tensor, " m"]], dict[str, Any]]
    place: Callable[[Int[Tensor, " m"]], dict[str, Any]]
    stretch: read.Stretch | None = None


def series(cfg: DictConfig, model: Reconstructor) -> Iterator[Part]:
    """The stretches of files, or samples of a data set, to score."""
    length = model.length
    if not read.has_files(cfg):
        names = list(model.names or map(str, range(model.channels)))
        for batch in read.samples(cfg, model):
            yield Part(
                batch.x,
                f"{batch.split} {batch.first} to {batch.first + len(batch.x) - 1}",
                names,
                partial(sample, batch, length),
                lambda steps: {"step": steps % length},
            )
        return
    for stretch in read.stretches(cfg, model):
        yield Part(
            stretch.x,
            f"{stretch.table.path} {stretch.group}".strip(),
            list(stretch.table.columns),
            partial(owner, stretch, cfg.data.group_column is not None, length),
            partial(place, stretch, length),
            stretch,
        )


def sample(batch: read.Samples, length: int, steps: Int[Tensor, " m"]) -> dict[str, Any]:
    """The split and the sample that contain each step."""
    return {"split": [batch.split] * len(steps), "index": batch.first + steps // length}


def owner(stretch: read.Stretch, grouped: bool, length: int, steps: Int[Tensor, " m"]) -> dict[str, Any]:
    """The file, series or window that contains each step."""
    found: dict[str, Any] = {"file": [str(stretch.table.path)] * len(steps)}
    if grouped:
        found["group"] = [stretch.group] * len(steps)
    return found if stretch.x.ndim == 2 else found | {"index": stretch.rows(steps // length)}


def place(stretch: read.Stretch, length: int, steps: Int[Tensor, " m"]) -> dict[str, Any]:
    """The row and time of each step, or its number in its window."""
    if stretch.x.ndim == 3:
        return {"step": steps % length}
    found: dict[str, Any] = {"row": stretch.rows(steps)}
    return found if stretch.table.times is None else found | {"time": stretch.times(steps)}


def steps_of(time: Any, part: Part) -> float:
    """`alarms_per`, a length of time or a number of steps, in steps of a part.

    Raises:
        InputError: a length of time where steps have none, or less than two steps.
    """
    import numpy as np

    from msae.data import rows

    table = None if part.stretch is None else part.stretch.table
    if table is not None and table.times is not None and part.x.ndim == 2:
        assert part.stretch is not None
        first = part.stretch.first
        steps = np.diff(table.times[first : first + min(part.x.shape[1], 100_000)])
        found = rows.duration(time, table, "alarms_per") / float(np.median(steps))
    else:
        try:
            found = float(time)
        except (TypeError, ValueError):
            raise InputError(
                f"alarms_per={time}: {part.name} has no times; expected a number of steps, or data.time_column"
            ) from None
    if not found >= 2:
        raise InputError(f"alarms_per={time}: {found:.3g} steps; expected at least 2")
    return found
