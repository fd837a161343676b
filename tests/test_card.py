"""The card of one's own data: rows, verdicts, the page, mistakes and interruptions."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Result
from test_docs import STATE, browser

import msae
from msae import card
from msae.cards import augmentation, detection, features, page, reconstruction, splits, state, training
from msae.cards.faults import KINDS, inject
from msae.cards.verdict import verdict
from msae.data.module import DataModule, Windows
from msae.data.series import series

__all__ = ["browser"]
LABELS = {"flow": "standard", "faulty": "none"}
ARGS = ("data=series", "data.path=a.csv", "data.window=32", "out=card")


def write_series(folder: Path) -> None:
    """1,000 steps of a noisy wave and of a slower one."""
    t, rng = np.arange(1000)[:, None], np.random.default_rng(0)
    x = np.sin(2 * np.pi * t / np.array([16, 32])) + 0.1 * rng.normal(size=(1000, 2))
    np.savetxt(folder / "a.csv", x, delimiter=",", header="flow,heat", comments="")


def write_labelled(folder: Path, first: int = 900, last: int = 920) -> None:
    """A wave, and a column that is 1 at some steps."""
    t = np.arange(1000)
    x = np.stack([np.sin(t / 3), (t >= first) & (t <= last)], 1)
    np.savetxt(folder / "labelled.csv", x, delimiter=",", header="flow,faulty", comments="")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished card of a series."""
    folder = tmp_path_factory.mktemp("card")
    write_series(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(training, "MODELS", ("single",))
        patch.setattr(training, "planned", lambda *given: (20, given[3]))
        patch.setattr(detection, "REPEATS", 1)
        patch.setattr(detection, "FEW", 1)
        for module in (training, detection, reconstruction):
            patch.setattr(module, "SEEDS", (0, 1))
        patch.setattr(sys, "argv", ["msae.card", *ARGS, "budget=1m"])
        card.main()
    return folder / "card"


@pytest.fixture
def content(made: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made / "card.json").read_text())
    return found


def test_every_use_has_its_rows(made: Path, content: dict[str, Any]) -> None:
    names = {use: [row["name"] for row in known["rows"]] for use, known in content["uses"].items()}
    assert names == {
        "reconstruction": ["PCA", "single"],
        "detection": ["raw nearest windows", "isolation forest", "bank (nested)", "error (nested)"],
        "forecast": ["last value", "value a period before", "ridge on raw values", "ridge on codes"],
    }
    for known in content["uses"].values():
        assert not [row["note"] for row in known["rows"] if "test" not in row]
        assert len({len(row["parts"]) for row in known["rows"]}) == 1
    detection = content["uses"]["detection"]["rows"]
    assert set(detection[0]["kinds"]) == set(KINDS)
    assert detection[2]["test"][0] > detection[2]["share"]
    naive, _, ridge, _ = (np.mean(row["test"]) for row in content["uses"]["forecast"]["rows"])
    assert ridge < naive
    assert sorted(path.name for path in made.iterdir()) == [
        *("card.html", "card.json", "detection.ckpt", "detection.png", "forecast.ckpt", "forecast.png"),
        *("reconstruction.ckpt", "reconstruction.png"),
    ]


def test_rows_are_what_their_commands_say(made: Path, content: dict[str, Any]) -> None:
    """The error of the kept checkpoint is that of its seed's row, and PCA's is that of a report."""
    from msae import baselines

    data = series(str(made.parent / "a.csv"), window=32)
    rows = {row["name"]: row for row in content["uses"]["reconstruction"]["rows"]}
    model = msae.load(made / "reconstruction.ckpt")
    error = training.errors(model, data.test).mean()
    assert any(error == pytest.approx(value, rel=1e-4) for value in rows["single"]["test"])
    latent = rows["PCA"]["latent"]
    assert latent == model.latent_dim
    [pca] = baselines.pca(data, [latent])
    assert rows["PCA"]["test"] == [pytest.approx(pca["test_loss"], rel=1e-4)]
    assert reconstruction.pca_errors(data, latent, data.val).shape == (len(data.val),)


def test_the_page_is_one_file(made: Path, content: dict[str, Any]) -> None:
    text = (made / "card.html").read_text()
    assert len(content["sentences"]) == 5
    assert all(sentence.partition(": ")[2].replace("'", "&#x27;") in text for sentence in content["sentences"])
    assert len(re.findall("<img ", text)) == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "<script" not in text


def test_the_page_in_a_browser(made: Path, request: pytest.FixtureRequest) -> None:
    chromium = request.getfixturevalue("browser")
    for width in (390, 1200):
        chromium.set_window_size(width, 900)
        chromium.get((made / "card.html").as_uri())
        found = chromium.execute_script(STATE)
        assert found["pictures"] == 6
        assert not found["broken"]
        assert not [url for url in found["requests"] if not url.startswith("data:")]
        assert chromium.execute_script("return document.body.scrollWidth <= window.innerWidth")
    assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]


def copied(made: Path) -> None:
    shutil.copytree(made, "card")
    write_series(Path())
    write_labelled(Path(), 100, 120)


def test_a_finished_card_is_only_written_again(made: Path, command: Command) -> None:
    copied(made)
    before = Path("card/card.html").read_text()
    Path("card/card.html").unlink()
    code, out, err = command(*ARGS, "budget=1m", module="card")
    assert (code, err) == (0, "")
    assert "\nReconstruction: take " in out

    def lasting(text: str) -> str:
        return re.sub(r"Computed in .* s\.", "", text)

    assert lasting(Path("card/card.html").read_text()) == lasting(before)
    assert "\nFeatures: not compared (it needs samples with labels, as of data=ucr).\n" in out


def test_interrupted_it_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(Path())
    args = (*ARGS, "budget=1m", "uses=[reconstruction]")
    monkeypatch.setattr(training, "MODELS", ("single",))
    monkeypatch.setattr(training, "MOST", 30)
    for module in (training, reconstruction):
        monkeypatch.setattr(module, "SEEDS", (0, 1))
    of_model, done = reconstruction.of_model, list[str]()

    def interrupted(made: state.Card, name: str, *rest: Any) -> state.Row:
        done.append(name)
        if len(done) == 1:
            raise KeyboardInterrupt
        return of_model(made, name, *rest)

    monkeypatch.setattr(reconstruction, "of_model", interrupted)
    code, out, _ = command(*args, module="card")
    assert code == 130
    assert out.endswith("\ninterrupted: the same command goes on from the rows that are done\n")
    before = json.loads(Path("card/card.json").read_text())["uses"]["reconstruction"]["rows"]
    code, _, err = command(*args, module="card")
    assert (code, err, done) == (0, "", ["single", "single"])
    rows = json.loads(Path("card/card.json").read_text())["uses"]["reconstruction"]["rows"]
    assert [row["name"] for row in rows] == ["PCA", "single"]
    assert rows[:1] == before
    assert 20 <= rows[1]["steps"] <= 30
    assert "model.code_dims=[" in rows[1]["command"]  # chosen by the small piece


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("out=",), "out: no value; expected a folder, such as out=runs/machine"),
        (("budget=5",), "budget=5: expected a time of at least 5s, such as 90s, 5m or 1h"),
        (("steps=0",), "steps=0: expected a whole number, at least 1"),
        (("budget=soon",), "budget=soon: expected a time of at least 5s, such as 90s, 5m or 1h"),
        (("label=heat",), "label=heat: is a channel too; data.columns=[flow] leaves it out"),
        (
            ("data.path=labelled.csv", "data.columns=[flow]", "label=faulty"),
            "label=faulty: no anomaly in the test part; expected one, or a larger data.test_size",
        ),
        (("data=digits", "label=y"), "label=y: a column of files; expected null, as this data set has none"),
        (("uses=forecast",), "uses=forecast: expected auto, or a list of reconstruction, detection, forecast,"),
        (("uses=[forecasts]",), "uses=forecasts: expected one of reconstruction, detection, forecast, features,"),
        (("uses=[features]",), "uses: features needs samples with labels, as of data=ucr"),
        (("uses=[forecast,forecast]",), "uses: forecast is there twice; expected each use once"),
        (("data.val_size=0",), "data.val_size=0: a card chooses by the validation split; expected more than 0"),
        (("data.path=b.csv",), "data.path=b.csv: no such file"),
        (("out=a.csv",), "out=a.csv: is a file; expected a folder"),
        (("out=.",), "out=.: contains other files; expected a new folder, or that of a card"),
        (("data.window=40",), "out=card: holds a card with data=['data=series', 'data.path=a.csv', 'data.window=32']"),
        (("steps=5",), "out=card: holds a card with steps=auto, not 5; expected another folder"),
        (("data=digits", "uses=[detection]"), "uses: detection needs series in time, as of data=series"),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], message: str, made: Path, command: Command) -> None:
    copied(made)
    given = [text for text in ARGS if "data=digits" not in args or not text.startswith("data.")]
    code, out, err = command(*given, *args, module="card")
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert line.startswith(f"error: {message}")


def test_a_damaged_card_is_one_line(command: Command) -> None:
    write_series(Path())
    Path("card").mkdir()
    Path("card/card.json").write_text("{")
    result: Result = command(*ARGS, module="card")
    assert (result.code, result.err.splitlines()) == (
        2,
        ["error: card/card.json: damaged, or no card; remove it, or give another out=FOLDER"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_faults_change_only_their_steps(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 400)).cumsum(1)
    for seed in range(20):
        made, faulty, channel = inject(x, kind, 20, x.std(1), x.min(1), np.random.default_rng(seed))
        changed = made != x
        assert changed.any()
        assert not changed[:, ~faulty].any()
        assert not np.delete(changed, channel, 0).any()
        assert 1 <= faulty.sum() <= 40
        assert np.flatnonzero(faulty)[0] >= 100
        assert np.flatnonzero(faulty)[-1] < 300


def test_labels_of_the_test_part_are_its_anomalies(tmp_path: Path) -> None:
    write_labelled(tmp_path)
    path = str(tmp_path / "labelled.csv")
    data, labels = (series(path, window=32, columns=[name], normalize=how) for name, how in LABELS.items())
    found = state.Card(tmp_path, data, labels, [], 60.0, None, 1, {})
    parts = splits.Parts(found)
    [(kind, x, faulty, channel)] = parts.faulty("test", repeats=3)
    assert (kind, channel, faulty.sum()) == (splits.LABELLED, 0, 21)
    assert x.shape == (1, len(faulty))
    start = int(np.flatnonzero(faulty)[0])
    assert torch.equal(x[0, start : start + 21].float(), torch.sin(torch.arange(900, 921).double() / 3).float())
    assert sum(labelled.sum() for labelled in parts.labelled) == 21
    assert len(parts.faulty("validation", repeats=3)) == 3 * len(KINDS)


def row(name: str, val: float, parts: list[float], simple: bool = False) -> state.Row:
    return {"name": name, "simple": simple, "val": val, "test": [float(np.mean(parts))], "parts": parts}


@pytest.mark.parametrize(
    ("use", "parts", "val", "take"),
    [
        ("forecast", [1.0, 1.1, 0.9], 1.0, "ours"),  # clearly less error
        ("forecast", [1.0, 3.1, 0.9], 1.0, "PCA"),  # its interval contains 0
        ("forecast", [1.0, 1.1, 0.9], 3.0, "PCA"),  # worse on validation, whatever the test says
        ("features", [1.0, 1.1, 0.9], 3.0, "PCA"),  # less accuracy on test
        ("features", [3.0, 3.1, 2.9], 3.0, "ours"),
    ],
)
def test_the_verdict(use: str, parts: list[float], val: float, take: str) -> None:
    rows = [row("PCA", 2.0, [2.0, 2.1, 1.9], simple=True), row("worse baseline", 2.0 + (use == "forecast"), [9.0] * 3)]
    rows[1]["simple"] = True
    rows[1]["val"] = 9.0 if use == "forecast" else 0.0
    found = verdict(use, [*rows, row("ours", val, parts)])
    assert found["take"] == take
    assert found["against"] == "PCA"
    assert found["sentence"].startswith(f"take {take}, ")


def test_a_verdict_without_rivals() -> None:
    assert verdict("features", [row("raw values", 1, [1.0])])["sentence"].startswith(
        "only raw values could be measured"
    )
    assert verdict("features", [])["take"] is None


def test_parts_are_in_the_order_of_the_test() -> None:
    assert state.parts_of(range(100)) == [4.5 + 10 * i for i in range(10)]
    assert state.parts_of([1, 2]) == [1, 2]


@pytest.fixture
def labelled(tmp_path: Path) -> state.Card:
    """A card of samples of two classes that differ in their frequency, at any phase."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = np.sin(np.arange(32) * np.where(y, 0.5, 0.9)[:, None] + rng.uniform(0, 6, (80, 1)))
    windows = Windows(torch.from_numpy(x).float()[:, None], torch.from_numpy(y))
    data = DataModule(windows[:50], windows[50:], val_size=10)
    found = state.Card.opened(
        tmp_path, {}, data=data, given=["data=mine"], labels=None, budget=60.0, steps=None, threads=1
    )
    found.content["facts"] = {"data": ["data=mine"], "shape": data.shape, "windows": [40, 10, 30]}
    return found


def test_features(labelled: state.Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amplitudes of frequencies classify what raw values do not; a row that fails is left out with its reason."""

    def spectrum(samples: features.Labelled, _: int) -> features.Computed:
        x, x_test = (np.abs(np.fft.rfft(x.numpy()[:, 0])) for x in (samples.x, samples.x_test))
        return x, x_test

    def failing(_: features.Labelled, __: int) -> features.Computed:
        raise msae.InputError("it needs aeon")

    monkeypatch.setattr(features, "pooled", spectrum)
    monkeypatch.setattr(features, "minirocket", failing)
    labelled.begin("features", 0.9)
    features.compare(labelled)
    assert labelled.of("features")["samples"] == [50, 30]
    assert labelled.of("features")["rows"][-1]["note"] == "left out: it needs aeon"
    found = verdict("features", labelled.rows("features"))
    assert found["take"] == "pooled"
    assert found["gain"] > 0.2
    page.write(labelled, list(card.USES))
    assert "MiniRocket: left out: it needs aeon." in (labelled.folder / "card.html").read_text()


def test_augmentation(labelled: state.Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "EPOCHS", 1)
    monkeypatch.setattr(augmentation, "SEEDS", (0,))
    monkeypatch.setattr(augmentation, "FOLDS", 2)
    labelled.begin("augmentation", 0.9)
    augmentation.compare(labelled)
    first, second = labelled.rows("augmentation")
    assert (first["simple"], second["simple"]) == (True, False)
    assert len(first["parts"]) == len(second["parts"]) == 30


def test_no_time_is_left(labelled: state.Card) -> None:
    labelled.begin("features", 0.0)
    labelled.row("features", "late", partial(pytest.fail, "computed"), enough=labelled.use_left > 0)
    assert labelled.of("features")["rows"] == [
        {"name": "late", "note": "left out: no time was left for it", "seconds": 0}
    ]
    assert labelled.rows("features") == []
