"""Overrides as they are typed: paths and names are values, in which no sign has a meaning for Hydra's grammar."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, Sweep
from hydra.errors import HydraException

ONE = (
    *("ckpt", "out", "resume", "hydra.run.dir", "hydra.sweep.dir"),
    *("data.separator", "data.decimal", "data.time_format"),
)
"""Keys of one text."""
MANY = (
    *("reference", "label", "data.path", "data.test_path", "data.root"),
    *("data.columns", "data.time_column", "data.group_column"),
)
"""Keys of one text, of a list `[a,b]`, or in a sweep of several, `a,b`."""


def key_of(text: str) -> str:
    """The key of an override."""
    return text.partition("=")[0].lstrip("+~")


def as_typed(text: str) -> str:
    """An override whose path or name Hydra takes as it is typed, quoted by Hydra where its grammar needs it.

    What Hydra reads as one quoted text stays as it is, as does a list or a sweep, unless there is a file of that name.

    Examples:
        >>> as_typed("out=runs/[b]"), as_typed("data.path=[a.csv,b.csv]"), as_typed("model.lr=1e-3")
        ("out='runs/[b]'", 'data.path=[a.csv,b.csv]', 'model.lr=1e-3')
    """
    key, _, value = text.partition("=")
    many = key_of(key) in MANY
    if not (many or key_of(key) in ONE) or text.startswith("~") or value in ("", "null"):
        return text
    read = element(text)
    if read == value or isinstance(read, QuotedString):
        return text
    if many and not exists(value):
        if isinstance(read, (list, Sweep)):
            return text
        if value[0] == "[" and value[-1] == "]":
            return f"{key}=[{quoted(items(value[1:-1]))}]"
        if len(parts := items(value)) > 1 and all(map(exists, parts)):
            return f"{key}={quoted(parts)}"
    return f"{key}={quoted([value])}"


def element(text: str) -> Any:
    """The value of an override as Hydra parses it; None where it cannot be read."""
    try:
        return OverridesParser.create().parse_override(text)._value  # noqa: SLF001  (`value()` loses the quotes)
    except HydraException:
        return None


def items(text: str) -> list[str]:
    """The texts between commas; an item in double quotes may contain commas, as in a .csv file."""
    return [item.strip() for item in next(csv.reader([text], skipinitialspace=True), [])]


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return Path(path).expanduser().exists()


def quoted(values: Iterable[str]) -> str:
    """Texts as values of Hydra's grammar, with commas between them."""
    return ",".join(QuotedString(value, Quote.single).with_quotes() for value in values)


def value_of(text: str) -> str | None:
    """The path or name that an override gives to its key; None for null."""
    value = OverridesParser.create().parse_override(as_typed(text)).value()
    return None if value is None else str(value)
