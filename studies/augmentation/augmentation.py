"""New samples: do their changes grow with the strength, can they be told from real ones, and do they help a classifier?

    python studies/augmentation/augmentation.py control tourism.csv,window=12 ECG5000 --archive UCR
    python studies/augmentation/augmentation.py realism ETTh1.csv,window=24,time_column=date ECG5000
    python studies/augmentation/augmentation.py use BeetleFly ECG200 ... --archive UCR

A source is a file with options of `data=series`, or a set of the UCR archive. `direct` changes the normalized window
itself in the same ways; `pyramid` and `lgta` change their latents. Models are trained on the training split alone.

control: each test window is changed at ten strengths. `same draw` is the rank correlation of strength and decoded
change when all strengths move along one draw; `own draws` when each strength has its own draw, which is the harder
question; `monotonic` is the share of windows whose change grows from each strength to the next, along one draw.

realism: each test window is changed by the same distance. `discriminative` is |accuracy - .5| of a GRU that is trained
to tell old from new windows, on windows that it has not seen (TimeGAN's score, after Yoon et al. 2019); `wasserstein`
is the mean distance over random directions, in normalized units; `prior` samples anew with `lgta`, as TimeVAE (arXiv
2111.08095) does.

use: a tenth of the training labels, stratified, at least two of a class; MiniRocket's features (aeon) and ridge
regression; four new windows for each labelled one. Change and strength are chosen by cross-validation among the
labelled windows, for `direct` and the models alike; no change is one of the choices. Models see all training windows,
without labels.

The result of every job is kept in OUT/PART, so that an interrupted study can be resumed; the tables are OUT/PART.json
and OUT/PART.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any, final

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from joblib import Parallel, delayed
from scipy import stats
from torch import Tensor, nn

from msae import baselines, cli
from msae.data.batches import spread
from msae.data.module import DataModule
from msae.data.series import series
from msae.data.ucr import ucr
from msae.models.reconstructor import Reconstructor
from msae.runs import trainer
from msae.runs.comparison import table
from msae.runs.folder import folder_name, write_json
from msae.uses.augmentation import Reference, augment, sample

MODELS = ("pyramid", "lgta", "direct")
CHANGES = ("jitter", "scaling", "magnitude_warp")
STRENGTHS = np.linspace(0.2, 2, 10)
DISTANCE = 0.3
COPIES = 4
CLASSIFIER_STEPS = 400
GRID = [("jitter", 0.1), ("jitter", 0.3), ("magnitude_warp", 0.3), ("scaling", 0.3), ("mix", 0.3), ("mix", 0.5)]


@final
class Direct(Reconstructor):
    """The scaled window is its own latent, a channel a code."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        self.codes = {str(c): slice(c * self.length, (c + 1) * self.length) for c in range(self.channels)}

    def encode_scaled(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode_scaled(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (self.channels, self.length))


def read(source: str, archive: str | None) -> DataModule:
    """The data of a source such as `ETTh1.csv,window=24,time_column=date` or `ECG5000`."""
    name, *given = source.split(",")
    if not given and not Path(name).is_file():
        return ucr(name, archive, val_size=0.2, epoch_steps=50)
    options = {key: int(value) if value.isdigit() else value for key, value in (text.split("=") for text in given)}
    return series(name, missing="interpolate", **options)


def fitted(name: str, data: DataModule, seed: int, steps: int) -> Reconstructor:
    """A model of conf/model after `steps` steps, with an eighth of a window's values, 8 to 64, in its latent."""
    L.seed_everything(seed, verbose=False)
    latent = min(64, max(8, data.shape[0] * data.shape[1] // 8))
    if name == "direct":
        model: Reconstructor = Direct(data.shape)
    else:
        sizes = {"pyramid": [f"model.latent_dim={latent}", "model.segments=[1,4]", "model.gradient_clip_val=1.0"]}
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            cfg = compose("train", [f"model={name}", "data=digits", *sizes.get(name, [])])
        model = instantiate(cfg.model, shape=data.shape)
    model.set_statistics(**data.statistics)
    if name == "direct":
        return model.eval()
    trainer.quiet()
    model.initialize(lambda: baselines.sample(data))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0}
    L.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, **quiet).fit(model, datamodule=data)
    return model.eval()


def some(windows: Any, n: int) -> Tensor:
    """Up to n windows, evenly spread."""
    found: Tensor = windows.x[spread(len(windows), n)]
    return found


def control(source: str, name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each change: rank correlation of strength and effect, and share monotonic."""
    data = read(source, args.archive)
    model = fitted(name, data, seed, args.steps)
    x, by, rows = some(data.test, args.windows), Reference.of(model, some(data.train, 2000)), []
    for change in CHANGES:
        same, own = (
            np.stack(
                [
                    augment(model, x, by, change, float(s), generator=torch.Generator().manual_seed(seed + i * apart))
                    .distance.cpu()
                    .numpy()
                    for i, s in enumerate(STRENGTHS)
                ]
            )
            for apart in (0, 1000)
        )
        rank, monotonic = spearman(same), float(np.mean([all(a < b for a, b in pairwise(c)) for c in same.T]))
        rows.append({"change": change, "same draw": rank, "own draws": spearman(own), "monotonic": monotonic})
    return rows


def spearman(effects: np.ndarray) -> float:
    """Mean over windows of the rank correlation of strength and effect; 0 of a window that does not change."""
    moved = effects[:, np.ptp(effects, axis=0) > 0]
    total = sum(stats.spearmanr(STRENGTHS, column).statistic for column in moved.T)
    return float(total / effects.shape[1])


def realism(source: str, name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each change and way: discriminative score and Wasserstein distance."""
    data = read(source, args.archive)
    model = fitted(name, data, seed, args.steps)
    x = some(data.test, args.windows)
    by = Reference.of(model, some(data.train, 2000))
    rows = []
    for change, residual in product((*CHANGES, "mix"), (True, False)):
        if name == "direct" and not residual:  # there is no residual
            continue
        generator = torch.Generator().manual_seed(seed)
        made = augment(model, x, by, change, residual=residual, distance=DISTANCE, generator=generator)
        way = change if residual else f"{change}, decoded"
        rows.append({"change": way, "reached": float(made.reached.float().mean())} | told_apart(x, made.x, model, seed))
    if model.regularizer == "kl":
        made_anew = sample(model, len(x), by, torch.Generator().manual_seed(seed))
        rows.append({"change": "prior", "reached": 1.0} | told_apart(x, made_anew, model, seed))
    return rows


def told_apart(x: Tensor, x_new: Tensor, model: Reconstructor, seed: int) -> dict[str, float]:
    """The two scores of new windows."""
    old, new = (((part - model.offset) / model.scale).nan_to_num() for part in (x, x_new))
    axes = torch.randn(100, old[0].numel(), generator=torch.Generator().manual_seed(0))
    axes /= axes.norm(dim=1, keepdim=True)
    pairs = zip((old.flatten(1) @ axes.T).T, (new.flatten(1) @ axes.T).T, strict=True)
    distance = float(np.mean([stats.wasserstein_distance(a.numpy(), b.numpy()) for a, b in pairs]))
    torch.manual_seed(seed)
    order = torch.randperm(len(old))  # an old window and the one made of it are on the same side
    cut = max(1, int(0.7 * len(order)))
    both = [torch.cat([old[part], new[part]]).movedim(1, 2) for part in (order[:cut], order[cut:])]
    labels = [torch.arange(len(part)) >= len(part) // 2 for part in both]
    net, head = nn.GRU(old.shape[1], 32, 2, batch_first=True), nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 3e-3)
    for _ in range(CLASSIFIER_STEPS):
        picked = torch.randint(len(both[0]), (64,))
        loss = nn.functional.binary_cross_entropy_with_logits(
            head(net(both[0][picked])[1][-1]).squeeze(1), labels[0][picked].float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (head(net(both[1])[1][-1]).squeeze(1) > 0) == labels[1]
    return {"discriminative": abs(float(right.float().mean()) - 0.5), "wasserstein": distance}


def use(source: str, name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Test accuracy without and with new samples, and the setting that was chosen."""
    from sklearn.model_selection import StratifiedKFold

    data = read(source, args.archive)
    model = fitted(name, data, seed, args.steps)
    by = Reference.of(model, some(data.train, 2000))
    x = torch.cat([data.train.x[:], data.val.x[:]])
    assert data.train.y is not None
    assert data.val.y is not None
    assert data.test.y is not None
    y = torch.cat([data.train.y, data.val.y])
    few = labelled(y, seed)
    x, y = x[few], y[few]
    folds = StratifiedKFold(2, shuffle=True, random_state=seed)
    scores = defaultdict(list)
    for fit, held in folds.split(x.flatten(1), y):
        for setting in (None, *GRID):
            made = more(model, by, x[fit], y[fit], setting, seed)
            scores[setting].append(accuracy(*made, x[held], y[held], seed))
    best = max(scores, key=lambda setting: (round(float(np.mean(scores[setting])), 6), setting is None))
    found = {}
    for setting in dict.fromkeys((None, best)):
        made = more(model, by, x, y, setting, seed)
        found[setting] = accuracy(*made, data.test.x[:], data.test.y, seed)
    gain, chosen = 100 * (found[best] - found[None]), " ".join(map(str, best or ("none",)))
    return [{"labels": len(y), "none": found[None], "accuracy": found[best], "gain": gain, "setting": chosen}]


def labelled(y: Tensor, seed: int) -> Tensor:
    """A tenth of the samples of each class, at least two, where it has as many."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label in y.unique():
        own = (y == label).nonzero().flatten()
        n = max(2, round(0.1 * len(own)))
        found.append(own[torch.randperm(len(own), generator=generator)[:n]])
    return torch.cat(found)


def more(
    model: Reconstructor, by: Reference, x: Tensor, y: Tensor, setting: tuple[str, float] | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Samples and COPIES new ones of each; those mixed are mixed with each other, by their labels."""
    if setting is None:
        return x, y
    own = Reference.of(model, x, y)
    by = Reference(own.z, own.y, by.mean, by.deviation, by.spread)
    many = x.repeat(COPIES, 1, 1)
    made = augment(model, many, by, *setting, y=y.repeat(COPIES), generator=torch.Generator().manual_seed(seed))
    return torch.cat([x, made.x]), y.repeat(1 + COPIES)


def accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, seed: int) -> float:
    """Of ridge regression on MiniRocket's features."""
    from aeon.transformations.collection.convolution_based import MiniRocket
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rocket = MiniRocket(random_state=seed)
    features = np.asarray(rocket.fit_transform(x.numpy()))
    ridge = make_pipeline(StandardScaler(with_mean=False), RidgeClassifierCV(np.logspace(-3, 3, 10)))
    ridge.fit(features, y.numpy())
    return float(ridge.score(np.asarray(rocket.transform(x_test.numpy())), y_test.numpy()))


PARTS = {"control": control, "realism": realism, "use": use}
COLUMNS = {
    "control": ("same draw", "own draws", "monotonic"),
    "realism": ("discriminative", "wasserstein", "reached"),
    "use": ("none", "accuracy", "gain"),
}


def job(part: str, source: str, name: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a source, model and seed; kept in a file, and taken from it where they are there."""
    label = folder_name([source.replace("/", "_"), name, str(seed), str(args.steps), str(args.windows)], "+")
    path = args.out / part / f"{label}.json"
    if not path.exists():
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", module="sklearn|lightning|torch")
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"source": Path(source.partition(",")[0]).stem, "model": name, "seed": seed}
        write_json(path, [about | row for row in PARTS[part](source, name, seed, args)])
        print(f"{part}: {label}", flush=True)
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and 95 % interval of Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def pivot(rows: list[dict[str, Any]], value: str) -> str:
    """A table of a value, data sets side by side: mean over changes, and 95 % interval over seeds, n each."""
    found: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        found[f"{row['model']}, {way(row)}"][row["source"]][row["seed"]].append(row[value])
    sources = list(dict.fromkeys(row["source"] for row in rows))
    lines = [
        [name, *(interval([float(np.mean(values)) for values in of[source].values()]) for source in sources)]
        for name, of in found.items()
    ]
    return table([value, *sources], lines)


def way(row: dict[str, Any]) -> str:
    """What tells a row's way from others in a table: the change; of realism, whether the residual is kept."""
    if "discriminative" not in row or row["change"] == "prior":
        return str(row["change"])
    return "decoded" if row["change"].endswith(", decoded") else "changed"


def markdown(part: str, rows: list[dict[str, Any]]) -> str:
    """Tables of means and intervals over seeds; of `use` the gains over sets as well."""
    if part != "use":
        return "\n\n".join(pivot(rows, name) for name in COLUMNS[part]) + "\n"
    groups = defaultdict(list)
    for row in rows:
        groups[row["source"], row["model"]].append(row)
    lines = [
        [*group, str(len(found)), *(interval([row[name] for row in found]) for name in COLUMNS[part])]
        for group, found in groups.items()
    ]
    text = [table(["data", "model", "n", *(f"{name}, 95 %" for name in COLUMNS[part])], lines)]
    for name in dict.fromkeys(row["model"] for row in rows):
        gains = [np.mean([row["gain"] for row in g]) for (_, model), g in groups.items() if model == name]
        low = sum(gain < -2 for gain in gains)
        text.append(f"{name}: gain {interval(gains, 2)} points over {len(gains)} sets; {low} lose more than 2.")
    return "\n\n".join(text) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("sources", nargs="+")
    parser.add_argument(
        "--archive", help="folder of the UCR archive; by default the sets in aeon's wheel, or its download"
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--windows", type=int, default=1000, help="of the test split, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/augmentation"))
    args = parser.parse_args()
    for source in args.sources:
        read(source, args.archive)  # before any is trained on
    jobs = product(args.sources, args.models, range(args.seeds))
    found = Parallel(n_jobs=2)(delayed(job)(args.part, *one, args) for one in jobs)
    rows = [row for part in found for row in part]
    text = markdown(args.part, rows)
    args.out.mkdir(parents=True, exist_ok=True)
    arguments = {key: getattr(args, key) for key in ("sources", "seeds", "steps", "windows")}
    write_json(args.out / f"{args.part}.json", {"arguments": arguments, "rows": rows})
    (args.out / f"{args.part}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
