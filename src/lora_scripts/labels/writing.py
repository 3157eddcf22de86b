"""Where captions stand: a table whose other cells, rows and order are left as they are, or files beside pictures.

Every kind of output has `captions` (a picture's captions, in order), `put` and `flush`; see `open_output`.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lora_scripts import messages
from lora_scripts.data.caption_files import inside, sidecars
from lora_scripts.data.caption_tables import Row, parse_table, read_text
from lora_scripts.data.record import Dropped
from lora_scripts.errors import DataError
from lora_scripts.files import cannot_write, write_bytes
from lora_scripts.labels.csv_rows import CsvRows
from lora_scripts.labels.json_rows import JsonRows
from lora_scripts.labels.table_text import MAX_TABLE_BYTES, encoded, read_encoding


class Table:
    """A .csv, .tsv or .jsonl file.

    Attributes:
        problems: pictures whose captions cannot be read; a table is read whole or not at all.
    """

    def __init__(self, path: Path, pictures: Sequence[str]):
        self.path = path
        self.problems: dict[str, Dropped] = {}
        self._dirty = False
        text, self._encoding = "", "utf-8"
        if path.exists():
            text, self._encoding = read_text(path, MAX_TABLE_BYTES), read_encoding(path)
            parse_table(text, path)
        kind = JsonRows if path.suffix.lower() == ".jsonl" else CsvRows
        self._rows = kind(text, path)
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._match(pictures)

    def captions(self, name: str) -> list[str]:
        """Return a picture's captions."""
        return [self._rows.get(*place) for place in self._places.get(name, ())]

    def refuses(self, name: str) -> Dropped | None:
        """Return why a picture cannot be named in this table, or None."""
        try:
            fits = name == name.strip() and inside(Row(name, (), 0), self.path) == name
        except DataError:
            fits = False
        return None if fits else Dropped(self.path.parent / name, "label.name_unfit", {"path": Path(name)})

    def put(self, name: str, index: int | None, text: str) -> None:
        """Replace one of a picture's captions, or add one in a row of its own."""
        self._dirty = True
        if index is None:
            self._places[name].append(self._rows.add(name, text))
        else:
            self._rows.set(*self._places[name][index], text)

    def flush(self) -> None:
        """Replace the file, where anything is to be written.

        Raises:
            MachineError: no space, or the folder cannot be written; the old file is whole.
        """
        if self._dirty:
            write_bytes(self.path, encoded(self._rows.text(), self._encoding))
            self._dirty = False

    def _match(self, pictures: Sequence[str]) -> None:
        """Find each row's picture as the trainer does: by its very name, else by one that differs in Unicode form."""
        exact, composed = set(pictures), defaultdict(list)
        for name in pictures:
            composed[unicodedata.normalize("NFC", name)].append(name)
        for place, (written, line) in self._rows.names():
            wanted = inside(Row(written, (), line), self.path)
            near = [wanted] if wanted in exact else composed.get(unicodedata.normalize("NFC", wanted), [])
            if len(near) > 1:
                first, second = map(messages.printable, near[:2])
                raise DataError("data.row_of_two", path=self.path, line=line, first=first, second=second)
            if near:
                self._places[near[0]].append(place)


class Beside:
    """One text file a picture, beside it."""

    def __init__(self, folder: Path, pictures: Sequence[str], others: Sequence[str]):
        self.folder = folder
        self._names, _ = sidecars(pictures, others)
        _refuse_shared(pictures)
        self._texts, self.problems = read_beside(folder, self._names)
        self._waiting: dict[str, str] = {}

    def captions(self, name: str) -> list[str]:
        """Return a picture's caption, where it has one."""
        return [self._texts[name]] if name in self._texts else []

    def refuses(self, name: str) -> Dropped | None:
        """Any picture can have a file beside it."""
        return None

    def put(self, name: str, index: int | None, text: str) -> None:
        """Replace a picture's caption."""
        self._texts[name] = self._waiting[name] = text

    def flush(self) -> None:
        """Write the files of what was put.

        Raises:
            MachineError: no space, or the folder cannot be written; the old files are whole.
        """
        for name, text in self._waiting.items():
            beside = self._names.get(name) or f"{PurePosixPath(name).with_suffix('')}.txt"
            try:
                # The side file, which is waited for, tells what a power cut takes.
                write_bytes(self.folder / beside, f"{text}\n".encode(), durable=False)
            except ValueError as error:
                raise cannot_write(self.folder, OSError(str(error))) from error
        self._waiting.clear()


Output = Table | Beside


def read_beside(folder: Path, names: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Dropped]]:
    """Read caption files, {picture: file}: their texts, and those that cannot be read."""
    texts: dict[str, str] = {}
    problems: dict[str, Dropped] = {}
    for picture, name in names.items():
        try:
            texts[picture] = read_text(folder / name).strip()
        except DataError as error:
            problems[picture] = Dropped(folder / picture, error.code, error.params)
    return texts, problems


def _refuse_shared(pictures: Sequence[str]) -> None:
    """Refuse pictures that would have the same file beside them.

    Raises:
        DataError: naming two of them.
    """
    owners: dict[str, str] = {}
    for name in pictures:
        stem = str(PurePosixPath(name).with_suffix(""))
        folded = unicodedata.normalize("NFC", stem).casefold()
        if folded in owners:
            first, second = map(messages.printable, (owners[folded], name))
            raise DataError("data.shared_caption", path=messages.printable(f"{stem}.txt"), first=first, second=second)
        owners[folded] = name
