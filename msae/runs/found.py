"""What a file that was found, rather than typed, may run: a checkpoint's data options, a run's config.yaml, overrides.

A run's folder may come from elsewhere. Of what its files name, only the data sets of `conf/data` are called, those that
a package registers as entry points of the group `msae.data`, and what the user types.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from msae.errors import InputError
from msae.help import CONF, content

if TYPE_CHECKING:
    from msae.data.module import DataModule

SECTIONS = (
    *("model", "data", "trainer", "callbacks", "logger", "experiment", "latent", "latent@model"),
    *("seed", "threads", "n_trials"),
)
"""What overrides in a run's folder may be of."""
GROUP = "msae.data"
"""Entry points of packages whose data sets files may name."""


@cache
def known() -> frozenset[str]:
    """The data sets that files may name."""
    own = {str(content(file).get("_target_")) for file in (CONF / "data").glob("*.yaml")}
    return frozenset(own | {point.value.replace(" ", "").replace(":", ".") for point in entry_points(group=GROUP)})


def check(where: str, options: Any, hint: str, typed: Collection[str] = ()) -> None:
    """Raise InputError unless options call a data set that is known, or typed, with plain values.

    Args:
        where: the file, for an error.
        options: its `data` section, as plain dicts and lists.
        hint: how the user opts in, with `{}` for the target.
        typed: the targets that the user typed.
    """
    target = options.get("_target_") if isinstance(options, dict) else None
    if not isinstance(target, str):
        raise InputError(f"{where}: does not say which data set it reads")
    if target not in known() and target not in typed:
        raise InputError(
            f"{where}: reads its data by {target[:200]}, which is not run for a file that names it; "
            f"where you trust it, {hint.format(target[:200])}, or register it as an entry point of {GROUP}"
        )
    own = {key: value for key, value in options.items() if key not in ("_target_", "_convert_")}
    for key in keys(own):
        if str(key).startswith("_"):
            raise InputError(f"{where}: {str(key)[:80]} within data; expected plain values there")
    if "${" in repr(own):
        raise InputError(f"{where}: ${{...}} within data; expected plain values there")


def keys(value: Any) -> Iterator[Any]:
    """The keys of nested dicts and lists."""
    if isinstance(value, dict):
        yield from value
        for one in value.values():
            yield from keys(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from keys(one)


def data_set(where: str, options: dict[str, Any], hint: str, typed: Collection[str] = ()) -> DataModule:
    """The data set of options that were found, which are checked as `check` does."""
    check(where, options, hint, typed)
    data: DataModule = instantiate(OmegaConf.create({"data": options}).data)
    return data


def check_overrides(where: str, overrides: Iterable[str]) -> None:
    """Raise InputError for an override that was found and may run code: it has to be typed again, which replaces it."""
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            value = text.partition("=")[2] if override.is_sweep_override() else override.value()
        except HydraException:
            raise InputError(f"{where}: {text[:200]!r} in its files is no override; they are damaged") from None
        key = str(override.key_or_group)
        named = "_target_" in text or any(str(one).startswith("_") for one in [*key.split("."), *keys(value)])
        elsewhere = "." not in key and re.search(r"[/\\]", str(value))  # an option is a file of conf
        if named or elsewhere or not (key.partition(".")[0] in SECTIONS or starts_runs(key, value)):
            raise InputError(
                f"{where}: its files say {text[:200]}, which may run code; where you trust it, type it again"
            )


def starts_runs(key: str, value: Any) -> bool:
    """Whether an override of Hydra's own keys says how runs are started by a number or a name alone."""
    return key == "hydra/launcher" or (
        key.startswith("hydra.launcher.")
        and (
            isinstance(value, (int, float))
            or (key.rpartition(".")[2] in ("partition", "account", "qos") and bool(re.fullmatch(r"[\w-]+", str(value))))
        )
    )
