"""Sentences of models, made fit for captions: without their manners, on one line, whole."""

from __future__ import annotations

import re

from lora_scripts.contracts import Label
from lora_scripts.data.record import Note

# What such models begin with; none of it says anything of the picture.
_OPENINGS = re.compile(
    r"^(?:sure[,!.]?\s*|certainly[,!.]?\s*|here(?:'s| is)[^:]{0,60}:\s*|caption:\s*|"
    r"(?:this|the) (?:image|picture|photo|photograph|illustration|drawing) "
    r"(?:shows|depicts|features|displays|portrays|presents|captures|is of|contains)\s+|"
    r"in (?:this|the) (?:image|picture|photo|photograph|illustration|drawing),\s*(?:there (?:is|are)\s+)?|"
    r"this is (?:an?|the) (?:image|picture) of\s+)",
    re.IGNORECASE,
)
_TIMID = (
    (re.compile(r"\bwhat (?:appears|appear|seems|seem) to be\s+"), ""),
    (re.compile(r"\b(?:appears|seems) to be\b"), "is"),
    (re.compile(r"\b(?:appear|seem) to be\b"), "are"),
    (re.compile(r"\b(?:(?:most|very|quite) (?:likely|probably)|possibly|perhaps|probably)\s+", re.IGNORECASE), ""),
    # Not of "is likely to", "a likely story", "more likely".
    (re.compile(r"(?<=\bis )likely (?=(?:an?|the|at|in|on|from)\b)"), ""),
)
# One that is cut off has no end.
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARKUP = re.compile(r"\*\*|^\s*#+\s+", re.MULTILINE)
_BULLET = re.compile(r"\s*[-*\u2022]\s+")
_ENDS = (".", "!", "?", "。", "！", "？")


def clean(text: str, *, whole: bool = True) -> Label:
    """Return a label with the sentence on one line.

    Args:
        whole: False where the model was cut off; what it began and did not end is left out then.
    """
    said = _one_line(_MARKUP.sub("", _THINKING.sub(" ", text))).strip("\"'` ")
    for _ in range(3):
        said = _OPENINGS.sub("", said)
    for pattern, word in _TIMID:
        said = pattern.sub(word, said)
    doubts: list[Note] = []
    if not whole and not said.endswith(_ENDS):
        said = _ended(said)
        doubts.append(Note("captioner.cut_off", {}))
    if not said:
        doubts.append(Note("captioner.silent", {}))
    return Label(said[:1].upper() + said[1:], doubts=tuple(doubts))


def _one_line(text: str) -> str:
    """Return a text on one line; what was a list are phrases with commas between them."""
    said = ""
    for line in text.split("\n"):
        words = " ".join(_BULLET.sub("", line, count=1).split() if _BULLET.match(line) else line.split())
        comma = _BULLET.match(line) and said and not said.endswith((*_ENDS, ",", ";", ":"))
        said = f"{said}{',' if comma else ''} {words}".strip() if words else said
    return said


def _ended(said: str) -> str:
    """Return a text up to the end of its last whole sentence, or of its last whole phrase where it has none."""
    ended = max(said.rfind(mark) for mark in (". ", "! ", "? ", "。", "！", "？"))
    if ended > 0:
        return said[: ended + 1]
    return said[: max(said.rfind(mark) for mark in (", ", "，", "、"))] if re.search(", |，|、", said) else said
