"""Compare the runs of a sweep: `python -m msae.report FOLDER`, and by itself when a sweep ends."""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from msae import cli
from msae.errors import InputError

if TYPE_CHECKING:
    from msae.data.base import DataModule

Run = dict[str, Any]


def read_runs(folder: Path) -> tuple[list[Run], dict[str, str]]:
    """The finished runs under `folder`, in the sweep's order, and why each of the others is not one of them.

    Raises:
        InputError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    runs, missing = [], {}
    for run in sorted(path.parent for path in folder.glob("*/train.log")):
        if (run / "metrics.json").exists():
            runs.append(json.loads((run / "metrics.json").read_text()) | {"folder": run})
        elif (run / "error.txt").exists():
            missing[run.name] = "failed: " + (run / "error.txt").read_text().splitlines()[0]
        else:
            missing[run.name] = "not finished"
    if not runs and not missing:
        raise InputError(f"{folder}: no runs in it; expected the folder of a sweep")
    return sorted(runs, key=lambda run: run["job"]), missing


def name_runs(runs: list[Run]) -> None:
    """Name each run by the overrides that tell it from the others, seed apart."""
    common = set.intersection(*(set(run["overrides"]) for run in runs))
    for run in runs:
        own = [o for o in run["overrides"] if o not in common and not o.startswith(("seed=", "data="))]
        run["name"] = " ".join(o.removeprefix("model=") for o in own) or run["model"]


def interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of the mean, or None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def paired(runs: list[Run], others: list[Run]) -> list[float]:
    """Differences of test MSE, seed by seed, over the seeds that both have."""
    theirs = {run["seed"]: run["metrics"]["test/mse"] for run in others}
    return [run["metrics"]["test/mse"] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]


def compare(models: dict[str, list[Run]]) -> dict[str, Any]:
    """A row for each model, and the paired differences against the first and against controls of equal latent size."""
    first = next(iter(models))
    goals = {run["seed"]: run["history"][-1]["test/mse"] for run in models[first]}
    rows = []
    differences: dict[tuple[str, str], dict[str, Any]] = {}
    for name, runs in models.items():
        mse = [run["metrics"]["test/mse"] for run in runs]
        epochs = [epoch for run in runs if (epoch := epochs_to(run, goals.get(run["seed"], fmean(goals.values()))))]
        rows.append(
            {
                "model": name,
                "n": len(runs),
                "parameters": runs[0]["parameters"],
                "latent": runs[0]["latent_dim"],
                "test_mse": fmean(mse),
                "test_mse_sd": stdev(mse) if len(mse) > 1 else None,
                "psnr": fmean(run["metrics"]["test/psnr"] for run in runs),
                "epochs_to_first": fmean(epochs) if epochs else None,
                "reached_first": len(epochs),
                "seconds": fmean(run["seconds"] for run in runs),
                "samples_per_second": fmean(run["samples_per_second"] for run in runs),
            }
        )
        for other, theirs in models.items():
            control = theirs[0]["class"] == "AutoEncoder" and theirs[0]["latent_dim"] == runs[0]["latent_dim"]
            values = paired(runs, theirs) if name != first and (other == first or control) else []
            if values and other != name and (other, name) not in differences:
                differences[name, other] = {"n": len(values), "mean": fmean(values), "interval": interval(values)}
    return {
        "rows": rows,
        "differences": [{"model": name, "against": other} | d for (name, other), d in differences.items()],
    }


def epochs_to(run: Run, goal: float) -> int | None:
    """The first epoch after which a run's test MSE is at most `goal`, or None."""
    return next((epoch for epoch, metrics in enumerate(run["history"], 1) if metrics["test/mse"] <= goal), None)


def pca_rows(data: DataModule, latents: list[int]) -> list[dict[str, Any]]:
    """Test MSE of PCA, fitted to the training split, at each latent size: raw, and clipped to the data's range."""
    import numpy as np
    from sklearn.decomposition import PCA

    train, test = (windows.x.flatten(1).double().numpy() for windows in (data.train, data.test))
    low, high = data.value_range.tolist()
    latents = [k for k in latents if k <= len(train) and k < train.shape[1]]  # as many as values would copy them
    if not latents:
        return []
    pca = PCA(max(latents), svd_solver="covariance_eigh").fit(train)
    z = pca.transform(test)
    rows = []
    for k in latents:
        x_hat = z[:, :k] @ pca.components_[:k] + pca.mean_
        for name, output in (("PCA", x_hat), ("PCA, clipped", np.clip(x_hat, low, high))):
            mse = float(np.mean((output - test) ** 2))
            psnr = float(10 * np.log10((high - low) ** 2 / mse)) if mse else None
            rows.append({"model": name, "latent": k, "test_mse": mse, "psnr": psnr})
    return rows


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(data: str, result: dict[str, Any]) -> str:
    """The report's text for one data set."""
    rows = []
    for row in result["rows"]:
        spread = "" if row["test_mse_sd"] is None else f" ± {row['test_mse_sd']:.2g}"
        reached = "never" if row["epochs_to_first"] is None else f"{row['epochs_to_first']:.3g}"
        if 0 < row["reached_first"] < row["n"]:
            reached += f" ({row['reached_first']} of {row['n']})"
        rows.append(
            [
                row["model"],
                f"{row['n']}",
                f"{row['latent']}",
                f"{row['parameters']:,}",
                f"{row['test_mse']:.4g}{spread}",
                f"{row['psnr']:.2f}",
                reached,
                f"{row['seconds']:.3g}",
            ]
        )
    for row in result["pca"]:
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.2f}"
        rows.append([row["model"], "", f"{row['latent']}", "", f"{row['test_mse']:.4g}", psnr, "", ""])
    first = result["rows"][0]["model"]
    header = [
        "model",
        "n",
        "latent",
        "parameters",
        "test MSE",
        "PSNR, dB",
        f"epochs to {first}'s last",
        "training, s",
    ]
    text = [f"## {data}", table(header, rows)]
    text.append(
        "Test MSE: mean ± standard deviation over n seeds; PCA is fitted to the same training split. "
        f"Epochs to {first}'s last: until the test MSE is that of {first} after its last epoch, seed by seed."
    )
    differences = []
    for d in result["differences"]:
        low_high = "n = 1" if d["interval"] is None else f"{d['interval'][0]:.3g} to {d['interval'][1]:.3g}"
        differences.append([f"{d['model']} - {d['against']}", f"{d['n']}", f"{d['mean']:.3g}", low_high])
    if differences:
        text.append("Differences of test MSE, paired by seed; below 0 the first of the two is better.")
        text.append(table(["difference", "n", "mean", "95 % interval"], differences))
    return "\n\n".join(text)


def pictures(folder: Path, data: DataModule, models: dict[str, list[Run]]) -> None:
    """`curves.png` and `reconstructions.png` of one data set."""
    import numpy as np
    import torch

    from msae import load, plots

    histories: dict[str, dict[str, Any]] = {}
    for name, runs in models.items():
        epochs = min(len(run["history"]) for run in runs)
        splits = [split for split in ("train", "val", "test") if f"{split}/mse" in runs[0]["history"][0]]
        histories[name] = {
            s: np.array([[epoch[f"{s}/mse"] for epoch in run["history"][:epochs]] for run in runs]) for s in splits
        }
    plots.curves(histories).savefig(folder / "curves.png", dpi=110)
    x = data.test.x[:8]
    with torch.no_grad():
        outputs = {name: load(runs[0]["folder"] / runs[0]["checkpoint"])(x)[0] for name, runs in models.items()}
    plots.reconstructions(x, outputs, data.image_shape).savefig(folder / "reconstructions.png", dpi=110)


def report(folder: Path) -> tuple[str, dict[str, str]]:
    """Write `report.md`, `report.json`, `curves.png` and `reconstructions.png` into a sweep's folder.

    With several data sets, or splits of one, there is a table for each, and the pictures lie in a folder for each.

    Returns:
        The text of `report.md`, and why each missing run is missing.

    Raises:
        InputError: no such folder, or no run in it.
    """
    runs, missing = read_runs(folder)
    texts, results = [], {}
    for run in runs:  # what is compared has the same windows in the same splits
        config = OmegaConf.merge(OmegaConf.load(run["folder"] / "config.yaml").data, {"seed": 0, "batch_size": 1})
        run["config"] = json.dumps(OmegaConf.to_container(config), sort_keys=True)
    runs.sort(key=lambda run: (run["data"], run["config"]))
    for config, group in groupby(runs, key=lambda run: run["config"]):
        of_data = sorted(group, key=lambda run: run["job"])
        same_name = {run["config"] for run in runs if run["data"] == of_data[0]["data"]}
        varied = [o for o in of_data[0]["overrides"] if o.startswith("data.")] if len(same_name) > 1 else []
        name = " ".join([of_data[0]["data"], *varied])
        name_runs(of_data)
        models: dict[str, list[Run]] = {}
        for run in of_data:
            models.setdefault(run["name"], []).append(run)
        data = instantiate(OmegaConf.create({"data": json.loads(config)}).data)
        result = compare(models)
        result["pca"] = pca_rows(data, sorted({run["latent_dim"] for run in of_data}))
        results[name] = result
        place = folder if len(of_data) == len(runs) else folder / cli.folder_name([name], "")
        place.mkdir(exist_ok=True)
        pictures(place, data, models)
        texts.append(markdown(name, result))
        images = [f"![{p}]({(place / p).relative_to(folder)})" for p in ("curves.png", "reconstructions.png")]
        about = of_data[0]
        versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
        texts += [f"Device {about['device']}, {about['threads']} thread(s) a run; {versions}.", *images]
    if missing:
        texts.append("## Missing runs\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in missing.items()))
    text = "\n\n".join([f"# {folder.resolve().name}", *texts]) + "\n"
    (folder / "report.md").write_text(text)
    cli.write_json(folder / "report.json", {"data": results, "missing": missing})
    return text, missing


def shown(text: str) -> str:
    """The report without its pictures, for the terminal."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("!["))


class SweepReport(Callback):
    """Refuses a folder that holds another sweep, and reports when the sweep ends."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not config.resume and any(folder.glob("*/train.log")):
            cli.fail(
                f"{folder} holds this sweep already: resume=true goes on with it, hydra.sweep.dir=FOLDER starts anew"
            )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            text, missing = report(folder)
        except cli.MISTAKES as error:  # Hydra makes a warning of it
            cli.fail(cli.explain(error, "train"))
        print(f"\n{shown(text)}\nreport: {folder / 'report.md'}\nlook:   tensorboard --logdir '{folder}'")
        if missing:
            cli.fail(f"{len(missing)} of the runs did not finish: {', '.join(missing)}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m msae.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a sweep, with a folder for each run")
    try:
        print(shown(report(parser.parse_args().folder)[0]))
    except cli.MISTAKES as error:
        cli.fail(cli.explain(error, "train"))


if __name__ == "__main__":
    main()
