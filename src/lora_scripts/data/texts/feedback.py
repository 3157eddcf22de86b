"""Feedback of the people who use a model's labels and replies, compiled into rows to learn from.

One row a verdict, appended as they come; of rows with one `id` the last counts:

    id, message         which message; customer, lang, time may stand beside
    label, reply        what the model said; confidence, adapter (its sha256) may stand beside
    edit                {"label": ..., "reply": ...}: what a person made of it, either or both
    thumb, reason       "up", "down" or null, and why

The right label is the edited one, or the model's where a thumb is up or only the reply was edited. An edited reply is
learned, and preferred to the model's. A liked reply is learned; a disliked one is never learned, only disliked. Where
the model only gave a label, the thumb is about the label.
"""

from __future__ import annotations

from dataclasses import replace

from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import fields, tasks
from lora_scripts.data.texts.fields import Raw, Unfit

CORRECTED_WEIGHT = 2.0
"""A label that the model got wrong counts twice: it is where there is most to learn."""

COLUMNS = frozenset(
    ("id", "message", "label", "reply", "confidence", "edit", "thumb", "reason", "adapter", "customer", "lang", "time")
)


def identity(raw: Raw) -> str:
    """Return the id that a later row of the file supersedes; "" where the row has none."""
    try:
        return fields.name(raw, "id")
    except Unfit:
        return ""


def convert(raw: Raw, id: str) -> list[TextRow]:
    """Return what one verdict teaches.

    Raises:
        Unfit: a field is missing or wrong, or nothing was said.
    """
    if not fields.name(raw, "id"):
        raise Unfit("text.missing", field="id")
    fields.filled(raw, "message")
    said, reply = tasks.label_of(raw), fields.optional(raw, "reply")
    new_label, new_reply = _edit(raw)
    thumb = None if fields.is_absent(raw, "thumb") else fields.liked(raw, "thumb")
    if thumb is None and not new_label and not new_reply:
        raise Unfit("text.no_verdict")
    label = new_label or said
    if not label:
        raise Unfit("text.missing", field="label")
    rows = []
    if new_label and new_label != said:
        rows.append(replace(tasks.classify_row(raw, id, new_label), weight=CORRECTED_WEIGHT))
    elif thumb or new_label or new_reply:
        rows.append(tasks.classify_row(raw, id, label))
    if new_reply:
        return rows + _corrected(tasks.draft_row(raw, id, label, new_reply), id, reply)
    if thumb is not None and reply:
        draft = tasks.draft_row(raw, id, label, reply)
        return rows + ([draft] if thumb else []) + [_thumb(draft, id, thumb)]
    if thumb is not None and not new_label:
        rows.append(replace(_thumb(tasks.classify_row(raw, id, label), id, thumb), label=""))
    return rows


def _corrected(draft: TextRow, id: str, old: str) -> list[TextRow]:
    """Return the row that teaches the edited reply, and the pair with the model's, where the two differ by a word."""
    if not old or old.split() == draft.answer[0].content.split():
        return [draft]
    return [draft, replace(draft, id=f"{id}#pair", kind="pair", rejected=(Message("assistant", old),))]


def _thumb(row: TextRow, id: str, liked: bool) -> TextRow:
    return replace(row, id=f"{id}#thumb", kind="thumb", liked=liked)


def _edit(raw: Raw) -> tuple[str, str]:
    """Return the edited label and reply, "" for what was left as it was."""
    if fields.is_absent(raw, "edit"):
        return "", ""
    edit = raw["edit"]
    if not isinstance(edit, dict) or not edit.keys() <= {"label", "reply"}:
        raise Unfit("text.bad_edit", value=fields.shown(edit))
    return tasks.label_of(edit, where="edit.label"), fields.optional(edit, "reply", "edit.reply")
