"""The lines of the side file about captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lora_scripts import messages
from lora_scripts.contracts import Captioner, Label
from lora_scripts.data.record import Note
from lora_scripts.labels.decisions import Target
from lora_scripts.labels.journal import LEAST_TAGS, PERSON, is_person
from lora_scripts.labels.rules import Written

DIGITS = 4


def rounded(label: Label) -> Label:
    """Return a label as it is kept: a caption that is made from what is kept is the same."""
    tags = tuple(replace(tag, score=round(float(tag.score), DIGITS)) for tag in label.tags)
    return replace(label, tags=tags, sure=None if label.sure is None else round(float(label.sure), DIGITS))


NOT_ASKED = ("captioner.server_failed", "captioner.not_shown")


def spoken(
    name: str, sha256: str, label: Label, written: Written, captioner: Captioner, key: str, target: Target, adding: bool
) -> dict[str, Any]:
    """Return the line of a caption that a model wrote, or added something to."""
    mixed = adding and target.before is not None and is_person(target.author) and target.before.strip() != ""
    surest = sorted(label.tags, key=lambda tag: -tag.score)[:LEAST_TAGS]
    kept = {id(tag) for tag in (*written.tags, *surest)}
    return {
        "kind": "caption",
        "file_name": name,
        "sha256": sha256,
        "text": written.text,
        "before": target.before,
        "before_author": target.author or None,
        "author": f"{PERSON} + {captioner.title}" if mixed else captioner.title,
        "captioner": captioner.identity,
        # A picture that the model was not asked about is asked for again when machines' captions are made anew.
        "key": "" if any(note.code in NOT_ASKED for note in label.doubts) else key,
        "speaker": label.speaker,
        "sure": label.sure,
        "said": label.text,
        "tags": [[tag.text, tag.score, tag.group] for tag in label.tags if id(tag) in kept],
        "removed": [{"text": one.text, "rule": one.rule} for one in written.removed],
        "doubts": _doubts(written.doubts),
        "tokens": written.tokens,
    }


def kept(name: str, sha256: str, text: str, author: str, doubts: Sequence[Note]) -> dict[str, Any]:
    """Return the line of a caption that is not the model's and stays."""
    row = {"kind": "caption", "file_name": name, "sha256": sha256, "text": text, "before": None, "author": author}
    return row | {"key": "", "doubts": _doubts(doubts)}


def _doubts(doubts: Sequence[Note]) -> list[dict[str, str]]:
    return [{"code": note.code, "sentence": messages.text(note.code, **note.params)} for note in doubts]
