"""Rows of texts, read as a training run reads them, except that what it would refuse is noted.

A run stops at the first broken line. Here such a line is passed over, in a copy of the file, and all others are read.
What is held in memory is the rows' text: as much as a run holds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_scripts import registry
from lora_scripts.data.folder import walk
from lora_scripts.data.record import Dataset, Dropped, Note, TextRow
from lora_scripts.data.texts import files
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.texts.privacy import masked
from lora_scripts.doctor.texts.text import Text
from lora_scripts.errors import DataError, Problem

BROKEN_LINES = 20
"""A file with more lines than this that cannot be read is not looked at further."""
REASONS = {
    "text.empty_answer": ("no_answer", Severity.MUST),
    "text.blank": ("blank", Severity.MUST),
    "text.missing": ("lacking", Severity.MUST),
    "text.no_verdict": ("not_judged", Severity.GOOD),
}
"""The finding that a reason to leave a row out belongs to; any other is `unusable`."""
LABEL_WORDS = 4
"""An answer of no more words may be a label."""
ROWS_A_LABEL = 8
"""Rows per different answer from which answers are labels."""


@dataclass
class Reading:
    """What was read of one data set; `seen` counts the rows, those that were left out among them."""

    texts: list[Text] = field(default_factory=list)
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    dropped: list[tuple[str, Dropped]] = field(default_factory=list)
    skipped: list[tuple[str, Dropped]] = field(default_factory=list)
    seen: int = 0


def read(path: Path, prefix: str = "") -> Reading:
    """Return every row of a file, or of a folder's files.

    Args:
        prefix: put before the files' names, to tell the held-out ones from the others.

    Raises:
        DataError: there is nothing there, or no file of texts among it.
    """
    reading = Reading()
    for name, file in _files(path, prefix, reading):
        _read_file(name, file, reading)
    return reading


def held_prefix(path: Path, held: Path) -> str:
    """Return what tells names of held-out files from the others: "" where they differ anyway."""
    if held.is_dir():
        return f"{held.resolve().name}/"
    same = path.name == held.name if not path.is_dir() else (path / held.name).exists()
    return f"{held.resolve().parent.name}/" if same else ""


def _files(path: Path, prefix: str, reading: Reading) -> list[tuple[str, Path]]:
    """Return the files that a run reads rows of; all of them text files, only where there are no others."""
    if not path.exists():
        raise DataError("text.path_missing", path=path)
    if not path.is_dir():
        return [(prefix + path.name, path)]
    folder = walk(path)
    for one in folder.skipped:
        name = prefix + one.path.relative_to(path).as_posix()
        code = "text.not_a_file" if one.code == "data.not_a_file" else one.code
        reading.skipped.append((name, Dropped(one.path, code, {**one.params, "path": Path(name)})))
    names = sorted(folder.pictures + folder.others)
    chosen = [name for name in names if files.is_row_file(name)]
    chosen = chosen or [name for name in names if files.suffix(name) in files.TEXTS]
    if not chosen:
        examples = ", ".join(names[:3]) or "-"
        raise DataError("text.no_files", path=path, examples=examples, allowed=", ".join(files.SUFFIXES))
    return [(prefix + name, path / name) for name in chosen]


def _read_file(name: str, path: Path, reading: Reading) -> None:
    reader = registry.load("readers", "texts")
    with tempfile.TemporaryDirectory() as folder:
        source, broken = path, 0
        # At the latest it ends when as many lines as are allowed have been passed over.
        while True:
            try:
                scan = reader.read([Dataset(source)], max_bad_fraction=1.0)
                break
            except DataError as error:
                row = error.params.get("row")
                where = f"{name}:{row}" if isinstance(row, int) else name
                reading.problems.append((where, Problem(error.code, _named(error.params, name))))
                broken += 1
                copy = _without_line(path, source, Path(folder), row) if broken <= BROKEN_LINES else None
                if copy is None:
                    reading.seen += broken
                    return
                source = copy
    reading.seen += scan.found + broken
    _take(name, scan, reading)


def _without_line(path: Path, source: Path, folder: Path, row: object) -> Path | None:
    """Return a copy of a file of lines with one line blank, None where that would not help."""
    if not isinstance(row, int) or files.suffix(path) not in files.LINES:
        return None
    copy, work = folder / path.name, folder / "work"
    emptied = False
    try:
        with source.open("rb") as old, work.open("wb") as new:
            for number, line in enumerate(old, start=1):
                emptied |= number == row and bool(line.strip())
                new.write(b"\n" if number == row else line)
        shutil.move(work, copy)
    except OSError:
        # No room for a copy: the file's first problem is all that can be said of it.
        return None
    return copy if emptied else None


def _named(params: Mapping[str, object], name: str) -> dict[str, object]:
    """Return a problem's values with the file's name in the set instead of where it happens to lie."""
    return {key: Path(name) if isinstance(value, Path) else value for key, value in params.items()}


def _take(name: str, scan, reading: Reading) -> None:
    """Turn the reader's rows into texts; what it dropped as repeated is a text too."""
    rows: dict[int, list[TextRow]] = defaultdict(list)
    by_id = {row.id: row for row in scan.rows}
    for row in scan.rows:
        rows[_row_of(row.id)].append(row)
    for one in scan.dropped:
        if one.code == "text.duplicate":
            again = by_id[str(one.params["first"])]
            rows[int(str(one.params["row"]))].append(replace(again, id=str(one.params["part"]), group=""))
        else:
            where = f"{name}:{one.params['row']}" if "row" in one.params else name
            reading.dropped.append((where, Dropped(one.path, one.code, _named(one.params, name))))
    reading.texts += [_text(f"{name}:{number}", name, parts) for number, parts in sorted(rows.items())]


def _row_of(id: str) -> int:
    return int(id.rpartition(":")[2].partition("#")[0])


def _text(name: str, file: str, parts: Sequence[TextRow]) -> Text:
    """Return one text of all rows that one row of a file became."""
    # The answers of a row that teaches a label and a reply are the reply; the label stands for itself.
    said = [row for row in parts if row.task != "classify" and row.kind != "thumb"] or list(parts)
    first = said[0]
    turns = [*first.prompt, *first.answer]
    asked = first.message or "\n".join(turn.content for turn in turns if turn.role in ("user", "tool"))
    learned = [turn for turn in turns if turn.role == "assistant" and turn.weight != 0]
    liked = next((row.liked for row in parts if row.liked is not None), None)
    return Text(
        name,
        file,
        asked,
        tuple(turn.content for turn in learned if turn.content.strip()) if first.task != "classify" else (),
        "\n".join(turn.content for turn in first.rejected),
        next((row.label for row in parts if row.label), ""),
        liked,
        next((row.group for row in parts if row.group), ""),
        any(not turn.content.strip() for turn in learned),
    )


def with_labels(texts: Sequence[Text]) -> list[Text]:
    """Return texts whose answers are labels as such: a few short answers that come back all the time."""
    if not texts or any(text.label for text in texts):
        return list(texts)
    said = [text.answers[0].strip() if len(text.answers) == 1 and text.asked else "" for text in texts]
    different = set(said)
    short = all(answer and len(answer) <= 40 and len(answer.split()) <= LABEL_WORDS for answer in different)
    if not short or len(different) < 2 or ROWS_A_LABEL * len(different) > len(texts):
        return list(texts)
    return [replace(text, label=answer, answers=()) for text, answer in zip(texts, said, strict=True)]


def find(readings: Iterable[Reading]) -> list[Finding]:
    """Return findings about what a run refuses or leaves out."""
    items: dict[tuple[str, Severity], list[Item]] = defaultdict(list)
    for reading in readings:
        for where, problem in reading.problems:
            items["unreadable", Severity.MUST].append(_item("unreadable", where, problem))
        for where, one in reading.dropped:
            name, severity = REASONS.get(one.code, ("unusable", Severity.MUST))
            items[name, severity].append(_item(name, where, Problem(one.code, dict(one.params))))
        for where, one in reading.skipped:
            items["passed_over", Severity.GOOD].append(_item("passed_over", where, Problem(one.code, dict(one.params))))
    return [Finding("texts", name, severity, len(each), items=each) for (name, severity), each in items.items()]


def _item(name: str, where: str, problem: Problem) -> Item:
    # What a sentence quotes may be somebody's address.
    return Item((where,), Note(f"texts.{name}.detail", {"reason": masked(str(problem))}))
