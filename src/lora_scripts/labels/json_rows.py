"""Rows of a .jsonl file, letter for letter but for those whose captions are changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_scripts.data.caption_tables import CAPTION_COLUMNS, FILE_COLUMNS, SEVERAL
from lora_scripts.labels.csv_rows import HEADER
from lora_scripts.labels.table_text import line_end


class JsonRows:
    """One JSON object a line: a picture with one caption or a list of them."""

    def __init__(self, text: str, path: Path):
        self._eol = line_end(text)
        self._raw = [line + "\n" for line in text.split("\n")]
        if self._raw[-1] == "\n":
            self._raw.pop()
        elif self._raw:
            self._raw[-1] = self._raw[-1][:-1] + self._eol

    def names(self) -> Iterator[tuple[tuple[int, int], tuple[str, int]]]:
        """Yield each caption's place with the picture's name as written and the line it stands on."""
        for row, line in enumerate(self._raw):
            if line.strip():
                entry = json.loads(line)
                name = next(value for key, value in entry.items() if key.lower() in FILE_COLUMNS)
                for item in range(len(_captions(entry))):
                    yield (row, item), (name.strip(), row + 1)

    def get(self, row: int, item: int) -> str:
        """Return a caption."""
        caption = _captions(json.loads(self._raw[row]))[item]
        return (caption["text"] if isinstance(caption, dict) else caption).strip()

    def set(self, row: int, item: int, text: str) -> None:
        """Replace a caption; the row's other values are kept."""
        entry = json.loads(self._raw[row])
        key = _key(entry)
        if not isinstance(entry[key], list):
            entry[key] = _replaced(entry[key], text)
        else:
            entry[key][item] = _replaced(entry[key][item], text)
        self._raw[row] = json.dumps(entry, ensure_ascii=False) + self._eol

    def add(self, name: str, text: str) -> tuple[int, int]:
        """Add a row, and return its place."""
        self._raw.append(json.dumps(dict(zip(HEADER, (name, text), strict=True)), ensure_ascii=False) + self._eol)
        return len(self._raw) - 1, 0

    def text(self) -> str:
        """Return the whole table."""
        return "".join(self._raw)


def _key(entry: dict[str, Any]) -> str:
    return next(key for key in entry if key.lower() in (*CAPTION_COLUMNS, SEVERAL))


def _captions(entry: dict[str, Any]) -> list[Any]:
    value = entry[_key(entry)]
    return value if isinstance(value, list) else [value]


def _replaced(old: Any, text: str) -> Any:
    return {**old, "text": text} if isinstance(old, dict) else text
