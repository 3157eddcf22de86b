"""Changes inside caption files: a row taken out, a word respelt, a name replaced, and every other byte as it was.

A table is read again after each change and must say what is expected, or it is left alone. Only UTF-8 is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from lora_scripts.data.caption_files import inside
from lora_scripts.data.caption_tables import Row, parse_table
from lora_scripts.errors import LoraScriptsError

MARK = b"\xef\xbb\xbf"
_ENDS = re.compile(r"\r\n|\r|\n")


def decode(data: bytes) -> str | None:
    """Return a file's text, a byte order mark aside; None where it is not UTF-8."""
    try:
        return data.removeprefix(MARK).decode("utf-8")
    except UnicodeDecodeError:
        return None


def encode(text: str, before: bytes) -> bytes:
    """Return the text's bytes, with a byte order mark where there was one before."""
    return (MARK if before.startswith(MARK) else b"") + text.encode("utf-8")


def names(text: str, table: Path) -> set[str] | None:
    """Return the pictures that a table has rows about; None where it cannot be read."""
    rows = _rows(text, table)
    return None if rows is None else {_name(row, table) for row in rows}


def without_rows(text: str, table: Path, wanted: Collection[str]) -> str | None:
    """Return a table without the rows about these pictures; None where that cannot be done, or nothing is left."""
    rows = _rows(text, table)
    if rows is None:
        return None
    spans = _spans(text, rows, table)
    drop = {number for number, row in enumerate(rows) if _name(row, table) in wanted}
    if not drop or len(drop) == len(rows):
        return None
    gone = [spans[number] for number in sorted(drop)]
    new = _cut(text, gone)
    left = [row for number, row in enumerate(rows) if number not in drop]
    return new if _same(_rows(new, table), left) else None


def respell(text: str, table: Path | None, wanted: Collection[str], words: tuple[str, str]) -> str | None:
    """Return a caption file with (wrong, right) replaced in the captions of these pictures; None where it cannot be."""
    wrong, right = words
    if table is None:
        new = _replaced(text, wrong, right)
        return new if new != text else None

    def change(row: Row) -> Row:
        return replace(row, captions=tuple(_replaced(caption, wrong, right) for caption in row.captions))

    return _edited(text, table, wanted, change, lambda raw, row: _respelt(raw, row, wrong, right))


def renamed(text: str, table: Path, old: str, new: str) -> str | None:
    """Return a table in which a picture has another name; None where that cannot be done."""

    def change(row: Row) -> Row:
        return replace(row, name=_with_suffix(row.name, new))

    def edit(raw: str, row: Row) -> list[str]:
        return _each(raw, re.compile(re.escape(_raw(row.name, table))), _raw(_with_suffix(row.name, new), table))

    return _edited(text, table, {old}, change, edit)


def _with_suffix(written: str, new: str) -> str:
    """Return the name as it is written, with the new name's suffix."""
    return written.rpartition(".")[0] + "." + new.rpartition(".")[2]


def _raw(name: str, table: Path) -> str:
    return json.dumps(name, ensure_ascii=False)[1:-1] if table.suffix.lower() == ".jsonl" else name


def _edited(
    text: str,
    table: Path,
    pictures: Collection[str],
    change: Callable[[Row], Row],
    edit: Callable[[str, Row], Sequence[str]],
) -> str | None:
    """Try the ways to write a row anew, and take the one after which the table says what it should."""
    rows = _rows(text, table)
    if rows is None:
        return None
    wanted = list(rows)
    for number, row in enumerate(rows):
        if _name(row, table) not in pictures or change(row) == row:
            continue
        wanted[number] = change(row)
        # The spans are found again, since the text before has changed its length.
        start, end = _spans(text, _rows(text, table) or rows, table)[number]
        tries = (text[:start] + raw + text[end:] for raw in edit(text[start:end], row))
        found = next((new for new in tries if _same(_rows(new, table), wanted)), None)
        if found is None:
            return None
        text = found
    return text if wanted != list(rows) else None


def _respelt(raw: str, row: Row, wrong: str, right: str) -> list[str]:
    """Return ways to write a row with a word respelt: everywhere, or not where the picture's name stands."""
    everywhere = _replaced(raw, wrong, right)
    kept = [_replaced(part, wrong, right) for part in raw.split(row.name)]
    return [everywhere, row.name.join(kept)]


def _each(raw: str, pattern: re.Pattern[str], new: str) -> list[str]:
    """Return the ways to replace one occurrence."""
    return [raw[: hit.start()] + new + raw[hit.end() :] for hit in pattern.finditer(raw)]


def _replaced(text: str, wrong: str, right: str) -> str:
    """Replace a word, letter for letter, where it is not a part of a longer one."""
    start = r"(?<!\w)" if wrong[:1].isalnum() and wrong[:1].isascii() else ""
    end = r"(?!\w)" if wrong[-1:].isalnum() and wrong[-1:].isascii() else ""
    return re.sub(start + re.escape(wrong) + end, lambda hit: right, text, flags=re.IGNORECASE)


def _rows(text: str, table: Path) -> Sequence[Row] | None:
    try:
        return parse_table(text, table).rows
    except LoraScriptsError:
        return None


def _name(row: Row, table: Path) -> str:
    """Return the picture that a row is about, as the reader takes it, else the name as it is written."""
    try:
        return inside(row, table)
    except LoraScriptsError:
        return row.name


def _same(found: Sequence[Row] | None, wanted: Sequence[Row]) -> bool:
    """Say whether rows say the same; the lines they stand on may differ."""
    return found is not None and [replace(row, line=0) for row in found] == [replace(row, line=0) for row in wanted]


def _spans(text: str, rows: Sequence[Row], table: Path) -> list[tuple[int, int]]:
    """Return where each row begins and ends: a row goes on to the next one's line."""
    ends = re.compile("\n") if table.suffix.lower() == ".jsonl" else _ENDS
    starts = [0, *(hit.end() for hit in ends.finditer(text))]
    begins = [starts[row.line - 1] for row in rows]
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return "".join([*kept, text[at:]])
