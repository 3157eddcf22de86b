"""Files to rows: what lies in a file, row by row, and nothing taken for granted about it."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from lora_scripts import files
from lora_scripts.data.texts import fields, formats, tables
from lora_scripts.data.texts.fields import Raw
from lora_scripts.errors import DataError

LINES, DOCUMENTS, TABLES, PARQUET, TEXTS = (
    (".jsonl", ".ndjson"),
    (".json",),
    (".csv", ".tsv"),
    (".parquet",),
    (".txt", ".md"),
)
ROW_SUFFIXES = LINES + DOCUMENTS + TABLES + PARQUET
SUFFIXES = ROW_SUFFIXES + TEXTS
MEBIBYTE = 1 << 20
MAX_MEBIBYTES = {**dict.fromkeys(LINES + TABLES + PARQUET, 4096), **dict.fromkeys(DOCUMENTS, 1024)}
"""Of a file; a JSON document and a text are held in memory whole."""
MAX_TEXT_MEBIBYTES = 64
"""Of a text file, and of one line."""


def suffix(name: str | Path) -> str:
    """Return a file's ending in lower case, which decides how it is read."""
    return PurePosixPath(name).suffix.lower()


class HashedFile(io.RawIOBase):
    """A file whose bytes are hashed as they are read, so that what was hashed is what was read."""

    def __init__(self, path: Path):
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        count = self._file.readinto(buffer)
        self.hash.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class RowFile:
    """One file's rows, read once, and the hash of its bytes.

    Args:
        path: its ending says how it is read.

    Attributes:
        sha256: of the bytes, once all rows are read.
        unused: keys beside the list of rows in a JSON document.

    Raises:
        DataError: the ending is unknown, or the file is none, too large or not readable.
    """

    def __init__(self, path: Path):
        self.path, self.kind, self.sha256 = path, suffix(path), ""
        self.unused: tuple[str, ...] = ()
        if self.kind not in SUFFIXES:
            raise DataError("text.suffix", path=path, allowed=", ".join(SUFFIXES))
        try:
            status = path.stat()
        except OSError as error:
            raise self._unreadable(error) from error
        # A pipe would be waited for without end.
        if not stat.S_ISREG(status.st_mode):
            raise DataError("text.not_a_file", path=path)
        allowed = MAX_MEBIBYTES.get(self.kind, MAX_TEXT_MEBIBYTES)
        if status.st_size > allowed * MEBIBYTE:
            raise DataError("text.file_too_large", path=path, size=status.st_size // MEBIBYTE, allowed=allowed)

    def rows(self) -> Iterator[tuple[int, Raw]]:
        """Yield (number, row): the line it begins on in files of lines, else its place, from 1.

        Raises:
            DataError: what is there cannot be read as rows without guessing.
        """
        try:
            if self.kind in PARQUET:
                yield from tables.parquet_rows(self.path)
                self.sha256 = files.sha256_of(self.path)
                return
            raw = HashedFile(self.path)
            # Inside a quoted cell a line end belongs to the text; in a text file it is the system's.
            end = "\n" if self.kind in LINES else None if self.kind in TEXTS else ""
            with io.TextIOWrapper(io.BufferedReader(raw, MEBIBYTE), encoding="utf-8-sig", newline=end) as file:
                if self.kind in LINES:
                    yield from _json_lines(self.path, file)
                elif self.kind in TABLES:
                    yield from tables.csv_rows(self.path, lines(self.path, file))
                else:
                    yield from self._whole(file.read())
                self.sha256 = raw.hash.hexdigest()
        except UnicodeDecodeError as error:
            raise _encoding(self.path) from error
        except OSError as error:
            raise self._unreadable(error) from error

    def _whole(self, text: str) -> Iterator[tuple[int, Raw]]:
        _refuse_nul(self.path, text, 1)
        if self.kind in TEXTS:
            yield 1, {"text": text}
        elif text.strip():
            yield from enumerate(self._document(text), start=1)

    def _document(self, text: str) -> Iterator[Raw]:
        """Yield the rows of a JSON document: a list, an object with one list under "data" or alone, or one row."""
        try:
            value = parse(text, self.path, 1)
        except DataError as error:
            if error.code == "text.broken_json" and _begins_as_lines(text):
                raise DataError("text.lines_as_json", path=self.path) from error
            raise
        if isinstance(value, dict) and formats.recognise(value) is None:
            lists = [key for key, found in value.items() if isinstance(found, list)]
            key = "data" if "data" in lists else lists[0] if len(value) == len(lists) == 1 else None
            if key is None:
                raise formats.unknown(self.path, 1, value)
            self.unused = tuple(other for other in value if other != key)
            value = value[key]
        for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
            yield _row(row, self.path, number)

    def _unreadable(self, error: OSError) -> DataError:
        return DataError("text.unreadable", path=self.path, reason=error.strerror or error)


def lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file, none longer than is sane.

    Raises:
        DataError: a line is too long, or is no text.
    """
    number = 1
    while line := file.readline(MAX_TEXT_MEBIBYTES * MEBIBYTE + 1):
        if len(line) > MAX_TEXT_MEBIBYTES * MEBIBYTE:
            raise DataError("text.line_too_long", file=path, row=number, allowed=MAX_TEXT_MEBIBYTES)
        _refuse_nul(path, line, number)
        yield line
        number += 1


def _refuse_nul(path: Path, text: str, line: int) -> None:
    if "\0" in text:
        raise DataError("text.nul", file=path, row=line + text.count("\n", 0, text.index("\0")))


class _DuplicateKey(ValueError):
    """An object says two things about one key; which of them is meant nobody knows."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKey(counts.most_common(1)[0][0])
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse(text: str, path: Path, row: int) -> object:
    """Return the value of a JSON text that begins on line `row`.

    Raises:
        DataError: it is no JSON, is nested beyond sense, or has a key twice in one object.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = {"file": path, "row": row + error.lineno - 1, "column": error.colno}
        raise DataError("text.broken_json", **place, reason=error.msg) from error
    except _DuplicateKey as error:
        raise DataError("text.duplicate_key", file=path, row=row, key=fields.shown(error.args[0])) from error
    except RecursionError as error:
        raise DataError("text.too_deep", file=path, row=row) from error
    except ValueError as error:
        # A number of more digits than are read.
        raise DataError("text.broken_json", file=path, row=row, column=1, reason=error) from error


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, Raw]]:
    for number, line in enumerate(lines(path, file), start=1):
        if line.strip():
            yield number, _row(parse(line.rstrip("\r\n"), path, number), path, number)


def _row(value: object, path: Path, number: int) -> Raw:
    if not isinstance(value, dict):
        raise DataError("text.not_object", file=path, row=number, value=fields.shown(value))
    return value


def _begins_as_lines(text: str) -> bool:
    """Say whether the first line alone is an object: JSON Lines under the wrong name."""
    try:
        first, _, rest = text.strip().partition("\n")
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _encoding(path: Path) -> DataError:
    """Return the error for the first bytes of a file that are not UTF-8."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(MEBIBYTE)
            held = decoder.getstate()[0]
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                position += error.start - len(held)
                break
            if not block:
                break
            position += len(block)
        file.seek(0)
        start = file.read(4)
        file.seek(max(0, position))
        sample = file.read(4096)
    byte = f"0x{sample[0]:02x}" if sample else "-"
    return DataError("text.encoding", path=path, byte=byte, position=position, guess=_guess(start, sample))


def _guess(start: bytes, sample: bytes) -> str:
    """Name the encoding that the bytes look like; `sample` begins with the first wrong byte."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    # Western texts have single high bytes; Chinese ones long rows of them.
    if re.search(rb"[\x81-\xfe]{4}", sample):
        for encoding, shown in (("gb18030", "GBK"), ("big5", "Big5"), ("shift_jis", "Shift-JIS")):
            if _decodes(sample, encoding):
                return shown
    return "cp1252" if _decodes(sample, "cp1252") else "latin-1"


def _decodes(sample: bytes, encoding: str) -> bool:
    """Say whether the bytes decode, a last character that is cut off aside."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def is_row_file(name: str) -> bool:
    """Say whether a file holds rows, rather than being one itself."""
    return suffix(name) in ROW_SUFFIXES
