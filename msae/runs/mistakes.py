"""What a command says about a user's mistake: one line, whichever library noticed it."""

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from msae.errors import InputError, needs, one_line
from msae.help import CONF
from msae.runs import folder
from msae.runs.processes import leads
from msae.whole import FULL, free

MISTAKES = (InputError, HydraException, OmegaConfBaseException, OSError)
"""Errors that end a command in one line, the machine's among them; all others are ours, and show their traceback."""


def fail(message: str) -> NoReturn:
    """End the command with exit code 2 and one clear message."""
    if leads():
        print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def explain(error: BaseException, config_name: str) -> str:
    """The message about an exception for the user."""
    chain = causes(error)
    section = re.search(r"full_key: (\S+)", str(error)) if isinstance(error, InstantiationException) else None
    for link in chain:
        if isinstance(link, InputError):  # its keys are arguments of what was instantiated
            return f"{section[1]}.{link}" if section and re.match(r"\w+=", str(link)) else str(link)
        if isinstance(link, MissingConfigException) and link.options and link.missing_cfg_file:
            group, _, name = link.missing_cfg_file.rpartition("/")
            if (group, name) != ("hydra/launcher", "ray"):  # which is its package's, as are its options
                there = [option for option in link.options if not option.startswith("_")]  # parts of others
                return f"{group}={name}: no such option{nearest(name, there)}; there are {', '.join(there)}"
            error = needs("hydra/launcher=ray", "hydra-ray-launcher", "ray")
    if key := re.match(r"Could not override '([^']+)'", str(error)):
        return unknown_key(key[1], config_name)
    if isinstance(error, (MissingMandatoryValue, ConfigCompositionException, OverrideParseException)):
        return incomplete(error)
    if isinstance(error, InstantiationException):
        where = section[1] if section else "the config"
        return not_made(str(error), where) or (
            f"in {where}: {reason_of(chain[1] if len(chain) > 1 else error)} (HYDRA_FULL_ERROR=1 shows the traceback)"
        )
    return reason_of(error)


def causes(error: BaseException) -> list[BaseException]:
    """An exception, and those that it was raised for."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def full_disk(error: BaseException) -> bool:
    """Whether an exception was raised for a full disk."""
    return any(isinstance(cause, OSError) and cause.errno in FULL for cause in causes(error))


def not_made(text: str, where: str) -> str | None:
    """The message for a `_target_` whose module lacks the name, or that does not take one of its section's keys."""
    if lacking := re.match(r"Error locating target '([\w.]+)\.(\w+)'", text):
        with contextlib.suppress(ImportError):
            names = vars(importlib.import_module(lacking[1]))
            return f"{where}._target_: {lacking[1]} has no {lacking[2]}{nearest(lacking[2], names)}"
    target, key = re.match(r"Error in call to target '([\w.]+)'", text), re.search(r"argument '(\w+)'", text)
    if target and key and "unexpected keyword" in text:
        called = get_object(target[1])
        methods = [c.__init__ for c in called.__mro__[:-1]] if isinstance(called, type) else [called]  # type: ignore[misc]
        taken = [name for method in methods for name in inspect.signature(method).parameters]
        return f"{where}.{key[1]}: {target[1]} takes no such key{nearest(key[1], taken)}"
    return None


def incomplete(error: MissingMandatoryValue | ConfigCompositionException | OverrideParseException) -> str:
    """The message for a key without a value, or with several, or for an override that Hydra's grammar does not take."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: no value; expected {error.full_key}=..."
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'(?: requires|\s+1\.)", str(error)):
        seeds = several[1].startswith("seed=")
        also = "seed=[0,1,2] trains several as one" if seeds else "or quotes around a comma that belongs to it"
        return f"{several[1]}: several values; expected one, or a sweep, -m; {also}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; expected key=value; is a quote or bracket left open?"
    return reason_of(error)


def reason_of(error: BaseException) -> str:
    """The text of an exception without line breaks; of a full disk, where it is full."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
        given = (
            OmegaConf.select(cast(DictConfig, HydraConfig.get()), "runtime.output_dir")
            if HydraConfig.initialized()
            else None
        )
        return f"{os.strerror(error.errno)}: {free(Path(given or '.'))}, {free(Path(tempfile.gettempdir()))}"
    return one_line(error)


def nearest(name: str, names: Iterable[str]) -> str:
    """`; nearest: ...`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3)
    return f"; nearest: {', '.join(near)}" if near else ""


def unknown_key(key: str, config_name: str) -> str:
    """The message for a key that the config lacks, with the keys that are near it."""
    groups = [text.split(",")[0] for text in sys.argv[1:] if text.split("=")[0] in ("model", "data", "trainer")]
    there = contextlib.nullcontext()  # within a command Hydra is
    with there if GlobalHydra().is_initialized() else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(config_name, overrides=groups))
    assert isinstance(config, dict)
    keys = [name for name in [*map(str, config), *folder.flat(config)] if "._" not in name]
    return f"{key}: no such key{nearest(key, keys) or '; --help lists all keys'}"
