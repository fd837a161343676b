"""The text of `--help` and of the command reference: the keys of the yaml files and the comments behind them."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import OmegaConf

PACKAGE = Path(__file__).parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""The configs: inside the package in a wheel, beside it in a checkout."""
GROUPS = {
    "model": "The model and its training.",
    "data": "The data set and how it is read.",
    "trainer": "How long and on which devices the model is trained: arguments of `lightning.Trainer`.",
    "callbacks": "Callbacks of Lightning, beside those of the project.",
    "logger": "Loggers of Lightning, beside TensorBoard.",
    "experiment": "Settings and sweeps that reproduce the studies.",
    "hydra/launcher": "How the runs of a sweep are started.",
}


class Key(NamedTuple):
    """A key of a yaml file: its name, its default as text, and the comment behind it."""

    name: str
    default: str
    meaning: str


def content(path: Path) -> dict[str, Any]:
    """A yaml file, its interpolations as they stand there."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


def keys(text: str) -> list[Key]:
    """The keys at the top level of a yaml file."""
    found = (re.fullmatch(r"(\w+): *(.*?)(?: *(?<!\S)# *(.*))?", line) for line in text.splitlines())
    rows = [Key(row[1], row[2], row[3] or "") for row in found if row]
    return [row for row in rows if row.name not in ("defaults", "hydra") and not row.name.startswith("_")]


def documented(config_name: str) -> list[Key]:
    """The keys of a command, those of the command that it extends included."""
    path = CONF / f"{config_name}.yaml"
    own = keys(path.read_text(encoding="utf-8"))
    bases = [
        documented(name) for name in content(path).get("defaults", []) if isinstance(name, str) and name != "_self_"
    ]
    merged = {row.name: row for rows in [own, *bases] for row in rows}
    return list((merged | {row.name: row for row in own}).values())


def option_keys(group: str, option: str) -> list[Key]:
    """The keys of an option, those of the options that it extends included."""
    path = CONF / group / f"{option}.yaml"
    merged: dict[str, Key] = {}
    for name in content(path).get("defaults", []):
        if isinstance(name, str) and name != "_self_" and (path.parent / f"{name}.yaml").is_file():
            merged |= {row.name: row for row in option_keys(group, name)}
    for row in keys(path.read_text(encoding="utf-8")):
        known = merged.get(row.name, row)
        merged[row.name] = row if row.meaning else row._replace(meaning=known.meaning)
    return list(merged.values())


def description(text: str) -> str:
    """The comment that an option's file begins with."""
    lines = [line for line in text.partition("\n_")[0].splitlines() if not line.startswith("# @package")]
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:first])


def groups(config_name: str) -> dict[str, str]:
    """The groups that a command takes, each with its default option, or empty."""
    found: dict[str, str] = {}
    for entry in content(CONF / f"{config_name}.yaml").get("defaults", []):
        if isinstance(entry, str):
            found |= groups(entry) if entry != "_self_" else {}
        else:
            name, option = next(iter(entry.items()))
            found[str(name).removeprefix("optional ").removeprefix("override ")] = str(option or "")
    return {name: option for name, option in found.items() if name in GROUPS}


def options(group: str) -> list[str]:
    """A group's options; files whose names begin with an underscore are parts of others."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.name.startswith("_"))


def text(config_name: str, given: Sequence[str] = (), verbose: bool = False) -> str:
    """The text of `--help`, in at most 40 lines; `verbose`, the whole description and the keys of the options chosen.

    Args:
        config_name: of the command.
        given: the command line's arguments, of which `model=`, `data=` and `trainer=` choose options.
        verbose: whether everything is printed.
    """
    blocks = content(CONF / f"{config_name}.yaml")["hydra"]["help"]["header"].strip().split("\n\n")
    header = blocks if verbose else [blocks[0], *[block for block in blocks[1:] if block.startswith("  ")][:1]]
    lines = [f"python -m msae.{config_name} key=value ...", "", *"\n\n".join(header).splitlines(), "", "Keys:"]
    lines += table(documented(config_name))
    chosen = dict(text.split("=", 1) for text in given if re.match(r"(model|data|trainer)=\w+$", text))
    found = groups(config_name)
    if found:
        lines += ["", "Groups (group=option):"]
    for group, default in found.items():
        names = ", ".join(f"[{name}]" if name == default else name for name in options(group))
        lines += wrapped(f"  {group:<16}", names)
    for group, default in found.items() if verbose else ():
        option = chosen.get(group, default)
        if group in ("model", "data", "trainer") and option in options(group):
            about = description((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
            lines += ["", f"Keys of {group}={option}: {about}"]
            lines += table([row._replace(name=f"{group}.{row.name}") for row in option_keys(group, option)])
    if found and not verbose:
        lines += ["", "--help -v describes everything, with the keys of the chosen model, data and trainer."]
    return "\n".join(lines)


def table(rows: Sequence[Key]) -> list[str]:
    """Lines of keys with their defaults and meanings."""
    cells = [f"  {row.name}={'...' if row.default == '???' else row.default}" for row in rows]
    width = min(34, max(map(len, cells), default=0))
    lines = [wrapped(f"{cell:<{width}}", row.meaning) for cell, row in zip(cells, rows, strict=True)]
    return [line.rstrip() for few in lines for line in few]


def wrapped(first: str, rest: str) -> list[str]:
    """A line that begins with `first`, and as many as `rest` needs at the width of the terminal."""
    width = max(80, min(120, shutil.get_terminal_size().columns))
    indent = " " * (len(first) + 2)
    return textwrap.wrap(rest, width, initial_indent=f"{first}  ", subsequent_indent=indent) or [first]
