"""Make the studies' pages: `studies/NAME/README.md` with its tables filled in, the pictures, and an index of them.

    python studies/pages.py FOLDER

The documentation's build calls `build`. A line `[Table: NAME](FILE.json)` becomes the table that the function
`tables.NAME` makes of the numbers.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent
sys.path.append(str(ROOT.parent))
from studies import tables  # noqa: E402

ORDER = (
    "table1",
    "scales",
    "ucr",
    "real_series",
    "features",
    "anomalies",
    "augmentation",
    "forecasts",
    "speed",
    "gpu",
    "faults",
)
MARKER = re.compile(r"^\[Table: (\w+)\]\((\S+\.json)\)$", re.MULTILINE)


def page(name: str) -> str:
    """The text of a study's page, its tables filled in."""
    source = (ROOT / name / "README.md").read_text()
    return MARKER.sub(lambda marker: getattr(tables, marker[1])(), source)


def build(out: Path) -> None:
    """Write every study's page and pictures, and `index.md`, which lists the pages with a line each.

    Args:
        out: the folder to write; made where it does not exist.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in ORDER:
        text = page(name)
        title, question = text.removeprefix("# ").split("\n\n")[:2]
        lines.append(f"- [{title}]({name}/index.md): {' '.join(question.splitlines())}")
        folder = out / name
        folder.mkdir(exist_ok=True)
        (folder / "index.md").write_text(text.replace("/README.md)", "/index.md)"))
        for file in [*(ROOT / name).glob("*.png"), *(ROOT / name).glob("*.json")]:
            shutil.copy(file, folder)
    (out / "index.md").write_text("\n".join(["# All studies", "", *lines, ""]))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
