"""Do scales help where data are scarce? The pyramid, its single-scale control and PCA on sets of the UCR archive.

    python benchmarks/ucr_study.py ARCHIVE [--out runs/ucr] [--sets NAME ...] [KEY=VALUE ...]

ARCHIVE is a folder of NAME_TRAIN.tsv and NAME_TEST.tsv, or .ts; sets with unequal lengths or missing values are left
out. For each set and model the setting of least validation loss, of two tried with seed 0, is trained with two more
seeds; the test split chooses nothing. An interrupted study goes on when it is started again. It writes `search.json`,
every trial; `study.json` and `study.md`, the results; `ranks.png`, the mean ranks with their critical difference; and
`scales.png`, what each scale reconstructs of the set on which scales help most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from msae import baselines, cli
from msae.data.ucr import SUFFIXES, ucr
from msae.errors import InputError
from msae.report import Run, markdown_over, over_data_sets, read_runs, table

MODELS = ("single", "pyramid")
SPACE = {"model.lr": ("3e-4", "2e-3")}
SEEDS = (0, 1, 2)


def usable(root: Path, names: list[str] | None) -> list[str]:
    """Sets of an archive whose series are whole and of one length."""
    found = []
    for name in names or sorted({path.stem[:-6] for s in SUFFIXES for path in root.glob(f"**/*_TRAIN{s}")}):
        try:
            ucr(name, str(root))
            found.append(name)
        except InputError as error:
            print(f"left out: {error}")
    return found


def sweep(folder: Path, root: Path, names: list[str], overrides: dict[str, str]) -> None:
    """Train every combination that is not trained yet."""
    given = [f"{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "msae.train", "-m", "experiment=ucr", *given, f"data.name={','.join(names)}"]
    command += [f"data.root={root}", f"hydra.sweep.dir={folder}", "~hydra.callbacks.report", "resume=true"]
    if subprocess.run(command, check=False).returncode or read_runs(folder)[1]:
        sys.exit(f"not finished: {' '.join(command)}")


def settings(run: Run) -> dict[str, str]:
    """What was overridden in a run, by key."""
    return dict(text.split("=", 1) for text in run["overrides"])


def validation(run: Run) -> float:
    """The least validation loss of a run, by which its weights were kept."""
    return min(epoch["val/loss"] for epoch in run["history"])


def trials(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs of each set and model, the one of least validation loss first."""
    found = defaultdict(list)
    for run in sorted(runs, key=validation):
        found[settings(run)["data.name"], run["model"]].append(run)
    return found


def collect(out: Path, root: Path) -> dict[str, dict[str, Any]]:
    """For each set a row for each model, as `msae.report` has them, and PCA of the same latent size."""
    chosen = {key: runs[0] for key, runs in trials(read_runs(out / "search")[0]).items()}
    more = trials([run for folder in out.glob("seeds/*") for run in read_runs(folder)[0]])
    results: dict[str, dict[str, Any]] = {}
    for (name, model), first in sorted(chosen.items()):
        losses = [run["metrics"]["test/loss"] for run in (first, *more[name, model])]
        row = {"model": model, "latent": first["latent_dim"], "parameters": first["parameters"], "n": len(losses)}
        row |= {"codes": first["codes"], "test_loss": fmean(losses), "test_loss_sd": stdev(losses)}
        results.setdefault(name, {"rows": []})["rows"].append(row)
    for name, result in results.items():
        data = ucr(name, str(root), val_size=0.2)
        result |= {"windows": len(data.train), "length": data.shape[1]}
        result["pca"] = baselines.pca(data, [result["rows"][0]["latent"]])
    return results


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table over sets, and what it sums up to."""
    rows, worse = [], []
    for name, result in results.items():
        by_model = {row["model"]: row for row in result["rows"]}
        pca = result["pca"][0]["test_loss"]
        errors = [f"{row['test_loss']:.4g} ± {row['test_loss_sd']:.1g}" for row in map(by_model.get, MODELS) if row]
        codes = " + ".join(f"{size} in {scale}" for scale, size in by_model["pyramid"]["codes"].items())
        rows.append([name, f"{result['windows']}", f"{result['length']}", codes, f"{pca:.4g}", *errors])
        if by_model["pyramid"]["test_loss"] - by_model["pyramid"]["test_loss_sd"] > 1.001 * pca:  # equal to rounding
            worse.append(name)
    header = ["set", "training windows", "length", "latent values, in segments", "PCA", *MODELS]
    beyond = f"Worse than PCA by more than the deviation over seeds on {len(worse)}: {', '.join(worse) or 'none'}."
    return "\n\n".join([table(header, rows), beyond, markdown_over(over_data_sets(results))]) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ucr"))
    parser.add_argument("--sets", nargs="*")
    overrides = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
    given = parser.parse_args([text for text in sys.argv[1:] if text not in overrides])
    other = dict(text.split("=", 1) for text in overrides)
    names = usable(given.archive, given.sets)
    if not names:
        parser.error(f"{given.archive}: no sets in it whose series are whole and of one length")
    every = {key: ",".join(values) for key, values in SPACE.items()}
    sweep(given.out / "search", given.archive, names, {"model": ",".join(MODELS)} | every | other)
    found = trials(read_runs(given.out / "search")[0])
    trial_rows = [
        {"set": name, "model": model, "validation": validation(run), "test": run["metrics"]["test/loss"]}
        | {key: settings(run)[key] for key in SPACE}
        for (name, model), runs in found.items()
        for run in runs
    ]
    cli.write_json(given.out / "search.json", trial_rows)
    groups = defaultdict(list)
    for (name, model), runs in found.items():
        groups[model, tuple(settings(runs[0])[key] for key in SPACE)].append(name)
    for (model, values), members in groups.items():
        chosen = dict(zip(SPACE, values, strict=True)) | {"model": model, "seed": ",".join(map(str, SEEDS[1:]))}
        sweep(given.out / "seeds" / "_".join([model, *values]), given.archive, members, chosen | other)
    results = collect(given.out, given.archive)
    text = markdown(results)
    cli.write_json(given.out / "study.json", {"sets": results, "over": over_data_sets(results)})
    (given.out / "study.md").write_text(text)
    ranks(given.out / "ranks.png", results)
    by_scale(given.out / "scales.png", given.archive, found, results)
    print(text)


def ranks(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Mean ranks; a bar joins models that one-sided Wilcoxon tests at .1, after Holm, do not tell apart."""
    import numpy as np
    from aeon.visualisation import plot_critical_difference

    losses = [
        [*(row["test_loss"] for row in result["rows"]), result["pca"][0]["test_loss"]] for result in results.values()
    ]
    labels = [*(row["model"] for row in next(iter(results.values()))["rows"]), "PCA"]
    figure, _ = plot_critical_difference(np.array(losses), labels, lower_better=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def by_scale(
    path: Path, root: Path, found: dict[tuple[str, str], list[Run]], results: dict[str, dict[str, Any]]
) -> None:
    """Windows of the test split, and their reconstructions by the coarsest scale alone, by two, and by all."""
    import torch

    from msae import load, plots

    def ratio(name: str) -> float:
        losses = {row["model"]: row["test_loss"] for row in results[name]["rows"]}
        return losses["pyramid"] / losses["single"]

    name = min(results, key=ratio)
    run = found[name, "pyramid"][0]
    x, _ = ucr(name, str(root), val_size=0.2).shown(6)
    model = load(run["folder"] / run["checkpoint"])
    with torch.no_grad():
        stages = model.stages(model.encode(x))
    labels = ["whole window", *(f"+ {n} segments" for n in list(stages)[1:])]
    figure = plots.reconstructions(x, dict(zip(labels, stages.values(), strict=True)))
    figure.suptitle(name)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
