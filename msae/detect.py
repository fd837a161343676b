"""Anomaly scores and alarms of series: `python -m msae.detect ckpt=RUN data.path=new.csv out=scores.csv`.

High scores are anomalous here; in scikit-learn's methods low scores are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from msae import cli, read, write
from msae.errors import InputError, check_choice, check_int, check_number
from msae.runs.found import data_set
from msae.runs.mistakes import explain

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    import numpy as np
    from jaxtyping import Float, Int
    from matplotlib.figure import Figure
    from torch import Tensor

    from msae.data.windows import Views
    from msae.models.reconstructor import Reconstructor
    from msae.uses.anomaly import Reference, Scorer
    from msae.uses.events import Event

log = logging.getLogger(__name__)
PLACES = ("start", "end", "peak")
"""Steps of an event that its table gives."""


def detect(cfg: DictConfig) -> Path:
    """Write a table of scores with a row for each time step, and events and a picture beside it; return its path.

    Raises:
        InputError: a checkpoint, data, a reference or an output that cannot be used.
    """
    model = read.begin(cfg, files=False)
    out = write.check_out(cfg, ".events.csv", ".png")
    check(cfg)
    check_int("stride", cfg.stride, 1, model.length)
    from msae.uses import anomaly, events

    parts: Iterator[Part] = series(cfg, model)
    parts = chain([next(parts)], parts)  # an error in the first is reported before the others are read
    known = reference(cfg, model)
    above = cfg.threshold
    if isinstance(above, str):
        assert known is not None
        above = events.threshold(known.totals if cfg.score == "error" else known.times, cfg.probability, above)
    scorer = anomaly.Scorer(model, known.codes if known else None, cfg.stride)
    detector = Detector(scorer, known, float(above), cfg.merge, by_scales=cfg.score == "scales")
    with write.Writer(out, cfg.escape) as table, write.Progress("steps") as progress:
        for part in parts:
            progress.begin(part.name, part.x.numel() // model.channels)
            for rows in detector.scores(part):
                table.write(rows)
                progress.update(len(rows["score"]))
    with write.Writer(out.with_name(f"{out.name}.events.csv"), cfg.escape) as found:
        note = {"note": [""]} if detector.notes else {}
        like = detector.row(part, events.Event(0, 0, 0, 0.0, 0, 0)) | note  # the table has columns without an event
        none = {name: write.column(values, text=False)[:0] for name, values in like.items()}
        for row in [none, *(row | note for row in detector.events), *detector.notes]:
            found.write(row)
    write.picture(detector.figure(cfg.data.get("time_column")), out.with_name(f"{out.name}.png"))
    print(
        f"{table.rows} time steps, {len(detector.events)} events above {above:.6g}"
        f"\n  {out}\n  {out}.events.csv\n  {out}.png"
    )
    return out


def check(cfg: DictConfig) -> None:
    """Raise InputError for values that cannot be used, before anything is loaded."""
    check_int("merge", cfg.merge, 0)
    if check_choice("score", cfg.score, ("error", "scales")) == "scales" and cfg.reference is None:
        raise InputError("reference=null: score=scales needs training scores; expected a reference")
    check_int("stride", cfg.stride)
    if isinstance(cfg.threshold, (int, float)):
        check_number("threshold", cfg.threshold)
    else:
        check_choice("threshold", cfg.threshold, ("evt", "quantile", "a number"))
        if not 0 < check_number("probability", cfg.probability, 1) < 1:
            raise InputError(f"probability={cfg.probability}: expected a number between 0 and 1, such as 1e-3")
        if cfg.reference is None:
            raise InputError(f"reference=null: threshold={cfg.threshold} needs training scores; expected a number")
    if cfg.reference not in (None, "training"):
        from msae.data import files

        files.find(reference_path(cfg), "reference")
        if not read.has_files(cfg):
            raise InputError(
                f"reference={cfg.reference}: files, but data is a data set of samples; expected training or null"
            )


def reference_path(cfg: DictConfig) -> Any:
    """`cfg.reference` as `data.path` takes it."""
    return OmegaConf.to_container(cfg.reference) if OmegaConf.is_config(cfg.reference) else cfg.reference


def reference(cfg: DictConfig, model: Reconstructor) -> Reference | None:
    """The distribution of scores in the training split of the run, or in files; None without a reference."""
    from msae.uses import anomaly

    if cfg.reference is None:
        return None
    data: list[Tensor] | Cut
    if cfg.reference == "training":
        data = training(cfg, model)
    else:
        files = OmegaConf.merge(cfg, {"data": {"path": reference_path(cfg)}})
        assert isinstance(files, DictConfig)
        data = [stretch.x for stretch in read.stretches(files, model)]
    total = sum(x.numel() // model.channels for x in data) if isinstance(data, list) else len(data.x) * model.length
    with write.Progress("steps") as progress:
        progress.begin("training scores", total)
        return anomaly.learn(model, data, cfg.stride, progress.update)


def training(cfg: DictConfig, model: Reconstructor) -> list[Tensor] | Cut:
    """The series, or windows, of the training split of the checkpoint's run.

    Raises:
        InputError: the checkpoint does not say what they were, or they cannot be read.
    """
    from msae.data.windows import Views

    hint = "type reference=PATH to compare with other files, or reference=null and threshold=NUMBER to do without"
    options = model.data_options
    if options is None:
        raise InputError(f"reference=training: {cfg.ckpt} does not say how its data were read; {hint}")
    try:
        x = data_set("its data options", options, "type data._target_={}", [cfg.data._target_]).train.x
    except (InputError, HydraException, OSError) as error:
        reason = explain(error, "train").rstrip(".")
        raise InputError(f"reference=training: cannot read the data of {cfg.ckpt}: {reason}; {hint}") from None
    if not isinstance(x, Views):
        return [x]
    if x.blocks[0].ndim == 3:
        return Cut(x)
    return [x.blocks[number][start:stop].T for number, start, stop in x.spans]


@dataclass(frozen=True)
class Cut:
    """Windows of files that already contain windows; each iteration reads them again in batches."""

    x: Views

    def __iter__(self) -> Iterator[Tensor]:
        return (self.x[first : first + read.BATCH] for first in range(0, len(self.x), read.BATCH))


@dataclass(frozen=True)
class Part:
    """A stretch of a series, or separate windows, whose steps are numbered from one window to the next.

    Attributes:
        x: the values in raw units.
        name: the name that progress and the picture show.
        channels: the names of the channels.
        owner: gives the columns that identify the file, series or sample of a step.
        place: gives the columns that locate a step in it; the first of them is a number.
    """

    x: Float[Tensor, "channels time"] | Float[Tensor, "n channels length"]
    name: str
    channels: list[str]
    owner: Callable[[Int[Tensor, " m"]], dict[str, Any]]
    place: Callable[[Int[Tensor, " m"]], dict[str, Any]]


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


class Detector:
    """Turns scores into columns of a table, and collects the events.

    Args:
        scorer: the scorer of a model.
        known: the distribution of training scores.
        above: the threshold.
        merge: events with at most this many steps between them become one.
        by_scales: whether a step's score is the greatest ratio of a scale's score to its usual value instead of its
            error.

    Attributes:
        events: a row of the table of events for each event.
        notes: a row of it for each channel that has no value in a part, though the model was trained on it.
        shown: the greatest score, the arguments of `plots.anomalies` for the series or window with this score, and its
            name.
    """

    def __init__(
        self, scorer: Scorer, known: Reference | None, above: float, merge: int, by_scales: bool = False
    ) -> None:
        self.scorer = scorer
        self.known = known
        self.above = above
        self.merge = merge
        self.by_scales = by_scales
        self.events: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.shown: tuple[float, dict[str, Any], str] | None = None

    def scores(self, part: Part) -> Iterator[dict[str, Any]]:
        """The table of a part, in pieces; after the last piece `events` includes its events."""
        import numpy as np
        import torch

        from msae.data.files import Spool
        from msae.uses import anomaly, events, ranges

        for number in ranges.without_values(part.x):
            name = part.channels[number]
            log.warning("%s: channel %s has no value; scores are of the other channels", part.name, name)
            whole = events.Event(0, part.x.numel() // len(part.channels) - 1, 0, float("nan"), -1, number)
            self.notes.append(self.row(part, whole) | {"note": ["no value"]})
        length = part.x.shape[2] if part.x.ndim == 3 else None
        done = 0
        runs: list[Event] = []
        with Spool(np.float32) as totals:
            for scored in filter(len, anomaly.scores(self.scorer, part.x)):
                found, strange = scored, None
                if self.known is not None:
                    strange = anomaly.strangest(found.scales, self.known.usual)
                    found = replace(found, total=strange[2]) if self.by_scales else found
                steps = torch.arange(done, done + len(found))
                table = part.owner(steps) | part.place(steps) | {"score": found.total}
                table |= {f"score_{name}": row for name, row in zip(part.channels, found.channels, strict=True)}
                table |= found.scales
                if strange is not None:
                    table |= {"strangest": write.texts(*strange[:2]), "times_usual": strange[2]}
                yield table | {"alarm": found.total > self.above}
                runs += events.events(found, self.above, strange and strange[1], done, length)
                totals.append(found.total.numpy())
                done += len(found)
            runs = events.merged(runs, self.merge, length)
            self.events += [self.row(part, run) for run in runs]
            self._show(part, totals.array()[:, 0], runs)

    def row(self, part: Part, run: Event) -> dict[str, Any]:
        """An event as a row of a table."""
        import torch

        steps = torch.tensor([run.start, run.end, run.peak])
        found = part.owner(steps[:1])
        for name, values in part.place(steps).items():
            ends = ("_" + name if name == "time" else "" for _ in range(3))
            found |= {f"{end}{tail}": values[i : i + 1] for i, (end, tail) in enumerate(zip(PLACES, ends, strict=True))}
        found |= {"score": [run.score], "threshold": [self.above]}
        if self.known is not None:
            names = list(dict.fromkeys(name.partition("_")[2] for name in self.known.usual))
            found["strangest"] = [names[run.scale] if run.scale >= 0 else ""]
        return found | {"channel": [part.channels[run.channel]]}

    def _show(self, part: Part, totals: np.ndarray, runs: list[Event]) -> None:
        """Keep the part for the picture if its greatest score exceeds those of the parts before."""
        import numpy as np
        import torch

        if np.isnan(totals).all():
            return
        peak = int(np.nanargmax(totals))
        if self.shown is not None and totals[peak] <= self.shown[0]:
            return
        first, stop, x = 0, len(totals), part.x
        if x.ndim == 3:
            number = peak // x.shape[2]
            first, stop, x = number * x.shape[2], (number + 1) * x.shape[2], x[number]
        spans = [(run.start - first, run.end - first) for run in runs if first <= run.start < stop]
        drawn = {"x": x.T.numpy(), "score": totals[first:stop], "events": spans, "names": part.channels}
        times = part.place(torch.arange(len(totals))).get("time") if part.x.ndim == 2 else None
        drawn["times"] = None if times is None else times.to_numpy(zero_copy_only=False)
        self.shown = float(totals[peak]), drawn, part.name if part.x.ndim == 2 else f"{part.name}, number {number}"

    def figure(self, clock: str | None) -> Figure:
        """The picture of the part with the greatest score; `clock` is the name of the time column."""
        from msae import plots

        assert self.shown is not None, "something was scored"
        _, drawn, name = self.shown
        figure = plots.anomalies(**drawn, threshold=self.above, clock=clock)
        figure.suptitle(name, fontsize=9)
        return figure


def main() -> None:
    """The command."""
    cli.run(detect, "detect")


if __name__ == "__main__":
    cli.start("detect")
