"""The commands of msae: `python -m msae` lists them, `msae train ...` is `python -m msae.train ...`."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys

from msae.help import PACKAGE

COMMANDS = ("train", "report", "search", "card", "detect", "embed", "augment", "forecast", "reconstruct", "export")


def overview() -> str:
    """The commands, a line each, by the first line of their modules."""
    lines = ["Multi-scale autoencoders for time series. msae COMMAND key=value ...", ""]
    for name in COMMANDS:
        about = ast.get_docstring(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<12} {about.partition(': `')[0]}")
    return "\n".join([*lines, "", "msae COMMAND --help lists the keys of a command."])


def main() -> None:
    """Run the command that the first argument names, or list all."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(overview())
    elif name in COMMANDS:
        sys.argv[1:] = sys.argv[2:]
        runpy.run_module(f"msae.{name}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        print(f"error: {name}: no such command{hint}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
