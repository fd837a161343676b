"""The studies' pages are made of the numbers that their scripts wrote."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent))
from studies import pages, tables
from studies.faults import faults

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.parent.name for path in (ROOT / "studies").glob("*/README.md"))


def text(name: str) -> str:
    """A page's text on one line."""
    return " ".join(pages.page(name).split())


def test_every_page_is_written(tmp_path: Path) -> None:
    """Each with its tables filled in, its pictures and numbers beside it, and a line in the index."""
    assert sorted(pages.ORDER) == NAMES
    assert sorted(path.name for path in (ROOT / "studies").iterdir() if (path / "README.md").exists()) == NAMES
    pages.build(tmp_path / "out")
    index = (tmp_path / "out" / "index.md").read_text()
    for name in NAMES:
        written = (tmp_path / "out" / name / "index.md").read_text()
        assert f"({name}/index.md)" in index
        assert "[Table" not in written
        assert "\n| --- |" in written or "\n| ---: |" in written
        for link in re.findall(r"\]\(([^)#]+)\)", written):
            assert (tmp_path / "out" / name / link).exists(), (name, link)
        for picture in (tmp_path / "out" / name).glob("*.png"):
            assert f"]({picture.name})" in written
            assert 10_000 < picture.stat().st_size < 150_000


def test_every_table_is_shown_once_beside_its_numbers() -> None:
    """A marker's link is the file that the table is made of."""
    sources = {name: (ROOT / "studies" / name / "README.md").read_text() for name in NAMES}
    markers = [(name, *found) for name, source in sources.items() for found in pages.MARKER.findall(source)]
    assert len({table for _, table, _ in markers}) == len(markers) == sum(s.count("[Table") for s in sources.values())
    for name, _, path in markers:
        assert (ROOT / "studies" / name / path).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_number_changes_the_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pages.page(name)
    source = (ROOT / "studies" / name / "README.md").read_text()
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    original = tables.script
    monkeypatch.setattr(tables, "script", lambda path: original(str(ROOT / "studies" / path)))
    shutil.copytree(ROOT / "studies" / name, tmp_path / name)
    for table, file in pages.MARKER.findall(source):
        path = tmp_path / name / file
        kept = path.read_text()
        path.write_text(json.dumps(changed(json.loads(kept))))
        assert getattr(tables, table)() not in before, table
        path.write_text(kept)
        assert getattr(tables, table)() in before, table


def changed(value: Any) -> Any:
    """The same with every fraction changed, ratios of them too; their order stays."""
    if isinstance(value, dict):
        return {key: changed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [changed(item) for item in value]
    return 1.5 * value + 0.1 if isinstance(value, float) else value


def test_the_text_says_what_the_numbers_say() -> None:
    """Ranks, tests and intervals that stand in sentences."""

    def plain(value: float, digits: int) -> str:
        return f"{value:.{digits}f}".replace("0.", ".", 1)

    ucr = tables.numbers("ucr/ucr.json")["over"]
    for row in ucr["ranks"]:
        assert re.search(rf"`?{row['model']}`? {row['mean_rank']:.2f}", text("ucr"))
    tests = {
        test["against"]: f"p = {test['p']:.2g}".replace("0.", ".")
        for test in ucr["tests"]
        if test["model"] == "pyramid"
    }
    assert f"{tests['single']} for `pyramid` against `single` and {tests['segmented']} against `segmented`" in text(
        "ucr"
    )
    series = tables.numbers("real_series/series.json")["over_data_sets"]
    for row in series["ranks"]:
        assert re.search(rf"`?{row['model']}`? {row['mean_rank']:.2f}", text("real_series"))
    test = series["tests"][0]
    assert (test["model"], test["against"]) == ("msae16", "ae16")
    assert f"on {test['won']} of {series['n']} " in text("real_series")
    assert f"p = {test['p']:.2g}); its MSE is {test['ratio']:.2f} times".replace("0.0", ".0") in text("real_series")
    differences = tables.numbers("augmentation/lgta.json")["data"]["sensor"]["differences"]
    both, own = "lgta model.step_dim=1 model.global_dim=32 model.equivariance=0", "lgta model.equivariance=0"
    low, high = tables.oriented(differences, both, own)
    assert f"contains 0 ({plain(low, 3)} to {plain(high, 3)})" in text("augmentation").replace("-0.", "-.")


def in_readme(title: str) -> list[str]:
    """The rows of the table in a section of README.md."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


def test_findings_are_those_of_the_studies() -> None:
    """Six lines of README.md, with numbers of the studies and links to their pages; and the paper's table there."""
    rows = in_readme("What we found")
    assert len(rows) == 6
    found = [(row, re.findall(r"\(studies/(\w+)/README\.md\)", row)) for row in rows]
    found += [(row, ["table1"]) for row in in_readme("The paper's table")]
    for row, linked in found:
        assert linked
        everything = " ".join(pages.page(name) for name in linked)
        for number in re.findall(r"(?<![\w.])-?\d*\.\d+", row.rpartition("|")[0]):
            assert re.search(rf"(?<![\d.])0?{re.escape(number)}", everything), (number, linked)


@pytest.mark.parametrize("part", ["control", "realism", "use"])
def test_commands_of_augmentation_are_those_of_the_numbers(part: str) -> None:
    given = tables.numbers(f"augmentation/augmentation_{part}.json")["arguments"]
    page = (ROOT / "studies" / "augmentation" / "README.md").read_text()
    [line] = [
        line for line in page.splitlines() if line.startswith(f"python studies/augmentation/augmentation.py {part} ")
    ]
    assert shlex.split(line)[3 : 3 + len(given["sources"])] == given["sources"]
    assert {given[key] for key in ("seeds", "steps", "windows")} == {3, 2000, 1000}


def test_a_killed_run_loses_nothing(tmp_path: Path) -> None:
    """The study of faults in short: two kills of a run of two epochs."""
    few = [
        "--commands",
        "run",
        "--faults",
        "kill",
        "--kills",
        "2",
        "--epochs",
        "2",
        "--out",
        str(tmp_path / "few.json"),
    ]
    script = str(ROOT / "studies" / "faults" / "faults.py")
    ended = subprocess.run([sys.executable, script, *few], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "few.json").read_text())["run"]["kill"] == {"survived": 2, "tried": 2}


def test_a_try_that_is_lost_fails_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter(["", "a table is not whole"])
    monkeypatch.setattr(faults.Trial, "measure", lambda _: None)
    monkeypatch.setitem(faults.FAULTS, "kill", (lambda *_: (next(tries), 0.0), ("run",)))
    few = ["--commands", "run", "--faults", "kill", "--kills", "2", "--out", str(tmp_path / "few.json")]
    monkeypatch.setattr(sys, "argv", ["faults.py", *few])
    with pytest.raises(SystemExit) as ended:
        faults.main()
    assert ended.value.code == 1
    assert json.loads((tmp_path / "few.json").read_text())["run"]["kill"] == {"survived": 1, "tried": 2}
