"""Detection: faults put into the validation part choose the detector, others in the test part, or labels, judge it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score

from msae.cards import faults, training
from msae.cards.splits import Parts
from msae.cards.state import SEEDS, Card, Row, mean_parts

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from torch import Tensor

    from msae.models.reconstructor import Reconstructor
    from msae.uses.events import Event, Limits
    from msae.uses.rules import Rules

USE = "detection"
NAMES = ("raw nearest windows", "isolation forest", "bank (nested)", "error (nested)")
REPEATS, FEW = 5, 2
"""The greatest number of faults of each kind in each part, and the least, where time is short."""
WINDOWS = 4000
"""Training windows that the nearest of raw ones is looked for in."""
COST = 5
"""All detectors take about this many times as long as one seed of the bank."""
RUNS = "nested_by_default"
"""The folder of the models that detection and forecasts share."""
PROBABILITY = 1e-3
"""Of an alarm at a normal step, as `python -m msae.detect` has it by default."""


class Detector(NamedTuple):
    """A detector that was fitted to the training split.

    Attributes:
        score: of each step of a series `(channels, time)`, high where it is anomalous.
        rules: of raw values, whose events are alarms too; None for none.
    """

    score: Callable[[Float[Tensor, "channels time"]], Float[np.ndarray, " time"]]
    rules: Rules | None = None


def compare(card: Card) -> None:
    """Add the rows."""
    from msae import load

    parts, known = Parts(card), card.of(USE)
    known["labelled"] = card.labels is not None
    steps, _ = training.planned(card, USE, "nested", ["model=nested"], card.use_left / 3)
    if "repeats" not in known:
        bank, fault = of_model(load(nested(card, steps)[0]), parts, bank=True), parts.faulty("validation", 1)[0][1]
        begun = time.monotonic()
        bank.score(fault)
        each = 2 * len(faults.KINDS) * (time.monotonic() - begun)
        known["repeats"] = int(max(FEW, min(REPEATS, card.use_left / (COST * each))))
    for i, name in enumerate(NAMES):  # in the shortest time there are a baseline and the bank
        card.row(USE, name, partial(of_detector, card, parts, name, steps), card.use_left > 0 or i % 2 == 0)


def nested(card: Card, steps: int) -> list[Path]:
    """The folders of the runs of `nested` with its default sizes, which detection and forecasts share."""
    return training.trained(card, RUNS, ["model=nested"], steps)


def of_detector(card: Card, parts: Parts, name: str, steps: int) -> Row:
    """The row of a detector: precision and events over faults of both parts."""
    from msae import load

    number, runs = NAMES.index(name), list[Path]()
    if number >= 2:
        runs = nested(card, steps)
    fits: Sequence[Callable[[], Detector]] = {
        0: [partial(nearest, parts)],
        1: [partial(forest, parts, seed) for seed in SEEDS],
        2: [partial(of_model, load(run), parts, bank=True) for run in runs],
        3: [partial(of_model, load(run), parts, bank=False) for run in runs],
    }[number]
    judged: list[dict[str, Any]] = []
    took = 0.0
    for fit in fits:
        if judged and took > card.use_left:
            break
        begun = time.monotonic()
        judged.append(judge(fit(), parts, card.of(USE)["repeats"]))
        took = time.monotonic() - begun
    val, test = ([its[split]["precision"] for its in judged] for split in ("validation", "test"))
    more: dict[str, Any] = {"command": card.itself(USE, steps)}
    if number == 2:
        more["note"] = "what it finds and its false alarms are those of its scores and of the rules of msae.detect"
    if runs:
        first = int(np.argmax([np.mean(one) for one in val]))
        more["threshold"] = judged[first]["threshold"]
        more["checkpoint"] = str((runs[first] / "best.ckpt").relative_to(card.folder))
    kinds = np.array(judged[0]["test"]["kinds"])
    return {
        "simple": number < 2,
        "val": float(np.mean(val)),
        "test": [float(np.mean(one)) for one in test],
        "parts": mean_parts(test),
        "found": float(np.mean([its["test"]["found"] for its in judged])),
        "of": len(kinds),
        "false_alarms": float(np.mean([its["false_alarms"] for its in judged])),
        "kinds": {kind: float(np.mean(np.array(test)[:, kinds == kind])) for kind in dict.fromkeys(kinds.tolist())},
        "share": judged[0]["test"]["share"],
    } | more


def judge(detector: Detector, parts: Parts, repeats: int) -> dict[str, Any]:
    """Average precision of the steps of each fault, the number of faults found, and false alarms in 1,000 steps."""
    limits = limits_of(detector, parts)
    found: dict[str, Any] = {"threshold": limits.above}
    for split in ("validation", "test"):
        precision, hits, kinds, share = [], 0, [], []
        for kind, x, flags, _ in parts.faulty(split, repeats):
            score = detector.score(x)
            precision.append(float(f"{average_precision_score(flags, score):.4g}"))
            hits += any(flags[event.start : event.end + 1].any() for event in alarms(detector, x, score, limits))
            kinds.append(kind)
            share.append(flags.mean())
        found[split] = {"precision": precision, "found": hits, "kinds": kinds, "share": float(np.mean(share))}
    clean, n = parts.clean["test"], 0
    for x, labelled in zip(clean, parts.labelled, strict=True):
        events = alarms(detector, x, detector.score(x), limits)
        n += sum(not labelled[event.start : event.end + 1].any() for event in events)
    return found | {"false_alarms": 1000 * n / sum(x.shape[1] for x in clean)}


def limits_of(detector: Detector, parts: Parts) -> Limits:
    """The default threshold: a normal step of the validation part exceeds it with a probability of 0.001."""
    import torch

    from msae.estimators.training import isolated
    from msae.uses import events

    scores = torch.from_numpy(np.concatenate([detector.score(x) for x in parts.clean["validation"]]))
    with isolated(0):  # few scores are no surprise here
        above = events.threshold(scores, PROBABILITY)
    return events.Limits(above, min(float(scores.quantile(events.LEVEL)), above), parts.length // 2)


def alarms(detector: Detector, x: Tensor, score: Float[np.ndarray, " time"], limits: Limits) -> list[Event]:
    """The events of a series."""
    import torch

    from msae.uses import anomaly, events, rules

    total = torch.from_numpy(score).float()
    found = events.merged(events.events(anomaly.Scores(total, total[None], {}), limits), limits)
    return found if detector.rules is None else events.together(found, rules.events(detector.rules, x), limits.gap)


def of_model(model: Reconstructor, parts: Parts, bank: bool) -> Detector:
    """What `python -m msae.detect` does: distances from the bank, and rules; or with `reference=null` the error."""
    from msae.uses import anomaly, reference, rules

    known = reference.learn(model, parts.train, parts.stride) if bank else None
    scorer = anomaly.Scorer(model, known, parts.stride)

    def score(x: Float[Tensor, "channels time"]) -> Float[np.ndarray, " time"]:
        total = anomaly.joined(list(anomaly.scores(scorer, x))).total
        found: Float[np.ndarray, " time"] = total.nan_to_num(0.0).double().numpy()
        return found

    return Detector(score, rules.learn([*parts.train, *parts.clean["validation"]], model.channels) if bank else None)


def windows_of(parts: Parts, x: Tensor, scaled: bool) -> Float[np.ndarray, "channels n length"]:
    """Windows of a series; `scaled`, each by its own mean and deviation, at least a twentieth of the usual one."""
    import torch

    from msae.data.windows import cut

    mean, deviation = (torch.from_numpy(value)[:, None] for value in (parts.mean, parts.deviation))
    [found] = cut((x.double() - mean) / deviation.clamp(min=1e-12), parts.length, parts.stride)
    if scaled:
        found = found - found.mean(2, keepdim=True)
        found = found / found.std(2, keepdim=True).clamp(min=0.05)
    return found.movedim(0, 1).float().numpy()


def spread_out(parts: Parts, per_window: Float[np.ndarray, " n"], steps: int) -> Float[np.ndarray, " time"]:
    """Scores of windows as scores of steps: the mean of the windows that hold each."""
    import torch

    from msae.data.windows import stitch

    rows = torch.from_numpy(per_window).double()[:, None, None].expand(-1, 1, parts.length)
    found: Float[np.ndarray, " time"] = stitch(rows, steps, parts.stride)[0].numpy()
    return found


def nearest(parts: Parts) -> Detector:
    """The distance of each window, by its own mean and deviation, from the nearest in training, over channels."""
    from sklearn.neighbors import NearestNeighbors

    normal = np.concatenate([windows_of(parts, x, scaled=True) for x in parts.train], axis=1)
    at = np.unique(np.linspace(0, normal.shape[1] - 1, WINDOWS).astype(int))
    fitted = [NearestNeighbors(n_neighbors=1, algorithm="brute").fit(channel[at]) for channel in normal]

    def score(x: Float[Tensor, "channels time"]) -> Float[np.ndarray, " time"]:
        pairs = zip(fitted, windows_of(parts, x, scaled=True), strict=True)
        far = np.max([known.kneighbors(own)[0][:, 0] for known, own in pairs], axis=0)
        return spread_out(parts, far, x.shape[1])

    return Detector(score)


def forest(parts: Parts, seed: int) -> Detector:
    """scikit-learn's isolation forest of raw windows of all channels."""
    from sklearn.ensemble import IsolationForest

    def flat(x: Tensor) -> Float[np.ndarray, "n values"]:
        rows = windows_of(parts, x, scaled=False)
        return rows.swapaxes(0, 1).reshape(rows.shape[1], -1)

    fitted = IsolationForest(random_state=seed).fit(np.concatenate([flat(x) for x in parts.train]))
    return Detector(lambda x: spread_out(parts, -fitted.score_samples(flat(x)), x.shape[1]))


def example(card: Card) -> Figure | None:
    """The anomaly in the test part that the bank finds with median precision, and its scores."""
    from matplotlib.figure import Figure

    from msae import load

    row = next((row for row in card.rows(USE) if row["name"] == NAMES[2]), None)
    if row is None or not (card.folder / row["checkpoint"]).is_file():
        return None
    parts = Parts(card)
    detector = of_model(load(card.folder / row["checkpoint"]), parts, bank=True)
    limits = limits_of(detector, parts)
    middle = int(np.argsort(row["parts"])[len(row["parts"]) // 2])
    kind, x, flags, channel = parts.faulty("test", card.of(USE)["repeats"])[middle]
    score, at = detector.score(x), np.flatnonzero(flags)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot(x[channel].numpy(), linewidth=0.9, color="0.3")
    above.set_ylabel((card.data.names or list(map(str, range(len(x)))))[channel])
    above.set_title(f"Of the anomalies in the test part the one of median precision: {kind}", fontsize=9)
    below.plot(score, linewidth=0.9, color="tab:red")
    below.axhline(limits.above, color="0.4", linewidth=0.8, linestyle="--", label="default threshold")
    below.set(ylabel="score of the bank", xlabel="step")
    below.legend(fontsize=8)
    for axis in (above, below):
        axis.axvspan(at[0] - 0.5, at[-1] + 0.5, color="tab:orange", alpha=0.25, linewidth=0)
        axis.margins(x=0.01)
    return figure
