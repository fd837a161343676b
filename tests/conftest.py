"""Shared fixtures; shapes in the signatures of models, data and plots are checked while tests run."""

import hashlib
import importlib
import logging
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from jaxtyping import install_import_hook

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int is a float
with install_import_hook(["msae.models", "msae.data", "msae.plots", "msae.timeline", "msae.uses"], CHECKER):
    import msae.data.batches
    import msae.data.clock
    import msae.data.dates
    import msae.data.digits
    import msae.data.files
    import msae.data.grid
    import msae.data.growing
    import msae.data.holes
    import msae.data.mnist
    import msae.data.module
    import msae.data.period
    import msae.data.rows
    import msae.data.series
    import msae.data.spool
    import msae.data.statistics
    import msae.data.tables
    import msae.data.ucr
    import msae.data.windows
    import msae.models.ae
    import msae.models.lgta
    import msae.models.msae
    import msae.models.nested
    import msae.models.pyramid
    import msae.models.units
    import msae.plots
    import msae.timeline
    import msae.uses.anomaly
    import msae.uses.augmentation
    import msae.uses.bank
    import msae.uses.events
    import msae.uses.forecasting
    import msae.uses.reference
    import msae.uses.rules
    import msae.uses.suspects

FAST = ("data=digits", "trainer=cpu", "trainer.max_epochs=2")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n` a worker takes whole files, whose tests share fixtures, and one that is done takes from the others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
    """What Hydra composes the whole config for, before it composes it again: `hydra.mode`, which experiments set."""
    set_ = any("experiment=" in text or "hydra.mode=" in text for text in overrides)
    return COMPOSED(self, config_name, overrides) if set_ else None


COMPOSED = Hydra.get_mode


@pytest.fixture
def pictures() -> None:
    """The runs of a test that names this fixture draw TensorBoard's pictures, a third of a small run's time."""


@pytest.fixture
def command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Command:
    """Runs `python -m msae.train ARGS`, or another command, in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Hydra, "get_mode", get_mode)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("msae.runs.pictures.Pictures._reconstructions", lambda *_: None)

    def run(*args: str, module: str = "train", traceback: bool = False) -> Result:
        monkeypatch.setenv("HYDRA_FULL_ERROR", str(int(traceback)))
        # of a key given twice the last counts, so that a test can replace those of FAST
        given = {text.partition("=")[0] if "=" in text else f"{text} ": text for text in args}
        monkeypatch.setattr(sys, "argv", [f"msae.{module}", *given.values()])
        new_logging()
        code = 0
        try:
            importlib.import_module(f"msae.{module}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def results() -> dict[tuple[str, ...], tuple[Result, Path]]:
    """How commands ended, and the folders of their files."""
    return {}


@pytest.fixture
def made(
    command: Command, results: dict[tuple[str, ...], tuple[Result, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """Like `command` in an empty folder; if an earlier test ran the same command, its files are copied."""

    def run(*args: str) -> Result:
        if args not in results:
            assert not any(Path().iterdir())
            result = command(*args)
            results[args] = result, Path(shutil.copytree(Path(), tmp_path_factory.mktemp("made") / "copy"))
        result, folder = results[args]
        shutil.copytree(folder, Path(), dirs_exist_ok=True)
        return result

    return run


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    """Undo an earlier command's changes: its handlers of logging, the loggers that it disabled, what it told Hydra."""
    os.environ.pop("HYDRA_FULL_ERROR", None)
    new_logging()


def new_logging() -> None:
    """Logging as in a new process."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for handler in [h for h in logging.root.handlers if type(h) in {logging.StreamHandler, logging.FileHandler}]:
        logging.root.removeHandler(handler)
        handler.close()
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


def save(model: msae.models.reconstructor.Reconstructor, path: str, names: list[str] | None = None) -> None:
    """A checkpoint of a model as it is, with these names of channels."""
    x = torch.zeros(4, model.channels, model.length)
    data = msae.data.module.DataModule(msae.data.module.Windows(x), msae.data.module.Windows(x), names=names)
    model.set_statistics(**data.statistics)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=0, **quiet)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(path)


def write_idx(folder: Path, name: str, values: np.ndarray) -> None:
    """MNIST's format: magic number, sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    (folder / name).write_bytes(struct.pack(">HBB", 0, 8, values.ndim) + sizes + values.astype(np.uint8).tobytes())


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 160 training and 40 test images in MNIST's files, whose md5 sums msae takes for MNIST's."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "cache" / "msae" / "MNIST" / "raw"
    for split, n in (("train", 160), ("t10k", 40)):
        write_idx(raw, f"{split}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(raw, f"{split}-labels-idx1-ubyte", rng.integers(0, 10, n))
    sums = {name: hashlib.md5((raw / name).read_bytes()).hexdigest() for name in msae.data.mnist.FILES}
    monkeypatch.setattr(msae.data.mnist, "FILES", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return raw


@pytest.fixture
def sigint() -> Iterator[None]:
    """SIGINT interrupts: a shell's background jobs ignore it, and Lightning does from its first interruption on."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)
