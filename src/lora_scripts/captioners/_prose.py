"""Sentences of models, made fit for captions: without their manners, on one line, whole."""

from __future__ import annotations

import re

from lora_scripts.contracts import Label
from lora_scripts.data.record import Note

# What such models begin with; none of it says anything of the picture.
_OPENINGS = re.compile(
    r"^(?:sure[,!.]?\s*|certainly[,!.]?\s*|here(?:'s| is)[^:]{0,60}:\s*|caption:\s*|"
    r"(?:this|the) (?:image|picture|photo|photograph|illustration|drawing) "
    r"(?:shows|depicts|features|displays|portrays|presents|captures|is of|contains)\s+)",
    re.IGNORECASE,
)
_TIMID = (
    (re.compile(r"\b(?:appears|seems) to be\b"), "is"),
    (re.compile(r"\b(?:appear|seem) to be\b"), "are"),
    (re.compile(r"\b(?:possibly|likely|perhaps|probably)\s+"), ""),
)
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


def clean(text: str, *, whole: bool = True) -> Label:
    """Return a label with the sentence on one line.

    Args:
        whole: False where the model was cut off; the last, broken sentence is left out then.
    """
    said = " ".join(_THINKING.sub(" ", text).split()).strip("\"'` ")
    for _ in range(3):
        said = _OPENINGS.sub("", said)
    for pattern, word in _TIMID:
        said = pattern.sub(word, said)
    doubts: list[Note] = []
    if not whole:
        ended = max(said.rfind(mark) for mark in (". ", "! ", "? ", "。"))
        said = said[: ended + 1] if ended > 0 else said
        doubts.append(Note("captioner.cut_off", {}))
    if not said:
        doubts.append(Note("captioner.silent", {}))
    return Label(said[:1].upper() + said[1:], doubts=tuple(doubts))
