"""Anomaly scores and alarms of series: `python -m msae.detect ckpt=RUN data.path=new.csv out=scores.csv`.

High scores are anomalous here; in scikit-learn's methods low scores are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from msae import cli, read, write
from msae.alarms import Detector
from msae.errors import InputError, check_choice, check_int, check_number
from msae.parts import Part, series, steps_of
from msae.runs.found import data_set
from msae.runs.mistakes import explain

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from jaxtyping import Float
    from torch import Tensor

    from msae.data.windows import Views
    from msae.models.reconstructor import Reconstructor
    from msae.uses.anomaly import Reference
    from msae.uses.events import Limits
    from msae.uses.rules import Rules


def detect(cfg: DictConfig) -> Path:
    """Write a table of scores with a row for each time step, and events and a picture beside it; return its path.

    Raises:
        InputError: a checkpoint, data, a reference or an output that cannot be used.
    """
    model = read.begin(cfg, files=False)
    out = write.check_out(cfg, ".events.csv", ".png")
    check(cfg)
    check_int("stride", cfg.stride, 1, model.length)
    from msae.uses import anomaly, events, rules

    parts: Iterator[Part] = series(cfg, model)
    first = next(parts)  # an error in it is reported before the training scores are computed
    probability = cfg.probability if cfg.alarms_per is None else 1 / steps_of(cfg.alarms_per, first)
    normal = reference(cfg, model)
    known = None if normal is None else normal.scores
    limits = limits_of(cfg, model.length, probability, normal)
    scorer = anomaly.Scorer(model, known.codes if known else None, cfg.stride)
    watched = None if not cfg.rules else normal.rules if normal else rules.unknown(model.channels)
    detector = Detector(scorer, known, limits, watched, by_scales=cfg.score == "scales")
    with write.Writer(out, cfg.escape) as table, write.Progress("steps") as progress:
        for part in chain([first], parts):
            progress.begin(part.name, part.x.numel() // model.channels)
            for rows in detector.scores(part):
                table.write(rows)
                progress.update(len(rows["score"]))
    with write.Writer(out.with_name(f"{out.name}.events.csv"), cfg.escape) as found:
        like = detector.row(part, events.Event(0, 0, 0, 0.0, 0, 0, 0))  # the table has columns without an event
        found.write({name: write.column(values, text=False)[:0] for name, values in like.items()})
        for row in detector.events:
            found.write(row)
    write.picture(detector.figure(cfg.data.get("time_column")), out.with_name(f"{out.name}.png"))
    print(
        f"{table.rows} time steps, {counted(len(detector.events) - detector.ruled)} above {limits.above:.6g}"
        + f" and {detector.ruled} by rules alone" * bool(detector.ruled)
        + (normal.told(cfg.score, limits) if normal else "")
        + f"\n  {out}\n  {out}.events.csv\n  {out}.png"
    )
    return out


def counted(n: int) -> str:
    """A number of events, in words."""
    return f"{n} event{'s' * (n != 1)}"


def check(cfg: DictConfig) -> None:
    """Raise InputError for values that cannot be used, before anything is loaded."""
    if cfg.merge != "auto":
        check_int("merge", cfg.merge, 0)
    for key in ("hysteresis", "rules"):
        check_choice(key, cfg[key], (True, False))
    if check_choice("score", cfg.score, ("error", "scales")) == "scales" and cfg.reference is None:
        raise InputError("reference=null: score=scales needs training scores; expected a reference")
    check_int("stride", cfg.stride)
    if isinstance(cfg.threshold, (int, float)):
        check_number("threshold", cfg.threshold)
        if cfg.alarms_per is not None:
            raise InputError(
                f"alarms_per={cfg.alarms_per}: threshold={cfg.threshold} is a number; expected evt or quantile"
            )
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


@dataclass(frozen=True)
class Normal:
    """What was learned of normal series.

    Attributes:
        scores: the distribution of their scores.
        rules: the rules that their values keep.
        steps: the number of their time steps.
    """

    scores: Reference
    rules: Rules
    steps: int

    def totals(self, score: str) -> tuple[Float[Tensor, " n"], int]:
        """Their scores, which are spread evenly, and the number of steps from one of them to the next."""
        totals = self.scores.totals if score == "error" else self.scores.times
        return totals, max(1, round(self.steps / len(totals)))

    def told(self, score: str, limits: Limits) -> str:
        """How many events they would have had themselves."""
        from msae.uses import events

        totals, every = self.totals(score)
        n = events.count(totals, replace(limits, gap=limits.gap // every))
        return f"\n  in the {self.steps} training steps it gives {counted(n)}"


def reference(cfg: DictConfig, model: Reconstructor) -> Normal | None:
    """What is normal in the training split of the run, or in files; None without a reference."""
    from msae.uses import anomaly, rules

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
        scores = anomaly.learn(model, data, cfg.stride, progress.update)
    return Normal(scores, rules.learn(data, model.channels), total)


def limits_of(cfg: DictConfig, length: int, probability: float, normal: Normal | None) -> Limits:
    """What makes a run of scores an event: the thresholds, and what lies between two events.

    By default events end where the scores are no longer in the tail of the training scores, and those less than half
    a window apart, which most windows that contain one of them share, are one.
    """
    import numpy as np

    from msae.uses import events

    gap = length // 2 if cfg.merge == "auto" else cfg.merge
    if normal is None:
        return events.Limits(float(cfg.threshold), float(cfg.threshold), gap)
    totals, every = normal.totals(cfg.score)
    above, low = cfg.threshold, float(np.nanquantile(totals, events.LEVEL))
    if isinstance(above, str):
        apart = None if cfg.alarms_per is None else gap // every
        above = events.threshold(totals, probability * (1 if apart is None else every), above, gap=apart)
    return events.Limits(float(above), min(low, above) if cfg.hysteresis else above, gap)


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


def main() -> None:
    """The command."""
    cli.run(detect, "detect")


if __name__ == "__main__":
    cli.start("detect")
