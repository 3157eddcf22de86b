"""The two tasks on customers' messages: sort them, answer them. Training and use share these prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import fields
from lora_scripts.data.texts.fields import Raw, Unfit

CLASSIFY, DRAFT = "classify", "draft"


def classify_prompt(message: str) -> tuple[Message, ...]:
    """Ask for the message's label.

    The labels are not listed: the adapter learns them, scoring allows no others, and the list would be a third of the
    tokens of a short message. With it a small model also learned later: 31 % of the held-out labels were right after
    one round over 352 messages, 45 % without.
    """
    return Message("system", "Sort the message."), Message("user", message)


def draft_prompt(message: str, label: str, language: str = "") -> tuple[Message, ...]:
    """Ask for a reply under a known label.

    Args:
        language: of the message; the prompt is the same for all, since a reply follows the message's own language.
    """
    return Message("system", f"Reply to the customer. Topic: {label}."), Message("user", message)


def label_of(raw: Raw, field: str = "label", where: str = "") -> str:
    """Return a label without the white space around it, "" where there is none."""
    return fields.optional(raw, field, where).strip()


def classify_row(raw: Raw, id: str, label: str) -> TextRow:
    """Return the row that teaches a message's label."""
    row = _task(raw, id, CLASSIFY)
    return replace(row, prompt=classify_prompt(row.message), answer=(Message("assistant", label),), label=label)


def draft_row(raw: Raw, id: str, label: str, reply: str) -> TextRow:
    """Return the row that teaches a message's reply."""
    row = _task(raw, id, DRAFT)
    prompt = draft_prompt(row.message, label, row.language)
    return replace(row, prompt=prompt, answer=(Message("assistant", reply),))


def _task(raw: Raw, id: str, task: str) -> TextRow:
    return TextRow(
        f"{id}#{task}",
        "completion",
        task=task,
        message=fields.filled(raw, "message"),
        group=fields.name(raw, "customer"),
        language=fields.optional(raw, "lang").strip(),
    )


def convert(raw: Raw, id: str) -> list[TextRow]:
    """Make one row of the label and one of the reply, whichever are there."""
    fields.filled(raw, "message")
    label, reply = label_of(raw), fields.optional(raw, "reply")
    if not label:
        raise Unfit("text.reply_without_label") if reply else Unfit("text.missing", field="label")
    rows = [classify_row(raw, id, label)]
    return [*rows, draft_row(raw, id, label, reply)] if reply else rows


def labels_in(rows: Sequence[TextRow]) -> tuple[str, ...]:
    """Return every label that a row's answer names, sorted."""
    return tuple(sorted({row.answer[0].content for row in rows if row.task == CLASSIFY}))
