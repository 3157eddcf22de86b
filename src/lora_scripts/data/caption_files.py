"""Which captions belong to which picture.

For each picture the first of these that exists counts, and the plan says how many came from where:

1. its row or rows in the data set's own `metadata` file;
2. else in `metadata.csv` in the data set's folder;
3. else in `metadata.jsonl` in the data set's folder;
4. `<name>.txt` beside the picture;
5. `<name>.caption` beside the picture;
6. the data set's `class_words`;
7. the words of the kohya folder it lies in: "10_red cat" says repeats 10, caption "red cat";
8. the empty caption.

Only one of the tables 1-3 is used. A row with an empty caption is a choice of the empty caption; several rows for
one picture are several captions, of which each visit draws one, by their weights. A caption is used letter for letter,
without the white space around it.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_scripts import messages
from lora_scripts.data.caption_tables import Row, read_table, read_text
from lora_scripts.data.record import Dataset, Note
from lora_scripts.errors import DataError

TABLES = ("metadata.csv", "metadata.jsonl")
SIDECARS = (".txt", ".caption")
MAX_REPEATS = 10_000
SHOWN = 5


@dataclass(frozen=True)
class Assigned:
    """What is known of one picture besides its bytes.

    Attributes:
        captions: non-empty; ("",) where there is none.
        kind: "table", "beside", "class", "folder", or "" where there is none.
        source: the table's name, the sidecar's suffix, the class words or the kohya folder's name.
        repeats: of its kohya folder, else 1; 0 turns the folder off.
        weights: of the captions; empty where all are drawn alike.
    """

    captions: tuple[str, ...]
    kind: str = ""
    source: str = ""
    repeats: int = 1
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """The captions of a folder.

    Attributes:
        pictures: by name relative to the folder, with "/".
        notes: what was found but not used, and what is missing.
        used: names of the caption files that were read.
    """

    pictures: Mapping[str, Assigned]
    notes: tuple[Note, ...]
    used: frozenset[str]


def assign(dataset: Dataset, pictures: Sequence[str], others: Sequence[str]) -> Assignment:
    """Find the captions of every picture of a folder; see the top of this file for the order.

    Args:
        dataset: its `metadata`, `missing_pictures` and `class_words` count.
        pictures: every picture file, damaged ones too, relative to `dataset.path` with "/".
        others: every other file, likewise.

    Raises:
        DataError: a caption file that cannot be read, that names absent pictures, or that two pictures share.
    """
    table, notes = _table(dataset, others)
    rows: dict[str, dict[str, float]] = {}
    if table is not None:
        content = read_table(table)
        rows, absent = _match(content.rows, pictures, table)
        notes += _table_notes(dataset, table, content.ignored_columns, absent)
        unlisted = [name for name in pictures if name not in rows]
        if unlisted:
            notes.append(Note("data.unlisted", {"file": table.name, **listed(unlisted)}))
    beside, passed_over = sidecars([name for name in pictures if name not in rows], others)
    if passed_over:
        notes.append(Note("data.sidecars_ignored", {"used": SIDECARS[0], **listed(passed_over)}))
    beside_rows = sidecars(list(rows), others, allow_shared=True)[0] if table is not None else {}
    if table is not None and beside_rows:
        notes.append(Note("data.sidecars_ignored", {"used": table.name, **listed(sorted(beside_rows.values()))}))
    assigned = {name: _assigned(name, rows, table, beside, dataset) for name in pictures}
    used = {*beside.values(), *beside_rows.values(), *passed_over, *({*TABLES} & {*others})}
    if table is not None and table.resolve().is_relative_to(dataset.path.resolve()):
        used.add(table.resolve().relative_to(dataset.path.resolve()).as_posix())
    return Assignment(assigned, tuple(notes), frozenset(used))


def source_notes(assigned: Iterable[Assigned]) -> list[Note]:
    """Say how many pictures got their captions from where, in the order of precedence."""
    counts = Counter((picture.kind, picture.source) for picture in assigned if any(picture.captions))

    def of_kind(kind: str) -> list[dict[str, object]]:
        return [{"source": source, "count": n} for (each, source), n in sorted(counts.items()) if each == kind]

    notes = [Note("data.captions_from", params) for params in of_kind("table")]
    notes += [Note("data.captions_beside", params) for params in reversed(of_kind("beside"))]
    notes += [Note("data.captions_class", params) for params in of_kind("class")]
    return notes + [Note("data.captions_from_folder", params) for params in of_kind("folder")]


def listed(names: Sequence[str]) -> dict[str, object]:
    """Return the parameters of a message that counts names and shows the first of them."""
    shown = ", ".join(map(messages.printable, names[:SHOWN]))
    return {"count": len(names), "examples": shown + (", ..." if len(names) > SHOWN else "")}


def kohya_folder(name: str) -> tuple[str, int, str]:
    """Return (folder, repeats, words) of a picture's top folder: ("10_red cat", 10, "red cat"), else ("", 1, "").

    Numbers above `MAX_REPEATS` are no repeats but, say, a date.
    """
    top, _, rest = name.partition("/")
    match = re.fullmatch(r"(\d+)_(.*)", top, re.DOTALL) if rest else None
    if match is None or len(match[1]) > len(str(MAX_REPEATS)) or int(match[1]) > MAX_REPEATS:
        return "", 1, ""
    return top, int(match[1]), match[2].strip()


def _assigned(
    name: str, rows: Mapping[str, dict[str, float]], table: Path | None, sidecars: Mapping[str, str], dataset: Dataset
) -> Assigned:
    folder, repeats, words = kohya_folder(name)
    if table is not None and name in rows:
        weights = tuple(rows[name].values()) if len({*rows[name].values()}) > 1 else ()
        return Assigned(tuple(rows[name]), "table", table.name, repeats, weights)
    if name in sidecars:
        text = read_text(dataset.path / sidecars[name]).strip()
        return Assigned((text,), "beside", PurePosixPath(sidecars[name]).suffix.lower(), repeats)
    if dataset.class_words:
        return Assigned((dataset.class_words,), "class", dataset.class_words, repeats)
    return Assigned((words,), "folder" if words else "", folder, repeats)


def _table(dataset: Dataset, others: Sequence[str]) -> tuple[Path | None, list[Note]]:
    """Choose the one table that is used, and name the others."""
    lying = [name for name in TABLES if name in others]
    if dataset.metadata is None:
        used = dataset.path / lying[0] if lying else None
        ignored = lying[1:]
    else:
        used = dataset.metadata
        if not used.is_file():
            raise DataError("data.metadata_missing", path=used)
        ignored = [name for name in lying if not (dataset.path / name).samefile(used)]
    return used, [Note("data.table_ignored", {"file": name, "used": used.name}) for name in ignored if used]


def _match(rows: Sequence[Row], pictures: Sequence[str], table: Path) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return captions and their weights by picture, and the names that no picture has.

    Equal captions of a picture are one, with the largest of their weights.
    """
    exact, composed = set(pictures), defaultdict(list)
    for name in pictures:
        composed[unicodedata.normalize("NFC", name)].append(name)
    captions: dict[str, dict[str, float]] = {}
    absent: dict[str, None] = {}
    for row in rows:
        wanted = inside(row, table)
        near = [wanted] if wanted in exact else composed.get(unicodedata.normalize("NFC", wanted), [])
        if len(near) > 1:
            first, second = map(messages.printable, near[:2])
            raise DataError("data.row_of_two", path=table, line=row.line, first=first, second=second)
        if near:
            mine = captions.setdefault(near[0], {})
            for text, weight in zip(row.captions, row.weights or [1.0] * len(row.captions), strict=True):
                mine[text] = max(weight, mine.get(text, 0.0))
        else:
            absent[row.name] = None
    return captions, list(absent)


def inside(row: Row, table: Path) -> str:
    """Return the row's name relative to the folder, with "/", or refuse one that leaves it."""
    name = row.name.replace("\\", "/")
    wanted = posixpath.normpath(name)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or wanted == ".." or wanted.startswith("../"):
        raise DataError("data.row_leaves_folder", path=table, line=row.line, name=messages.printable(row.name))
    return wanted


def _table_notes(dataset: Dataset, table: Path, ignored: tuple[str, ...], absent: list[str]) -> list[Note]:
    notes = []
    if ignored:
        notes.append(
            Note("data.columns_ignored", {"file": table.name, "columns": messages.printable(", ".join(ignored))})
        )
    if absent and dataset.missing_pictures == "error":
        raise DataError("data.absent_pictures", path=table, folder=dataset.path, **listed(absent))
    if absent:
        notes.append(Note("data.absent_ignored", {"file": table.name, **listed(absent)}))
    return notes


def sidecars(
    pictures: Sequence[str], others: Sequence[str], *, allow_shared: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Return the sidecar of each picture that has one, and those that lose against another of the same picture."""
    lying: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in others:
        path = PurePosixPath(name)
        if path.suffix.lower() in SIDECARS:
            lying[_folded(path), path.suffix.lower()].append(name)
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    passed_over: list[str] = []
    for picture in pictures:
        path = PurePosixPath(picture)
        # The same spelling first, then one that differs in case or Unicode form only.
        near = [
            sorted(lying.get((_folded(path), suffix), []), key=lambda name: not _same_stem(name, picture))
            for suffix in SIDECARS
        ]
        mine = [names[0] for names in near if names]
        if not mine:
            continue
        if not allow_shared and mine[0] in owners:
            shared, first, second = map(messages.printable, (mine[0], owners[mine[0]], picture))
            raise DataError("data.shared_caption", path=shared, first=first, second=second)
        owners[mine[0]] = picture
        found[picture] = mine[0]
        passed_over += mine[1:]
    return found, passed_over


def _folded(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path.with_suffix(""))).casefold()


def _same_stem(first: str, second: str) -> bool:
    return PurePosixPath(first).with_suffix("") == PurePosixPath(second).with_suffix("")
