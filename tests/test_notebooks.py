"""The notebooks are kept with their outputs; `pytest --nbmake notebooks` runs them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def outputs(path: Path) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell."""
    cells = json.loads(path.read_text())["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def texts(path: Path) -> str:
    """The texts of all outputs, without the pictures."""
    shown = [output for cell in outputs(path) for output in cell]
    kinds = [{"text": output.get("text", "")} | output.get("data", {}) for output in shown]
    return "\n".join("".join(text) for kind in kinds for name, text in kind.items() if name != "image/png")


def test_there_are_three() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs(path: Path) -> None:
    """There are pictures and no errors or warnings; the file is small and has no paths of the machine that ran it."""
    cells = outputs(path)
    shown = [output for cell in cells for output in cell]
    assert path.stat().st_size < 400_000
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert cells[-1], "the last cell has no output"
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in shown)
    assert not re.search(r"/(home|root|tmp|Users|work|usr|opt)/|[A-Z]:\\|site-packages", texts(path))


def test_the_kept_table_says_what_the_text_does() -> None:
    """Clipped PCA has a lower error than the models with 128 values and the paper; these two tie, both below `ae`."""
    text = texts(NOTEBOOKS[0])
    mse = {
        (name, size): float(number) for name, size, number in re.findall(r"\| (\S.*?) \| (\d+) \|.*?\| (0\.\d+)", text)
    }
    assert mse["PCA, clipped", "128"] < min(0.003482, mse["ae128", "128"], mse["msae", "128"])
    found = re.findall(r"\| (\w+ - \w+) \| -?[\d.]+ \| (-?[\d.]+) to (-?[\d.]+) \|", text)
    intervals = {names: (float(low), float(high)) for names, low, high in found}
    assert intervals["ae128 - msae"][0] < 0 < intervals["ae128 - msae"][1]
    assert intervals["msae - ae"][1] < 0
