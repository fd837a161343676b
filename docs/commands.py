"""The command reference: a page for each command and each group of options, from the yaml files and their comments."""

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from msae.cli import CONF, PACKAGE

COMMANDS = ["train", "search", "detect", "embed", "augment", "forecast", "reconstruct", "export"]
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
    """A row of a table of keys."""

    name: str
    default: str
    meaning: str


def keys(text: str) -> Iterator[Key]:
    """The keys at the top level of a yaml file, each with the comment behind it."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+): *(.*?)(?: *(?<!\S)# *(.*))?", line)
        if found and found[1] not in ("defaults", "hydra") and not (found[1].startswith("_")):
            yield Key(found[1], found[2], found[3] or "")


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is, except for code in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\[\]$])", r"\\\1", part) for part in parts)


def table(rows: list[Key]) -> list[str]:
    """A Markdown table of keys, without the column of meanings where no key has one."""
    cells = [["key", "default", "meaning"], ["---"] * 3]
    for row in rows:
        default = "required" if row.default == "???" else f"`{row.default}`" if row.default else ""
        cells.append([f"`{row.name}`", default, escaped(row.meaning)])
    columns = 3 if any(row.meaning for row in rows) else 2
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line[:columns])} |" for line in cells] + [""]


def markdown(header: str) -> list[str]:
    """The text of `--help` as Markdown: what is indented in it is code."""
    lines: list[str] = []
    for is_code, block in groupby(header.splitlines(), lambda line: line.startswith("  ")):
        text = [line[2:] if is_code else escaped(line) for line in block]
        lines += ["", "```text", *text, "```", ""] if is_code else text
    return [*lines, ""]


def description(text: str) -> str:
    """The comment that an option's file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return escaped(" ".join(lines))


def groups(config: DictConfig) -> dict[str, str]:
    """The groups in a command's defaults, and in those of the command that it extends, with the default option."""
    found: dict[str, str] = {}
    for entry in config.get("defaults", []):
        if isinstance(entry, str):
            found |= groups(OmegaConf.load(CONF / f"{entry}.yaml")) if entry != "_self_" else {}
        else:
            name, option = next(iter(entry.items()))
            found[str(name).removeprefix("optional ").removeprefix("override ").split("@")[0]] = str(option or "")
    return {name: option for name, option in found.items() if name in GROUPS}


def options(group: str) -> list[Path]:
    """The files of a group's options; names that begin with an underscore are parts of others."""
    return [path for path in sorted((CONF / group).glob("*.yaml")) if not path.name.startswith("_")]


def link(group: str) -> str:
    """The name of a group's page."""
    return f"group_{group.replace('/', '_')}"


def anchor(group: str, option: str) -> str:
    """The anchor of an option on its group's page."""
    return f"{link(group)}_{option}"


def command_page(command: str) -> str:
    """What a command does, its keys, and the groups that it takes."""
    text = (CONF / f"{command}.yaml").read_text()
    config = OmegaConf.load(CONF / f"{command}.yaml")
    parts = [f"# {command}", "", *markdown(config.hydra.help.header), "## Keys", "", *table([*keys(text)])]
    if "train" in config.defaults:
        parts += ["The [keys of train](train.md#keys) are keys of this command too.", ""]
    if found := groups(config):
        parts += ["## Groups", "", "| group | default | options |", "| --- | --- | --- |"]
        for group, default in found.items():
            names = ", ".join(
                f"[`{path.stem}`]({link(group)}.md#{anchor(group, path.stem)})" for path in options(group)
            )
            parts.append(f"| [`{group}`]({link(group)}.md) | {default and f'`{default}`'} | {names} |")
    return "\n".join(parts)


def group_page(group: str) -> str:
    """The options of a group, each with its keys."""
    parts = [f"# {group}=OPTION", "", GROUPS[group], ""]
    for path in options(group):
        text = path.read_text()
        parts += [f"({anchor(group, path.stem)})=", f"## {group}={path.stem}", "", description(text), ""]
        if group == "experiment":
            parts += ["```yaml", *(line for line in text.splitlines() if not line.startswith("#")), "```", ""]
            continue
        bases = [
            name for name in OmegaConf.load(path).get("defaults", []) if isinstance(name, str) and name != "_self_"
        ]
        files = [CONF / group / f"{name.split('@')[0]}.yaml" for name in bases]
        inherited = {key.name: key for file in files if file.is_file() for key in keys(file.read_text())}
        rows = [
            key if key.meaning else key._replace(meaning=inherited.get(key.name, key).meaning) for key in keys(text)
        ]
        if bases and not bases[0].startswith("_"):
            parts += [f"The keys of `{bases[0]}`" + (", with other defaults of these:" if rows else "."), ""]
        else:
            rows = [*({**inherited} | {row.name: row for row in rows}).values()]
        parts += table(rows) if rows else []
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write all pages and an index of them into `folder`, in place of those that it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    commands = [name for name in COMMANDS if (CONF / f"{name}.yaml").is_file()]
    present = [group for group in GROUPS if options(group)]
    report = ast.get_docstring(ast.parse((PACKAGE / "report.py").read_text()))
    pages = {name: command_page(name) for name in commands} | {"report": f"# report\n\n{report}"}
    pages |= {link(group): group_page(group) for group in present}
    index = [
        "# Commands",
        "",
        "`msae COMMAND key=value ...` and `python -m msae.COMMAND key=value ...` are the same.",
        "",
    ]
    index += ["```{toctree}", ":caption: Commands", ":maxdepth: 1", "", *commands, "report", "```", ""]
    index += ["```{toctree}", ":caption: Groups of options", ":maxdepth: 1", "", *map(link, present), "```", ""]
    for name, text in (pages | {"index": "\n".join(index)}).items():
        (folder / f"{name}.md").write_text(text + "\n")
