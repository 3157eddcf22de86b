"""The side file: what was written about which picture, by whom, and what stood there before; only ever added to.

One JSON object a line, `schema` first. Kinds of lines:

    caption   one caption of one picture: the text, what it replaced, its author, the picture's sha256, what the model
              said and how sure it was, what the rules took out, why a person should look at it
    review    how well captions and pictures find each other, and in which order to look at them
    finished  everything above it stands in the output

Whose a caption is follows from this file: it is the machine's exactly where the lines of the last run that wrote about
the picture hold this very text. Lines behind the last `finished` belong to a run that was cut off; it is carried on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.contracts import Label, Tag
from lora_scripts.errors import DataError
from lora_scripts.files import cannot_write, sync

SCHEMA_VERSION = 1
PERSON = "person"
SYNC_SECONDS = 3.0
LEAST_TAGS = 15
"""So many phrases of a label are kept, and all that stand in the caption."""


@dataclass
class Entry:
    """What is known of a picture.

    Attributes:
        sha256: of the picture's bytes when it was last written about.
        key: who said it by which rules, see `rules.Rules.key`; "" where a person did.
        place: of its last line in the file, in bytes.
        run: how many runs were finished before that line.
        authors: who wrote what, by digest of the text.
        texts: what was written last, by digest: what stands in the output unless a kill came between.
    """

    sha256: str = ""
    key: str = ""
    place: int = -1
    run: int = 0
    authors: dict[bytes, str] = field(default_factory=dict)
    texts: tuple[bytes, ...] = ()


class Journal:
    """One side file: what it says, and a way to add to it."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.runs = 0
        self.review: dict[str, Any] | None = None
        self._end = 0
        self._synced = 0.0
        self._handle: int | None = None
        for place, row in self._rows():
            self._learn(row, place)

    @property
    def open(self) -> bool:
        """Whether the last run was cut off before its end."""
        return any(entry.run == self.runs for entry in self.entries.values())

    def author(self, name: str, text: str) -> str:
        """Return who wrote a picture's caption: who wrote this very text last, else a person."""
        entry = self.entries.get(name)
        # What a finished run replaced, and stands there again, a person has put back.
        if entry is None or (entry.run != self.runs and digest(text) not in entry.texts):
            return PERSON
        return entry.authors.get(digest(text), PERSON)

    def knows(self, name: str, text: str, sha256: str) -> bool:
        """Say whether it is written down that this text stands, for this very picture."""
        entry = self.entries.get(name)
        return entry is not None and entry.sha256 == sha256 and digest(text) in entry.texts

    def label(self, name: str) -> Label:
        """Read what the model said of a picture, as far as its caption needs it."""
        row = self.row(name)
        tags = tuple(Tag(text, score, group) for text, score, group in row["tags"])
        return Label(row["said"], tags, row["sure"], (), row["speaker"])

    def row(self, name: str) -> dict[str, Any]:
        """Read the last line about a picture."""
        with self.path.open("rb") as file:
            file.seek(self.entries[name].place)
            return json.loads(file.readline())

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append lines; what is written survives a kill at once, and a power cut within seconds.

        Raises:
            MachineError: no space, or the file cannot be written.
        """
        if not rows:
            return
        data = [json.dumps({"schema": SCHEMA_VERSION, **row}, ensure_ascii=False).encode() + b"\n" for row in rows]
        try:
            handle = self._opened()
            # A file system that is full may take a part of it.
            rest = memoryview(b"".join(data))
            while rest:
                rest = rest[os.write(handle, rest) :]
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise cannot_write(self.path.parent, error) from error
        for line, row in zip(data, rows, strict=True):
            self._learn(row, self._end)
            self._end += len(line)

    def sync(self) -> None:
        """Wait until the disk has it."""
        if self._handle is not None:
            sync(self._handle)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file, where it was written."""
        if self._handle is not None:
            try:
                self.sync()
            except OSError as error:
                raise cannot_write(self.path.parent, error) from error
            finally:
                os.close(self._handle)
                self._handle = None

    def _opened(self) -> int:
        """Open the file to write behind its last whole line: one that a kill tore off goes."""
        if self._handle is None:
            # Without O_BINARY, Windows would write "\r\n".
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._handle = os.open(self.path, flags, 0o644)
            os.ftruncate(self._handle, self._end)
            os.lseek(self._handle, self._end, os.SEEK_SET)
            self._synced = time.monotonic()
        return self._handle

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each line with its place; a torn last one is passed over.

        Raises:
            DataError: the file cannot be read, is damaged, or a newer version's.
        """
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        return
                    yield self._end, self._row(line, number)
                    self._end += len(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError("data.unreadable", path=self.path, reason=error.strerror or error) from error

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            version = int(row["schema"])
            if row["kind"] == "caption" and not {"file_name", "text", "author", "key"} <= row.keys():
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("label.side_file_broken", path=self.path, line=number) from error
        if version > SCHEMA_VERSION:
            raise DataError("train.newer_version", path=self.path, version=version, known=SCHEMA_VERSION)
        return row

    def _learn(self, row: Mapping[str, Any], place: int) -> None:
        if row["kind"] == "finished":
            self.runs += 1
        if row["kind"] == "review":
            self.review = {key: value for key, value in row.items() if key != "schema"}
        if row["kind"] != "caption":
            return
        entry = self.entries.setdefault(row["file_name"], Entry())
        if entry.run != self.runs:
            entry.authors = {}
        if entry.run != self.runs or (row["key"] and entry.key and row["key"] != entry.key):
            entry.texts = ()
        replaced = digest(row["before"] or "") if row.get("before") is not None else b""
        entry.texts = (*(text for text in entry.texts if text != replaced), digest(row["text"]))
        # Until the output is replaced, what stood there before still stands, whoever wrote it.
        if row.get("before") is not None:
            entry.authors.setdefault(digest(row["before"]), row.get("before_author", PERSON))
        entry.authors[digest(row["text"])] = row["author"]
        entry.sha256, entry.key, entry.place, entry.run = row.get("sha256", ""), row["key"], place, self.runs


def digest(text: str) -> bytes:
    """Return what a caption is known by: without the white space around it, as captions are read."""
    return hashlib.sha256(text.strip().encode()).digest()[:16]


def is_person(author: str) -> bool:
    """Say whether any of a caption is a person's own."""
    return author == PERSON or author.startswith(f"{PERSON} + ")
