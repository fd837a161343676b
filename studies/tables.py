"""The tables of the studies' pages, each made of the numbers in its study's folder.

A page asks for a table by the name of a function of this module: the line `[Table: errors](table1.json)` in
`studies/NAME/README.md` becomes the table that the function `errors` returns. The link leads a reader of the source to
the numbers.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent
Row = dict[str, Any]


def numbers(path: str) -> Any:
    """The content of a JSON file, by its path below `studies/`."""
    return json.loads((ROOT / path).read_text())


@cache
def script(path: str) -> Any:
    """A study's script as a module, by its path below `studies/`."""
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    found = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    return found


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A Markdown table; the columns in `text` are aligned to the left, all others to the right."""
    rule = ["---" if i in text else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def short(value: float, digits: int) -> str:
    """A number without the zero before the point."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def with_sd(row: Row, key: str, digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{short(row[key], digits)} ± {short(row[f'{key}_sd'], digits)}"


def span(interval: Sequence[float], digits: int) -> str:
    """The two ends of an interval."""
    return " to ".join(short(end, digits) for end in interval)


def spread(value: Row, digits: int = 2, write: Callable[[float, int], str] = short) -> str:
    """The median of rounds, with the least and the greatest where there are several rounds."""
    if "least" not in value:
        return write(value["median"], digits)
    median, least, greatest = (write(value[key], digits) for key in ("median", "least", "greatest"))
    return f"{median} ({least} to {greatest})"


def plain(value: float, digits: int) -> str:
    """A number with the zero before the point."""
    return f"{value:,.{digits}f}"


# The paper's table

ABOUT = {
    "ae": ("autoencoder", "64", ".004253"),
    "msae": ("multi-scale", "64 + 64", ".003482"),
    "ae128": ("control, equal latent", "128", ""),
    "ae128wide": ("control, equal latent and parameters", "128", ""),
}
"""What a model of Table I is, its latent, and the paper's test MSE."""


def errors() -> str:
    """Test MSE of the paper's models, controls and PCA."""
    found = numbers("table1/table1.json")["data"]["mnist"]
    rows = []
    for row in found["rows"]:
        about, latent, papers = ABOUT[row["model"]]
        cells = [f"{row['parameters']:,}", with_sd(row, "test_mse", 6), f"{row['psnr']:.2f}", papers]
        rows.append([f"`{row['model']}`: {about}", latent, *cells])
    for row in found["pca"]:
        name = row["model"].replace("clipped", "clipped to [0, 1]")
        rows.append([name, f"{row['latent']}", "", short(row["test_mse"], 6), f"{row['psnr']:.2f}", ""])
    n = {row["n"] for row in found["rows"]}
    header = ["model", "latent", "parameters", f"test MSE, n = {n.pop()}", "PSNR, dB", "the paper's test MSE"]
    return grid(header, rows)


def differences() -> str:
    """Differences of the MSAE to the others, paired by seed."""
    found = [d for d in numbers("table1/table1.json")["data"]["mnist"]["differences"] if d["model"] == "msae"]
    rows = [[f"`msae` - `{d['against']}`", short(d["mean"], 6), span(d["interval"], 6)] for d in found]
    return grid([f"difference of test MSE, paired by seed, n = {found[0]['n']}", "mean", "95 % interval"], rows)


# Several scales

PAPERS = {16: "", 64: ".004253 (`ae`'s)", 128: ".003482 (`msae`'s)"}
RECORDINGS = {
    "ecg": "MIT-BIH record 100 (`ecg`)",
    "finance": "exchange rates (`finance`)",
    "nab": "NAB, five series (`sensor`)",
    "ETTh1": "ETTh1 (`sensor`)",
    "tourism": "tourism (`sensor`)",
}
"""A recording's name in a table, by a part of its name in the numbers."""


def recording(name: str) -> str:
    """The name of a data set as a table shows it."""
    return next((shown for part, shown in RECORDINGS.items() if part in name), name)


def oriented(differences: list[Row], model: str, against: str) -> list[float]:
    """The interval of `model` less `against`, whichever way round it is kept."""
    [found] = [d for d in differences if {d["model"], d["against"]} == {model, against}]
    low, high = found["interval"]
    return [low, high] if found["model"] == model else [-high, -low]


def fair() -> str:
    """One scale and several on MNIST, at three sizes of the latent."""
    found = numbers("scales/fair.json")["data"]["mnist"]
    models = {row["model"]: row for row in found["rows"]}
    clipped = {row["latent"]: row["test_mse"] for row in found["pca"] if row["model"] == "PCA, clipped"}
    rows = []
    for latent, papers in PAPERS.items():
        single, pyramid = (models[f"{model} model.latent_dim={latent}"] for model in ("single", "pyramid28"))
        ends = span(oriented(found["differences"], pyramid["model"], single["model"]), 6)
        cells = [with_sd(row, "test_mse", 6) for row in (single, pyramid)]
        sizes = f"{single['parameters']:,}; {pyramid['parameters']:,}"
        rows.append([f"{latent}", short(clipped[latent], 6), papers, *cells, ends, sizes])
    [n] = {row["n"] for row in found["rows"]}
    names = [f"`single`, n = {n}", f"`pyramid28`, n = {n}", "`pyramid28` - `single`, 95 %"]
    header = ["latent", "PCA, clipped", "the paper's", *names, "parameters"]
    return grid(header, rows, text=())


def recordings() -> str:
    """One scale and several on four recordings."""
    rows = []
    for name, found in numbers("scales/scales.json")["data"].items():
        single, pyramid = found["rows"]
        cells = [f"{single['latent']}", short(found["pca"][0]["test_loss"], 4)]
        cells += [with_sd(row, "test_loss", 4) for row in (single, pyramid)]
        rows.append([recording(name), *cells, span(oriented(found["differences"], "pyramid", "single"), 4)])
    header = ["data", "latent", "PCA", "`single`, n = 3", "`pyramid`, n = 3", "`pyramid` - `single`, 95 %"]
    return grid(header, rows)


# UCR

KINDS = (
    "several scales, with a share of the latent each",
    "several scales, the finer ones to refine",
    "one scale",
)


def kind(pyramid: Row) -> str:
    """Which kind of pyramid validation chose for a set."""
    return KINDS[0] if len(pyramid["codes"]) > 1 else KINDS[1 + (pyramid["setting"]["model.segments"] == "[1]")]


def counted(pairs: list[tuple[float, float]]) -> list[str]:
    """How often the first of two losses is lower, and the geometric mean of their ratio."""
    won, equal = sum(a < b for a, b in pairs), sum(a == b for a, b in pairs)
    ratio = float(np.exp(np.mean([np.log(a / b) for a, b in pairs])))
    return [f"{won}" + f", and {equal} equal" * (equal > 0), f"{ratio:.2f}".removeprefix("0")]


def kinds() -> str:
    """What the chosen pyramids win against one scale and against segments as one scale."""
    losses: dict[str, list[list[float]]] = {name: [] for name in KINDS}
    for found in numbers("ucr/ucr.json")["sets"].values():
        single, segmented, pyramid = found["rows"]
        losses[kind(pyramid)].append([float(f"{row['test_loss']:.5g}") for row in (pyramid, single, segmented)])
    rows = [
        [name, f"{len(of)}", *counted([(p, s) for p, s, _ in of]), *counted([(p, s) for p, _, s in of])]
        for name, of in (losses | {"all sets": list(chain(*losses.values()))}).items()
    ]
    header = ["the pyramid that validation chose has", "sets", "lower test MSE than `single`"]
    return grid([*header, "ratio of MSE, geometric mean", "lower than `segmented`", "ratio"], rows)


def rounded(value: float) -> str:
    """Five decimals, six of what is below a thousandth."""
    return short(value, 5 if value >= 0.001 else 6)


def sets() -> str:
    """The sets for which validation chose several scales with a share of the latent each."""
    rows = []
    for name, found in numbers("ucr/ucr.json")["sets"].items():
        pyramid = found["rows"][2]
        if kind(pyramid) != KINDS[0]:
            continue
        whole, *finer = pyramid["codes"].items()
        codes = ", ".join([f"{whole[1]} of the whole", *(f"{size} of {scale}" for scale, size in finer)])
        cells = [f"{rounded(row['test_loss'])} ± {short(row['test_loss_sd'], 6)}" for row in found["rows"]]
        rows.append(
            [name, f"{found['windows']}", f"{found['length']}", codes, rounded(found["pca"][0]["test_loss"]), *cells]
        )
    names = [f"`{name}`, n = 3" for name in ("single", "segmented", "pyramid")]
    header = ["set", "training windows", "length", "latent values (of whole + of segments)", "PCA", *names]
    return grid(header, rows, text=(0, 3))


# The paper's two models on real series


def real_series() -> str:
    """The paper's two models and PCA on ten data sets."""
    rows = []
    for name, found in numbers("real_series/series.json")["data"].items():
        cells = [f"{found['rows'][0]['latent']}", *(with_sd(row, "test_loss", 4) for row in found["rows"])]
        cells += [short(found["pca"][0]["test_loss"], 4), span(found["differences"][0]["interval"], 4)]
        rows.append([recording(name), *cells])
    header = ["data", "latent", "`ae16`, n = 5", "`msae16`, n = 5", "PCA", "`msae16` - `ae16`, 95 %"]
    return grid(header, rows)


# The uses


def accuracies() -> str:
    """Accuracy of a ridge classifier on features."""
    return str(script("features/features.py").markdown(numbers("features/features.json")["sets"]))


def directions() -> str:
    """What learned directions and several dilations are worth."""
    return str(script("features/features.py").worth(numbers("features/features.json")["sets"]))


def few_labels() -> str:
    """Accuracy with few labels."""
    return str(script("features/features.py").scarce(numbers("features/features.json")["sets"]))


def feature_times() -> str:
    """Processor seconds of features."""
    return str(script("features/features.py").times(numbers("features/features.json")["sets"]))


def detectors() -> str:
    """VUS-PR of detectors on series."""
    text = str(script("anomalies/anomaly.py").markdown(numbers("anomalies/anomaly.json")))
    return text.partition("\n\n")[2].strip()


def few() -> str:
    """Alarms where there are few training data, and what is suspected in them."""
    return str(script("anomalies/few.py").markdown(numbers("anomalies/few.json"))).strip()


def injected() -> str:
    """Average precision of ways to make one score of several lengths, on faults put into training parts."""
    text = str(script("anomalies/faults.py").markdown(numbers("anomalies/faults.json")))
    return text.partition("\n\n")[2].strip()


def control() -> str:
    """Rank correlation of strength and change."""
    return str(
        script("augmentation/augmentation.py").pivot(
            numbers("augmentation/augmentation_control.json")["rows"], "own draws"
        )
    )


def discriminative() -> str:
    """How well a classifier tells new windows from old ones."""
    return str(
        script("augmentation/augmentation.py").pivot(
            numbers("augmentation/augmentation_realism.json")["rows"], "discriminative"
        )
    )


def wasserstein() -> str:
    """Distance of new windows to old ones."""
    return str(
        script("augmentation/augmentation.py").pivot(
            numbers("augmentation/augmentation_realism.json")["rows"], "wasserstein"
        )
    )


def gains() -> str:
    """Gain in accuracy by new samples."""
    text = script("augmentation/augmentation.py").markdown("use", numbers("augmentation/augmentation_use.json")["rows"])
    return "\n".join(f"- {line}" for line in text.splitlines() if ": gain" in line)


def lgta() -> str:
    """L-GTA, with and without a code of the whole window."""
    found = numbers("augmentation/lgta.json")["data"]["sensor"]
    models = {row["model"]: row for row in found["rows"]}
    both = "lgta model.step_dim=1 model.global_dim=32"
    names = {
        "lgta model.equivariance=0": "`lgta`: 32 steps of 2 values",
        "lgta model.equivariance=0.1": "the same, `equivariance=0.1`",
        f"{both} model.equivariance=0": "`lgta`: 32 steps of 1 value, 32 of the whole window",
        f"{both} model.equivariance=0.1": "the same, `equivariance=0.1`",
        "ae model.latent_dim=64": "`ae`",
    }
    rows = []
    for name, shown in names.items():
        row = models[name]
        cells = [f"{row['n']}", f"{row['parameters']:,}", short(row["val_loss"], 4), with_sd(row, "test_loss", 4)]
        rows.append([shown, *cells])
    rows.append(["PCA", "", "", "", short(found["pca"][0]["test_loss"], 4)])
    return grid(["ETTh1, 64 latent values", "n", "parameters", "validation MSE", "test MSE"], rows)


def forecasts(data: str) -> str:
    """Test MSE of forecasts, by horizon."""
    found = [row for row in numbers("forecasts/forecasting.json") if row["data"] == data]
    horizons = list(dict.fromkeys(row["horizon"] for row in found))
    rows = []
    for way in dict.fromkeys(row["way"] for row in found):
        own = [row for row in found if row["way"] == way]
        cells = [short(row["mse"], 3) if row["mse_sd"] is None else with_sd(row, "mse", 3) for row in own]
        rows.append([way, f"{own[0]['n']}", *cells])
    return grid([f"{data}, test MSE at a horizon of", "n", *map(str, horizons)], rows)


def etth1() -> str:
    """Forecasts of ETTh1."""
    return forecasts("ETTh1")


def exchange_rate() -> str:
    """Forecasts of the exchange rates."""
    return forecasts("exchange_rate")


# Speed


def train_speed() -> str:
    """Samples a second of four ways to train."""
    found = numbers("speed/train_speed.json")
    rows = [[r["way"], f"{r['samples_per_second']:,}", spread(r["of_the_first"])] for r in found["rows"]]
    header = ["way", "samples a second, median"]
    return grid([*header, f"of the bare loop: median (least to greatest), {found['n']} rounds"], rows)


def gpu_speed() -> str:
    """Training on a GPU against a loop of CUDA graphs, by the number of batches in a call."""
    turns = numbers("gpu/gpu.json")["speed"]["turns"]
    calls = [key for key in turns[0] if key != "graph"]
    rows = [[f"{n}", *(short(turn["graph"] / turn[call], 2) for call in calls)] for n, turn in enumerate(turns, 1)]
    return grid(["turn", *(f"{call} batches a call" for call in calls)], rows)


def gpu_precision() -> str:
    """bf16-mixed against 32-true."""
    rows = []
    for r in numbers("gpu/gpu.json")["precision"]["rows"]:
        mean, least, greatest = np.mean(r["speed"]), min(r["speed"]), max(r["speed"])
        errors = [f"{short(np.mean(e), 6)} ± {short(np.std(e, ddof=1), 6)}" for e in r["mse"].values()]
        rows.append([r["model"], f"{r['batch']}", f"{mean:.2f} ({least:.2f} to {greatest:.2f})", *errors])
    return grid(["model", "batch", "speed", "test MSE, 32-true", "test MSE, bf16-mixed"], rows)


def stack_speed() -> str:
    """Several seeds as one run, compared with a sweep and with runs in turn."""
    keys = ("wall_to_launcher", "wall_to_in_turn", "cores_to_launcher", "cores_to_in_turn")
    rows = [
        [f"{r['seeds']}", f"{r['threads']}", f"{r['n']}", *(spread(r[key], write=plain) for key in keys)]
        for r in numbers("speed/stack_speed.json")["rows"]
    ]
    ratios = ["wall, to launcher", "wall, to in turn", "all cores, to launcher", "all cores, to in turn"]
    return grid(["seeds", "threads a run", "rounds", *ratios], rows, text=())


def growth() -> str:
    """Time and memory as windows, length, channels and seeds grow."""
    rows = []
    for r in numbers("speed/growth.json")["rows"]:
        sizes = [f"{r[key]:,}" for key in ("windows", "length", "channels", "seeds")]
        gib = [plain(r[key], 2) for key in ("peak_gib", "windows_gib")]
        rows.append([*sizes, spread(r["ms"], write=plain), *gib])
    header = ["windows", "length", "channels", "seeds", "ms a step", "peak, GiB", "windows, GiB"]
    return grid(header, rows, text=())


def window_speed() -> str:
    """Windows a second."""
    found = numbers("speed/window_speed.json")
    keys = ("windows_per_second", "dataset_windows_per_second")
    rows = [[f"{r['channels']}", *(f"{r[key]:,}" for key in keys), spread(r["ratio"], 1, plain)] for r in found["rows"]]
    header = ["channels", "this project, windows a second", "`Dataset` and `DataLoader`"]
    return grid([*header, f"ratio (least to greatest), {found['n']} rounds"], rows, text=())


def memory() -> str:
    """Memory that training on a long series takes."""
    rows = []
    for r in numbers("speed/memory.json")["rows"]:
        cap = "" if r["cap_gib"] is None else f"{r['cap_gib']} GiB"
        rows.append([f"`{r['file']}`, {r['size']}", f"{r['values']:,}", cap, f"{short(r['peak_gib'], 2)} GiB"])
    return grid(["file", "values", "memory cap", "peak, n = 1"], rows)


def scale_cost() -> str:
    """What several scales cost in training speed."""
    found = numbers("speed/scale_cost.json")
    keys = ("single_samples_per_second", "pyramid_samples_per_second")
    rows = [
        [r["window"], f"{r['latent']}", r["pyramid"], *(f"{r[key]:,}" for key in keys), spread(r["ratio"])]
        for r in found["rows"]
    ]
    header = ["window", "latent", "pyramid", "`single`, samples a second", "it"]
    return grid([*header, f"ratio, median (least to greatest), {found['n']} rounds"], rows, text=(0, 2))


# Faults


def faults() -> str:
    """What the commands survive."""
    kinds = ("kill", "SIGTERM", "full disk", "flipped bit")
    rows = []
    for name, row in numbers("faults/faults.json").items():
        counts = [f"{row[kind]['survived']} of {row[kind]['tried']}" if kind in row else "" for kind in kinds]
        rows.append([f"`{name}`", *counts, plain(row["SIGTERM"]["seconds"], 1)])
    return grid(["command", *kinds, "seconds to end after SIGTERM"], rows)
