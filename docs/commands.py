"""The command reference: a page for each command and each group of options, from the yaml files and their comments."""

import ast
import re
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf

from msae.__main__ import COMMANDS
from msae.help import CONF, GROUPS, PACKAGE, Key, description, documented, groups, keys, option_keys, options


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


def link(group: str) -> str:
    """The name of a group's page."""
    return f"group_{group.replace('/', '_')}"


def anchor(group: str, option: str) -> str:
    """The anchor of an option on its group's page."""
    return f"{link(group)}_{option}"


def command_page(command: str) -> str:
    """What a command does, its keys, and the groups that it takes."""
    config = OmegaConf.load(CONF / f"{command}.yaml")
    parts = [f"# {command}", "", *markdown(config.hydra.help.header), "## Keys", "", *table(documented(command))]
    if found := groups(command):
        parts += ["## Groups", "", "| group | default | options |", "| --- | --- | --- |"]
        for group, default in found.items():
            names = ", ".join(f"[`{option}`]({link(group)}.md#{anchor(group, option)})" for option in options(group))
            parts.append(f"| [`{group}`]({link(group)}.md) | {default and f'`{default}`'} | {names} |")
    return "\n".join(parts)


def group_page(group: str) -> str:
    """The options of a group, each with its keys."""
    parts = [f"# {group}=OPTION", "", GROUPS[group], ""]
    for option in options(group):
        text = (CONF / group / f"{option}.yaml").read_text()
        parts += [f"({anchor(group, option)})=", f"## {group}={option}", "", escaped(description(text)), ""]
        if group == "experiment":
            parts += ["```yaml", *(line for line in text.splitlines() if not line.startswith("#")), "```", ""]
            continue
        defaults = OmegaConf.create(text).get("defaults", [])
        bases = [name for name in defaults if name in options(group)]
        rows = [row for row in option_keys(group, option) if not bases or row.name in {key.name for key in keys(text)}]
        if bases:
            parts += [f"The keys of `{bases[0]}`" + (", with other defaults of these:" if rows else "."), ""]
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
