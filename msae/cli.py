"""Between the command line and Hydra: arguments, the composed config, and errors in one line."""

import _thread
import atexit
import codecs
import functools
import importlib
import io
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    HydraException,
)
from omegaconf import DictConfig, OmegaConf

from msae import help as help_text
from msae.errors import InputError, check_utf8, repeated
from msae.help import CONF
from msae.runs import folder, signals
from msae.runs.mistakes import MISTAKES, explain, fail
from msae.runs.overrides import as_typed, key_of, quoted, value_of
from msae.runs.processes import leads, n_jobs

for resolver in (folder.run_dir, folder.run_name, n_jobs):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def start(command: str) -> None:
    """Run a command's `main` and end the process at once: Python takes a second or two to free all of torch.

    Call it before torch is imported, so that what libraries do at exit is done before.
    """
    code: Any = 1  # of an exception, whose traceback Python prints

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(end)
    try:
        importlib.import_module(f"msae.{command}").main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
        raise
    finally:
        signals.ended()


def run(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Compose the config from the command line and give it to `task`, once or for each run of a sweep.

    A user's mistake ends in one line on stderr and exit code 2; HYDRA_FULL_ERROR=1 in the environment shows the
    traceback as well.
    """
    printable()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text.text(config_name, sys.argv[1:], verbose=bool({"-v", "--verbose"} & set(sys.argv[1:]))))
        return
    full = leads() and os.environ.get("HYDRA_FULL_ERROR") == "1"  # which the other processes inherit from the first
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits itself
    sweep = prepared(config_name)
    new = not sweep.exists()

    def guarded(config: DictConfig) -> None:
        try:
            task(config)
        except MISTAKES as error:
            if full:
                raise
            fail(explain(error, config_name))

    sys.argv += ["hydra/job_logging=disabled", "~hydra.job_logging.handlers"] * (not leads())
    hook, sys.unraisablehook = sys.unraisablehook, dropped
    threading.excepthook = of_thread
    with signals.watched():
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
                functools.wraps(task)(guarded)
            )()
        except MISTAKES as error:
            if new and not any(sweep.glob("*/")):  # a sweep that does not compose starts no run
                shutil.rmtree(sweep, ignore_errors=True)
            if full:
                raise
            fail(explain(error, config_name))
        except KeyboardInterrupt:
            print("\n" + (folder.interrupted(sweep) if config_name == "train" else "interrupted"))
            sys.exit(signals.code())
        finally:
            sys.unraisablehook = hook
            threading.excepthook = threading.__excepthook__


def printable() -> None:
    """Print what the terminal's encoding lacks in ASCII, where Python would raise an error."""
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def plain(error: UnicodeError) -> tuple[str, int]:
    """What `printable` prints: `+-` for `±`, and escapes for other signs."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].replace("±", "+-")
    return text.encode("ascii", "backslashreplace").decode(), error.end


def prepared(config_name: str) -> Path:
    """Rewrite the command line as Hydra takes it; the folder of the runs, where the command is a sweep."""
    try:
        for text in (*sys.argv[1:], str(Path.cwd())):
            check_utf8(text)
        # a search finds its study before it parses what to try
        texts = folder.resumed(sys.argv[1:]) if config_name == "train" else sys.argv[1:]
    except InputError as error:
        fail(str(error))
    texts = [as_typed(text) for text in sorted(texts, key=is_override)]  # argparse wants them side by side
    if keyless := next((text for text in texts if text.startswith("=")), None):
        fail(f"{keyless}: expected key=value")
    given = [key_of(text) for text in texts if is_override(text)]
    if twice := repeated(given):
        fail(f"{twice[0]}: given {given.count(twice[0])} times; expected it once")
    for text in texts:
        if text in ("out=", "hydra.run.dir=", "hydra.sweep.dir="):
            fail(f"{text[:-1]}: no value; expected a folder, such as {text}runs/machine")
    keys = ("out", "hydra.sweep.dir") if config_name == "train" else ("hydra.sweep.dir",)
    places = {key: place for text in texts if (key := key_of(text)) in keys and (place := value_of(text))}
    sweep = Path([folder.sweep_dir(texts), *places.values()][-1])
    if "hydra.sweep.dir" not in places:  # as an override, the folder is the same for every run of the sweep
        texts.append(f"hydra.sweep.dir={quoted([str(sweep)])}")
    sys.argv[1:] = of_each_run(texts)
    return sweep


def dropped(error: "sys.UnraisableHookArgs") -> None:
    """Interrupt again where Python drops an interruption: in what a weak reference calls, where training often is."""
    if issubclass(error.exc_type, KeyboardInterrupt):
        signals.again()
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(error)


def of_thread(given: threading.ExceptHookArgs) -> None:
    """Say nothing of a full disk in TensorBoard's writing thread: who writes next gets the error again."""
    if not (isinstance(given.exc_value, OSError) and type(given.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(given)


def of_each_run(texts: Sequence[str]) -> list[str]:
    """Overrides, of which those of a swept option's own keys are for its runs: the sweep itself may lack the keys."""
    groups = {text.partition("=")[0] for text in texts if re.match(r"(model|data|trainer)=[\w,]+,", text)}
    found = []
    for text in texts:
        key, _, value = text.partition("=")
        try:
            one = not OverridesParser.create().parse_override(text).is_sweep_override()
        except HydraException:  # which Hydra tells
            one = False
        found.append(f"{key}=choice({value})" if one and key.split(".")[0] in groups - {key} else text)
    return found


def is_override(text: str) -> bool:
    """Whether an argument is an override, such as `key=value` or `~key`, and not a flag or its value."""
    return text.startswith("~") or ("=" in text and not text.startswith("-"))
