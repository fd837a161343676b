"""What a card knows so far: its rows, which are kept as soon as they are there, and the time that is left."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msae.errors import InputError
from msae.runs.folder import write_json

if TYPE_CHECKING:
    from msae.data.module import DataModule

SEEDS = (0, 1, 2)
PARTS = 10
"""Consecutive parts of the test split, over which the interval of a gain is computed."""
Row = dict[str, Any]
"""`name`; `simple`, whether it is a baseline; `val`, by which rows are chosen; `test`, a value for each seed; `parts`,
their mean in each part of the test, paired between rows; `seconds`; `note`; `command`, which reproduces it; and columns
of its use. A row that was left out has a `note` alone."""


@dataclass
class Card:
    """The state of a card, which `card.json` keeps.

    Attributes:
        folder: of the card.
        data: what is compared.
        labels: the labels of the steps of series, as their one channel; None without labels.
        given: overrides of the command line that choose the data.
        budget: seconds for everything.
        steps: of each training; None for as many as the budget allows.
        threads: of torch.
        content: of card.json.
    """

    folder: Path
    data: DataModule
    labels: DataModule | None
    given: list[str]
    budget: float
    steps: int | None
    threads: int
    content: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    until: float = 0.0

    @classmethod
    def opened(cls, folder: Path, facts: dict[str, Any], **own: Any) -> Card:
        """The card of a folder, or a new one; InputError where the folder holds something else."""
        file = folder / "card.json"
        content: dict[str, Any] = {"facts": facts, "seconds": 0.0, "uses": {}}
        if file.is_file():
            try:
                content = dict(json.loads(file.read_text(encoding="utf-8")))
                before, _, _ = content["facts"], content["seconds"], content["uses"].keys()
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{file}: damaged, or no card; remove it, or give another out=FOLDER") from None
            if keys := [key for key in before | facts if before.get(key) != facts.get(key)]:
                raise InputError(
                    f"out={folder}: holds a card with {keys[0]}={before.get(keys[0])}, not {facts.get(keys[0])}; "
                    "expected another folder"
                )
        return cls(folder, content=content, **own)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - float(self.content["seconds"]) - (time.monotonic() - self.started)

    @property
    def use_left(self) -> float:
        """Seconds that are left to the present use."""
        return self.until - time.monotonic()

    def begin(self, use: str, share: float, **about: Any) -> None:
        """Begin a use, or go on with it, that may take a share of the time that is left."""
        self.until = math.inf if self.steps else time.monotonic() + max(0.0, share * self.left)
        self.content["uses"].setdefault(use, {"rows": []}).update(about)

    def of(self, use: str) -> dict[str, Any]:
        """What is known of a use."""
        found: dict[str, Any] = self.content["uses"][use]
        return found

    def rows(self, use: str) -> list[Row]:
        """The rows of a use that have values."""
        return [row for row in self.of(use)["rows"] if "test" in row]

    def row(self, use: str, name: str, compute: Callable[[], Row], enough: bool = True) -> None:
        """Add a row, unless it is there already; one that cannot be computed, or has no time, is left out with a line.

        Args:
            use: the name of the use.
            name: of the row.
            compute: gives the row.
            enough: whether there is time for it.
        """
        if any(row["name"] == name for row in self.of(use)["rows"]):
            return
        begun = time.monotonic()
        row: Row = {"note": "left out: no time was left for it"}
        try:
            row = compute() if enough else row
        except InputError as error:
            row = {"note": f"left out: {error}"}
        row = {"name": name} | row | {"seconds": round(time.monotonic() - begun, 1)}
        self.of(use)["rows"].append(row)
        told = f"{np.mean(row['test']):.4g} on test" if "test" in row else row["note"]
        print(f"  {name:<22} {told}, {row['seconds']:.0f} s", flush=True)
        self.keep()

    def keep(self, timed: bool = True) -> None:
        """Write card.json, and count the time since the last call, which may only have written a page again."""
        now = time.monotonic()
        if timed:
            self.content["seconds"] = round(float(self.content["seconds"]) + now - self.started, 1)
        self.started = now
        write_json(self.folder / "card.json", self.content)

    def command(self, module: str, *texts: str) -> str:
        """A command on the card's data."""
        return shlex.join(["python", "-m", f"msae.{module}", *self.given, *texts])

    def itself(self, use: str, steps: int | None = None) -> str:
        """The command that computes the rows of a use alone, with models trained for so many steps."""
        return self.command("card", f"uses=[{use}]", f"out={self.folder}_{use}", *[f"steps={steps}"] * bool(steps))


def parts_of(values: Any) -> list[float]:
    """The mean of values, in the order of the test split, in each of its `PARTS` consecutive parts.

    Examples:
        >>> parts_of(range(40))[:3]
        [1.5, 5.5, 9.5]
    """
    return [float(np.mean(part)) for part in np.array_split(np.asarray(list(values), dtype=float), PARTS) if len(part)]


def mean_parts(parts: Sequence[Sequence[float]]) -> list[float]:
    """The mean over seeds of each part, in six digits."""
    return [float(f"{value:.6g}") for value in np.mean(np.asarray(parts, dtype=float), axis=0)]


def row_of(
    val: Sequence[float], test: Sequence[float], parts: Sequence[Sequence[float]], simple: bool, **more: Any
) -> Row:
    """A row from the values of each seed."""
    numbers: Mapping[str, Any] = {
        "val": float(np.mean(np.asarray(val))),
        "test": [float(value) for value in test],
        "parts": mean_parts(parts),
    }
    return {"simple": simple, **numbers, **more}
