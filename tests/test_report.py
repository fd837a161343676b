"""The report's numbers against an example computed by hand, and against sources of their own."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAST, Command

from msae import InputError, baselines
from msae.data.module import DataModule, Windows
from msae.runs import comparison as report

SWEEP = (*FAST, "-m", "model=ae,msae", "seed=0,1", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")


def run(overrides: str, seed: int, mse: float, curve: list[float], **more: Any) -> report.Run:
    """The values that the report reads of a run."""
    return {
        "overrides": [*overrides.split(), f"seed={seed}"], "model": "ae", "job": seed, "data": "digits",
        "class": "AutoEncoder", "seed": seed, "parameters": 10, "latent_dim": 4,
        "seconds": 1.0 + seed, "samples_per_second": 100.0,
        "metrics": {"test/mse": mse, "test/loss": mse, "test/psnr": -10 * math.log10(mse)},
        "history": [{"test/loss": value} for value in curve],
    } | more  # fmt: skip


@pytest.fixture
def models() -> dict[str, list[report.Run]]:
    """Three models: the baseline, another model, and a control with the latent of the other."""
    other = {"class": "Other", "latent_dim": 8}
    return {
        "ae": [
            run("model=ae", 0, 0.4, [0.5, 0.4]),
            run("model=ae", 1, 0.6, [0.7, 0.6]),
            run("model=ae", 2, 0.5, [0.5]),
        ],
        "other": [
            run("model=other", 0, 0.3, [0.4, 0.3], **other),
            run("model=other", 1, 0.4, [0.7, 0.5], **other),
            run("model=other", 2, 0.2, [0.9, 0.8], **other),
        ],
        "control": [
            run("model=control", 0, 0.2, [0.2], latent_dim=8),
            run("model=control", 1, 0.4, [0.4], latent_dim=8),
        ],
    }


def test_rows_by_hand(models: dict[str, list[report.Run]]) -> None:
    ae, other, control = report.compare(models)["rows"]
    assert (ae["n"], other["n"], control["n"]) == (3, 3, 2)
    assert ae["test_mse"] == pytest.approx(0.5)
    assert ae["test_mse_sd"] == pytest.approx(0.1)  # deviations -.1, .1, 0; sum of squares .02; over n - 1 = 2
    assert other["test_mse"] == pytest.approx(0.3)
    assert control["test_mse_sd"] == pytest.approx(math.sqrt(0.02))
    # the baseline ends at .4, .6 and .5: the other gets there after epochs 1 and 2, and with seed 2 never
    assert (other["epochs_to_first"], other["reached_first"]) == (1.5, 2)
    assert (control["epochs_to_first"], control["reached_first"]) == (1, 2)
    assert ae["seconds"] == 2
    assert (other["parameters"], other["latent"]) == (10, 8)


def test_differences_by_hand(models: dict[str, list[report.Run]]) -> None:
    found = {(d["model"], d["against"]): d for d in report.compare(models)["differences"]}
    assert set(found) == {("other", "ae"), ("control", "ae"), ("other", "control")}
    against_first = found["other", "ae"]  # -.1, -.2, -.3: mean -.2, deviation .1, t(.975, 2) = 4.302653
    assert against_first["n"] == 3
    assert against_first["mean"] == pytest.approx(-0.2)
    assert against_first["interval"] == pytest.approx(
        (-0.2 - 4.302653 * 0.1 / math.sqrt(3), -0.2 + 4.302653 * 0.1 / math.sqrt(3)), abs=1e-6
    )
    against_control = found["other", "control"]  # the seeds that both have: .1, 0; t(.975, 1) = 12.706205
    assert against_control["n"] == 2
    assert against_control["interval"] == pytest.approx((0.05 - 12.706205 * 0.05, 0.05 + 12.706205 * 0.05), abs=1e-6)


def test_validation_losses_where_there_are_any(models: dict[str, list[report.Run]]) -> None:
    """It is the mean over seeds of the loss of the kept weights; in old results, of the lowest of all epochs."""
    models["other"][0]["val_loss"] = None  # as a run without a validation split has it
    assert report.compare(models)["rows"][0]["val_loss"] is report.compare(models)["rows"][1]["val_loss"] is None
    assert "validation" not in report.markdown("digits", report.compare(models) | {"pca": []})
    for number, one in enumerate(models["ae"]):
        one["history"] = [{"test/loss": 0.5, "val/loss": loss + number} for loss in (0.3, 0.2, 0.4)]
    result = report.compare({"ae": models["ae"]})
    assert result["rows"][0]["val_loss"] == pytest.approx(1.2)
    for one in models["ae"][:2]:  # a start at .1 that no epoch is below, in two of the three
        one["val_loss"] = 0.1
    result = report.compare({"ae": models["ae"]})
    assert result["rows"][0]["val_loss"] == pytest.approx((0.1 + 0.1 + 2.2) / 3)
    text = report.markdown("digits", result | {"pca": []})
    assert "| validation MSE |" in text
    assert "Validation MSE: that of the kept weights, in normalized units." in text


def test_pca_of_fewer_windows_than_latent_values() -> None:
    """PCA has as many axes as possible, one fewer than windows."""
    x = torch.randn(12, 1, 30)
    data = DataModule(Windows(x[:6]), Windows(x[6:]))
    [few], [many] = baselines.pca(data, [5]), baselines.pca(data, [20])
    assert many["latent"] == 20
    assert many["test_loss"] == pytest.approx(few["test_loss"], rel=1e-4)  # six windows span five axes


def test_one_seed_has_neither_spread_nor_interval(models: dict[str, list[report.Run]]) -> None:
    result = report.compare({name: runs[:1] for name, runs in models.items()}) | {"pca": []}
    assert result["rows"][0]["test_mse_sd"] is None
    text = report.markdown("digits", result)
    assert "| ae | 1 | 4 | 10 | 0.4 | 3.98 | 2 | 1 |" in text
    assert "| other - ae | 1 | -0.1 | n = 1 |" in text


def test_text(models: dict[str, list[report.Run]]) -> None:
    text = report.markdown(
        "digits",
        report.compare(models)
        | {"pca": [{"model": "PCA", "latent": 8, "test_mse": 0.1, "test_loss": 0.1, "psnr": 10.0}]},
    )
    assert "| ae | 3 | 4 | 10 | 0.5 ± 0.1 | 3.07 | 1.67 | 2 |" in text
    assert "| other | 3 | 8 | 10 | 0.3 ± 0.1 | 5.40 | 1.5 (2 of 3) | 2 |" in text
    assert "| PCA |  | 8 |  | 0.1 | 10.00 |  |  |" in text
    assert "| other - ae | 3 | -0.2 | -0.448 to 0.0484 |" in text


def test_names_are_what_differs() -> None:
    runs = [
        run("model=msae trainer.max_epochs=2 model.lr=1e-3", 0, 1, [1]),
        run("model=ae trainer.max_epochs=2 model.lr=1e-3", 0, 1, [1]),
        run("model=ae trainer.max_epochs=2 model.lr=1e-4", 0, 1, [1]),
    ]
    report.name_runs(runs)
    assert [r["name"] for r in runs] == ["msae model.lr=1e-3", "ae model.lr=1e-3", "ae model.lr=1e-4"]
    seeds = [run("model=msae", seed, 1, [1]) for seed in (0, 1)]
    report.name_runs(seeds)
    assert {r["name"] for r in seeds} == {"ae"}


def test_pca_is_the_best_linear_reconstruction() -> None:
    """PCA equals the singular value decomposition of the centered training windows."""
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 2, 3)).astype(np.float32) for n in (40, 20))
    data = DataModule(Windows(torch.from_numpy(train)), Windows(torch.from_numpy(test)), value_range=(-1.0, 1.0))
    rows = baselines.pca(data, [2, 5, 100])
    assert [(row["model"], row["latent"]) for row in rows] == [
        ("PCA", 2), ("PCA, clipped", 2), ("PCA", 5), ("PCA, clipped", 5),
    ]  # fmt: skip
    x, x_test = train.reshape(40, 6).astype(float), test.reshape(20, 6).astype(float)
    axes = np.linalg.svd(x - x.mean(0))[2]
    for k, raw, clipped in ((2, rows[0], rows[1]), (5, rows[2], rows[3])):
        x_hat = (x_test - x.mean(0)) @ axes[:k].T @ axes[:k] + x.mean(0)
        assert raw["test_mse"] == pytest.approx(((x_hat - x_test) ** 2).mean())
        assert clipped["test_mse"] == pytest.approx(((x_hat.clip(-1, 1) - x_test) ** 2).mean())
        assert raw["psnr"] == pytest.approx(10 * math.log10(4 / raw["test_mse"]))
    assert baselines.pca(data, [100]) == []


def of_data(losses: dict[str, float], pca: float) -> dict[str, Any]:
    """The results of one data set in the report."""
    rows = [{"model": model, "latent": 4, "test_loss": loss} for model, loss in losses.items()]
    others = [{"model": "PCA", "latent": latent, "test_loss": value} for latent, value in ((4, pca), (8, 0.001))]
    return {"rows": rows, "pca": others}


def test_ranks_and_wilcoxon_by_hand() -> None:
    """Five data sets; PCA of the first model's latent size, 4, is a model among the others, that of 8 is not."""
    results = {
        "a": of_data({"ae": 0.1, "b": 0.2}, 0.3),  # ranks 1, 2, 3; ratio 2
        "b": of_data({"ae": 0.1, "b": 0.4}, 0.1),  # 1.5, 3, 1.5; 4
        "c": of_data({"ae": 8.0, "b": 64.0}, 9.0),  # 1, 3, 2; 8
        "d": of_data({"ae": 1.0, "b": 16.0}, 0.5),  # 2, 3, 1; 16
        "e": of_data({"ae": 3.0, "b": 1.5}, 1.0),  # 3, 2, 1; 1/2
    }
    over = report.over_data_sets(results)
    assert over["n"] == 5
    assert {row["model"]: row["mean_rank"] for row in over["ranks"]} == pytest.approx({"ae": 1.7, "b": 2.6, "PCA": 1.7})
    found = {(t["model"], t["against"]): t for t in over["tests"]}
    assert set(found) == {("b", "ae"), ("PCA", "ae"), ("PCA", "b")}
    assert found["b", "ae"]["won"] == 1
    assert found["b", "ae"]["ratio"] == pytest.approx(2**1.8)  # exponents 1, 2, 3, 4, -1
    # |exponents| 1, 1, 2, 3, 4 have ranks 1.5, 1.5, 3, 4, 5, the negative one 1.5; of the 32 choices of signs, three
    # have a sum of the negative ranks of at most 1.5 (none, either one of the two), and as many lie at the other end
    assert found["b", "ae"]["p"] == pytest.approx(6 / 32)
    assert "| b against ae | 1 of 5 | 3.48 | 0.19 |" in report.markdown_over(over)


def test_wilcoxon_where_all_agree_and_where_all_tie() -> None:
    agree = report.over_data_sets({str(i): of_data({"ae": 1.0, "b": 1 / (2 + i)}, 1.0) for i in range(5)})
    p = {(t["model"], t["against"]): t["p"] for t in agree["tests"]}
    assert p["b", "ae"] == pytest.approx(2 / 2**5)
    assert p["PCA", "ae"] == 1


def test_models_that_a_data_set_lacks_have_no_rank() -> None:
    results = {"a": of_data({"ae": 1.0, "b": 2.0}, 3.0), "b": of_data({"ae": 1.0}, 3.0)}
    over = report.over_data_sets(results)
    assert [row["model"] for row in over["ranks"]] == ["ae", "PCA"]
    assert "Not in all data sets: b." in report.markdown_over(over)
    none = {"a": {"rows": of_data({"ae": 1.0}, 1.0)["rows"], "pca": []}, "b": of_data({"b": 1.0}, 1.0) | {"pca": []}}
    assert report.markdown_over(report.over_data_sets(none)) == "## Over 2 data sets\n\nNot in all data sets: ae, b."


def test_losses_of_nothing_tie() -> None:
    """Constant series have such losses, since their reconstruction is exact."""
    results = {"a": of_data({"ae": 0.0, "b": 1e-18}, 0.0), "b": of_data({"ae": 1.0, "b": 2.0}, 4.0)}
    over = report.over_data_sets(results)
    assert {row["model"]: row["mean_rank"] for row in over["ranks"]} == {"ae": 1.5, "b": 2.0, "PCA": 2.5}
    assert over["tests"][0]["ratio"] == pytest.approx(2**0.5)


def test_pca_of_windows_each_scaled_by_itself() -> None:
    """Against the same PCA of windows standardized by hand; mean and deviation are two of the latent values."""
    rng = np.random.default_rng(0)
    train, test = (rng.normal(5, rng.uniform(1, 9, (n, 1, 1)), (n, 1, 6)).astype(np.float32) for n in (40, 20))
    data = DataModule(Windows(torch.from_numpy(train)), Windows(torch.from_numpy(test)), normalize="window")
    [row] = baselines.pca(data, [5])
    (x, _), (x_test, width) = (
        ((w[:, 0] - w[:, 0].mean(1, keepdims=True)) / w[:, 0].std(1, keepdims=True), w[:, 0].std(1, keepdims=True))
        for w in (train.astype(float), test.astype(float))
    )
    axes = np.linalg.svd(x - x.mean(0))[2][:3]
    error = (x_test - x.mean(0)) @ axes.T @ axes + x.mean(0) - x_test
    assert row["test_loss"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert row["test_mse"] == pytest.approx(((error * width) ** 2).mean(), rel=1e-4)


def test_pca_leaves_missing_values_out() -> None:
    """What is missing is the channel's mean when it is coded, and nothing when errors are counted."""
    rng = np.random.default_rng(0)
    train, test = (rng.normal(3, 2, (n, 1, 6)).astype(np.float32) for n in (40, 20))
    train[::3, 0, 1], test[::2, 0, 4] = np.nan, np.nan
    windows = (Windows(torch.from_numpy(x)) for x in (train, test))
    [row] = baselines.pca(DataModule(*windows, normalize="standard", missing=True), [2])
    mean, width = np.nanmean(train), np.nanstd(train)
    x, x_test = (np.nan_to_num((w[:, 0] - mean) / width) for w in (train, test))
    axes = np.linalg.svd(x - x.mean(0))[2][:2]
    error = ((x_test - x.mean(0)) @ axes.T @ axes + x.mean(0) - x_test)[~np.isnan(test[:, 0])]
    assert row["test_loss"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert row["test_mse"] == pytest.approx((error**2).mean() * width**2, rel=1e-4)


def test_scaled_units_have_a_column_where_they_are_not_the_raw_ones(models: dict[str, list[report.Run]]) -> None:
    for runs in models.values():
        for one in runs:
            one["metrics"]["test/mse"] *= 9
    text = report.markdown("a", report.compare(models) | {"pca": []})
    assert "| test MSE, normalized units | test MSE, raw units |" in text
    assert "| ae | 3 | 4 | 10 | 0.5 ± 0.1 | 4.5 ± 0.9 |" in text
    assert "Differences of test MSE in normalized units, paired by seed" in text


class TestCommand:
    def test_again_at_any_later_time(self, command: Command, made: Command) -> None:
        _, first, _ = made(*SWEEP)
        for name in ("report.md", "report.json", "curves.png", "reconstructions.png"):
            Path("sweep", name).unlink()
        code, out, _ = command("sweep", module="report")
        assert code == 0
        assert out.strip() in first
        assert {"report.md", "report.json", "curves.png", "reconstructions.png"} <= {
            p.name for p in Path("sweep").iterdir()
        }
        table = json.loads(Path("sweep/report.json").read_text())["data"]["digits"]
        runs = [json.loads(path.read_text()) for path in Path("sweep").glob("*model=ae*/metrics.json")]
        assert table["rows"][0]["test_mse"] == pytest.approx(sum(r["metrics"]["test/mse"] for r in runs) / 2)

    def test_runs_that_are_missing_are_named(self, command: Command, made: Command) -> None:
        made(*SWEEP)
        one, other, *_ = sorted(path.parent for path in Path("sweep").glob("*/metrics.json"))
        (one / "metrics.json").unlink()
        (other / "metrics.json").unlink()
        (other / "error.txt").write_text("out of memory\n\nTraceback")
        _, out, _ = command("sweep", module="report")
        assert f"- {one.name}: not finished" in out
        assert f"- {other.name}: failed: out of memory" in out
        assert "| msae | 2 |" in out

    @pytest.mark.usefixtures("tiny_mnist")
    def test_a_table_for_each_data_set(self, command: Command) -> None:
        command(
            "-m",
            "data=digits,mnist",
            "trainer=cpu",
            "trainer.max_epochs=1",
            "data.val_size=20",
            "hydra.launcher.n_jobs=1",
        )
        [folder] = Path("runs").iterdir()
        text = (folder / "report.md").read_text()
        assert "## digits" in text
        assert "## mnist" in text
        assert (folder / "digits" / "curves.png").exists()
        assert "![reconstructions.png](mnist/reconstructions.png)" in text

    def test_a_table_for_each_training_split(self, command: Command) -> None:
        args = (
            "model=ae",
            "model.latent_dim=8",
            "data.val_size=0,400",
            "trainer.max_epochs=1",
            "hydra.launcher.n_jobs=1",
        )
        assert command("-m", *FAST[:2], *args).code == 0
        [folder] = Path("runs").iterdir()
        found = json.loads((folder / "report.json").read_text())["data"]
        assert set(found) == {"digits data.val_size=0", "digits data.val_size=400"}
        raw, fewer = (result["pca"][0]["test_mse"] for result in found.values())
        assert raw != fewer
        assert (folder / "digits_data.val_size=400" / "curves.png").exists()

    def test_several_sweeps_under_one_folder(self, command: Command) -> None:
        """Each table has its own data set, with its runs from all sweeps."""
        for i, name in enumerate(("GunPoint", "ItalyPowerDemand", "GunPoint")):
            model = ("model=ae", "model.latent_dim=4") if i < 2 else ("model=msae", "model.small_dim=2")
            args = ("data=ucr", f"data.name={name}", *model, "seed=0,1")
            assert command("-m", *args, *FAST[1:], "hydra.launcher.n_jobs=1", f"hydra.sweep.dir=all/{i}").code == 0
        code, out, _ = command("all", module="report")
        assert code == 0
        found = json.loads(Path("all/report.json").read_text())
        ae = "ae model.latent_dim=4"
        models = {data: [(row["model"], row["n"]) for row in result["rows"]] for data, result in found["data"].items()}
        assert models == {"GunPoint": [(ae, 2), ("msae model.small_dim=2", 2)], "ItalyPowerDemand": [(ae, 2)]}
        assert {row["model"] for row in found["over_data_sets"]["ranks"]} == {ae, "PCA"}
        assert "## Over 2 data sets" in out
        assert Path("all/GunPoint/curves.png").exists()

    @pytest.mark.usefixtures("tiny_mnist")
    def test_data_that_is_gone(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "cache" / "msae").rename("data")
        args = ("data=mnist", "data.root=data", "data.val_size=20", "trainer=smoke", "hydra.launcher.n_jobs=1")
        assert command("-m", *args, "hydra.sweep.dir=sweep").code == 0
        Path("data").rename("elsewhere")
        code, _, err = command("sweep", module="report")
        assert (code, err.startswith("error: data.root=data: no such folder")) == (2, True)

    def test_an_error_of_our_own_is_not_swallowed(
        self, command: Command, made: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made(*SWEEP)
        monkeypatch.setattr(report, "compare", lambda _: 1 / 0)
        code, _, err = command("resume=sweep")
        assert code == 2
        assert "error: no report of sweep: division by zero" in err
        assert "Traceback" in err

    def test_no_folder(self, command: Command) -> None:
        code, _, err = command("nowhere", module="report")
        assert (code, err) == (2, "error: nowhere: no such folder\n")
        with pytest.raises(InputError, match="no runs in it; expected the folder of a sweep"):
            report.report(Path())


@pytest.mark.parametrize("image_shape", [(2, 3), None])
def test_pictures_have_a_row_for_input_output_and_error(image_shape: tuple[int, int] | None) -> None:
    from msae import plots

    x = torch.rand(4, 1, 6)
    figure = plots.reconstructions(x, {"ae": x, "msae": x / 2}, image_shape)
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["input", "ae", "ae: error", "msae", "msae: error"]
    if image_shape:
        shown = [axis.images[0].get_array() for axis in figure.axes]
    else:
        shown = [axis.lines[0].get_ydata()[None] for axis in figure.axes]
    for windows, row in zip((x, x, x - x, x / 2, (x - x / 2).abs()), shown, strict=True):
        columns = image_shape[1] if image_shape else 6
        assert row.shape[1] == 4 * columns + 3
        for number, window in enumerate(windows):
            part = np.ma.filled(row, np.nan)[:, number * (columns + 1) :][:, :columns]
            np.testing.assert_array_equal(part, window.reshape(image_shape or (1, 6)).numpy())
            gap = np.ma.filled(row, np.nan)[:, number * (columns + 1) + columns :][:, :1]
            assert np.isnan(gap).all()


def test_errors_of_all_models_have_one_scale() -> None:
    from msae import plots

    x = torch.rand(4, 1, 6)
    axes = plots.reconstructions(x, {"ae": x + 0.1, "msae": x - 3}).axes
    assert axes[2].get_ylim() == axes[4].get_ylim() == pytest.approx((0, 3))
    assert axes[0].get_ylim() == axes[1].get_ylim() == pytest.approx((x.min().item(), x.max().item()))


def test_curves_show_mean_and_band() -> None:
    from msae import plots

    curves = {
        "ae": {"train": np.array([[4.0, 2.0], [2.0, 1.0]]), "test": np.array([[3.0, 2.0]])},
        "b": {"test": np.ones((1, 2))},
    }
    train, test = plots.curves(curves).axes
    assert train.lines[0].get_ydata().tolist() == [3, 1.5]
    assert train.get_legend().get_texts()[0].get_text() == "ae (n = 2)"
    assert [len(axis.lines) for axis in (train, test)] == [1, 2]
    assert len(train.collections) == 1
