"""Anomaly scores and alarms of series: `python -m msae.detect ckpt=RUN data.path=new.csv out=scores.csv`.

High scores are anomalous here; in scikit-learn's methods low scores are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from omegaconf import DictConfig

from msae import cli, normality, read, write
from msae.alarms import Detector, limits_of
from msae.errors import InputError, check_choice, check_int, check_number
from msae.parts import Part, series, steps_of


def detect(cfg: DictConfig) -> Path:
    """Write a table of scores with a row for each time step, and events and a picture beside it; return its path.

    Raises:
        InputError: a checkpoint, data, a reference or an output that cannot be used.
    """
    model = read.begin(cfg, files=cfg.follow is True)
    out = write.check_out(cfg, ".events.csv", *[] if cfg.follow is True else [".png"])
    check(cfg)
    check_int("stride", cfg.stride, 1, model.length)
    from msae.uses import anomaly, events, rules

    if cfg.follow:
        from msae import follow

        follow.follow(cfg, model, out)
        return out
    parts: Iterator[Part] = series(cfg, model)
    first = next(parts)  # an error in it is reported before the training scores are computed
    if cfg.alarms_per is not None:
        steps_of(cfg.alarms_per, first)
    normal = normality.find(cfg, model)
    known = None if normal is None else normal.scores
    limits = limits_of(cfg, model.length, first, normal)
    scorer = anomaly.Scorer(model, known, cfg.stride, causal=cfg.causal)
    watched = None if not cfg.rules else normal.rules if normal else rules.unknown(model.channels)
    detector = Detector(scorer, limits, watched, normal)
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
        f"{table.rows} time steps, {write.counted(len(detector.events) - detector.ruled)} above {limits.above:.6g}"
        + f" and {detector.ruled} by rules alone" * bool(detector.ruled)
        + (normal.told(limits) if normal else "")
        + f"\n  {out}\n  {out}.events.csv\n  {out}.png"
    )
    return out


def check_live(cfg: DictConfig) -> None:
    """Raise InputError for values that do not fit scores that are known at once, or a growing file."""
    if not check_number("poll", cfg.poll):
        raise InputError("poll=0: expected a number of seconds above 0")
    if check_int("stride", cfg.stride) > 1 and (cfg.causal or cfg.follow):
        raise InputError(f"stride={cfg.stride}: expected 1 with causal=true or follow=true")


def check(cfg: DictConfig) -> None:
    """Raise InputError for values that cannot be used, before anything is loaded."""
    if cfg.merge != "auto":
        check_int("merge", cfg.merge, 0)
    for key in ("hysteresis", "rules", "causal", "follow"):
        check_choice(key, cfg[key], (True, False))
    check_live(cfg)
    check_int("bank_size", cfg.bank_size, 2)
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

        files.find(normality.reference_path(cfg), "reference")
        if not read.has_files(cfg):
            raise InputError(
                f"reference={cfg.reference}: files, but data is a data set of samples; expected training or null"
            )


def main() -> None:
    """The command."""
    cli.run(detect, "detect")


if __name__ == "__main__":
    cli.start("detect")
