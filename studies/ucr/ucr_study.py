"""Do scales help where data are scarce? The pyramid, its single-scale control and PCA on sets of the UCR archive.

    python studies/ucr/ucr_study.py ARCHIVE [--out runs/ucr] [--sets NAME ...] [KEY=VALUE ...]

ARCHIVE is a folder of NAME_TRAIN.tsv and NAME_TEST.tsv, or .ts; sets with unequal lengths or missing values are left
out. For each set and model, every setting in `SPACE` is trained with seed 0, and the one with the least validation
loss is trained with two more seeds; the test split chooses nothing. The settings include the number of the pyramid's
scales, also a single one, and the number of segments of `segmented`, a model of one scale. An interrupted study
resumes when it is started again. It writes every trial to `search.json`; the results to `study.json` and `study.md`;
the mean ranks with their critical difference to `ranks.png`; and to `scales.png` the reconstruction by each scale for
the set on which the most scales help most.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from msae import baselines
from msae.data.ucr import SUFFIXES, ucr
from msae.errors import InputError
from msae.runs.comparison import markdown_over, over_data_sets, table
from msae.runs.folder import write_json
from msae.runs.reading import Run, read_runs

SPACE: dict[str, dict[str, tuple[str, ...]]] = {
    "single": {"model.lr": ("0.0001", "0.0003", "0.0006", "0.001", "0.002", "0.004")},
    "segmented": {"model.lr": ("0.0003",), "model.segments": ("[1]", "[4]", "[8]")},
    "pyramid": {"model.lr": ("0.0003", "0.002"), "model.segments": ("[1]", "[1,4]", "[1,4,16]")},
}
"""The settings tried for each model, as Hydra writes them: all combinations."""
SEEDS = (0, 1, 2)


def usable(root: Path, names: list[str] | None) -> list[str]:
    """Names of the sets of an archive with complete series of one length."""
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
    command += [f"data.root={root}", f"hydra.sweep.dir={folder}", "~hydra.callbacks.report"]
    command += [f"resume={folder}"] * folder.exists()
    try:
        code = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        code = 130
    if code or any(is_of(folder / run / "config.yaml", names, overrides) for run in read_runs(folder)[1]):
        sys.exit(f"not finished: {' '.join(command)}")


def is_of(config: Path, names: list[str], overrides: dict[str, str]) -> bool:
    """Whether an unfinished run may belong to this study rather than to another in the same folder."""
    if not config.is_file():
        return True
    run = OmegaConf.load(config)
    keys = [key for key in overrides if "." in key and not key.startswith("hydra.")]  # no groups
    had = {key: str(OmegaConf.select(run, key)).replace(" ", "") for key in keys}
    return run.data.name in names and all(value in overrides[key] for key, value in had.items())  # one of "a,b"


def settings(run: Run) -> dict[str, str]:
    """What was overridden in a run, by key."""
    return dict(text.split("=", 1) for text in run["overrides"])


def trials(folder: Path, names: list[str], overrides: dict[str, str]) -> dict[tuple[str, str], list[Run]]:
    """The runs in a folder of each set and model, the one of least validation loss first; no other study's runs."""
    found = defaultdict(list)
    overrides = {key: value for key, value in overrides.items() if not key.startswith("hydra.")}
    for run in sorted(read_runs(folder)[0], key=lambda run: run["val_loss"]):
        had = settings(run)
        tried = all(had.get(key) in values for key, values in SPACE[run["model"]].items())
        if tried and had["data.name"] in names and overrides.items() <= had.items():
            found[had["data.name"], run["model"]].append(run)
    return found


def row_of(runs: list[Run]) -> dict[str, Any]:
    """A model's row, as `msae.report` has them, over the seeds of one setting."""
    losses = [run["metrics"]["test/loss"] for run in runs]
    first = runs[0]
    row = {"model": first["model"], "latent": first["latent_dim"], "parameters": first["parameters"]}
    row |= {"codes": first["codes"], "setting": {key: settings(first)[key] for key in SPACE[first["model"]]}}
    return row | {"n": len(losses), "test_loss": fmean(losses), "test_loss_sd": stdev(losses)}


def collect(chosen: dict[tuple[str, str], list[Run]]) -> dict[str, dict[str, Any]]:
    """For each set a row for each model, PCA of the same latent size, and the size of the data."""
    results: dict[str, dict[str, Any]] = {}
    for (name, model), runs in sorted(chosen.items()):
        if name not in results:
            data = instantiate(OmegaConf.load(runs[0]["folder"] / "config.yaml").data)
            pca = baselines.pca(data, [runs[0]["latent_dim"]])
            results[name] = {"windows": len(data.train), "length": data.shape[1], "rows": {}, "pca": pca}
        results[name]["rows"][model] = row_of(runs)
    for result in results.values():
        result["rows"] = [result["rows"][model] for model in SPACE]
    return results


def beyond(result: dict[str, Any], model: str) -> bool:
    """Whether a model is worse than PCA by more than its deviation over seeds, and by more than rounding."""
    row = next(row for row in result["rows"] if row["model"] == model)
    return bool(row["test_loss"] - row["test_loss_sd"] > 1.001 * result["pca"][0]["test_loss"])


def markdown(results: dict[str, dict[str, Any]], over: dict[str, Any]) -> str:
    """The table over sets, and its summary."""
    rows = []
    for name, result in results.items():
        pca, pyramid = result["pca"][0]["test_loss"], result["rows"][-1]
        errors = [f"{row['test_loss']:.4g} ± {row['test_loss_sd']:.1g}" for row in result["rows"]]
        codes = " + ".join(f"{size} in {scale}" for scale, size in pyramid["codes"].items())
        scales = pyramid["setting"]["model.segments"].replace(",", ", ")
        rows.append([name, f"{result['windows']}", f"{result['length']}", scales, codes, f"{pca:.4g}", *errors])
    header = ["set", "training windows", "length", "segments", "latent values, in segments", "PCA", *SPACE]
    text = [table(header, rows)]
    for model in SPACE:
        worse = [name for name, result in results.items() if beyond(result, model)]
        listed = ", ".join(worse) or "none"
        text.append(f"{model}: worse than PCA by more than the deviation over seeds on {len(worse)}: {listed}.")
    return "\n\n".join([*text, markdown_over(over)]) + "\n"


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
    for model, space in SPACE.items():
        every = {key: ",".join(values) for key, values in space.items()}
        sweep(given.out / "search", given.archive, names, {"model": model} | every | other)
    found = trials(given.out / "search", names, other)
    trial_rows = [
        {"set": name, "model": model, "validation": run["val_loss"], "test": run["metrics"]["test/loss"]}
        | {key: settings(run)[key] for key in SPACE[model]}
        for (name, model), runs in found.items()
        for run in runs
    ]
    write_json(given.out / "search.json", trial_rows)
    chosen = {key: runs[:1] for key, runs in found.items()}
    groups = defaultdict(list)
    for (name, model), [best] in chosen.items():
        groups[model, tuple(settings(best)[key] for key in SPACE[model])].append(name)
    for (model, values), members in groups.items():
        place = given.out / "seeds" / re.sub(r"[^\w.]+", "-", "_".join([model, *values])).strip("-")
        setting = dict(zip(SPACE[model], values, strict=True)) | {"model": model, "seed": ",".join(map(str, SEEDS[1:]))}
        sweep(place, given.archive, members, setting | other)
        for key, runs in trials(place, members, other).items():
            chosen[key] += runs
    results = collect(chosen)
    over = over_data_sets(results)
    text = markdown(results, over)
    write_json(given.out / "study.json", {"sets": results, "over": over})
    (given.out / "study.md").write_text(text)
    ranks(given.out / "ranks.png", results)
    by_scale(given.out / "scales.png", chosen, results)
    print(text)


def ranks(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Mean ranks; a bar joins models that two-sided Wilcoxon tests at .05, after Holm, do not tell apart."""
    import numpy as np
    from aeon.visualisation import plot_critical_difference

    rows = [[*result["rows"], result["pca"][0]] for result in results.values()]
    losses = np.array([[float(f"{row['test_loss']:.5g}") for row in of_set] for of_set in rows])
    labels = [*SPACE, "PCA"]
    figure, _ = plot_critical_difference(np.log(losses), labels, lower_better=True, alpha=0.025)  # its tests: one-sided
    figure.savefig(path, dpi=110, bbox_inches="tight")


def by_scale(path: Path, chosen: dict[tuple[str, str], list[Run]], results: dict[str, dict[str, Any]]) -> None:
    """Windows of the test split, and their reconstructions by the coarsest scale alone, by two, and by all."""
    import torch

    from msae import load, plots

    def ratio(name: str) -> float:
        single, *_, pyramid = results[name]["rows"]
        return float(pyramid["test_loss"] / single["test_loss"])

    scales = {name: result["rows"][-1]["setting"]["model.segments"].count(",") for name, result in results.items()}
    name = min((name for name in results if scales[name] == max(scales.values())), key=ratio)
    run = chosen[name, "pyramid"][0]
    x, _ = instantiate(OmegaConf.load(run["folder"] / "config.yaml").data).shown(6)
    model = load(run["folder"] / run["checkpoint"])
    with torch.no_grad():
        stages = model.stages(model.encode(x))
    labels = ["whole window", *(f"+ {n} segments" for n in list(stages)[1:])]
    figure = plots.reconstructions(x, dict(zip(labels, stages.values(), strict=True)))
    figure.suptitle(name)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
