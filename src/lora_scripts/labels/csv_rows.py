"""Rows of a .csv or .tsv file, letter for letter but for the captions that are changed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lora_scripts.data.caption_tables import CAPTION_COLUMNS, FILE_COLUMNS, columns_of, layout
from lora_scripts.labels.table_text import line_end

HEADER = ("file_name", "prompt")
# What spreadsheets take for the beginning of a formula, the wide forms of East Asian keyboards among them.
FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")


class CsvRows:
    """A table with a header or without one."""

    def __init__(self, text: str, path: Path):
        self._raw: list[str] = []
        self._cells: dict[int, list[str]] = {}
        self._lines: dict[int, int] = {}
        self._eol = line_end(text)
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self._name, self._caption, self._width = 0, 1, 2
        if not text.strip():
            self._raw.append(self._delimiter.join(HEADER) + self._eol)
            return
        self._delimiter, header = layout(text, path)
        if header is not None:
            (self._name,), (self._caption,) = (
                columns_of(header, known, path) for known in (FILE_COLUMNS, CAPTION_COLUMNS)
            )
            self._width = len(header)
        self._read(text, header is not None)
        if not self._raw[-1].endswith(("\n", "\r")):
            self._raw[-1] += self._eol

    def names(self) -> Iterator[tuple[tuple[int, int], tuple[str, int]]]:
        """Yield each caption's place with the picture's name as written and the line it begins on."""
        for row, cells in self._cells.items():
            yield (row, 0), (cells[self._name].strip(), self._lines[row])

    def get(self, row: int, item: int) -> str:
        """Return a caption."""
        return self._cells[row][self._caption].strip()

    def set(self, row: int, item: int, text: str) -> None:
        """Replace a caption; the other cells are kept."""
        self._cells[row][self._caption] = _harmless(text)
        self._raw[row] = self._line(self._cells[row])

    def add(self, name: str, text: str) -> tuple[int, int]:
        """Add a row, and return its place."""
        cells = [""] * self._width
        cells[self._name], cells[self._caption] = _harmless(name), _harmless(text)
        self._raw.append(self._line(cells))
        self._cells[len(self._raw) - 1] = cells
        return len(self._raw) - 1, 0

    def text(self) -> str:
        """Return the whole table."""
        return "".join(self._raw)

    def _read(self, text: str, header: bool) -> None:
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for line in io.StringIO(text, newline=""):
                taken.append(line)
                yield line

        number = 1
        for record in csv.reader(lines(), delimiter=self._delimiter, strict=True, skipinitialspace=True):
            if any(cell.strip() for cell in record):
                if not header:
                    self._cells[len(self._raw)], self._lines[len(self._raw)] = record, number
                header = False
            number += len(taken)
            self._raw.append("".join(taken))
            taken.clear()

    def _line(self, cells: list[str]) -> str:
        return self._delimiter.join(map(self._quoted, cells)) + self._eol

    def _quoted(self, cell: str) -> str:
        special = any(sign in cell for sign in (self._delimiter, '"', "\r", "\n")) or cell[:1].isspace()
        return '"' + cell.replace('"', '""') + '"' if special else cell


def _harmless(text: str) -> str:
    """Return a cell that no spreadsheet computes: with a space in front, which readers of captions take off."""
    return f" {text}" if text.startswith(FORMULA) else text
