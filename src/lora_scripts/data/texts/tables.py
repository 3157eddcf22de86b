"""Rows of tables: CSV, whatever separates its cells, and Parquet."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lora_scripts.data.texts import fields, formats
from lora_scripts.data.texts.fields import Raw
from lora_scripts.errors import DataError, MachineError

DELIMITERS = (",", ";", "\t")
MAX_CELL = 1 << 26
MAX_PARQUET_MEBIBYTES = 16_384
"""Of a Parquet file's contents, unpacked: a small file may hold any amount of one value."""
_BATCH = 1024


def csv_rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, Raw]]:
    """Yield (line, row) of a table with a header, quoted as RFC 4180 has it; blank rows are passed over.

    Raises:
        DataError: the header is no known one, cells are missing or too many, or quotes do not close.
    """
    blank, first = 0, ""
    for first in lines:
        if first.strip():
            break
        blank += 1
    if not first.strip():
        return
    delimiter = _delimiter(path, first, blank + 1)
    reader = _reader(chain([first], lines), delimiter)
    # The module's own limit, 128 KiB a cell, is less than a long conversation; it can only be set for all.
    before = csv.field_size_limit(MAX_CELL)
    row = blank + 1
    try:
        header = [cell.strip() for cell in next(reader)]
        if twice := [name for name, count in Counter(header).items() if count > 1 and name]:
            raise DataError("text.duplicate_column", file=path, row=row, columns=fields.listing(twice))
        row = blank + reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield row, _cells(path, row, header, cells)
            row = blank + reader.line_num + 1
    except csv.Error as error:
        raise DataError("text.broken_csv", file=path, row=row, reason=error) from error
    finally:
        csv.field_size_limit(before)


def _reader(lines: Iterator[str], delimiter: str):
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _delimiter(path: Path, line: str, row: int) -> str:
    """Return what separates the header's names: what makes a known format of them, since a text may hold anything."""
    longest: list[str] = []
    for delimiter in DELIMITERS:
        try:
            names = [cell.strip() for cell in next(_reader(iter([line]), delimiter))]
        except csv.Error:
            continue
        if formats.recognise(names) is not None:
            return delimiter
        longest = max(longest, names, key=len)
    raise formats.unknown(path, row, longest or [line.strip()])


def _cells(path: Path, row: int, header: list[str], cells: list[str]) -> Raw:
    surplus = cells[len(header) :]
    if len(cells) < len(header) or any(cell.strip() for cell in surplus):
        raise DataError("text.cells", file=path, row=row, found=len(cells), expected=len(header))
    # A cell without a name that holds nothing is the end of a line with one separator too many.
    return {name: cell for name, cell in zip(header, cells, strict=False) if name or cell}


def parquet_rows(path: Path) -> Iterator[tuple[int, Raw]]:
    """Yield (number, row) of a Parquet file.

    Raises:
        DataError: it is damaged, holds too much, or has a column twice.
        MachineError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MachineError("text.no_pyarrow", path=path, reason=error) from error
    try:
        with parquet.ParquetFile(path) as file:
            unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if unpacked > MAX_PARQUET_MEBIBYTES << 20:
                raise DataError("text.file_too_large", path=path, size=unpacked >> 20, allowed=MAX_PARQUET_MEBIBYTES)
            names = Counter(file.schema_arrow.names)
            if twice := [name for name, count in names.items() if count > 1]:
                raise DataError("text.duplicate_column", file=path, row=1, columns=fields.listing(twice))
            batches = file.iter_batches(batch_size=_BATCH)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, ValueError, OverflowError) as error:
        # The library's own errors of the kind OSError have no number; a file that cannot be read has one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError("text.broken_parquet", path=path, reason=fields.listing(lines[:1])) from error
