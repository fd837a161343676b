"""The time column of a table: time stamps or numbers, as they are written, and their zone."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msae.data import dates
from msae.data.rows import Table
from msae.data.tables import Format
from msae.errors import InputError

EXACT = 2**52
"""Whole numbers above this are not exact as float64, with room for a difference."""


class Clock:
    """Reads a time column in pieces; `origin` is the first row's time if times are time stamps, and not numbers."""

    KINDS = (pa.float64(), *(pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("us", "ns")))

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
        for kind in self.KINDS:
            with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                return exact(column, column.cast(kind))
        return None

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
            f"{value} is neither a number nor an ISO 8601 time; give the format, such as "
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
