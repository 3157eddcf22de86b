"""The bytes of a table: its encoding is kept."""

from __future__ import annotations

from pathlib import Path

from lora_scripts.data.caption_tables import BYTE_ORDER_MARKS
from lora_scripts.data.caption_tables import MAX_TABLE_BYTES as MAX_TABLE_BYTES


def read_encoding(path: Path) -> str:
    """Return the encoding that a file's byte order mark tells, else UTF-8."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")


def encoded(text: str, encoding: str) -> bytes:
    """Return the bytes, with a byte order mark where the encoding has one."""
    return text.encode(encoding)


def line_end(text: str) -> str:
    """Return how lines of a text end."""
    return "\r\n" if "\r\n" in text else "\n"
