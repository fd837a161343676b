"""Between the command line and Hydra: arguments, the composed config, and errors in one line."""

import _thread
import atexit
import functools
import importlib
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
from msae.errors import InputError
from msae.help import CONF
from msae.runs import folder, signals
from msae.runs.mistakes import MISTAKES, explain, fail
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


def run(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Compose the config from the command line and give it to `task`, once or for each run of a sweep.

    A user's mistake ends in one line on stderr and exit code 2; HYDRA_FULL_ERROR=1 in the environment shows the
    traceback as well.
    """
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

    sys.argv += ["hydra/job_logging=disabled"] * (not leads())
    hook, sys.unraisablehook = sys.unraisablehook, dropped
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


def prepared(config_name: str) -> Path:
    """Rewrite the command line as Hydra takes it; the folder of the runs, where the command is a sweep."""
    try:
        # a search finds its study before it parses what to try
        texts = folder.resumed(sys.argv[1:]) if config_name == "train" else sys.argv[1:]
    except InputError as error:
        fail(str(error))
    texts = [quoted(text) for text in sorted(texts, key=is_override)]  # argparse wants them side by side
    if keyless := next((text for text in texts if text.startswith("=")), None):
        fail(f"{keyless}: expected key=value")
    for text in texts:
        if text in ("out=", "hydra.run.dir=", "hydra.sweep.dir="):
            fail(f"{text[:-1]}: no value; expected a folder, such as {text}runs/machine")
    keys = ("out", "hydra.sweep.dir") if config_name == "train" else ("hydra.sweep.dir",)
    places = {key: text for text in texts if (key := folder.key_of(text)) in keys}
    given = [text.partition("=")[2].strip("'\"").replace("\\'", "'") for text in places.values()]
    sweep = Path(given[-1] if given else folder.sweep_dir(texts))
    if "hydra.sweep.dir" not in places:  # as an override, the folder is the same for every run of the sweep
        texts.append(f"hydra.sweep.dir={folder.quoted(sweep)}")
    sys.argv[1:] = of_each_run(texts)
    return sweep


def dropped(error: "sys.UnraisableHookArgs") -> None:
    """Interrupt again where Python drops an interruption: in what a weak reference calls, where training often is."""
    if issubclass(error.exc_type, KeyboardInterrupt):
        signals.again()
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(error)


def quoted(text: str) -> str:
    """An override with the quotes that Hydra's grammar wants around signs in paths and formats, if it has none."""
    key, _, value = text.partition("=")
    if value[:1] == "[" and value[-1:] == "]" and not re.search("['\"]", value):
        if key in ("data.columns", "data.path", "data.test_path") and re.search(r"[=(){}]", value):
            return f"{key}=[{','.join(repr(item.strip()) for item in value[1:-1].split(','))}]"
        return text
    # the project's folders have commas in their names
    own = dict.fromkeys(("resume", "ckpt", "out", "reference", "hydra.run.dir"), "[=, ]")
    keys = ("path", "test_path", "root", "time_column", "group_column")  # in which a comma is a sweep
    users = {f"data.{name}": r"[= ()\[\]{}]" for name in keys}
    signs = dict.fromkeys(("data.separator", "data.decimal", "data.time_format"), "^(?!null$)")
    pattern = (own | users | signs).get(key)
    if pattern is None or value[:1] in ("", "'", '"') or not re.search(pattern, value):
        return text
    return "{}='{}'".format(key, value.replace("'", "\\'"))


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
