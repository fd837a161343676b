"""A .csv file that grows: its new rows, on the grid of its times, as the file as a whole would give them."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from msae.data.clock import AUTO, localized, settled
from msae.data.files import read_table
from msae.data.grid import TRACKED, grid_of, on_grid
from msae.data.holes import without
from msae.data.rows import Table
from msae.data.tables import BLOCK, Csv, Format
from msae.errors import InputError

log = logging.getLogger(__name__)
KEPT = 1 << 13
"""Rows that are kept, at least: as many as two hours of a row a second, in which local times may repeat."""
FIRST = 3
"""Lines without which a file is not looked at: a header and two rows."""
SECOND = np.timedelta64(1, "s")
COMPARED = 1 << 10
"""Bytes before the new ones that are read again, and have to be as they were."""


class Growing:
    """A .csv file to which rows are added at the end.

    Args:
        path: of the file, which may be empty.
        form: how it is written; what is `auto` in it is settled by the first rows.

    Attributes:
        rows: the number of rows that were read.
        late: the number of rows that were left out, as their time is not after all times before.
        row: of each row that is kept, its number in the file; `cut` drops the first of them.
        cells: the number of steps on the grid before those of the kept rows.

    Raises:
        InputError: the file is not a .csv.
    """

    def __init__(self, path: Path, form: Format) -> None:
        if path.suffix.lower() != ".csv":
            raise InputError(f"follow=true: {path} is no .csv; expected one, to which rows are added")
        self.path = path
        self.form = form
        self.rows = self.late = self.cells = 0
        self.row = np.zeros(0, np.int64)
        self._read, self._last, self._lines = 0, b"", 0  # bytes read, the last of them, lines read
        self._head: bytes | None = None  # the lines above the rows
        self._like: Table | None = None  # the first piece
        self._zero: np.datetime64 | None = None  # the first time, in UTC, where `form` has a zone
        self._values, self._times = np.zeros((0, 1)), np.zeros(0)

    def grown(self) -> bool:
        """Read rows that are complete and new, at most a few MB; whether there were any.

        Raises:
            InputError: the file is gone, was cut or replaced; or a row cannot be used.
        """
        text = self._new()
        if not text:
            return False
        before, lines = self._lines, text.count(b"\n")
        with tempfile.TemporaryDirectory() as folder:
            piece = Path(folder) / "piece.csv"
            try:
                if self._head is None:
                    piece.write_bytes(text)
                    source = Csv(piece, self.form)
                    self.form = replace(settled(source, self.form), header=source.head.header)
                    self._head = b"".join(text.splitlines(keepends=True)[: source.head.skipped])
                    text, before = text[len(self._head) :], self._head.count(b"\n")
                piece.write_bytes(self._head + text)
                table = without(read_table(piece, self.form), self.form.missing_values)
            except InputError as error:
                above = (self._head or b"").count(b"\n")
                raise InputError(self._named(str(error), piece, before - above)) from None
        self._lines += lines
        self._add(table)
        return True

    def _new(self) -> bytes:
        """New lines, without one that is not complete, and without blank lines at the end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read - len(self._last))
                old, text = file.read(len(self._last)), file.read(BLOCK)
        except FileNotFoundError:
            old, text = b"", b""
        if old != self._last:
            raise InputError(
                f"{self.path}: was cut or replaced after {self.rows} rows were read; start again, with another out"
            )
        stop = text.rfind(b"\n") + 1
        if text.count(b'"', 0, stop) % 2:  # a quoted field goes on
            stop = text.rfind(b"\n", 0, text.rfind(b'"', 0, stop)) + 1
        lines = len(text[:stop].rstrip(b"\r\n"))
        stop = text.find(b"\n", lines, stop) + 1 if lines else 0
        if self._head is None and text.count(b"\n", 0, stop) < FIRST:
            return b""
        self._read += stop
        self._last = (self._last + text[:stop])[-COMPARED:]
        return text[:stop]

    def _named(self, text: str, piece: Path, before: int) -> str:
        """An error about a piece, as one about the file, in which `before` lines are above those of the piece."""
        text = re.sub(
            re.escape(str(piece)) + r", line (\d+)", lambda found: f"{self.path}, line {int(found[1]) + before}", text
        )
        return text.replace(str(piece), str(self.path))

    def _add(self, table: Table) -> None:
        """Add the rows of a piece."""
        numbers = self.rows + np.arange(len(table.values))
        self.rows += len(table.values)
        if self._like is None:
            self._like = replace(table, path=self.path, line=self._line)
            self._values = np.zeros((0, len(table.columns)))
        self._values = np.concatenate([self._values, table.values])
        self.row = np.concatenate([self.row, numbers])
        if table.times is None:
            return
        if (table.origin is None) != (self._like.origin is None):
            raise InputError(f"{self.path}: the column of times mixes numbers and time stamps")
        times = np.asarray(table.times)
        if table.origin is None or self._like.origin is None:
            times = times + (table.base - self._like.base)
        else:
            stamps = table.stamps(times).to_numpy(zero_copy_only=False)
            times = (stamps - self._like.origin) / SECOND
        self._times = np.concatenate([self._times, times])

    def table(self) -> tuple[Table, np.ndarray, int]:
        """The rows that are kept as a table on the grid; the step of each row in it; and how many steps are complete.

        A step of several rows is complete once a later one begins.
        """
        table, whole = self._in_order(), False
        if table.times is not None and self.form.freq is not None:
            whole = grid_of(table, self.form.freq).whole
            table = on_grid(table, self.form)
            if self.form.freq == AUTO:
                self.form = replace(self.form, freq=table.freq)
        place = np.arange(len(self.row)) if table.place is None else table.place
        done = place[: np.searchsorted(place, place[-1])] if whole else place
        return table, place, int(done.max(initial=-1)) + 1

    def _in_order(self) -> Table:
        """The rows that are kept, without those whose time is not after all times before, which are counted."""
        assert self._like is not None
        table = replace(self._like, values=self._values.copy(), groups=[("", 0, len(self._values))])
        if self._like.times is None:
            return table
        table = replace(table, times=self._times)
        if self.form.time_zone is not None:
            table = localized(table, self.form.time_zone)
            assert table.times is not None
            assert table.origin is not None
            self._zero = table.origin if self._zero is None else self._zero
            table = replace(table, times=table.times + (table.origin - self._zero) / SECOND, origin=self._zero)
        assert table.times is not None
        fine = np.append(True, table.times[1:] > np.maximum.accumulate(table.times)[:-1])
        if fine.all():
            return table
        first = int(np.flatnonzero(~fine)[0])
        if not self.late:
            log.warning(
                "%s, row %d: time %s is not after %s of the row before; such rows are left out, here and later",
                *(self.path, self.row[first], table.when(first), table.when(first - 1)),
            )
        self.late += int((~fine).sum())
        self._values, self._times, self.row = self._values[fine], self._times[fine], self.row[fine]
        return self._in_order()

    def cut(self, table: Table, place: np.ndarray, done: int, fills: bool) -> None:
        """Drop rows that are not needed any more; `done` is the last step of `table` that was used.

        What is kept begins where a piece of the grid does and, if missing values are filled in by the values at both
        sides, as `fills` tells, with a row that has all values.
        """
        begin = 0 if table.breaks is None else int(table.breaks[np.searchsorted(table.breaks, done, "right") - 1])
        first = int(np.searchsorted(place, begin))
        last = int(np.searchsorted(place, done)) - KEPT
        for row in [*range(first + (last - first) // TRACKED * TRACKED, first, -TRACKED), first]:
            if row < KEPT:
                return
            hole = fills and np.isnan(self._values[row]).any()
            if row == first or (place[row] > place[row - 1] and not hole):
                self.cells += int(place[row])
                self._values, self._times, self.row = self._values[row:], self._times[row:], self.row[row:]
                return

    def _line(self, row: int) -> int:
        """The line of a row that is kept."""
        return (self._head or b"").count(b"\n") + 1 + int(self.row[row])
