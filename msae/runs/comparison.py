"""The report of a sweep: its runs compared by model and data set, with paired intervals, PCA and pictures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from msae.runs.folder import UNNAMED, folder_name, write_json
from msae.runs.found import check, data_set
from msae.runs.reading import Run, read_runs
from msae.whole import to_json, whole, write_text

if TYPE_CHECKING:
    from msae.data.module import DataModule


def name_runs(runs: list[Run]) -> None:
    """Name each run by the overrides that distinguish it from the others, other than seed and data set."""
    common = set.intersection(*(set(run["overrides"]) for run in runs)) if runs else set()
    for run in runs:
        own = [o for o in run["overrides"] if o not in common and not re.match(r"seed=|data=|data\.(?!batch_size)", o)]
        own = [o for o in own if o.split("=")[0] not in UNNAMED]
        run["name"] = " ".join(o.removeprefix("model=") for o in own) or run["model"]


def interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of the mean, or None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def paired(runs: list[Run], others: list[Run]) -> list[float]:
    """Differences of the test loss, seed by seed, over the seeds that both have."""
    theirs = {run["seed"]: run["metrics"]["test/loss"] for run in others}
    return [run["metrics"]["test/loss"] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]


def compare(models: dict[str, list[Run]]) -> dict[str, Any]:
    """A row for each model, and the paired differences against the first and between models of equal latent size."""
    first = next(iter(models))
    goals = {run["seed"]: run["history"][-1]["test/loss"] for run in models[first]}
    rows = []
    differences: dict[tuple[str, str], dict[str, Any]] = {}
    for name, runs in models.items():
        mse, losses = ([run["metrics"][f"test/{name}"] for run in runs] for name in ("mse", "loss"))
        epochs = [epoch for run in runs if (epoch := epochs_to(run, goals.get(run["seed"], fmean(goals.values()))))]
        psnrs = [psnr for run in runs if (psnr := run["metrics"].get("test/psnr")) is not None]
        validated = [loss for run in runs if (loss := val_loss(run)) is not None]
        rows.append(
            {
                "model": name,
                "n": len(runs),
                "several_units": any("rmse" in run for run in runs),
                "parameters": runs[0]["parameters"],
                "latent": runs[0]["latent_dim"],
                "test_mse": fmean(mse),
                "test_mse_sd": stdev(mse) if len(mse) > 1 else None,
                "test_loss": fmean(losses),
                "test_loss_sd": stdev(losses) if len(losses) > 1 else None,
                "val_loss": fmean(validated) if validated else None,
                "psnr": fmean(psnrs) if psnrs else None,
                "epochs_to_first": fmean(epochs) if epochs else None,
                "reached_first": len(epochs),
                "seconds": fmean(run["seconds"] for run in runs),
                "samples_per_second": fmean(run["samples_per_second"] for run in runs),
            }
        )
        for other, theirs in models.items():
            equal = theirs[0]["latent_dim"] == runs[0]["latent_dim"]
            values = paired(runs, theirs) if name != first and (other == first or equal) else []
            if values and other != name and (other, name) not in differences:
                differences[name, other] = {"n": len(values), "mean": fmean(values), "interval": interval(values)}
    return {
        "rows": rows,
        "differences": [{"model": name, "against": other} | d for (name, other), d in differences.items()],
    }


def val_loss(run: Run) -> float | None:
    """The validation loss of the weights that a run kept, or None; old results lack it if that was the start."""
    losses: list[float] = [epoch["val/loss"] for epoch in run["history"] if epoch.get("val/loss") is not None]
    kept: float | None = run.get("val_loss")
    return kept if kept is not None else min(losses, default=None)


def epochs_to(run: Run, goal: float) -> int | None:
    """The first epoch after which a run's test loss is at most `goal`, or None."""
    losses = (math.inf if (loss := epoch.get("test/loss")) is None else loss for epoch in run["history"])
    return next((epoch for epoch, loss in enumerate(losses, 1) if loss <= goal), None)


def over_data_sets(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean rank of each model over the data sets that all have, 1 for the best, and Wilcoxon's signed-rank tests.

    Ranks are of the mean of the test loss over seeds; the tests use its logarithm, so that data sets weigh
    alike (Demsar, JMLR 7, 2006). PCA has the latent size of the first model. Losses tie if they agree in five
    digits, as those of models that stayed at PCA do, or if they are below float32's squared rounding error, as on
    constant data.
    """
    from scipy.stats import rankdata, wilcoxon

    losses: dict[str, dict[str, float]] = {}
    for data, result in results.items():
        latent = result["rows"][0]["latent"]
        for row in [*result["rows"], *(row for row in result["pca"] if row["latent"] == latent)]:
            losses.setdefault(row["model"], {})[data] = float(f"{max(row['test_loss'], 2.0**-46):.5g}")
    models = [model for model, found in losses.items() if len(found) == len(results)]
    ranks = {data: rankdata([losses[model][data] for model in models]) for data in results}
    rows = [
        {"model": model, "mean_rank": fmean(float(ranks[data][i]) for data in results)}
        for i, model in enumerate(models)
    ]
    tests = []
    for i, model in enumerate(models):
        for other in models[:i]:
            ratios = [math.log(losses[model][data] / losses[other][data]) for data in results]
            p = float(wilcoxon(ratios).pvalue) if any(ratios) else 1.0
            won = sum(ratio < 0 for ratio in ratios)
            geometric = math.exp(fmean(ratios))
            tests.append({"model": model, "against": other, "won": won, "ratio": geometric, "p": p})
    return {"n": len(results), "ranks": rows, "tests": tests, "left_out": [m for m in losses if m not in models]}


def markdown_over(result: dict[str, Any]) -> str:
    """The report's text over data sets."""
    n = result["n"]
    ranks = [[row["model"], f"{row['mean_rank']:.2f}"] for row in result["ranks"]]
    tests = [
        [f"{t['model']} against {t['against']}", f"{t['won']} of {n}", f"{t['ratio']:.3g}", f"{t['p']:.2g}"]
        for t in result["tests"]
    ]
    left = [f"Not in all data sets: {', '.join(result['left_out'])}."] * bool(result["left_out"])
    if not ranks:
        return "\n\n".join([f"## Over {n} data sets", *left])
    return "\n\n".join(
        [
            f"## Over {n} data sets",
            *left,
            "Rank 1 is the model with the lowest mean test MSE over seeds, in normalized units. The ratio of MSE is a "
            "geometric mean over data sets. p is two-sided, of Wilcoxon's signed-rank test of the ratios' logarithms; "
            "for five data sets it is at least .06.",
            table(["model", "mean rank"], ranks),
            table(["pair", "lower MSE on", "ratio of MSE", "p"], tests),
        ]
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(data: str, result: dict[str, Any]) -> str:
    """The report's text for one data set; in normalized units if they are not the raw ones, or for several channels.

    A mean of errors over channels whose units may differ has no meaning; `metrics.json` has the RMSE of each channel.
    """
    several = any(row["several_units"] for row in result["rows"])
    in_units = several or any(
        not math.isclose(row["test_mse"], row["test_loss"], rel_tol=1e-3) for row in result["rows"]
    )
    validated = all(row["val_loss"] is not None for row in result["rows"])
    rows = []
    for row in [*result["rows"], *result["pca"]]:
        psnr = "" if row["psnr"] is None or several else f"{row['psnr']:.2f}"
        errors = [with_spread(row, "test_loss")] * in_units + [with_spread(row, "test_mse")] * (not several)
        if "n" not in row:
            rows.append([row["model"], "", f"{row['latent']}", "", *[""] * validated, *errors, psnr, "", ""])
            continue
        reached = "never" if row["epochs_to_first"] is None else f"{row['epochs_to_first']:.3g}"
        if 0 < row["reached_first"] < row["n"]:
            reached += f" ({row['reached_first']} of {row['n']})"
        sizes = [f"{row['n']}", f"{row['latent']}", f"{row['parameters']:,}"]
        val = [f"{row['val_loss']:.4g}"] if validated else []
        rows.append([row["model"], *sizes, *val, *errors, psnr, reached, f"{row['seconds']:.3g}"])
    first = result["rows"][0]["model"]
    columns = ["test MSE, normalized units"] * in_units
    columns += ["test MSE, raw units" if in_units else "test MSE"] * (not several)
    columns = ["validation MSE"] * validated + columns
    header = ["model", "n", "latent", "parameters", *columns, "PSNR, dB", f"epochs to {first}'s last", "training, s"]
    text = [f"## {data}", table(header, rows)]
    text.append(
        "Test MSE: mean ± standard deviation over n seeds. "
        f"{'PCA is fitted to the same training split. ' * bool(result['pca'])}"
        f"{'Validation MSE: that of the kept weights, in normalized units. ' * validated}"
        f"Epochs to {first}'s last: until the test MSE is that of {first} after its last epoch, seed by seed."
    )
    differences = []
    for d in result["differences"]:
        low_high = "n = 1" if d["interval"] is None else f"{d['interval'][0]:.3g} to {d['interval'][1]:.3g}"
        differences.append([f"{d['model']} - {d['against']}", f"{d['n']}", f"{d['mean']:.3g}", low_high])
    if differences:
        units = " in normalized units" if in_units else ""
        text.append(f"Differences of test MSE{units}, paired by seed; below 0 the first of the two is better.")
        text.append(table(["difference", "n", "mean", "95 % interval"], differences))
    return "\n\n".join(text)


def with_spread(row: dict[str, Any], key: str) -> str:
    """A mean and, where there is one, its standard deviation."""
    spread = "" if row.get(f"{key}_sd") is None else f" ± {row[f'{key}_sd']:.2g}"
    return f"{row[key]:.4g}{spread}"


def pictures(folder: Path, data: DataModule, models: dict[str, list[Run]]) -> None:
    """`curves.png` and `reconstructions.png` of one data set."""
    import numpy as np
    import torch

    from msae import load, plots

    histories: dict[str, dict[str, Any]] = {}
    for name, runs in models.items():
        epochs = min(len(run["history"]) for run in runs)
        splits = [split for split in ("train", "val", "test") if f"{split}/loss" in runs[0]["history"][0]]
        histories[name] = {
            s: np.array([[epoch.get(f"{s}/loss") for epoch in run["history"][:epochs]] for run in runs], dtype=float)
            for s in splits
        }
    x, _ = data.shown(8)
    with torch.no_grad():
        outputs = {name: load(runs[0]["folder"] / runs[0]["checkpoint"])(x)[0] for name, runs in models.items()}
    figures = {
        "curves": plots.curves(histories),
        "reconstructions": plots.reconstructions(x, outputs, data.image_shape),
    }
    for name, figure in figures.items():
        with whole(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)


def report(folder: Path, allowed: Collection[str] = ()) -> tuple[str, dict[str, str]]:
    """Write `report.md`, `report.json`, `curves.png` and `reconstructions.png` into a sweep's folder.

    With several data sets, or splits of one, there is a table for each, and the pictures lie in a folder for each.

    Args:
        folder: of the sweep.
        allowed: data sets, `package.module.function`, and models, `package.module:Class`, of a user's own that its
            files may name.

    Returns:
        The text of `report.md`, and why each missing run is missing.

    Raises:
        InputError: no such folder, no run in it, or a file in it names code of others, see `found` and `msae.load`.
    """
    from msae import baselines
    from msae.models.checkpoint import trust

    for path in allowed:
        if ":" in path:
            trust(path)
    runs, missing = read_runs(folder)
    name_runs(runs)
    texts, results = [], {}
    for run in runs:  # only runs with the same windows in the same splits are compared
        where, options = f"{run['folder']}/config.yaml", run.pop("data_options")
        check(where, options, "add --allow {}", allowed)
        run["title"] = str(options.get("name") or run["data"])
        run["config"] = to_json(options | {"seed": 0, "batch_size": 1}, sort_keys=True)
    runs.sort(key=lambda run: (run["title"], run["config"]))
    for config, group in groupby(runs, key=lambda run: run["config"]):
        of_data = sorted(group, key=lambda run: (run["folder"].parent, run["job"], run["seed"]))
        same = {run["config"] for run in runs if run["title"] == of_data[0]["title"]}
        varied = [o for o in of_data[0]["overrides"] if o.startswith("data.")] if len(same) > 1 else []
        name = " ".join([of_data[0]["title"], *varied])
        models: dict[str, list[Run]] = {}
        for run in of_data:
            models.setdefault(run["name"], []).append(run)
        data = data_set(f"{of_data[0]['folder']}/config.yaml", json.loads(config), "add --allow {}", allowed)
        result = compare(models)
        result["pca"] = baselines.pca(data, sorted({run["latent_dim"] for run in of_data}))
        results[name] = result
        place = folder if len(of_data) == len(runs) else folder / (folder_name([name], "").lstrip(".") or "data")
        place.mkdir(exist_ok=True)
        pictures(place, data, models)
        texts.append(markdown(name, result))
        images = [f"![{p}]({(place / p).relative_to(folder)})" for p in ("curves.png", "reconstructions.png")]
        about = of_data[0]
        versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
        texts += [f"Device {about['device']}, {about['threads']} thread(s) a run; {versions}.", *images]
    over = over_data_sets(results) if len(results) > 1 else None
    if over:
        texts.append(markdown_over(over))
    if missing:
        texts.append("## Missing runs\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in missing.items()))
    text = "\n\n".join([f"# {folder.resolve().name}", *texts]) + "\n"
    write_text(folder / "report.md", text)
    write_json(folder / "report.json", {"data": results, "over_data_sets": over, "missing": missing})
    return text, missing


def shown(text: str) -> str:
    """The report without its pictures, for the terminal."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("!["))
