"""What only shows when rows are put side by side: duplicates, labels out of line, rows that leak."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Sequence

from lora_scripts.data.record import Note, TextRow
from lora_scripts.data.texts import fields, tasks
from lora_scripts.data.texts.fields import Wrong


def check_label(row: TextRow, allowed: Sequence[str]) -> None:
    """Make sure that the label a row names is one of those that were given; none given allow any.

    Raises:
        Wrong: it is not.
    """
    if not allowed or row.task != tasks.CLASSIFY or (label := row.answer[0].content) in allowed:
        return
    near = difflib.get_close_matches(label, allowed, n=1, cutoff=0.0)
    raise Wrong("text.label_unknown", label=fields.shown(label), nearest=near[0], allowed=fields.listing(allowed))


def split_duplicates(rows: Sequence[TextRow]) -> tuple[list[TextRow], list[tuple[TextRow, TextRow]]]:
    """Return the rows without repetitions, in order, and each repetition with the row it repeats."""
    first: dict[tuple, TextRow] = {}
    kept: list[TextRow] = []
    repeated: list[tuple[TextRow, TextRow]] = []
    for row in rows:
        key = (row.kind, row.prompt, row.answer, row.rejected, row.liked)
        if key in first:
            repeated.append((row, first[key]))
        else:
            first[key] = row
            kept.append(row)
    return kept, repeated


def leaks(train: Sequence[TextRow], held: Sequence[TextRow]) -> list[TextRow]:
    """Return the rows of `train` that give away what `held` asks: the same question, or another row of its group."""
    asked = {question(row) for row in held} - {""}
    groups = {row.group for row in held} - {""}
    return [row for row in train if row.group in groups or question(row) in asked]


def question(row: TextRow) -> str:
    """Return the last thing a user says, or the text where nobody asks, without case and spaces that change nothing."""
    asked = [turn.content for turn in row.prompt if turn.role == "user"] or [turn.content for turn in row.answer]
    return " ".join(asked[-1].casefold().split()) if asked else ""


def notes(rows: Sequence[TextRow], labels: Sequence[str]) -> list[Note]:
    """Say what there is to learn: how many rows of which kind, label and language, and what looks like a mistake."""
    kinds = Counter(row.task if row.task and row.kind == "completion" else row.kind for row in rows)
    found = [Note("text.rows", {"count": len(rows), "kinds": _counts(kinds)})]
    languages = Counter(row.language for row in rows if row.language)
    if languages:
        found.append(Note("text.languages", {"languages": _counts(languages)}))
    counts = Counter(row.label for row in rows if row.label)
    if counts:
        found.append(Note("text.labels", {"count": len(labels), "labels": _counts(counts)}))
        if absent := [label for label in labels if label not in counts]:
            found.append(Note("text.labels_absent", {"labels": fields.listing(absent)}))
    found += _alike(labels)
    if unlike := _contradictions(rows):
        found.append(Note("text.contradictions", {"count": len(unlike), "examples": fields.listing(unlike[:3])}))
    if silent := [row.id for row in rows if row.kind == "chat" and _has_silent_turn(row)]:
        found.append(Note("text.silent_turns", {"count": len(silent), "examples": fields.listing(silent[:5])}))
    return found


def _counts(counter: Counter[str]) -> str:
    return fields.listing((f"{name} {count}" for name, count in sorted(counter.items())), 400)


def _alike(labels: Sequence[str]) -> list[Note]:
    """Say which labels differ by case, spaces or signs alone: "How to" and "how_to" would be two classes."""
    spellings = defaultdict(list)
    for label in labels:
        spellings["".join(filter(str.isalnum, label.casefold())) or label].append(label)
    same = [" = ".join(several) for several in spellings.values() if len(several) > 1]
    return [Note("text.labels_alike", {"labels": fields.listing(same)})] if same else []


def _contradictions(rows: Sequence[TextRow]) -> list[str]:
    """Return the rows whose message another row sorts under another label."""
    first: dict[str, TextRow] = {}
    sorted_rows = [row for row in rows if row.label]
    pairs = [(row, first.setdefault(question(row), row)) for row in sorted_rows]
    return [f"{row.id}: {row.label}, {other.id}: {other.label}" for row, other in pairs if row.label != other.label]


def _has_silent_turn(row: TextRow) -> bool:
    return any(turn.role == "assistant" and turn.weight != 0 and not turn.content.strip() for turn in row.prompt)
