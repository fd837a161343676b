"""Sweeps: their folders, runs that fail, interruption and resuming."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, Command
from hydra.core.plugins import Plugins
from test_cli import error_line

from msae.errors import InputError
from msae.runs import folder
from msae.runs.callbacks import History
from msae.runs.folder import claimed

sys.path.append(str(Path(__file__).parent.parent))
from studies.faults.faults import alive

SWEEP = (*FAST, "-m", "model=ae,msae", "seed=0,1", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")
FEW = ("data.val_size=1037", "data.batch_size=4")  # epochs of 100 steps, in four calls


class TestSweeps:
    def test_runs_and_report(self, made: Command) -> None:
        code, out, _ = made(*SWEEP)
        assert code == 0
        folder = Path("sweep")
        names = {path.parent.name for path in folder.glob("*/metrics.json")}
        assert names == {f"{','.join(FAST)},model={model},seed={seed}" for model in ("ae", "msae") for seed in (0, 1)}
        assert {"report.md", "report.json", "curves.png", "reconstructions.png"} <= {p.name for p in folder.iterdir()}
        assert "| ae | 2 | 16 |" in out
        assert "tensorboard --logdir sweep\n" in out

    def test_a_sweep_is_not_overwritten(self, command: Command, made: Command) -> None:
        made(*SWEEP)
        code, _, err = command(*SWEEP)
        assert code == 2
        assert error_line(err) == (
            "sweep: already contains this sweep. To resume it: python -m msae.train resume=sweep; "
            "out=FOLDER starts anew"
        )

    @pytest.mark.parametrize(
        "args", [SWEEP, ("resume=sweep",), (*FAST, "seed=[0,1]", "out=sweep")], ids=["started", "resumed", "seeds"]
    )
    def test_two_commands_do_not_fill_one_folder(self, args: tuple[str, ...], command: Command, made: Command) -> None:
        made(*SWEEP)
        before = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("*") if path.is_file()}
        with claimed(Path("sweep")):
            code, out, err = command(*args)
        message = "sweep: another process is running in it; wait until it ends, or give another out=FOLDER"
        assert (code, out, error_line(err)) == (2, "", message)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert not list(Path("sweep").rglob("running.lock"))

    def test_a_damaged_sweep_is_resumed_by_the_whole_command(self, command: Command, made: Command) -> None:
        made(*SWEEP)
        for text in ("", "a: [b", "- a\n- {b: 1}", "hydra: {overrides: {hydra: [], task: x}}", "3"):
            Path("sweep/multirun.yaml").write_text(text)
            code, out, err = command("resume=sweep")
            assert (code, out) == (2, "")
            assert error_line(err).startswith("sweep/multirun.yaml: damaged, ")
            assert error_line(err).endswith("; give the whole command again, with resume=sweep and -m")
        code, out, err = command(*SWEEP, "resume=sweep")
        assert (code, out.count(": finished before")) == (0, 4), err

    def test_a_sweep_with_a_damaged_run(self, command: Command, made: Command) -> None:
        made(*SWEEP)
        path = next(Path("sweep").glob("*model=ae,seed=0")) / "overrides.yaml"
        path.write_text("{")
        code, _, err = command("resume=sweep")
        assert (code, error_line(err).startswith(f"{path.absolute()}: damaged, ")) == (2, True)
        assert error_line(err).endswith("; remove it: its run writes it again")
        path.unlink()
        assert command("resume=sweep").code == 0

    def test_one_without_a_checkpoint_starts_again_by_the_same_command(self, command: Command) -> None:
        args = (*FAST, "-m", "seed=0,1", "hydra.launcher.n_jobs=1", "model=ae", "out=sweep")
        for seed in (0, 1):  # killed before anything was saved
            run = Path(f"sweep/{','.join(FAST)},seed={seed},model=ae")
            run.mkdir(parents=True)
            (run / "train.log").touch()
            (run / "config.yaml").write_text("")
        code, out, _ = command(*args)
        assert (code, "| ae | 2 |" in out) == (0, True)

    @pytest.mark.usefixtures("sigint")
    def test_a_signal_ends_it_when_the_run_has_saved(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        normal = History.on_train_batch_end

        def signalled(self: History, *rest: Any) -> None:
            normal(self, *rest)
            signal.raise_signal(signal.SIGTERM)

        args = (*FAST, "-m", "seed=0,1", "hydra.launcher.n_jobs=1", "model=ae", *FEW, "out=sweep")
        with monkeypatch.context() as patch:
            patch.setattr(History, "on_train_batch_end", signalled)
            code, out, _ = command(*args)
        assert (code, len(list(Path("sweep").glob("*/last.ckpt")))) == (143, 1)
        assert out.endswith("\ninterrupted. To resume: python -m msae.train resume=sweep\n")
        assert command("resume=sweep").code == 0

    def test_a_run_that_fails_is_named_and_the_others_reported(self, command: Command) -> None:
        code, out, err = command(*FAST, "-m", "model=msae", "model.lr=1e-3,-1", "hydra.launcher.n_jobs=1")
        assert code == 2
        [folder] = Path("runs").iterdir()
        assert error_line(err) == "1 of the runs did not finish: model.lr=-1"
        assert "model.lr=-1: failed: model.lr=-1: expected a number above 0" in out
        report = json.loads((folder / "report.json").read_text())
        assert report["missing"] == {"model.lr=-1": "failed: model.lr=-1: expected a number above 0"}
        assert report["data"]["digits"]["rows"][0]["n"] == 1
        assert "Traceback" in (folder / "model.lr=-1" / "error.txt").read_text()

    def test_resume_makes_only_what_is_missing(self, command: Command, made: Command) -> None:
        made(*SWEEP)
        runs = {path.name: path for path in Path("sweep").iterdir() if path.is_dir()}
        finished = {name: (run / "metrics.json").read_bytes() for name, run in runs.items()}
        lost = next(name for name in runs if name.endswith("model=msae,seed=0"))
        (runs[lost] / "metrics.json").unlink()
        code, out, _ = command("resume=sweep")
        assert code == 0
        assert out.count(": finished before") == 3
        assert "| msae | 2 | 16 |" in out
        again = json.loads((runs[lost] / "metrics.json").read_text())
        assert again["metrics"] == json.loads(finished[lost])["metrics"]
        assert again["history"] == json.loads(finished[lost])["history"]
        others = {name: (run / "metrics.json").read_bytes() for name, run in runs.items() if name != lost}
        assert others == {name: content for name, content in finished.items() if name != lost}

    @pytest.mark.parametrize("knobs", [("trainer.max_epochs=-1", "trainer.max_steps=30"), ("trainer.max_epochs=2",)])
    def test_resume_finishes_a_run_that_lacks_its_result_alone(self, knobs: tuple[str, ...], command: Command) -> None:
        """The run was stopped after its last step, within or at the end of an epoch."""
        sweep = (*FAST[:2], *knobs, "-m", "seed=0,1", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")
        assert command(*sweep).code == 0
        before = {path: json.loads(path.read_text()) for path in Path("sweep").glob("*/metrics.json")}
        for path in before:
            path.unlink()
        code, out, err = command(*sweep, "resume=sweep")
        assert code == 0, err
        assert "failed" not in out
        for path, result in before.items():
            again = json.loads(path.read_text())
            assert all(again[key] == result[key] for key in ("metrics", "val_loss", "history", "steps"))

    @pytest.mark.usefixtures("sigint")
    def test_resume_goes_on_within_a_run(
        self, command: Command, made: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run interrupted in its second epoch ends with the weights of one that was not."""
        made(*SWEEP)
        whole = next(Path("sweep").glob("*model=ae,seed=0"))
        uninterrupted = whole.rename("whole")
        normal = History.on_train_epoch_start

        def interrupt(self: History, trainer: Any, *rest: Any) -> None:
            normal(self, trainer, *rest)
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(History, "on_train_epoch_start", interrupt)
            assert command(*FAST, "model=ae", "seed=0", f"hydra.run.dir='{whole}'").code == 130
        assert torch.load(whole / "last.ckpt", weights_only=True)["global_step"] == 20
        assert command("resume=sweep").code == 0
        mine, theirs = (
            torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, uninterrupted)
        )
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs if name != "_extra_state")

    @pytest.mark.parametrize("finished", [0, 3])
    def test_a_launcher_that_gives_up(self, finished: int, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """joblib's launcher does this when one of its processes is killed."""
        name = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
        launcher: Any = Plugins.instance().class_name_to_class[name]
        normal = launcher.launch

        def launch(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
            if finished:
                normal(self, job_overrides[:finished], initial_job_idx)
                started = Path("sweep/lost")
                started.mkdir()
                (started / "train.log").touch()
            raise RuntimeError("a worker was killed")

        monkeypatch.setattr(launcher, "launch", launch)
        code, _, err = command(*SWEEP)
        first, *_, last = err.strip().splitlines()
        assert (code, first) == (2, "RuntimeError: a worker was killed")
        if finished:
            assert last == "error: 1 of the runs did not finish: lost"
            assert len(json.loads(Path("sweep/report.json").read_text())["data"]["digits"]["rows"]) == 2
        else:
            assert last == "error: the launcher of sweep gave up"

    def test_a_full_disk_is_told_and_the_others_go_on(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        """Though there is no room for the error of the first run either."""
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        normal = folder.write_text

        def write(path: Path, text: str) -> None:
            if "seed=0" in path.parent.name:
                raise InputError(f"{path}: cannot be written") from full
            normal(path, text)

        monkeypatch.setattr(folder, "write_text", write)
        code, out, err = command(*FAST, "-m", "model=ae", "seed=0,1", "hydra.launcher.n_jobs=1", "out=sweep")
        assert (code, err.count("error: 1 of the runs did not finish")) == (2, 1)
        assert "seed=0: failed: " in out
        assert "| ae | 1 |" in out

    def test_nothing_finished(self, command: Command) -> None:
        code, out, err = command(*FAST, "-m", "model.lr=-1,-2", "hydra.launcher.n_jobs=1")
        assert code == 2
        assert "2 of the runs did not finish" in err
        assert "## Missing runs" in out

    @pytest.mark.usefixtures("sigint")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_side_by_side_and_interrupted(self, number: signal.Signals, tmp_path: Path) -> None:
        """Ctrl-C reaches all processes of the sweep; of one that is killed, the workers save and end by themselves."""
        args = [sys.executable, "-m", "msae.train", "-m", "data=digits", "trainer=cpu", "seed=0,1", "model=ae"]
        process = subprocess.Popen(
            [*args, "hydra.launcher.n_jobs=2", "trainer.max_epochs=100000", "hydra.sweep.dir=sweep"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("sweep/*/best.ckpt"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)  # which all processes hold open
        assert not alive(process.pid)
        assert "Traceback" not in err
        assert len(list(tmp_path.glob("sweep/*/last.ckpt"))) == 2
        assert not list(tmp_path.glob("sweep/*/running.lock"))
        if number == signal.SIGINT:
            assert process.returncode == 130, (out, err)
            assert "To resume: python -m msae.train resume=sweep" in out
