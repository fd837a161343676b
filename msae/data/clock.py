"""The time column of a table: time stamps or numbers, as they are written, and their zone."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msae.data import dates
from msae.data.head import is_number
from msae.data.rows import Table
from msae.data.tables import Csv, Format, Parquet
from msae.errors import InputError

KINDS = (pa.float64(), *(pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("us", "ns")))
"""Types that a text of ISO 8601, or a number, is read as."""
AUTO = "auto"
"""As `time_column`: the only column of times there is, if there is one; as `freq`: the usual step."""
NAMES = frozenset(("time", "timestamp", "datetime", "date", "date_time", "time_stamp", "epoch", "unix_time", "index"))
"""Names of columns of numbers that are times where they increase, in small letters."""
EXACT = 2**52
"""Whole numbers above this are not exact as float64, with room for a difference."""


def settled(source: Csv | Parquet, form: Format) -> Format:
    """The format of a table with the name of its time column, and with the format of its times, where they are found.

    Raises:
        InputError: several columns may be the times, or several formats may be theirs.
    """
    name = form.time_column
    if name == AUTO and AUTO not in source.names:
        name = time_column(source, form)
        form = replace(form, time_column=name)
    if name is None or name not in source.names or form.time_format is not None:
        return form
    texts = source.sample(name)
    if not texts or not isinstance(texts[0], str) or iso(pa.array(texts)) is not None:
        return form
    pieces = (present(batch.column(0)) for batch in source.batches([], [name]))
    found = dates.guess(f"{source.path}, column {name}", pieces)
    return replace(form, time_format=found)


def time_column(source: Csv | Parquet, form: Format) -> str | None:
    """The only column of a table, beside the channels and the names of series, that holds times; None without one.

    Times are time stamps; or else numbers that increase, in a column with a name such as `time`.
    """
    others = {*map(str, form.columns or []), str(form.group_column)}
    samples = {name: source.sample(name) for name in source.names if name not in others}
    found = [name for name, sample in samples.items() if sample and are_stamps(sample)]
    found = found or [name for name, sample in samples.items() if name.lower() in NAMES and increase(sample)]
    if len(found) > 1:
        raise InputError(
            f"{source.path}: several columns of times, {', '.join(found[:8])}; set data.time_column={found[0]}, and "
            "choose the channels with data.columns=[...]"
        )
    return found[0] if found else None


def are_stamps(sample: list[Any]) -> bool:
    """Whether values are time stamps: of such a type, or texts that one format reads, and that are not numbers."""
    if not isinstance(sample[0], str):
        return isinstance(sample[0], date)
    if all(map(is_plain, sample)):
        return False
    texts = pa.array(sample)
    return iso(texts) is not None or bool(dates.readings(texts, dates.formats()))


def increase(sample: list[Any]) -> bool:
    """Whether the values, at least two, are numbers that increase."""
    numbers = [float(value) for value in sample if is_plain(str(value))]
    return len(numbers) == len(sample) > 1 and all(a < b for a, b in pairwise(numbers))


def is_plain(text: str) -> bool:
    """Whether a text is a number, with a decimal point or comma."""
    return is_number(text, ".") or is_number(text, ",")


def iso(column: pa.Array) -> pa.Array | None:
    """Texts as float64 or, of ISO 8601, as time stamps; None if they are neither."""
    for kind in KINDS:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return exact(column, column.cast(kind))
    return None


def present(column: pa.Array) -> pa.Array:
    """Texts without spaces around them, and without those that are empty."""
    column = pc.utf8_trim_whitespace(column)
    return column.filter(pc.not_equal(column, ""))


class Clock:
    """Reads a time column in pieces; `origin` is the first row's time if times are time stamps, and not numbers."""

    def __init__(self, table: Table, form: Format) -> None:
        self.table = table
        self.name = str(form.time_column)
        self.format = form.time_format
        self.origin: np.datetime64 | None = None
        self.stamps: bool | None = None
        self.zone: str | None = None
        self.unit = "us"
        self.base: int | None = None

    def read(self, column: pa.Array, first: int) -> np.ndarray:
        """Times of rows as float64, in seconds after the origin, or as they are; row 0 is row `first` of the file."""
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.utf8_trim_whitespace(column)
            column = pc.replace_with_mask(column, pc.equal(column, ""), pa.scalar(None, column.type))
        self._check_present(column.is_null().to_numpy(zero_copy_only=False), first)
        times = self._parsed(column)
        stamps = times is not None and pa.types.is_timestamp(times.type)
        if times is None or self.stamps not in (None, stamps):
            raise self._unreadable(column, first)
        self.stamps = stamps
        found = times.to_numpy(zero_copy_only=False)
        if not stamps:
            self._check_present(np.isnan(found), first)
            if self.base is None:
                self.base = int(found[0]) if pa.types.is_integer(times.type) and abs(int(found[0])) > EXACT else 0
            return np.asarray(found - self.base, dtype=np.float64)
        zone = zone_of(column)
        if self.origin is None:
            self.origin, self.zone = found[0], zone
        elif zone != self.zone:
            self.zone = "UTC"
        if found.dtype == "M8[ns]" and (found.astype("M8[us]") != found).any():
            self.unit = "ns"
        return np.asarray((found - self.origin) / np.timedelta64(1, "s"))

    def of(self) -> dict[str, Any]:
        """What `Table` keeps of the times that were read."""
        kind = pa.timestamp(self.unit, self.zone) if self.stamps else None
        return {"origin": self.origin, "kind": kind, "base": self.base or 0}

    def _check_present(self, missing: np.ndarray, first: int) -> None:
        """Raise InputError for the first row that has no time."""
        if missing.any():
            where = self.table.where(first + int(np.flatnonzero(missing)[0]))
            raise InputError(f"{where}, column {self.name}: no time; expected a time in every row")

    def _parsed(self, column: pa.Array) -> pa.Array | None:
        """A column as float64 or as time stamps; None if it is neither."""
        if pa.types.is_date(column.type):
            return column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            return column
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return exact(column, column.cast(pa.float64(), safe=False))
        if self.format is not None:
            return dates.read(column, self.format)
        return iso(column)

    def _unreadable(self, column: pa.Array, first: int) -> InputError:
        """The error for the first value that is not a time, or not of the same kind as those before it."""
        stamps = self.stamps
        for row in range(len(column)):
            found = self._parsed(column[row : row + 1])
            is_stamp = found is not None and pa.types.is_timestamp(found.type)
            if found is None or stamps not in (None, is_stamp):
                break
            stamps = is_stamp
        value = f"{self.table.where(first + row)}, column {self.name}: {column[row].as_py()!r}"
        if self.format is not None:
            return InputError(f"{value} does not match data.time_format={self.format!r}")
        if found is not None:
            return InputError(f"{value}: the column mixes numbers and time stamps")
        return InputError(
            f"{value} is neither a number nor a time of a known format; give the format, such as "
            "data.time_format='%d/%m/%Y %H:%M'"
        )


def exact(column: pa.Array, times: pa.Array) -> pa.Array:
    """Times that were read from a column, as whole numbers where they are too large for float64."""
    if pa.types.is_floating(times.type) and len(times) and abs(times[0].as_py()) > EXACT:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return column.cast(pa.int64())
    return times


def zone_of(column: pa.Array) -> str | None:
    """The zone of a column of time stamps, or the offset of all of its texts; UTC where they differ."""
    if pa.types.is_timestamp(column.type):
        zone: str | None = column.type.tz
        return zone
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    found = pc.extract_regex(column, r":\d\d(?:\.\d+)?(?P<zone>Z|[+-]\d\d:?(?:\d\d)?)$")
    zones = pc.unique(pc.struct_field(found, "zone")).drop_null().to_pylist()
    if not zones:
        return None
    offset = zones[0].replace(":", "")
    return "UTC" if len(zones) > 1 or offset == "Z" else f"{offset[:3]}:{offset[3:] or '00'}"


def localized(table: Table, zone: str) -> Table:
    """A table whose time stamps without a zone are read as those of `zone`: they show an hour twice in autumn.

    Of the two the first one is meant until times go back or repeat, and the second one from there on.

    Raises:
        InputError: there is no such zone, or times are plain numbers.
    """
    if table.origin is None or table.times is None or table.kind is None:
        raise InputError(f"time_zone={zone}: {table.path} has no time stamps; expected null")
    local, kind = table.stamps(table.times), pa.timestamp(table.kind.unit, zone)
    try:
        if table.kind.tz:
            pc.local_timestamp(local[:1].cast(kind))  # which knows the zone, or does not
            return replace(table, kind=kind)
        both = [pc.assume_timezone(local, zone, ambiguous=one, nonexistent="latest") for one in ("earliest", "latest")]
    except pa.ArrowInvalid:
        raise InputError(f"time_zone={zone}: no such time zone; expected one such as Europe/Berlin or UTC") from None
    first, second = (one.cast(pa.int64()).to_numpy() for one in both)
    wall, found = local.cast(pa.int64()).to_numpy(), first.copy()
    twice = first != second
    for _, start, stop in table.groups:
        again = False
        for row in start + np.flatnonzero(twice[start:stop]):
            begins = row == start or not twice[row - 1]
            again = not begins and (again or wall[row] <= wall[row - 1])
            found[row] = second[row] if again else first[row]
    origin = np.datetime64(int(found[0]), kind.unit)
    return replace(table, times=(found - found[0]) / {"us": 1e6, "ns": 1e9}[kind.unit], origin=origin, kind=kind)
