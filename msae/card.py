"""What to use for what on your own data: `python -m msae.card data=series data.path=readings.csv out=card`."""

from __future__ import annotations

from msae.runs import signals

if __name__ == "__main__":
    signals.early()

import contextlib
import importlib
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from msae import cli
from msae.errors import InputError, check_choice, check_int, check_threads, repeated
from msae.runs import folder
from msae.runs.overrides import key_of

if TYPE_CHECKING:  # imported where they are used: `--help` answers before torch is loaded
    from msae.cards.state import Card
    from msae.data.module import DataModule

USES = {"reconstruction": 0.4, "detection": 0.7, "forecast": 0.8, "features": 0.6, "augmentation": 0.9}
"""The uses, in their order, and the share of the time left that each may take."""
LEAST = 5.0
"""Seconds of the shortest budget."""


def card(cfg: DictConfig) -> Path:
    """Compare, and write the folder of the card; return the path of its page.

    Raises:
        InputError: a value, or data, that cannot be used; a folder that holds something else.
    """
    place, budget = check(cfg)
    begun = time.monotonic()
    import torch

    from msae.runs.model import data_of

    torch.set_num_threads(cfg.threads)
    data = data_of(cfg)
    (uses, lacking), labels = allowed(cfg, data), labels_of(cfg, data)
    from msae.cards import page, state

    facts = {
        "data": overrides(),
        "shape": list(data.shape),
        "label": cfg.label,
        "steps": cfg.steps,
        "windows": [len(windows) for windows in (data.train, data.val, data.test)],
    }
    with folder.claimed(place):
        given = {"given": training_overrides(cfg), "budget": budget, "threads": cfg.threads, "started": begun}
        given["steps"] = None if cfg.steps == "auto" else cfg.steps
        made = state.Card.opened(place, facts, data=data, labels=labels, **given)
        made.content["lacking"] = lacking
        print(f"{', '.join(uses)}: {max(0.0, made.left):.0f} s left\n  {place}", flush=True)
        try:
            for use in uses:
                compare(made, use, explicit=cfg.uses != "auto")
        except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
            print("\ninterrupted: the same command goes on from the rows that are done")
            sys.exit(signals.code())
        page.write(made, list(USES))
        shutil.rmtree(place / "runs", ignore_errors=True)
    print("\n" + "\n".join(page.sentences(made, list(USES))) + f"\n\n  {place / 'card.html'}")
    return place / "card.html"


def compare(made: Card, use: str, explicit: bool) -> None:
    """Add the rows of a use, its picture and the checkpoint of its best model; a use that fails is left out."""
    from msae import write
    from msae.cards.verdict import best
    from msae.whole import write_bytes

    if use in made.content["uses"] and made.of(use).get("done"):
        return
    print(use, flush=True)
    module: Any = importlib.import_module(f"msae.cards.{use}")
    made.begin(use, USES[use])
    try:
        module.compare(made)
        figure = module.example(made)
    except InputError as error:
        if explicit:
            raise
        made.of(use)["note"] = str(error)
        figure = None
    if figure is not None:
        write.picture(figure, made.folder / f"{use}.png")
    row = best(use, [row for row in made.rows(use) if "checkpoint" in row])
    if row is not None and (made.folder / row["checkpoint"]).is_file():
        write_bytes(made.folder / f"{use}.ckpt", (made.folder / row["checkpoint"]).read_bytes())
    made.of(use)["done"] = True
    made.keep()


def check(cfg: DictConfig) -> tuple[Path, float]:
    """The folder, and the budget in seconds; raises InputError for values that no card can use."""
    if OmegaConf.is_missing(cfg, "out") or not cfg.out:
        raise InputError("out: no value; expected the folder of a card, such as out=card")
    place = Path(cfg.out).expanduser()
    if place.exists() and not place.is_dir():
        raise InputError(f"out={place}: is a file; expected a folder")
    there = {path.name for path in place.glob("*")} - {"running.lock", "runs"} if place.is_dir() else set()
    if there and "card.json" not in there:
        raise InputError(f"out={place}: contains other files; expected a new folder, or that of a card")
    check_threads(cfg.threads)
    check_int("seed", cfg.seed, 0, 2**32 - 1)
    if cfg.steps != "auto":
        check_int("steps", cfg.steps)
    if cfg.uses != "auto":
        if not OmegaConf.is_list(cfg.uses) or not len(cfg.uses):
            raise InputError(f"uses={cfg.uses}: expected auto, or a list of {', '.join(USES)}")
        for use in cfg.uses:
            check_choice("uses", use, USES)
        if twice := repeated(cfg.uses):
            raise InputError(f"uses: {twice[0]} is there twice; expected each use once")
    return place, seconds_of(cfg.budget)


def seconds_of(budget: Any) -> float:
    """A length of time, such as 5m, in seconds.

    Examples:
        >>> seconds_of("5m"), seconds_of("1h")
        (300.0, 3600.0)
    """
    import pandas as pd

    seconds = float("nan")
    with contextlib.suppress(ValueError):
        seconds = pd.Timedelta(budget).total_seconds() if isinstance(budget, str) else seconds  # not nanoseconds
    if not LEAST <= seconds <= 1e7:
        raise InputError(f"budget={budget}: expected a time of at least {LEAST:.0f}s, such as 90s, 5m or 1h")
    return seconds


def allowed(cfg: DictConfig, data: DataModule) -> tuple[list[str], dict[str, str]]:
    """The uses that are compared, and what each of the others needs that the data have not.

    Raises:
        InputError: data without a validation split, or a use that the data do not allow.
    """
    from msae.data.windows import Views

    if not len(data.val):
        raise InputError("data.val_size=0: a card chooses by the validation split; expected more than 0")
    in_time = isinstance(data.train.x, Views) and data.train.x.length is not None
    lacking = {
        "detection": "" if in_time else "series in time, as of data=series",
        "forecast": "" if in_time else "series in time, as of data=series",
        "features": "" if data.train.y is not None else "samples with labels, as of data=ucr",
        "augmentation": "" if data.train.y is not None else "samples with labels, as of data=ucr",
    }
    if data.missing:
        lacking["detection"] = lacking["forecast"] = "series without missing values, as by data.missing=interpolate"
    lacking = {use: needs for use, needs in lacking.items() if needs}
    for use in cfg.uses if cfg.uses != "auto" else ():
        if use in lacking:
            raise InputError(f"uses: {use} needs {lacking[use]}")
    return [use for use in USES if (use not in lacking if cfg.uses == "auto" else use in cfg.uses)], lacking


def labels_of(cfg: DictConfig, data: DataModule) -> DataModule | None:
    """The column `label` as series, cut as the data are; None without one.

    Raises:
        InputError: data without files, a label that is a channel too, other stretches, or no anomaly in the test part.
    """
    if cfg.label is None:
        return None
    from hydra.utils import instantiate

    from msae.cards.splits import stretches

    if "columns" not in cfg.data:
        raise InputError(f"label={cfg.label}: a column of files; expected null, as this data set has none")
    if str(cfg.label) in (data.names or []):
        others = ",".join(name for name in data.names or [] if name != str(cfg.label))
        raise InputError(f"label={cfg.label}: is a channel too; data.columns=[{others}] leaves it out")
    logger = logging.getLogger("msae")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it was said when the channels were read
    try:
        found: DataModule = instantiate(cfg.data, columns=[cfg.label], window=data.shape[1], normalize="none")
    finally:
        logger.setLevel(level)
    if [x.shape[1] for x in stretches(found.test)] != [x.shape[1] for x in stretches(data.test)]:
        raise InputError(f"label={cfg.label}: is missing where the channels are not; expected a label in each row")
    if not any((x > 0).any() for x in stretches(found.test)):
        raise InputError(f"label={cfg.label}: no anomaly in the test part; expected one, or a larger data.test_size")
    return found


def overrides() -> list[str]:
    """The overrides of the command line that choose the data."""
    hydra = HydraConfig.get()
    given = [text for text in hydra.overrides.task if key_of(text).partition(".")[0] == "data"]
    named = any(key_of(text) == "data" for text in given)
    return given if named else [f"data={hydra.runtime.choices['data']}", *given]


def training_overrides(cfg: DictConfig) -> list[str]:
    """The overrides of the data in trainings: a small data set is used several times in an epoch."""
    given = overrides()
    several = "epoch_steps" in cfg.data and not any("data.epoch_steps=" in text for text in given)
    return given + ["data.epoch_steps=50"] * several


def main() -> None:
    """The command."""
    cli.run(card, "card")


if __name__ == "__main__":
    cli.start("card")
