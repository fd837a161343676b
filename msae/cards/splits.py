"""The series of the splits as detection sees them, with faults put into them, or with labelled anomalies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from msae.cards import faults
from msae.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from msae.cards.state import Card
    from msae.data.module import Windows

AROUND = 8
"""Windows of the stretch that contains a fault, or a labelled anomaly."""
STEPS, CLEAN = 40_000, 10_000
"""The last steps of the training split that detectors see, and the last of the others that make thresholds and false
alarms."""
LABELLED = "labelled"
Fault = tuple[str, "Tensor", "np.ndarray", int]
"""The kind, a stretch with the fault, which steps are faulty, and the number of the channel."""


class Parts:
    """The series of the splits, and what faults and detectors need to know of the training split.

    Attributes:
        clean: the last steps of validation and test, without faults.
        labelled: which steps of `clean["test"]` are labelled as anomalies.

    Raises:
        InputError: a part that is too short for faults.
    """

    def __init__(self, card: Card) -> None:
        data = card.data
        self.length = data.shape[1]
        self.period = max(2, self.length // 2)
        self.stride = max(1, self.length // 32)
        train, self.val, self.test = (stretches(windows) for windows in (data.train, data.val, data.test))
        self.train = last(train, STEPS, self.length)
        for split, its in (("validation", self.val), ("test", self.test)):
            longest = max(x.shape[1] for x in its)
            if longest < 3 * self.length:
                raise InputError(
                    f"the {split} part has stretches of at most {longest} steps; expected three windows, "
                    f"{3 * self.length}, to put faults into"
                )
        self.clean = {
            split: last(its, CLEAN, self.length) for split, its in (("validation", self.val), ("test", self.test))
        }
        self.flags = None if card.labels is None else stretches(card.labels.test)
        labelled = [x[:1] * 0 for x in self.test] if self.flags is None else self.flags
        self.labelled = [(flags[0] > 0).numpy() for flags in last(labelled, CLEAN, self.length)]
        values = np.concatenate([x.double().numpy() for x in self.train], axis=1)
        self.mean, self.deviation, self.least = values.mean(1), values.std(1), values.min(1)

    def faulty(self, split: str, repeats: int) -> list[Fault]:
        """Stretches of a split with a fault each; of the test with its labelled anomalies, where there are labels."""
        import torch

        if split == "test" and self.flags is not None:
            return list(self.anomalies(self.flags))
        rng = np.random.default_rng(["validation", "test"].index(split))
        its = [x for x in (self.val if split == "validation" else self.test) if x.shape[1] >= 3 * self.length]
        steps = np.array([x.shape[1] for x in its])
        found = []
        for _, kind in product(range(repeats), faults.KINDS):
            x = its[int(rng.choice(len(its), p=steps / steps.sum()))]
            width = min(AROUND * self.length, x.shape[1])
            start = int(rng.integers(x.shape[1] - width + 1))
            own = x[:, start : start + width].double().numpy()
            made, flags, channel = faults.inject(own, kind, self.period, self.deviation, self.least, rng)
            found.append((kind, torch.from_numpy(made), flags, channel))
        return found

    def anomalies(self, every: Sequence[Tensor]) -> Iterator[Fault]:
        """The stretches around the labelled anomalies of the test part."""
        from msae.uses import events

        for x, flags in zip(self.test, every, strict=True):
            for start, stop in events.spans(flags[0] > 0).tolist():
                around = max(self.length, (AROUND * self.length - (stop - start)) // 2)
                first, end = max(0, start - around), min(x.shape[1], stop + around)
                yield LABELLED, x[:, first:end].double(), (flags[0, first:end] > 0).numpy(), 0


def stretches(windows: Windows) -> list[Float[Tensor, "channels time"]]:
    """The series that windows are cut from."""
    from msae.data.windows import Views

    assert isinstance(windows.x, Views)
    return [windows.x.blocks[number][start:stop].T for number, start, stop in windows.x.spans]


def last(its: Sequence[Tensor], steps: int, least: int) -> list[Tensor]:
    """The last steps of stretches, in pieces of at least a window."""
    found: list[Tensor] = []
    for x in reversed(its):
        if min(steps, x.shape[1]) >= least:
            found.insert(0, x[:, -steps:])
            steps -= found[0].shape[1]
    return found
