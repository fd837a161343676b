"""How much higher a threshold of few training data has to be, and what in training data looks like a failure.

    python studies/anomalies/few.py [--ucr UCR [--runs runs/anomaly]] [--nab NAB] [--out studies/anomalies/few.json]

Synthetic series chose the rules; no series of an archive did. They are cycles of 40 steps with a random shape, of six
kinds: their amplitude is independent from cycle to cycle, or it, their pace, level or shape wanders, or noise is added.
The first cycles are known, the last fifth of them held out; the next 120 are normal, and into a copy of 30 of them one
of the nine faults of `faults.py` is put at a time. The model is `nested` as it starts, with a window of 80 steps.

- `raise`: of a threshold by extreme value theory (probability .001), the share of the normal steps above it and of the
  faults that are found, where it is raised by 1 + n / windows, for several n.
- `range`: the share of these series with a value that the rule calls out of range, for several `rules.FEW`.
- `suspects`: the share of the training parts that are suspected, and of those with a fault in them whose fault is
  named.

With UCR, and the runs of `anomaly.py`: of each series the share of the normal steps after training that is above the
threshold, before and after it is raised, for n = 3 seeds; whether the anomaly is; events "out of range" there; and
whether its training part is suspected. With NAB the suspects in the first 70 % of each of its series.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from msae.models.nested import NestedAutoEncoder
from msae.runs.comparison import table
from msae.runs.folder import write_json
from msae.uses import anomaly, events, reference, rules, suspects

sys.path.insert(0, str(Path(__file__).parent))
import anomaly as study
from faults import faulty

CYCLE, WINDOW, NEW, FAULTY, SEEDS = 40, 80, 120, 30, range(2)
KINDS = ("independent", "amplitude", "pace", "level", "shape", "noise")
CYCLES = (10, 15, 25, 50, 100, 200)
RAISED, WIDER = (0, 4, 8, 16), (0, 10, 20, 40)
PROBABILITY = 1e-3


def wander(n: int, memory: float, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """A random walk that returns to 0."""
    noise = rng.normal(size=n + 100) * np.sqrt(1 - memory**2)
    return deviation * np.asarray(lfilter([1], [1, -memory], noise))[100:]


def series(kind: str, cycles: int, rng: np.random.Generator) -> np.ndarray:
    """A normal series."""
    shape = rng.normal(size=(4, 2)) / np.arange(1, 5)[:, None]
    amplitude = {"independent": wander(cycles, 0, 0.15, rng), "amplitude": wander(cycles, 0.9, 0.2, rng)}.get(kind)
    pace = wander(cycles, 0.8, 0.1 * (kind == "pace"), rng)
    level = wander(cycles, 0.95, 0.5 * (kind == "level"), rng)
    change = np.stack([wander(cycles, 0.8, 0.09 * (kind == "shape"), rng) for _ in range(4)], axis=1)
    parts = []
    for cycle in range(cycles):
        angle = np.linspace(0, 2 * np.pi, max(8, round(CYCLE * np.exp(pace[cycle]))), endpoint=False)
        both = np.stack([np.cos(np.outer(np.arange(1, 5), angle)), np.sin(np.outer(np.arange(1, 5), angle))], axis=1)
        one = np.einsum("kj,kjn->n", shape + change[cycle][:, None], both)
        parts.append(one * np.exp(0 if amplitude is None else amplitude[cycle]) + level[cycle])
    x = np.concatenate(parts)
    noise = wander(len(x), 0.9, 0.3 * (kind == "noise"), rng)
    return np.asarray(x + 0.03 * rng.normal(size=len(x)) + noise)


def learned(x: Tensor) -> tuple[NestedAutoEncoder, reference.Reference, list[Tensor]]:
    """The model at its start, what is normal, and the two parts of the training series."""
    held = max(WINDOW, x.shape[1] // 5)
    parts = list(x.split([x.shape[1] - held, held], dim=1))
    model = NestedAutoEncoder((1, WINDOW), [10, 20, 40, 80], 32, passes=1).eval()
    model.set_statistics(x.mean(1, keepdim=True), x.std(1, keepdim=True), torch.tensor([0.0, 1.0]))
    windows = parts[0].unfold(1, WINDOW, 1).movedim(1, 0)
    model.initialize(lambda: model.scaled(windows[:: max(1, len(windows) // 4000)]))
    return model, reference.learn(model, parts[:1], fresh=parts[1:]), parts


def scored(model: Any, known: reference.Reference, x: Tensor) -> np.ndarray:
    """The scores of the steps of a series."""
    return np.asarray(anomaly.joined(list(anomaly.scores(anomaly.Scorer(model, known), x))).total)


def leaves(parts: list[Tensor], x: Tensor) -> dict[str, int]:
    """The number of events "out of range" in a series, for each width of the rule."""
    found = {}
    before = rules.FEW
    for rules.FEW in WIDER:
        found[str(rules.FEW)] = sum(one.rule == "out of range" for one in rules.events(rules.learn(parts, 1), x))
    rules.FEW = before
    return found


def measure(kind: str, cycles: int, seed: int) -> dict[str, Any]:
    """What a synthetic series shows."""
    rng = np.random.default_rng([seed, cycles, KINDS.index(kind)])
    whole = series(kind, cycles + NEW, rng)
    n = len(whole) * cycles // (cycles + NEW)
    x = torch.from_numpy((whole - whole[:n].mean()) / whole[:n].std()).float()[None]
    model, known, parts = learned(x[:, :n])
    above, normal = events.threshold(known.totals, PROBABILITY), scored(model, known, x[:, n:])
    some = x[0, n : n + FAULTY * CYCLE].double().numpy()
    peaks = [
        scored(model, known, torch.from_numpy(made).float()[None])[where].max()
        for made, where in faulty(some, CYCLE, rng)
    ]
    raised = {}
    for number in RAISED:
        limit = above * (1 + number / (n / WINDOW))
        raised[str(number)] = [float((normal > limit).mean()), float((np.array(peaks) > limit).mean())]
    bad = list(faulty(x[0, :n].double().numpy(), CYCLE, rng))
    named = []
    for number in rng.choice(len(bad), 2, replace=False):
        made, where = bad[number]
        made_x = torch.from_numpy(made).float()[None]
        _, its, its_parts = learned(made_x)
        places = np.flatnonzero(where)[[0, -1]] + [-WINDOW, WINDOW]
        at = [len(its_parts[0][0]) * one.series + one.step for one in suspects.suspects(its, its_parts, WINDOW, ["x"])]
        named.append(any(places[0] <= step <= places[1] for step in at))
    clean = len(suspects.suspects(known, parts, WINDOW, ["x"])) > 0
    return {"raise": raised, "range": leaves(parts, x[:, n:]), "suspected": clean, "named": float(np.mean(named))}


def of_ucr(path: Path, runs: Path) -> dict[str, Any]:
    """The alarms in a series of the archive."""
    from msae import load

    x, y, train, _ = study.ucr(path)
    scaled = torch.from_numpy(study.standardized(x, train).T.copy()).float()
    last = round(0.2 * train)
    parts = [scaled[:, : train - last], scaled[:, train - last : train]]
    found: dict[str, Any] = {"before": [], "after": [], "found": [[], []], "suspects": []}
    for seed in study.SEEDS:
        model = load(runs / path.stem / "runs" / f"seed={seed}")
        known = reference.learn(model, parts[:1], fresh=parts[1:])
        new, labels = scored(model, known, scaled[:, train:]), np.flatnonzero(y[train:])
        far = np.ones(len(new), dtype=bool)
        far[max(0, labels[0] - 2 * model.length) : labels[-1] + 2 * model.length] = False
        near = slice(max(0, labels[0] - study.NEAR), labels[-1] + study.NEAR)
        above = events.threshold(known.totals, PROBABILITY)
        limits = above, events.raised(above, train / model.length)
        for name, kept, limit in zip(("before", "after"), found["found"], limits, strict=True):
            found[name].append(float((new[far] > limit).mean()))
            kept.append(bool(new[near].max() > limit))
        found["suspects"] += [one.why for one in suspects.suspects(known, parts, model.length, ["value"])]
    return found | {"windows": train / model.length, "range": leaves(parts, scaled[:, train:][:, : labels[0]])}


def of_nab(folder: Path) -> Iterator[tuple[str, str]]:
    """What is suspected in the values of the series of NAB, and whether it is labelled."""
    for path in sorted(folder.glob("*.csv")):
        x, y, _, _ = study.nab(path)
        n = round(0.7 * len(x))
        one = suspects.by_values([torch.from_numpy(x[:n].T.copy())], ["value"])
        said = (
            "none"
            if one is None
            else f"row {one.step}, {'' if y[one.step] else 'not '}in a labelled failure: {one.why}"
        )
        yield path.stem, said


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    each = found["synthetic"]
    rows = []
    for number in RAISED:
        row = [f"1 + {number} / windows" if number else "not raised"]
        for cycles in CYCLES:
            values = np.mean([one["raise"][str(number)] for one in each if one["cycles"] == cycles], axis=0)
            row.append(f"{values[0]:.1%}, {values[1]:.0%}")
        rows.append(row)
    for number in WIDER:
        some = [[one["range"][str(number)] > 0 for one in each if one["cycles"] == cycles] for cycles in CYCLES]
        rows.append([f"out of range, FEW = {number}", *(f"{np.mean(row):.0%}" for row in some)])
    for key, title in (("suspected", "suspected, clean"), ("named", "suspected, with a fault")):
        some = [[one[key] for one in each if one["cycles"] == cycles] for cycles in CYCLES]
        rows.append([title, *(f"{np.mean(row):.0%}" for row in some)])
    n = len(each) // len(CYCLES)
    title = f"Synthetic series, mean of {n} for each number of cycles; alarms, faults found."
    texts = [title, table(["training cycles", *map(str, CYCLES)], rows)]
    if "ucr" in found:
        rows = [
            [name, f"{one['windows']:.1f}", *(f"{np.mean(one[key]):.1%}" for key in ("before", "after"))]
            + [f"{np.sum(row)} of {len(row)}" for row in one["found"]]
            + [f"{one['range'][str(k)]}" for k in (0, rules.FEW)]
            + [f"{len(one['suspects'])}"]
            for name, one in found["ucr"].items()
        ]
        header = [
            "series",
            "windows",
            "alarms before",
            "after",
            "found before",
            "after",
            "out of range before",
            "after",
        ]
        texts.append(table([*header, "suspected"], rows))
    if "nab" in found:
        texts.append(table(["series", "suspected"], list(map(list, found["nab"].items()))))
    return "\n\n".join(texts) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ucr", type=Path)
    parser.add_argument("--nab", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/anomaly"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("few.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # few scores are no surprise here
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    found.setdefault("synthetic", [])
    if given.ucr:
        found["ucr"] = {path.stem: of_ucr(path, given.runs) for path in sorted(given.ucr.glob("*.csv"))}
    if given.nab:
        found["nab"] = dict(of_nab(given.nab))
    write_json(given.out, found)
    for seed, kind, cycles in product(SEEDS, KINDS, CYCLES):
        facts = {"kind": kind, "cycles": cycles, "seed": seed}
        if not any(facts.items() <= one.items() for one in found["synthetic"]):
            found["synthetic"].append(facts | measure(kind, cycles, seed))
            write_json(given.out, found)
    write_json(given.out, found)
    print(markdown(found))


if __name__ == "__main__":
    main()
