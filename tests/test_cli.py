"""The command's errors, names, sweeps and help."""

import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, Command
from hydra.core.override_parser.overrides_parser import OverridesParser

from msae import cli
from msae.__main__ import COMMANDS, main
from msae.cli import CONF
from msae.help import content, documented
from msae.models.ae import AutoEncoder
from msae.runs import folder
from msae.runs.mistakes import explain
from msae.runs.overrides import as_typed
from msae.runs.processes import n_jobs

SMOKE = ("data=digits", "trainer=smoke", "trainer.accelerator=cpu")


def error_line(err: str) -> str:
    """The one line on stderr."""
    [line] = err.splitlines()
    return line.removeprefix("error: ")


class TestErrors:
    """Each is one line that names key and value, exit code 2, and no folder left behind."""

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                "model=msea",
                "model=msea: no such option; nearest: msae, msae16; there are ae, ",
            ),
            ("dataa=digits", "dataa: no such key; nearest: data"),
            ("model.latent_dmi=3", "model.latent_dmi: no such key; nearest: model.large_dim, "),
            ("model=ae model.latent_dmi=3", "model.latent_dmi: no such key; nearest: model.latent_dim, "),
            ("xyz=3", "xyz: no such key; --help lists all keys"),
            ("data.batch_size=0", "data.batch_size=0: expected a whole number, at least 1"),
            ("data.val_size=5000", "data.val_size=5000: expected a whole number, from 0 to 1436"),
            ("trainer.max_epochs=-3", "trainer.max_epochs=-3: expected a whole number, at least 1"),
            ("trainer.max_steps=-7", "trainer.max_steps=-7: expected a whole number, at least -1"),
            ("trainer.max_steps=0", "trainer.max_steps=0: expected a whole number above 0, or -1 for no limit"),
            ("trainer.limit_test_batches=0", "trainer.limit_test_batches=0: expected a number of batches"),
            ("trainer.precision=16-mixed", "trainer.precision=16-mixed: expected one of 32-true, 32, bf16-mixed"),
            ("hydra.run.dir=/dev/null/x", "[Errno 20] Not a directory: '/dev/null/x'"),
            ("trainer.deterministic=foo", "trainer.deterministic=foo: expected one of True, False, warn"),
            ("trainer.precision=foo", "trainer.precision=foo: expected one of 32-true, 32, bf16-mixed"),
            ("trainer.devices=2", "trainer.devices=2 trainer.num_nodes=1: expected 1, or trainer=ddp; the runs of"),
            ("trainer.accelerator=gpuu", "trainer.accelerator=gpuu: expected one of auto, cpu, gpu, cuda"),
            ("data=mnist data.root=/no/such/dir", "data.root=/no/such/dir: no such folder; make it first, or"),
            ("data=mnist data.units=x", "data.units=x: expected one of unit, standard"),
            ("seed=abc", "seed=abc: expected a whole number, from 0 to 4294967295"),
            ("seed=-1", "seed=-1: expected a whole number, from 0 to 4294967295"),
            ("threads=0", "threads=0: expected a whole number, from 1 to "),
            ("model.lr=-1", "model.lr=-1: expected a number above 0"),
            ("model=ae model.hidden_dims=[0]", "model.hidden_dims=0: expected a whole number, at least 1"),
            ("+model.foo=3", "model.foo: msae.models.msae.MultiScaleAutoEncoder takes no such key"),
            ("model=ae +model.hiden=3", "model.hiden: msae.models.ae.AutoEncoder takes no such key; nearest: hidden_"),
            ("model._target_=msae.models.ae.AutoEncodr", "model._target_: msae.models.ae has no AutoEncodr; nearest"),
            ("data._target_=builtins.dict", "data: builtins.dict returns a dict; expected a DataModule"),
            ("model=ae,msae", "model=ae,msae: several values; expected one, or a sweep, -m; or quotes"),
            ("seed=0,1", "seed=0,1: several values; expected one, or a sweep, -m; seed=[0,1,2] trains several as one"),
            ("seed=range(3)", "seed=range(3): several values; expected one, or a sweep, -m; seed=[0,1,2] trains"),
            ("seed=[0,1] resume=none", "resume=none: no such file or folder; expected the folder of a run"),
            ("seed=[0,1] model=ae model.latent_dim=0", "model.latent_dim=0: expected a whole number, at least 1"),
            ("seed=[4,8] model=ae model.latent_dim=${seed}", "seed=[4, 8]: model.latent_dim would differ too"),
            ("seed=[0,1] data=series data.path=none.csv", "data.path=none.csv: no such file"),
            ("foo", "foo: cannot be read; expected key=value"),
            ("=3", "=3: expected key=value"),
            ("resume=", "resume: no value; expected the folder of a run, such as resume=runs/machine"),
            ("resume=.", "resume=.: no run in it; expected the folder of a run, of several seeds, or of a sweep"),
            ("resume=none.ckpt", "resume=none.ckpt: no such file or folder; expected the folder of a run, or its"),
            ("-m model=ae,msea", "model=msea: no such option; nearest: msae"),
            ("-m model=ae,single model.latent_dmi=3", "model.latent_dmi: no such key; nearest: model.latent_dim, "),
            ("-m model=ae,single model.latent_dim=(", "model.latent_dim=(: cannot be read; expected key=value"),
            ("model.lr=1e9 trainer.limit_train_batches=1.0", "the training loss is nan in epoch 1: try a smaller"),
        ],
    )  # fmt: skip
    def test_a_mistake(self, args: str, message: str, command: Command) -> None:
        code, out, err = command(*SMOKE, *args.split())
        assert code == 2
        assert error_line(err).startswith(message)
        assert out == "" or "-m" in args  # a sweep has said how many runs it has
        if "lr=1e9" not in args:
            assert not any(Path("runs").glob("*"))

    def test_a_key_given_twice(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["msae.train", "model=ae", "seed=0", "model=msae"])
        with pytest.raises(SystemExit):
            cli.prepared("train")
        assert capsys.readouterr().err == "error: model: given 2 times; expected it once\n"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
    def test_no_gpu(self, command: Command) -> None:
        code, _, err = command("data=digits", "trainer=gpu")
        assert code == 2
        assert error_line(err).startswith("trainer.accelerator=gpu: this machine has no GPU of CUDA or ROCm; expected")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("model=msea", "model=msea: no such option; nearest: msae"),
            ("model=ae model.hidden_dims=3", "model.hidden_dims=3: expected a list of whole numbers, such as [8,16]"),
        ],
    )
    def test_a_mistake_in_a_shell(self, args: str, message: str, tmp_path: Path) -> None:
        """The message is as a user sees it, without the tests' checks of types."""
        command = [sys.executable, "-m", "msae.train", *SMOKE, *args.split()]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert error_line(result.stderr).startswith(message)
        assert result.stdout == ""
        assert not any((tmp_path / "runs").glob("*"))

    def test_a_traceback_on_request(self, command: Command) -> None:
        with pytest.raises(ValueError, match="seed=abc"):
            command(*SMOKE, "seed=abc", traceback=True)
        with pytest.raises(Exception, match="msea"):
            command(*SMOKE, "model=msea", traceback=True)

    def test_our_own_errors_keep_their_traceback(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(AutoEncoder, "decode_scaled", broken)
        with pytest.raises(ZeroDivisionError):
            command(*SMOKE, "model=ae")


class TestCheckpointErrors:
    @pytest.fixture
    def ckpt(self, command: Command) -> str:
        assert command(*SMOKE, "model=ae", "hydra.run.dir=ae").code == 0
        return "resume=ae/last.ckpt"

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ("model=msae", "was made with model._target_=msae.models.ae.AutoEncoder, not msae.models.msae.Multi"),
            (
                "model=ae model.latent_dim=8",
                "was made with model.latent_dim=16, not 8; expected no other value",
            ),
            (
                "model=ae data=mnist data.val_size=20",
                "was made with data._target_=msae.data.digits.digits, not msae.data.mnist",
            ),
            ("model=ae seed=1", "was made with seed=0, not 1, data.seed=0, not 1"),
        ],
    )
    @pytest.mark.usefixtures("tiny_mnist")
    def test_of_another_run(self, args: str, message: str, ckpt: str, command: Command) -> None:
        before = {path: path.read_bytes() for path in Path("ae").iterdir() if path.is_file()}
        code, _, err = command(*SMOKE, *args.split(), ckpt)
        assert (code, message in error_line(err)) == (2, True)
        assert error_line(err).startswith("resume=ae/last.ckpt: ")
        assert {path: path.read_bytes() for path in before if path.name != "train.log"} == {
            path: content for path, content in before.items() if path.name != "train.log"
        }

    def test_not_a_checkpoint(self, command: Command) -> None:
        Path("text.ckpt").write_text("text")
        code, _, err = command(*SMOKE, "resume=text.ckpt")
        assert code == 2
        assert error_line(err).startswith(
            "checkpoint text.ckpt: not one that msae wrote; expected last.ckpt or best.ckpt"
        )
        assert not any(Path("runs").glob("*"))

    def test_a_damaged_checkpoint(self, ckpt: str, command: Command) -> None:
        path = Path(ckpt.partition("=")[2])
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["state_dict"].popitem()
        torch.save(checkpoint, path)
        code, _, err = command(*SMOKE, "model=ae", ckpt)
        assert (code, "its weights do not fit AutoEncoder" in error_line(err)) == (2, True)
        torch.save({"model_class": "msae.models.ae:AutoEncoder"}, path)
        code, _, err = command(*SMOKE, "model=ae", ckpt)
        assert (code, "not one that msae wrote" in error_line(err)) == (2, True)

    def test_that_ended_within_an_epoch(self, command: Command) -> None:
        args = ("data=digits", "trainer=cpu", "trainer.max_epochs=-1")
        assert command(*args, "trainer.max_steps=30", "hydra.run.dir=run").code == 0
        code, _, err = command(*args, "trainer.max_steps=60", "resume=run/last.ckpt")
        assert code == 2
        assert "run/last.ckpt: ended at step 30, within an epoch of 20 steps" in error_line(err)

    def test_that_lies_in_a_folder_of_ours(self, command: Command) -> None:
        """Its name contains signs that Hydra's grammar wants quoted; the user does not notice."""
        assert command(*FAST).code == 0
        [run] = Path("runs").iterdir()
        code, _, err = command(*FAST, "trainer.max_epochs=3", f"resume={run}/last.ckpt")
        assert (code, err) == (0, "")

    def test_with_more_epochs_than_asked_for(self, command: Command) -> None:
        assert command(*FAST, "model=ae", "hydra.run.dir=ae").code == 0
        code, _, err = command(*FAST, "model=ae", "resume=ae", "trainer.max_epochs=1")
        assert (code, error_line(err)) == (2, "trainer.max_epochs=1: ae/last.ckpt has 2 epochs already")


class TestFolders:
    def test_what_is_not_ours_stays(self, command: Command) -> None:
        Path("mine").mkdir()
        Path("mine/thesis.txt").write_text("precious")
        assert command(*SMOKE, "model.lr=-1", "hydra.run.dir=mine").code == 2
        assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]

    def test_a_run_is_not_overwritten(self, command: Command) -> None:
        assert command(*SMOKE, "hydra.run.dir=same").code == 0
        before = Path("same/config.yaml").read_text()
        code, _, err = command(*SMOKE, "hydra.run.dir=same", "model.lr=0.01")
        assert code == 2
        assert error_line(err) == "same: already contains a run. To resume it: python -m msae.train resume=same"
        assert Path("same/config.yaml").read_text() == before

    def test_two_processes_do_not_share_one(self, command: Command) -> None:
        with folder.claimed(Path("same")):
            code, _, err = command(*SMOKE, "out=same")
        message = "same: another process is running in it; wait until it ends, or give another out=FOLDER"
        assert (code, error_line(err)) == (2, message)

    @pytest.mark.parametrize("key", ["out", "hydra.run.dir"])
    def test_an_empty_name(self, key: str, command: Command) -> None:
        code, _, err = command(*SMOKE, f"{key}=")
        assert (code, error_line(err)) == (2, f"{key}: no value; expected a folder, such as {key}=runs/machine")

    @pytest.mark.parametrize(
        ("knob", "message"),
        [
            ("threads=100000", "threads=100000: expected a whole number, from 1 to "),
            ("+trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2: not supported"),
            ("+trainer.overfit_batches=1", "trainer.overfit_batches=1: not supported"),
            ("trainer.limit_test_batches=1e-5", "trainer.limit_test_batches=1e-05: less than one of 1 batches"),
            ("trainer.limit_test_batches=-1", "trainer.limit_test_batches=-1: expected a number of batches"),
        ],
    )
    def test_limits_are_checked_before_training(self, knob: str, message: str, command: Command) -> None:
        args = [text for text in SMOKE if not knob.lstrip("+").startswith(text.partition("=")[0] + "=")]
        code, out, err = command(*args, knob, "out=new")
        assert (code, out, error_line(err)[: len(message)]) == (2, "", message)
        assert not Path("new").exists()


class TestNames:
    def test_folders(self) -> None:
        assert folder.folder_name(["model=ae", "resume=/a/b", "out=c"], ",") == "model=ae"
        assert folder.folder_name([], ",") == "default"
        assert folder.folder_name(["data.path=/x y/z.csv"], ",") == "data.path=_x_y_z.csv"
        long = folder.folder_name([f"model.key{i}=1" for i in range(30)], ",")
        assert len(long) <= 150
        assert long != folder.folder_name([f"model.key{i}=1" for i in range(31)], ",")

    def test_of_a_sweep_over_options_with_a_key_of_their_own(self, command: Command) -> None:
        """`model.latent_dim` is a key of both models, but not of the one with which a sweep is composed."""
        args = ("model=ae,single", "model.latent_dim=8", "hydra.launcher.n_jobs=1")
        assert command(*FAST, "-m", *args).code == 0
        [sweep] = Path("runs").iterdir()
        assert sweep.name.endswith("model=ae,single+model.latent_dim=8")
        found = {path.name: json.loads((path / "metrics.json").read_text())["latent_dim"] for path in sweep.glob("*/")}
        assert found == {"model=ae": 8, "model=single": 8}

    def test_of_a_sweeps_runs(self) -> None:
        sweep = folder.sweep_dir(["-m", "model=ae,msae", "seed=0,1", "data=digits", "hydra/launcher=ray", "hydra.a=1"])
        assert sweep == "runs/model=ae,msae+seed=0,1+data=digits"
        assert folder.run_name(["model=ae", "seed=1", "data=digits"], sweep, None) == "model=ae,seed=1"
        assert folder.run_name(["data=digits"], "runs/data=digits", None) == "data=digits"

    def test_jobs_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert n_jobs("cpu") == -1
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert n_jobs("auto") == 1
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert n_jobs("auto") == -1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resume=runs/a,model=ae/last.ckpt", "runs/a,model=ae/last.ckpt"),
        ("ckpt=runs/a b/best.ckpt", "runs/a b/best.ckpt"),
        ("hydra.run.dir=runs/seed=[0,1]", "runs/seed=[0,1]"),
        ("out=[b]", "[b]"),
        ("out=2024", "2024"),
        ("out={a:1}", "{a:1}"),
        ("out=null", None),
        ("data.path=my data (1)/[a]=b.csv", "my data (1)/[a]=b.csv"),
        ("data.path=données/*.csv", "données/*.csv"),
        ("data.path=it's here.csv", "it's here.csv"),
        ("data.path=C:\\it's\\", "C:\\it's\\"),
        ("+data.path='a, b.csv'", "a, b.csv"),
        ("data.separator=;", ";"),
        ("data.separator=\\t", "\\t"),
        ("data.decimal=,", ","),
        ("data.time_format=null", None),
        ("data.time_column=Date (UTC)", "Date (UTC)"),
        ("label=état", "état"),
        ("data.columns=[a,b]", ["a", "b"]),
        ("data.columns=[T (degC), p=1]", ["T (degC)", "p=1"]),
        ('data.columns=[T [°C], "a,b"]', ["T [°C]", "a,b"]),
        ("data.path=[été.csv,it's.csv]", ["été.csv", "it's.csv"]),
    ],
)
def test_paths_and_names_are_values(text: str, expected: object) -> None:
    """As they are typed: no sign in them has a meaning for Hydra's grammar."""
    override = OverridesParser.create().parse_override(as_typed(text))
    assert override.value() == expected
    assert not override.is_sweep_override()
    assert as_typed(as_typed(text)) == as_typed(text)


def test_any_sign_in_a_path(command: Command) -> None:
    """Of data, run and output; the printed command resumes the run when it is pasted into a shell."""
    data, run = Path("d, [é]=1") / 'o\'neil "b".csv', "it's [b], été=1"
    data.parent.mkdir()
    data.write_text("a\n" + "".join(f"{i % 9}\n" for i in range(400)))
    args = ("data=series", "data.window=16", f"data.path={data}", "model=ae16", "trainer=cpu", f"out={run}")
    assert command(*args, "trainer.max_epochs=1").code == 0
    code, _, err = command(*args, "trainer.max_epochs=2")
    assert code == 2
    printed = shlex.split(error_line(err).partition("To resume it: python -m msae.train ")[2])
    assert printed == [f"resume={run}"]
    code, out, err = command(*printed, "trainer.max_epochs=2")
    assert (code, err) == (0, "")
    assert f"tensorboard --logdir {shlex.quote(run)}\n" in out
    code, out, err = command(f"ckpt={run}", f"data.path={data}", f"out={run}/[2].csv", module="reconstruct")
    assert (code, err) == (0, "")
    assert (Path(run) / "[2].csv" / data.name).exists()


def test_a_comma_separates_the_values_of_a_sweep_unless_it_is_in_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swept(text: str) -> list[str] | None:
        override = OverridesParser.create().parse_override(as_typed(text))
        return [*override.sweep_string_iterator()] if override.is_sweep_override() else None

    monkeypatch.chdir(tmp_path)
    for name in ("é.csv", "o'neil.csv", "a,b.csv"):
        Path(name).touch()
    assert swept("data.path=x.csv,y.csv") == ["x.csv", "y.csv"]
    assert swept("data.path=é.csv,o'neil.csv") == ["'é.csv'", "'o\\'neil.csv'"]
    assert swept("data.path=a,b.csv") is None


class TestLocale:
    """One that is not UTF-8, such as LC_ALL=C."""

    def test_prints_what_it_lacks_in_ascii(self, monkeypatch: pytest.MonkeyPatch) -> None:
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        cli.printable()
        print("0.5 ± 0.1 °C", end="", flush=True)
        assert out.buffer.getvalue() == b"0.5 +- 0.1 \\xb0C"  # type: ignore[attr-defined]

    def test_of_a_path_it_cannot_read(self, command: Command) -> None:
        code, _, err = command(*SMOKE, os.fsdecode(b"out=donn\xe9es"))
        assert (code, error_line(err).startswith(r"'out=donn\udce9es': not UTF-8 in this locale; ")) == (2, True)
        assert not list(Path().iterdir())

    def test_logs_are_utf8(self) -> None:
        assert content(CONF / "train.yaml")["hydra"]["job_logging"]["handlers"]["file"]["encoding"] == "utf-8"


def test_flags_stand_anywhere(command: Command) -> None:
    code, out, _ = command("model=ae", "--cfg", "job", "data=digits", "--package", "model")
    assert code == 0
    assert out.startswith("# @package model\n")
    assert "\n_target_: msae.models.ae.AutoEncoder\n" in out
    code, _, err = command("seed=0", "-m", "model=msea")
    assert (code, err.startswith("error: model=msea: no such option")) == (2, True)


def test_help_comes_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys, msae.train\ntry: msae.train.main()\nfinally: print({'torch', 'lightning'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert result.stdout.endswith("set()\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("sigint")
def test_an_interruption_that_python_drops_comes_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def task(_: object) -> None:
        held = {1}
        reference = weakref.ref(held, interrupted)
        del held
        assert reference() is None
        for _ in range(1000):
            time.sleep(0.01)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as end:
        cli.run(task, "train")
    assert end.value.code == 130
    assert capsys.readouterr() == ("\ninterrupted: nothing was kept; the same command starts again\n", "")


class TestHelp:
    @pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
    def test_keys_in_forty_lines(self, name: str, command: Command) -> None:
        """Help lists the command's own keys, and only the groups that it takes; `-v` adds the keys of the options."""
        code, out, err = command("--help", module=name)
        assert (code, err) == (0, "")
        assert len(out.splitlines()) <= 40
        for key in documented(name):
            assert f"  {key.name}=" in out
            assert key.meaning, f"{name}: {key.name} has no meaning"
        assert ("  model  " in out) == (name in ("train", "search"))
        assert "Hydra" not in out
        more = command("--help", "-v", module=name).out
        assert len(more) > len(out)
        assert ("trainer.max_epochs=20" in more) == (name in ("train", "search"))

    def test_of_the_chosen_model(self, command: Command) -> None:
        out = command("-h", "-v", "model=lgta", "data=series").out
        assert "model.step_dim=2" in out
        assert "model.lr=3e-3" in out
        assert "data.max_gap=null" in out


class TestMain:
    def test_lists_the_commands(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["msae"])
        main()
        out = capsys.readouterr().out
        assert all(f"\n  {name} " in out for name in COMMANDS)
        assert "Train one model on one data set\n" in out

    def test_a_wrong_name(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["msae", "trian"])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert capsys.readouterr().err.startswith("error: trian: no such command; nearest: train; there are train, ")

    def test_is_the_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        args = [sys.executable, "-m", "msae", "train", "trainer=smoke", "data=digits", "out=run"]
        subprocess.run(args, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "run" / "metrics.json").exists()
        assert subprocess.run([*args, "model=no"], cwd=tmp_path, check=False, capture_output=True).returncode == 2


def test_a_full_disk_is_one_line_that_names_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where neither the library that writes nor the system names a file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = explain(OSError(errno.ENOSPC, "no space"), "train")
    assert re.fullmatch(rf"No space left on device: \S+ .?B free in \., \S+ .?B free in {tmp_path}", said)


def test_a_full_disk_in_tensorboards_thread_is_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    writer = _AsyncWriterThread(None, None, 1)
    for thread, lines in ((writer, 0), (threading.Thread(), 1)):
        cli.of_thread(threading.ExceptHookArgs((OSError, OSError(errno.ENOSPC, "full"), None, thread)))
        assert capsys.readouterr().err.count("OSError") == lines
