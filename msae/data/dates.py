"""Times as people write them: the format of a column of texts, where only one reading is possible."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import product

import pyarrow as pa
import pyarrow.compute as pc

from msae.errors import InputError

ORDERS = {"day first": "%d{0}%m{0}%Y", "month first": "%m{0}%d{0}%Y", "year first": "%Y{0}%m{0}%d"}
"""The orders of a date in numbers, which a separator stands between."""
NAMED = ("%d{0}%b{0}%Y", "%b{0}%d{0}%Y", "%Y{0}%b{0}%d", "%b %d, %Y", "%d. %b %Y")
MONTHS = ("%Y{0}%m", "%m{0}%Y", "%b{0}%Y", "%Y{0}%b")
CLOCKS = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%I:%M:%S%p", "%H.%M.%S")
"""Times of day, after a date."""
SEPARATORS = "/-. "
SHOWN = 3
"""Readings in an error, at most."""


def formats() -> list[str]:
    """The formats that are tried, as for `strptime`: dates with years of four digits and of two, then months."""
    days = [date.format(sign) for date in (*ORDERS.values(), *NAMED) for sign in SEPARATORS]
    short = [day.replace("%Y", "%y") for day in days if day[:3] not in ("%Y/", "%Y.", "%Y ")]  # but 16-9-29
    days = list(dict.fromkeys([*days, *short]))
    timed = [f"{day}{between}{clock}" for day, between, clock in product(days, (" ", "T", ", "), CLOCKS)]
    return [*days, *timed, *dict.fromkeys(month.format(sign) for month in MONTHS for sign in SEPARATORS)]


def read(texts: pa.Array, form: str) -> pa.Array | None:
    """Texts as time stamps, by a format of `strptime`; None if one of them has another.

    Examples:
        >>> read(pa.array(["9/29/2016 5:00 PM"]), "%m/%d/%Y %I:%M %p")[0].as_py()
        datetime.datetime(2016, 9, 29, 17, 0)
    """
    if "%f" not in form:
        found = pc.strptime(texts, format=form, unit="us", error_is_null=True)
        return None if found.null_count else found
    with contextlib.suppress(ValueError):  # fractions, which Arrow does not know
        return pa.array([datetime.strptime(text, form) for text in texts.to_pylist()], pa.timestamp("us"))
    return None


def readings(texts: pa.Array, among: Sequence[str]) -> list[str]:
    """The formats among these by which all texts are times of the years 1000 to 9999, each reading once."""
    found: list[tuple[str, pa.Array]] = []
    for form in among:
        times = read(texts[:1], form)
        if times is None or ("%Y" in form and not 1000 <= pc.year(times[0]).as_py() <= 9999):
            continue
        times = read(texts, form)
        if times is not None and not any(times.equals(other) for _, other in found):
            found.append((form, times))
    return [form for form, _ in found]


def guess(where: str, pieces: Iterable[pa.Array]) -> str | None:
    """The one format by which all texts are times; None where there is none.

    Args:
        where: the column, for an error.
        pieces: the texts of the column; they are read until one reading is left.

    Raises:
        InputError: several readings are possible.

    Examples:
        >>> guess("when", [pa.array(["9/1/2016 17:00", "9/29/2016 17:00"])])
        '%m/%d/%Y %H:%M'
        >>> guess("when", [pa.array(["1949-01", "1949-02"])])
        '%Y-%m'
        >>> guess("when", [pa.array(["noon"])])
    """
    among, first = formats(), None
    for texts in pieces:
        if first is None and len(texts):
            first = texts[0].as_py()
            among = readings(texts[:1], among)
        among = readings(texts, among) if len(texts) else among
        if len(among) < 2:
            break
    if len(among) < 2 or first is None:
        return among[0] if among and first is not None else None
    shown = among[:SHOWN]
    found = [read(pa.array([first]), form) for form in shown]
    read_as = " or ".join(f"{times[0].as_py():%d %B %Y}" for times in found if times is not None)
    raise InputError(f"{where}: {first!r} is {read_as}; set " + " or ".join(f"data.time_format='{f}'" for f in shown))
