"""How the scores of several lengths are made one, chosen by faults that are put into training parts.

    python studies/anomalies/faults.py UCR [--out studies/anomalies/faults.json]

UCR is a folder of series of the UCR anomaly archive, as for `anomaly.py`. Of each series only the training part is
used, which is normal: no label of an anomaly chooses anything. The first 65 % of it are known, and into the rest one of
nine faults is put at a time, four times each, at a random place, a tenth of a period P to two and a half periods long.
The model is `nested` as it starts, at the principal axes. The measure is the average precision of the steps, its mean
over all faults and series.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from msae.data.period import dominant_period
from msae.models.nested import NestedAutoEncoder
from msae.runs.comparison import table
from msae.runs.folder import write_json
from msae.uses.anomaly import Scorer
from msae.uses.reference import Reference, learn

REPEATS, KNOWN, CODES = 4, 0.65, (16, 32)
KINDS = ("values", "shape", "both")
RULES = ("greatest", "root mean square", "mean", "2P alone", "P alone", "P/2 alone", "P/4 alone")


def faulty(x: np.ndarray, period: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The series with one fault of each kind, and which steps are faulty."""
    n, size = len(x), x.std()
    for kind in ("spike", "drop-out", "flat", "noise", "pace", "amplitude", "level", "bridge", "reversed"):
        steps = int(period * np.exp(rng.uniform(np.log(0.1), np.log(2.5))))
        steps = max(2, period // 20) if kind == "spike" else max(3, min(steps, n - 2 * period - 4))
        start = int(rng.integers(period, n - period - steps))
        stop, made = start + steps, x.copy()
        old = x[start:stop]
        if kind == "spike":
            made[start:stop] += size * rng.uniform(0.8, 1.5) * rng.choice([-1, 1])
        elif kind == "drop-out":
            made[start:stop] = x.min()
        elif kind == "flat":
            made[start:stop] = x[start]
        elif kind == "noise":
            made[start:stop] += rng.normal(0, 0.4 * size, steps)
        elif kind == "pace":
            pace = 1.6 if start + 1.6 * steps < n else 0.6
            made[start:stop] = np.interp(np.linspace(0, pace * steps, steps), np.arange(n - start), x[start:])
        elif kind == "amplitude":
            made[start:stop] = old.mean() + (old - old.mean()) * rng.choice([0.4, 1.6])
        elif kind == "level":
            made[start:stop] += 0.5 * size * rng.choice([-1, 1])
        elif kind == "bridge":
            made[start:stop] = np.linspace(x[start], x[stop], steps)
        else:
            made[start:stop] = old[::-1]
        yield made, (np.arange(n) >= start) & (np.arange(n) < stop)


def prepared(known: np.ndarray, period: int, code_dim: int) -> tuple[NestedAutoEncoder, Reference]:
    """The model at its start, and what is normal."""
    x = torch.from_numpy(known).float()[None]
    lengths = sorted({max(8, period * 2 // share) for share in (8, 4, 2, 1)})
    model = NestedAutoEncoder((1, lengths[-1]), lengths, code_dim, passes=1).eval()
    model.set_statistics(x.mean(1, keepdim=True), x.std(1, keepdim=True), torch.tensor([0.0, 1.0]))
    windows = x.unfold(1, model.length, 1).movedim(1, 0)
    model.initialize(lambda: model.scaled(windows[:: max(1, len(windows) // 4000)]))
    return model, learn(model, [x])


def combinations(ratios: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Scores of steps by each kind and rule, from ratios `(scales, 2, time)` to usual values."""
    for kind, each in zip(KINDS, (ratios[:, 0], ratios[:, 1], ratios.mean(1)), strict=True):
        yield kind, "greatest", each.nan_to_num(0).max(0).values
        yield kind, "root mean square", each.square().nanmean(0).sqrt()
        yield kind, "mean", each.nanmean(0)
        for rule, alone in zip(RULES[3:], each.nan_to_num(0), strict=False):
            yield kind, rule, alone


def measure(x: np.ndarray) -> dict[str, list[float]]:
    """The average precisions of all faults in a series, for each choice."""
    found: dict[str, list[float]] = {}
    known, test = np.split(x, [int(KNOWN * len(x))])
    period = min(max(16, dominant_period(known[:20_000, None]) or 64), len(test) // 5)
    for code_dim in CODES:
        model, normal = prepared(known, period, code_dim)
        rng = np.random.default_rng(0)
        for made, faults in (each for _ in range(REPEATS) for each in faulty(test, period, rng)):
            series = torch.from_numpy(made).float()[None]
            rows = torch.cat([rows for _, rows in Scorer(model, normal).rows(series, 1 << 16)], dim=2)
            for kind, rule, score in combinations(rows / normal.usual[:, :, :1].reshape(len(rows), 2, 1)):
                value = average_precision_score(faults, score.numpy())
                found.setdefault(f"{code_dim}, {kind}, {rule}", []).append(round(float(value), 4))
    return found


def markdown(results: dict[str, dict[str, list[float]]]) -> str:
    """The means of all choices: a row for each rule, a column for each kind and size of a code."""
    choices = [(code_dim, kind) for code_dim in CODES for kind in KINDS]
    rows = []
    for rule in RULES:
        means = []
        for code_dim, kind in choices:
            name = f"{code_dim}, {kind}, {rule}"
            means.append(np.mean([np.mean(found[name]) for found in results.values() if name in found]))
        rows.append([rule, *(f"{mean:.3f}" for mean in means)])
    n = sum(len(next(iter(found.values()))) for found in results.values())
    header = ["scales", *(f"{kind}, {code_dim} values" for code_dim, kind in choices)]
    return f"Mean average precision of {n} faults in {len(results)} series.\n\n{table(header, rows)}\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ucr", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("faults.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = dict(json.loads((given.ucr / "series.json").read_text()))
    results = {}
    for path in sorted(given.ucr.glob("*.csv")):
        x = np.genfromtxt(path, delimiter=",", skip_header=1)[: facts[path.stem]["train_steps"], 0]
        results[path.stem] = measure(x)
        print(path.stem, flush=True)
    write_json(given.out, results)
    print(markdown(results))


if __name__ == "__main__":
    main()
