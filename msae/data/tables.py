"""Tables in `.csv` and `.parquet` files, read and written in pieces."""

from __future__ import annotations

import csv
import gzip
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv
from pyarrow import parquet

from msae.data.head import NULLS, SAMPLE, is_number, opened, packed, read_head
from msae.errors import InputError, one_line, repeated

BLOCK = 1 << 22
"""Number of bytes of text, or of values, read at a time."""
FORMULA, NUMBER = r"(?s)^[=+\-@\t\r\n].", r"(?i)^[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d+)?$|^[-+]?(inf|infinity|nan)$"
"""Texts that a spreadsheet runs, unless they are numbers (OWASP, CSV Injection)."""
INDEX = re.compile(r"__index_level_\d+__")
"""Names of the columns in which pandas stores an index in a .parquet."""


@dataclass(frozen=True)
class Format:
    """How tables are written in files.

    Args:
        columns: names of the columns that become channels, in this order; None for all but the next two.
        time_column: name of the column of time stamps, or of numbers, that increase; `auto` for the only one there is.
        group_column: name of the column that names the series of each row.
        separator: between the columns of a .csv.
        decimal: decimal point or comma of a .csv.
        header: whether the first line of a .csv names the columns; None: it does unless it is numbers only.
        time_format: format of time stamps, as for `strptime`, such as "%d/%m/%Y %H:%M"; None: ISO 8601, or the only
            format by which all are times.
        time_zone: of time stamps without an offset, such as "Europe/Berlin".
        freq: the step of the grid that rows are put on: `auto` for the usual one, or such as `5min`, `1h`, `weekday`,
            `month`, `3month`; None to take rows as they stand.
        max_gap: the longest step in time without a break, as `freq`; None: `SHORT` rows may be missing.
        missing_values: numbers that stand for no value, such as -200.
    """

    columns: Sequence[str | int] | None = None
    time_column: str | None = None
    group_column: str | None = None
    separator: str = ","
    decimal: str = "."
    header: Any = None
    time_format: str | None = None
    time_zone: str | None = None
    freq: Any = None
    max_gap: Any = None
    missing_values: Any = None

    def __post_init__(self) -> None:
        if self.separator == "\\t":  # as it is typed
            object.__setattr__(self, "separator", "\t")
        for name in ("separator", "decimal"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) != 1:
                raise InputError(f"{name}={value}: expected one character")
        if self.separator == self.decimal:
            raise InputError(
                f"separator={self.separator}: is also the decimal point; set data.decimal or data.separator"
            )
        if isinstance(self.columns, str) or (self.columns is not None and not self.columns):
            raise InputError(
                f"columns={self.columns or '[]'}: expected a list of names, such as [temperature,pressure]"
            )
        if self.header not in (True, False, None):
            raise InputError(f"header={self.header}: expected true, false or null")
        codes = [] if self.missing_values is None else self.missing_values
        if isinstance(codes, (str, int, float)) or not all(isinstance(code, (int, float)) for code in codes):
            raise InputError(f"missing_values={codes}: expected a list of numbers, such as [-200]")
        if twice := repeated([*map(str, self.columns or []), *self.others]):
            raise InputError(f"columns, time_column, group_column: {twice[0]} is named twice")

    @property
    def others(self) -> list[str]:
        """The columns of times and of the names of series, if there are any."""
        return [str(name) for name in (self.time_column, self.group_column) if name is not None]


class Csv:
    """A .csv file. A first line of numbers only is data, and the columns are then named 0, 1, ...."""

    def __init__(self, path: Path, form: Format) -> None:
        self.path = path
        self.form = form
        self.head = read_head(path, form)
        self.names = self.head.names

    def batches(self, columns: Sequence[str], others: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns, `columns` as float64, in pieces."""
        types = {name: pa.bool_() if name in self.head.flags else pa.float64() for name in columns}
        wanted = [*columns, *others]
        try:
            for batch in self._read(wanted, types | dict.fromkeys(others, pa.string())):
                numbers = [pc.cast(column, pa.float64()) for column in batch.columns[: len(columns)]]
                yield pa.RecordBatch.from_arrays([*numbers, *batch.columns[len(columns) : len(wanted)]], wanted)
        except pa.ArrowInvalid as error:
            raise self._explain(columns, error) from None
        except OSError as error:  # of a compressed file
            raise InputError(f"{self.path}: not a table ({one_line(error)})") from None

    def sample(self, name: str) -> list[Any]:
        """The first values of a column, as texts without those that are missing."""
        place = self.names.index(name)
        return [row[place].strip() for row in self.head.sample if row[place].strip() not in NULLS]

    def line(self, row: int) -> int:
        """The line of a row, which is counted from 0."""
        with opened(self.path) as file:
            for _ in range(self.head.skipped):
                next(file)
            reader = csv.reader(file, delimiter=self.form.separator)
            next(islice(reader if self.head.width == 1 else filter(None, reader), row, None), None)
            return self.head.skipped + reader.line_num

    def write(
        self, path: Path, kept: Sequence[str], columns: Sequence[str], values: np.ndarray, escape: bool = True
    ) -> None:
        """Write a table with the `kept` columns of this one and new values `(rows, columns)`; NaN is an empty field.

        With `escape` texts are as `inert` gives them.
        """
        used = {*kept, *columns}
        names = [name for name in self.names if name in used]
        with opened(path, "w") as file:
            out, row = csv.writer(file, delimiter=self.form.separator, lineterminator="\n"), 0
            if self.head.header:
                out.writerow(inert(pa.array(names)).to_pylist() if escape else names)
            texts = self._read(kept or columns[:1], dict.fromkeys(kept or columns[:1], pa.string()), nulls=[])
            for batch in texts:
                new = {name: self._texts(values[row : row + len(batch), i]) for i, name in enumerate(columns)}
                texts_of = {name: batch.column(name) for name in kept}
                old = {name: (inert(its) if escape else its).to_pylist() for name, its in texts_of.items()}
                out.writerows(zip(*(new.get(name) or old[name] for name in names), strict=True))
                row += len(batch)

    def _texts(self, numbers: np.ndarray) -> list[str]:
        return [
            "" if number != number else str(number).replace(".", self.form.decimal)  # noqa: PLR0124  (NaN)
            for number in numbers
        ]

    def _read(
        self, columns: Sequence[str], types: dict[str, pa.DataType], nulls: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        alone = self.head.width == 1  # a blank line is a missing value, except at the end of the file
        blank = [f" {i}" for i in range(len(self.names), self.head.width)]  # a name that no column has
        types = types | dict.fromkeys(blank, pa.null())
        batches = pa_csv.open_csv(
            pa.input_stream(str(self.path), compression="gzip" if packed(self.path) else None),
            pa_csv.ReadOptions(
                block_size=BLOCK,
                column_names=[*self.names, *blank],
                skip_rows=self.head.skipped,
                use_threads=False,
            ),
            pa_csv.ParseOptions(delimiter=self.form.separator, ignore_empty_lines=not alone),
            pa_csv.ConvertOptions(
                column_types=types,
                include_columns=[*columns, *blank],
                decimal_point=self.form.decimal,
                null_values=nulls,
            ),
        )
        yield from without_last(batches, self._blank_end()) if alone else batches

    def _blank_end(self) -> int:
        """The number of blank lines at the end of the file."""
        with gzip.open(self.path, "rb") if packed(self.path) else self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            tail = file.read().replace(b"\r\n", b"\n")
        return max(0, len(tail) - len(tail.rstrip(b"\n")) - 1)

    def _explain(self, columns: Sequence[str], error: pa.ArrowInvalid) -> InputError:
        """The error that says where the first value is that is not a number."""
        rows = 0
        try:
            for batch in self._read(columns, dict.fromkeys(columns, pa.string())):
                for name in columns:
                    for row, text in enumerate(batch.column(name).to_pylist()):
                        if text not in NULLS and not is_number(text, self.form.decimal):
                            return self._not_a_number(name, self.line(rows + row), text)
                rows += len(batch)
        except pa.ArrowInvalid as second:
            error = second
        with opened(self.path) as file:
            reader = csv.reader(file, delimiter=self.form.separator)
            for fields in reader:
                if fields and len(fields) != self.head.width:
                    expected = f"{self.head.width} columns, {', '.join(self.names[:8])}"
                    return InputError(f"{self.path}, line {reader.line_num}: {len(fields)} fields, expected {expected}")
        return InputError(f"{self.path}: {one_line(error)}")

    def _not_a_number(self, name: str, line: int, text: str) -> InputError:
        hint = "leave the field empty if it is missing, or the column out with data.columns=[...]"
        others = [sign for sign in ";\t| ," if sign in text.strip()]
        if self.form.decimal == "." and is_number(text, ","):
            hint = "is it a decimal comma? then set data.decimal=','"
        elif self.form.decimal == "," and is_number(text, "."):
            hint = "is it a decimal point? then set data.decimal='.'"
        elif re.fullmatch(r"[-+]?\d{1,3}([,.' ]\d{3})+([.,]\d*)?", text):
            hint = "write numbers without thousands separators"
        elif others and all(is_number(part, self.form.decimal) for part in text.split(others[0])):
            sign = others[0].replace("\t", "\\t")
            hint = f"is the separator {sign!r}? then set data.separator='{sign}'"
        elif re.match(r"\d+[-/.]\d+[-/.]\d+", text):
            hint = f"is it a time? then set data.time_column={name}"
        elif self.form.columns is None and self.form.group_column is None:
            hint = f"{hint}; if it names series, set data.group_column={name}"
        return InputError(f"{self.path}, line {line}, column {name}: {text!r} is not a number; {hint}")


NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
"""Types of a channel's values in a .parquet."""


class Parquet:
    """A .parquet file, read one row group at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: not a parquet file: {one_line(error)}") from None
        self.schema = self.file.schema_arrow
        self.names: list[str] = self.schema.names
        if twice := repeated(self.names):
            raise InputError(f"{path}: several columns have the name {', '.join(twice[:10])}")

    def batches(self, columns: Sequence[str], others: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The chosen columns, `columns` as float64, in pieces."""
        for name in columns:
            kind = self.schema.field(name).type
            if not any(is_kind(kind) for is_kind in NUMBERS):
                hint = f"; is it a time? then set data.time_column={name}" if pa.types.is_temporal(kind) else ""
                raise InputError(f"{self.path}, column {name}: of type {kind}, expected numbers{hint}")
        wanted = [*columns, *others]
        for batch in self._read(wanted):
            numbers = [pc.cast(batch.column(name), pa.float64(), safe=False) for name in columns]
            yield pa.RecordBatch.from_arrays([*numbers, *(batch.column(name) for name in others)], wanted)

    def sample(self, name: str) -> list[Any]:
        """The first values of a column, without those that are missing."""
        first = next(self._read([name]), None)
        return [] if first is None else first.column(0)[:SAMPLE].drop_null().to_pylist()

    def _read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Batches of one row group after another; pyarrow's own iterator keeps all row groups that it has read."""
        for number in range(self.file.num_row_groups):
            yield from self.file.read_row_group(number, columns).to_batches(max(1, BLOCK // (8 * len(columns))))

    def write(
        self, path: Path, kept: Sequence[str], columns: Sequence[str], values: np.ndarray, escape: bool = True
    ) -> None:
        """Write a table with the `kept` columns of this one and new values `(rows, columns)`; NaN is null.

        `escape` is for a .csv.
        """
        used = {*kept, *columns}
        names = [name for name in self.names if name in used]
        floats = {name: pa.field(name, pa.from_numpy_dtype(values.dtype)) for name in columns}
        schema, row = pa.schema([floats.get(name) or self.schema.field(name) for name in names]), 0
        places = {name: place for place, name in enumerate(columns)}
        with parquet.ParquetWriter(path, schema) as out:
            for batch in self._read(kept or columns[:1]):
                new = values[row : row + len(batch)]
                arrays = [
                    pa.array(new[:, places[name]], from_pandas=True) if name in places else batch.column(name)
                    for name in names
                ]
                out.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                row += len(batch)


def inert(texts: pa.Array) -> pa.Array:
    """Texts with an apostrophe before each that a spreadsheet would run, such as =A1; numbers stay as they are.

    Examples:
        >>> inert(pa.array(["=A1", "-1.5", "-", "a=b", None])).to_pylist()
        ["'=A1", '-1.5', '-', 'a=b', None]
    """
    run = pc.and_(pc.match_substring_regex(texts, FORMULA), pc.invert(pc.match_substring_regex(texts, NUMBER)))
    return pc.if_else(run, pc.binary_join_element_wise("'", texts, ""), texts)


def without_last(batches: Iterable[pa.RecordBatch], n: int) -> Iterator[pa.RecordBatch]:
    """The batches, without the last n rows."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        while held and sum(map(len, held[1:])) >= n:
            yield held.pop(0)
    left = sum(map(len, held)) - n
    for batch in held:
        yield batch[: max(0, left)]
        left -= len(batch)
