"""How long rows and answers are: beyond what the base reads, or hardly there."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor import tokens
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.texts.privacy import quoted

if TYPE_CHECKING:
    from lora_scripts.doctor.settings import Settings
    from lora_scripts.doctor.texts.text import Text

USUAL_LIMIT = 4096
"""Tokens from which a row is long for any small base, where none is given."""
SHORT_SHARE, SHORT_WORDS = 0.1, 3
"""An answer is short that has less than this share of the usual one's words, and no more than so many."""
USUAL_WORDS = 20
FEWEST = 20
LETTERS_A_WORD = 8
_SPACELESS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+|[^\w\s]")
CHUNK = 1000


def find(settings: Settings, texts: Sequence[Text]) -> list[Finding]:
    """Return findings about lengths in tokens of the base, or as many as the words make where no base is given."""
    if not texts:
        return []
    counted = settings.base is not None and (settings.base / "tokenizer.json").is_file()
    counts: list[int] = []
    for start in range(0, len(texts), CHUNK):
        part = [text.whole for text in texts[start : start + CHUNK]]
        counts += tokens.count(settings, part) if counted else [about(text) for text in part]
    limit = _limit(settings, counted)
    how = "" if counted else "about_"
    long = [(text, count) for text, count in zip(texts, counts, strict=True) if count > limit]
    found: list[Finding] = []
    if long:
        items = [
            Item((text.name,), Note(f"texts.{how}too_long.detail", {"tokens": count, "text": quoted(text.whole)}))
            for text, count in long
        ]
        params = {"limit": limit, "total": len(texts)}
        found.append(Finding("texts", f"{how}too_long", Severity.SHOULD, len(items), params, items))
    found.append(_histogram(f"{how}lengths", counts, limit))
    return [*found, *_short(texts), *_silent(texts)]


def about(text: str) -> int:
    """Return about how many tokens a text takes: one a Chinese character and four for three words."""
    words = _WORD.findall(text)
    # A long run of letters, such as a link or a number, is many tokens.
    pieces = sum(1 + (len(word) - 1) // LETTERS_A_WORD for word in words)
    return len(_SPACELESS.findall(text)) + round(1.2 * pieces)


def _limit(settings: Settings, counted: bool) -> int:
    if settings.max_tokens is not None:
        return settings.max_tokens
    return tokens.limit(settings) if counted else USUAL_LIMIT


def _histogram(name: str, counts: Sequence[int], limit: int) -> Finding:
    ordered = sorted(counts)
    params = {
        "least": ordered[0],
        "median": round(statistics.median(ordered)),
        "most": ordered[-1],
        "nine": ordered[int(0.9 * (len(ordered) - 1))],
        "limit": limit,
        "all": sum(ordered),
    }
    return Finding("texts", name, Severity.GOOD, len(counts), params)


def _short(texts: Sequence[Text]) -> list[Finding]:
    """Return the finding about answers of a word or two among long ones."""
    answers = [(text, "\n".join(text.answers)) for text in texts if text.answers and text.asked]
    if len(answers) < FEWEST:
        return []
    words = [about(answer) for _, answer in answers]
    usual = statistics.median(words)
    most = min(SHORT_WORDS, SHORT_SHARE * usual)
    short = [text for (text, _), count in zip(answers, words, strict=True) if count <= most]
    if usual < USUAL_WORDS or not short or len(short) > SHORT_SHARE * len(answers):
        return []
    items = [Item((text.name,), Note("texts.short_answer.detail", {"text": quoted(text.answers[0])})) for text in short]
    return [Finding("texts", "short_answer", Severity.SHOULD, len(items), {"usual": round(usual)}, items)]


def _silent(texts: Sequence[Text]) -> list[Finding]:
    items = [Item((text.name,)) for text in texts if text.silent]
    return [Finding("texts", "silent_turn", Severity.SHOULD, len(items), items=items)] if items else []
