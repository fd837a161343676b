"""Detection: faults put into the validation part choose the detector, others in the test part tell how good it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import average_precision_score

from msae.cards import faults, training
from msae.cards.state import SEEDS, Card, Row, mean_parts
from msae.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from torch import Tensor

    from msae.data.module import Windows
    from msae.models.reconstructor import Reconstructor
    from msae.uses.events import Limits

USE = "detection"
NAMES = ("raw nearest windows", "bank (nested)", "isolation forest", "error (nested)")
REPEATS, FEW, LONG = 5, 2, 100.0
"""Faults of each kind in each part; their number with a budget of fewer seconds than the last."""
AROUND = 12
"""Windows of the stretch into which a fault is put."""
STEPS, CLEAN = 40_000, 10_000
"""The last steps of the training split that detectors see, and the last of the others that make thresholds and false
alarms."""
WINDOWS = 4000
"""Training windows that the nearest of raw ones is looked for in."""
RUNS = "nested_by_default"
"""The folder of the models that detection and forecasts share."""
PROBABILITY = 1e-3
"""Of an alarm at a normal step, as `python -m msae.detect` has it by default."""
Detector = Callable[["Float[Tensor, 'channels time']"], "Float[np.ndarray, ' time']"]


class Parts:
    """The series of the splits, and what faults and detectors need to know of the training split."""

    def __init__(self, card: Card) -> None:
        data = card.data
        self.length = data.shape[1]
        self.period = max(2, self.length // 2)
        self.stride = max(1, self.length // 32)
        self.train, self.val, self.test = (stretches(windows) for windows in (data.train, data.val, data.test))
        self.train, self.clean = last(self.train, STEPS, self.length), {}
        for split, its in (("validation", self.val), ("test", self.test)):
            longest = max(x.shape[1] for x in its)
            if longest < 3 * self.length:
                raise InputError(
                    f"the {split} part has stretches of at most {longest} steps; expected three windows, "
                    f"{3 * self.length}, to put faults into"
                )
            self.clean[split] = last(its, CLEAN, self.length)
        values = np.concatenate([x.double().numpy() for x in self.train], axis=1)
        self.mean, self.deviation, self.least = values.mean(1), values.std(1), values.min(1)

    def faulty(self, split: str, repeats: int) -> list[tuple[str, Float[Tensor, "channels time"], Any]]:
        """Stretches of a split with a fault each: its kind, the values, and which steps are faulty."""
        import torch

        rng = np.random.default_rng(["validation", "test"].index(split))
        its = [x for x in (self.val if split == "validation" else self.test) if x.shape[1] >= 3 * self.length]
        found = []
        for _, kind in product(range(repeats), faults.KINDS):
            x = its[int(rng.choice(len(its), p=np.array([y.shape[1] for y in its]) / sum(y.shape[1] for y in its)))]
            width = min(AROUND * self.length, x.shape[1])
            start = int(rng.integers(x.shape[1] - width + 1))
            own = x[:, start : start + width].double().numpy()
            made, flags = faults.inject(own, kind, self.period, self.deviation, self.least, rng)
            found.append((kind, torch.from_numpy(made), flags))
        return found


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


def compare(card: Card) -> None:
    """Add the rows."""
    parts = Parts(card)
    card.of(USE).setdefault("repeats", REPEATS if card.budget >= LONG else FEW)
    steps = training.planned(card, USE, "nested", ["model=nested"], card.use_left / 2)
    for name in NAMES:
        card.row(USE, name, partial(of_detector, card, parts, name, steps), card.use_left > 0)


def nested(card: Card, steps: int) -> list[Any]:
    """The folders of the runs of `nested` with its default sizes, which detection and forecasts share."""
    return training.trained(card, RUNS, ["model=nested"], steps)


def of_detector(card: Card, parts: Parts, name: str, steps: int) -> Row:
    """The row of a detector: precision and events over faults of both parts."""
    from msae import load

    more: dict[str, Any] = {"command": card.itself(USE)}
    simple = name in (NAMES[0], NAMES[2])
    if name == NAMES[0]:
        detectors: list[Detector] = [nearest(parts)]
    elif simple:
        detectors = [forest(parts, seed) for seed in SEEDS]
    else:
        runs = nested(card, steps)
        detectors = [of_model(load(run), parts, name == NAMES[1]) for run in runs]
        more["command"] = card.command("train", *training.overrides(["model=nested"], steps))
    repeats, begun = card.of(USE)["repeats"], time.monotonic()
    judged = [judge(detectors[0], parts, repeats)]
    each = time.monotonic() - begun
    judged += [judge(one, parts, repeats) for one in detectors[1:] if each < card.use_left]
    val, test = ([its[split]["precision"] for its in judged] for split in ("validation", "test"))
    if name == NAMES[1]:
        first = int(np.argmax([np.mean(one) for one in val]))
        more["checkpoint"] = str((runs[first] / "best.ckpt").relative_to(card.folder))
    kinds = judged[0]["test"]["kinds"]
    by_kind = {
        kind: float(np.mean([v for one in test for k, v in zip(kinds, one, strict=True) if k == kind]))
        for kind in faults.KINDS
    }
    return {
        "simple": simple,
        "val": float(np.mean(val)),
        "test": [float(np.mean(one)) for one in test],
        "parts": mean_parts(test),
        "found": float(np.mean([its["test"]["found"] for its in judged])),
        "of": len(kinds),
        "false_alarms": float(np.mean([its["false_alarms"] for its in judged])),
        "kinds": by_kind,
        "share": judged[0]["test"]["share"],
    } | more


def judge(detector: Detector, parts: Parts, repeats: int) -> dict[str, Any]:
    """Average precision of the steps of each fault, the number of faults found, and false alarms in 1,000 steps."""
    limits = limits_of(detector, parts)
    found: dict[str, Any] = {}
    for split in ("validation", "test"):
        precision, hits, kinds, share = [], 0, [], []
        for kind, x, flags in parts.faulty(split, repeats):
            score = detector(x)
            precision.append(float(f"{average_precision_score(flags, score):.4g}"))
            hits += any(flags[start : stop + 1].any() for start, stop in alarms(score, limits))
            kinds.append(kind)
            share.append(flags.mean())
        found[split] = {"precision": precision, "found": hits, "kinds": kinds, "share": float(np.mean(share))}
    clean = parts.clean["test"]
    n = sum(len(alarms(detector(x), limits)) for x in clean)
    return found | {"false_alarms": 1000 * n / sum(x.shape[1] for x in clean)}


def limits_of(detector: Detector, parts: Parts) -> Limits:
    """The default threshold: a normal step of the validation part exceeds it with a probability of 0.001."""
    import torch

    from msae.estimators.training import isolated
    from msae.uses import events

    scores = torch.from_numpy(np.concatenate([detector(x) for x in parts.clean["validation"]]))
    with isolated(0):  # few scores are no surprise here
        above = events.threshold(scores, PROBABILITY)
    return events.Limits(above, min(float(scores.quantile(events.LEVEL)), above), parts.length // 2)


def alarms(score: Float[np.ndarray, " time"], limits: Limits) -> list[tuple[int, int]]:
    """The first and the last step of each event."""
    import torch

    from msae.uses import anomaly, events

    total = torch.from_numpy(score).float()
    found = events.merged(events.events(anomaly.Scores(total, total[None], {}), limits), limits)
    return [(event.start, event.end) for event in found]


def of_model(model: Reconstructor, parts: Parts, bank: bool) -> Detector:
    """The scores of `python -m msae.detect`: distances from the bank, or with `reference=null` the error."""
    from msae.uses import anomaly, reference

    known = reference.learn(model, parts.train, parts.stride) if bank else None
    scorer = anomaly.Scorer(model, known, parts.stride)

    def score(x: Float[Tensor, "channels time"]) -> Float[np.ndarray, " time"]:
        total = anomaly.joined(list(anomaly.scores(scorer, x))).total
        found: Float[np.ndarray, " time"] = total.nan_to_num(0.0).double().numpy()
        return found

    return score


def windows_of(parts: Parts, x: Tensor, scaled: bool) -> Float[np.ndarray, "n values"]:
    """Windows of a series, flat; `scaled`, each by its own mean and deviation, at least a twentieth of the usual."""
    from msae.data.windows import cut

    values = (x.double() - parts.mean[:, None]) / np.maximum(parts.deviation, 1e-12)[:, None]
    [found] = cut(values, parts.length, parts.stride)
    if scaled:
        found = found - found.mean(2, keepdim=True)
        found = found / found.std(2, keepdim=True).clamp(min=0.05)
    return found.flatten(1).float().numpy()


def spread_out(parts: Parts, per_window: Float[np.ndarray, " n"], steps: int) -> Float[np.ndarray, " time"]:
    """Scores of windows as scores of steps: the mean of the windows that hold each."""
    import torch

    from msae.data.windows import stitch

    rows = torch.from_numpy(per_window).double()[:, None, None].expand(-1, 1, parts.length)
    found: Float[np.ndarray, " time"] = stitch(rows, steps, parts.stride)[0].numpy()
    return found


def nearest(parts: Parts) -> Detector:
    """The distance of each window, by its own mean and deviation, from the nearest training window."""
    from sklearn.neighbors import NearestNeighbors

    normal = np.concatenate([windows_of(parts, x, scaled=True) for x in parts.train])
    at = np.unique(np.linspace(0, len(normal) - 1, WINDOWS).astype(int))
    fitted = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(normal[at])

    def score(x: Float[Tensor, "channels time"]) -> Float[np.ndarray, " time"]:
        far = fitted.kneighbors(windows_of(parts, x, scaled=True))[0][:, 0]
        return spread_out(parts, far, x.shape[1])

    return score


def forest(parts: Parts, seed: int) -> Detector:
    """scikit-learn's isolation forest of raw windows."""
    from sklearn.ensemble import IsolationForest

    fitted = IsolationForest(random_state=seed)
    fitted.fit(np.concatenate([windows_of(parts, x, scaled=False) for x in parts.train]))

    def score(x: Float[Tensor, "channels time"]) -> Float[np.ndarray, " time"]:
        return spread_out(parts, -fitted.score_samples(windows_of(parts, x, scaled=False)), x.shape[1])

    return score


def example(card: Card) -> Figure | None:
    """A flat line in the test part, and the scores of the bank."""
    from matplotlib.figure import Figure

    from msae import load

    row = next((row for row in card.rows(USE) if "checkpoint" in row), None)
    if row is None or not (card.folder / row["checkpoint"]).is_file():
        return None
    parts = Parts(card)
    detector = of_model(load(card.folder / row["checkpoint"]), parts, bank=True)
    limits = limits_of(detector, parts)
    kind, x, flags = next(one for one in parts.faulty("test", 1) if one[0] == "flat line")
    score, at = detector(x), np.flatnonzero(flags)
    clean = x.numpy()
    channel = int(np.argmin([np.abs(np.diff(values[at])).sum() for values in clean]))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    name = (card.data.names or [])[channel : channel + 1] or [f"channel {channel}"]
    above.plot(clean[channel], linewidth=0.9, color="0.3")
    above.set_ylabel(name[0])
    above.set_title(f"A stretch of the test part with an injected fault ({kind}), and its score", fontsize=9)
    below.plot(score, linewidth=0.9, color="tab:red")
    below.axhline(limits.above, color="0.4", linewidth=0.8, linestyle="--", label="default threshold")
    below.set(ylabel="score of the bank", xlabel="step")
    below.legend(fontsize=8)
    for axis in (above, below):
        axis.axvspan(at[0] - 0.5, at[-1] + 0.5, color="tab:orange", alpha=0.25, linewidth=0)
        axis.margins(x=0.01)
    return figure
