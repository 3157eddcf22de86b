"""Files of captions: text in a known encoding, and rows of `metadata.csv` and `metadata.jsonl`."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts import messages
from lora_scripts.data.decode import FOREIGN_SUFFIXES, SUFFIXES
from lora_scripts.errors import DataError

FILE_COLUMNS = ("file_name", "filename", "image", "file")
CAPTION_COLUMNS = ("prompt", "caption", "text")
SEVERAL = "captions"
"""What a list of captions may be called besides, in a .jsonl file."""
WEIGHT = "weight"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
_JSON_KEYS = {*FILE_COLUMNS, *CAPTION_COLUMNS, SEVERAL, WEIGHT}
MAX_TEXT_BYTES = 1 << 20
"""Of a caption beside a picture; a longer file is something else."""
MAX_TABLE_BYTES = 1 << 29

_HALF = re.compile("[\ud800-\udfff]")
# The longer mark first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Row:
    """One row: a picture's name as written, its captions (one in a csv), and the line it begins on.

    Attributes:
        weights: how often each caption is drawn, relative to the picture's others; empty where the row gives none
            (each is 1).
    """

    name: str
    captions: tuple[str, ...]
    line: int
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """The rows of one file, and the columns that are not used."""

    rows: Sequence[Row]
    ignored_columns: tuple[str, ...] = ()


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read text as UTF-8, or as what its byte order mark says.

    Raises:
        DataError: it cannot be read, is larger than `max_bytes`, is in another encoding, or holds NUL characters.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError("data.unreadable", path=path, reason=error.strerror or error) from error
    if len(data) > max_bytes:
        raise DataError("data.text_too_large", path=path, allowed=max_bytes // 1024)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        start = min(error.start, len(data) - 1)
        place = {"path": path, "byte": f"0x{data[start]:02x}", "position": start}
        named = encoding.upper().removesuffix("-SIG")
        raise DataError("data.encoding", **place, encoding=named, guess=_guess(data)) from error
    if "\0" in text:
        raise DataError("data.text_nul", path=path, position=text.index("\0"))
    return text


def _guess(data: bytes) -> str:
    """Name the legacy encoding that the bytes look like."""
    # Western texts have single high bytes; Chinese ones long rows of them.
    if re.search(rb"[\x81-\xfe]{4}", data):
        for encoding in ("gb18030", "big5", "shift_jis"):
            if _decodes(data, encoding):
                return {"gb18030": "GBK"}.get(encoding, encoding)
    return "cp1252" if _decodes(data, "cp1252") else "latin-1"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def read_table(path: Path) -> Table:
    """Read the rows of a .csv, .tsv or .jsonl file.

    A csv file may have a header (`file_name|filename|image|file`, `prompt|caption|text` and `weight`, others are named
    as ignored) or else two columns, picture and caption; it is separated by `,`, `;` or tabs, quoted as RFC 4180 has
    it. A caption of a jsonl file is a text, a list of texts, or a list of {"text": ..., "weight": ...}.

    Raises:
        DataError: with file and line, for whatever cannot be read without guessing.
    """
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError("data.table_kind", path=path, allowed=", ".join(TABLE_SUFFIXES))
    table = parse_table(read_text(path, MAX_TABLE_BYTES), path)
    if not table.rows:
        raise DataError("data.table_empty", path=path)
    return table


def parse_table(text: str, path: Path) -> Table:
    """Read the rows of a table's text, of which there may be none; `path` says its kind, and names it in errors.

    Raises:
        DataError: see `read_table`.
    """
    return _read_jsonl(text, path) if path.suffix.lower() == ".jsonl" else _read_csv(text, path)


def _read_csv(text: str, path: Path) -> Table:
    if not text.strip():
        return Table(())
    delimiter, header = layout(text, path)
    reader = csv_reader(text, delimiter)
    columns: tuple[int, ...] = (0, 1)
    if header is not None:
        found = (columns_of(header, known, path) for known in (FILE_COLUMNS, CAPTION_COLUMNS, (WEIGHT,)))
        columns = tuple(place for places in found for place in places)
    expected = 2 if header is None else len(header)
    rows: list[Row] = []
    line, header_pending = 1, header is not None
    try:
        for record in reader:
            if header_pending and any(cell.strip() for cell in record):
                header_pending = False
            elif any(cell.strip() for cell in record):
                rows.append(_csv_row(record, columns, expected, (path, line)))
            line = reader.line_num + 1
    except csv.Error as error:
        reason = messages.printable(str(error))
        raise DataError("data.table_broken", path=path, line=line, reason=reason) from error
    used = set(columns)
    return Table(rows, tuple(name for i, name in enumerate(header or ()) if i not in used and name))


def csv_reader(text: str, delimiter: str):
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)


def layout(text: str, path: Path) -> tuple[str, list[str] | None]:
    """Return (delimiter, header cells or None), from the first row that is not blank."""
    firsts: dict[str, list[str]] = {}
    reason: object = ""
    for delimiter in (",", ";", "\t"):
        try:
            filled = (record for record in csv_reader(text, delimiter) if any(cell.strip() for cell in record))
            firsts[delimiter] = [cell.strip() for cell in next(filled, [])]
        except csv.Error as error:
            reason = error
    for delimiter, cells in firsts.items():
        names = {cell.lower() for cell in cells}
        if names & {*FILE_COLUMNS} and names & {*CAPTION_COLUMNS}:
            return delimiter, cells
    for delimiter, cells in firsts.items():
        if len(cells) > 1 and Path(cells[0]).suffix.lower() in SUFFIXES | FOREIGN_SUFFIXES:
            return delimiter, None
    if len(firsts) < 3 and not any(len(cells) > 1 for cells in firsts.values()):
        raise DataError("data.table_broken", path=path, line=1, reason=messages.printable(str(reason)))
    found = max(firsts.values(), key=len)
    raise DataError(
        "data.table_columns",
        path=path,
        found=messages.printable(", ".join(found)[:200]),
        files=", ".join(FILE_COLUMNS),
        captions=", ".join(CAPTION_COLUMNS),
    )


def columns_of(header: Sequence[str], known: Sequence[str], path: Path) -> list[int]:
    """Return the one place of a meaning, or none."""
    places = [i for i, name in enumerate(header) if name.lower() in known]
    if len(places) > 1:
        columns = messages.printable(", ".join(header[i] for i in places))
        raise DataError("data.table_two_columns", path=path, columns=columns)
    return places


def _csv_row(record: list[str], columns: tuple[int, ...], expected: int, place: tuple[Path, int]) -> Row:
    path, line = place
    # A row may end before a weight that it does not give.
    if len(record) <= max(columns[:2]) or any(cell.strip() for cell in record[expected:]):
        raise DataError("data.table_cells", path=path, line=line, found=len(record), expected=expected)
    name, caption, *rest = (record[column].strip() for column in columns if column < len(record))
    if not name:
        raise DataError("data.table_no_name", path=path, line=line)
    return Row(name, (caption,), line, (_weight(rest[0], place),) if rest and rest[0] else ())


def _weight(value: object, place: tuple[Path, int]) -> float:
    """Return a caption's weight; one that is not given is 1.

    Raises:
        DataError: it is no number above 0.
    """
    if value is None:
        return 1.0
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise DataError("data.caption_weight", path=place[0], line=place[1], value=messages.printable(str(value)[:40]))
    return number


def _read_jsonl(text: str, path: Path) -> Table:
    rows: list[Row] = []
    ignored: dict[str, None] = {}
    # Not splitlines: JSON allows further line separators inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        entry = _json_object(line, path, number)
        rows.append(_json_row(entry, path, number))
        ignored |= dict.fromkeys(key for key in entry if key.lower() not in _JSON_KEYS)
    return Table(rows, tuple(ignored))


def _json_object(line: str, path: Path, number: int) -> dict[str, object]:
    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    try:
        entry = json.loads(line, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        reason = messages.printable(str(error))
        raise DataError("data.table_broken", path=path, line=number, reason=reason) from error
    # Only escapes can bring them, since the file is UTF-8.
    if "\\u" in line and _HALF.search(json.dumps(entry, ensure_ascii=False)):
        raise DataError("data.half_character", path=path, line=number)
    if not isinstance(entry, dict):
        raise DataError("data.jsonl_row", path=path, line=number, file=FILE_COLUMNS[0], caption=CAPTION_COLUMNS[0])
    return entry


def _json_row(entry: dict[str, object], path: Path, number: int) -> Row:
    names = [value for key, value in entry.items() if key.lower() in FILE_COLUMNS]
    texts = [value for key, value in entry.items() if key.lower() in (*CAPTION_COLUMNS, SEVERAL)]
    own = next((value for key, value in entry.items() if key.lower() == WEIGHT), None)
    captions = texts[0] if len(texts) == 1 and isinstance(texts[0], list) else texts
    pairs = [_caption(value, own) for value in captions]
    if len(names) != 1 or len(texts) != 1 or not isinstance(names[0], str) or not pairs or None in pairs:
        raise DataError("data.jsonl_row", path=path, line=number, file=FILE_COLUMNS[0], caption=CAPTION_COLUMNS[0])
    if not names[0].strip():
        raise DataError("data.table_no_name", path=path, line=number)
    given = [pair for pair in pairs if pair is not None]
    weighted = any(weight is not None for _, weight in given)
    weights = tuple(_weight(weight, (path, number)) for _, weight in given) if weighted else ()
    return Row(names[0].strip(), tuple(text.strip() for text, _ in given), number, weights)


def _caption(value: object, row_weight: object) -> tuple[str, object] | None:
    """Return a caption and its weight, the row's where it has none of its own; None where it is none."""
    if isinstance(value, dict) and value.keys() <= {"text", WEIGHT} and isinstance(value.get("text"), str):
        return value["text"], value.get(WEIGHT, row_weight)
    return (value, row_weight) if isinstance(value, str) else None
