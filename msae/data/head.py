"""The first lines of a .csv file: whether they name the columns, and what the columns hold."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from pyarrow import csv as pa_csv

from msae.errors import InputError, repeated

if TYPE_CHECKING:
    from msae.data.tables import Format

NULLS = frozenset(pa_csv.ConvertOptions().null_values)
"""Texts that mean a missing number in a .csv, such as an empty field, NA and NaN."""
SAMPLE = 100
"""Lines below the first that are looked at."""
INDEX_NAME = "index"
"""The name of a first column without one, in which pandas writes an index."""


class Head(NamedTuple):
    """What the first lines of a .csv file say.

    Attributes:
        names: of the columns, without those that separators at the end of each line make.
        header: whether the first line names them.
        skipped: lines before the first row.
        width: number of fields of a line.
        flags: names of the columns of `true` and `false`.
        unnamed: whether the first column is called `index` only here.
        sample: the fields of some of the first rows.
    """

    names: list[str]
    header: bool
    skipped: int
    width: int
    flags: set[str]
    unnamed: bool
    sample: list[list[str]]


def read_head(path: Path, form: Format) -> Head:
    """The head of a .csv file; raises InputError that asks what the first line is where this is not clear."""
    number, line, sample = first_lines(path, form.separator)
    if line[0].startswith("#"):
        raise InputError(f"{path}, line {number}: {line[0]!r} is no header; remove the lines above the table")
    numbers = all(is_number(text, form.decimal) or text.strip() in NULLS for text in line)
    counted = len(line) > 1 and line == [str(i) for i in range(len(line))]  # how pandas names columns without names
    header: bool = form.header if form.header is not None else not numbers or counted
    data = [text for text in line if re.match(r"[-+]?\d+[-/.,:]\d", text)]
    if header and form.header is None and data:
        raise InputError(
            f"{path}, line {number}: {data[0]!r} is no name; expected numbers only, or a header: "
            "add a first line such as date,a,b, or set data.header=true, or false for columns 0, 1, ..."
        )
    if form.header is None and not header and far(line, sample, form.decimal):
        raise InputError(
            f"{path}, line {number}: {', '.join(line[:4])}: far from the numbers below; are they names? "
            "then set data.header=true, else data.header=false"
        )
    if header and not sample:
        raise InputError(f"{path}: no rows; expected numbers below the header {', '.join(line[:10])}")
    columns = [*zip(*(row for row in [line, *sample] if len(row) == len(line)), strict=True)]
    flags = [{text.strip().lower() for text in column[header:]} & {"true", "false"} for column in columns]
    while len(columns) > 1 and not any(text.strip() for text in columns[-1]):
        columns.pop()  # after a separator at the end of each line
    names = [line[i].strip() if header else str(i) for i in range(len(columns))]
    if unnamed := names[0] == "" and INDEX_NAME not in names:
        names[0] = INDEX_NAME
    check_names(path, names, line)
    found = {name for name, flag in zip(names, flags, strict=False) if flag}
    rows = [row for row in ([] if header else [line]) + sample if len(row) == len(line)]
    return Head(names, header, number - 1 + header, len(line), found, unnamed, rows)


def check_names(path: Path, names: Sequence[str], line: Sequence[str]) -> None:
    """Raise InputError for a name of several columns, and for one column that another separator would split."""
    if twice := repeated(names):
        raise InputError(f"{path}: several columns have the name {', '.join(twice[:10])}")
    if others := [sign for sign in ",;\t|" if len(line) == 1 and sign in line[0]]:
        sign = others[0].replace("\t", "\\t")
        raise InputError(
            f"{path}: one column, {line[0]!r}; is the separator {sign!r}? then set data.separator='{sign}'"
        )


def first_lines(path: Path, separator: str) -> tuple[int, list[str], list[list[str]]]:
    """The number and the fields of the first line that is not blank, and the fields of some lines below it."""
    try:
        with opened(path) as file:
            reader = csv.reader(file, delimiter=separator)
            lines = filter(None, reader)
            line, number = next(lines, []), reader.line_num
            sample = [*islice(lines, SAMPLE)]
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise InputError(f"{path}: not UTF-8 text ({where}); save it as UTF-8") from None
    except (csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a table ({error})") from None
    if not line:
        raise InputError(f"{path}: empty file")
    return number, line, sample


def opened(path: Path, mode: str = "r") -> IO[Any]:
    """The text of a .csv, or of a .csv.gz, to read or to write."""
    options: dict[str, Any] = {"encoding": "utf-8" if mode == "w" else "utf-8-sig", "newline": ""}
    if packed(path):
        return cast(IO[Any], gzip.open(path, f"{mode}t", **options))
    return path.open(mode, **options)


def packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() == ".gz"


def far(line: Sequence[str], sample: Sequence[Sequence[str]], decimal: str) -> bool:
    """Whether the whole numbers of a first line are far from those below in every column, as names are."""
    rows = [[value(text, decimal) for text in row] for row in [line, *sample] if len(row) == len(line)]
    first, below = np.array(rows[0]), np.array(rows[1:])
    if len(below) < 2 or np.isnan(first).any() or (first % 1 != 0).any() or np.isnan(below).all(0).any():
        return False
    low, high = np.nanmin(below, axis=0), np.nanmax(below, axis=0)
    distance = np.maximum(low - first, first - high)
    varies = high > low
    return bool(varies.any() and (distance > 10 * (high - low))[varies].all())


def value(text: str, decimal: str) -> float:
    """A text as a number, NaN where it is none."""
    return float(text.replace(decimal, ".")) if is_number(text, decimal) else float("nan")


def is_number(text: str, decimal: str) -> bool:
    """Whether a text is a number, with this decimal point."""
    try:
        float(text.replace(decimal, "."))
    except ValueError:
        return False
    return decimal == "." or "." not in text
