"""Compare the runs of a sweep: `python -m msae.report FOLDER`, and by itself when a sweep ends."""

import argparse
from pathlib import Path

from msae.cli import printable
from msae.runs.comparison import report, shown
from msae.runs.mistakes import MISTAKES, explain, fail


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m msae.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a sweep, with a folder for each run")
    parser.add_argument(
        "--allow",
        metavar="NAME",
        action="append",
        default=[],
        help="a data set of your own, package.module.function, or a model, package.module:Class, that the runs name",
    )
    given = parser.parse_args()
    printable()
    try:
        print(shown(report(given.folder, given.allow)[0]))
    except MISTAKES as error:
        fail(explain(error, "train"))


if __name__ == "__main__":
    main()
