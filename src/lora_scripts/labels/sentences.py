"""Sentences of a captioner, without what a kind's policy leaves out; small lists of words, no grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lora_scripts.labels.policies import Policy

_GAPS = (
    (re.compile(r"\s+([,.;:!?])"), r"\1"),
    (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"),
    (re.compile(r"\b(?:and|with|in|of)\s*(?=[,.;:]|$)", re.IGNORECASE), ""),
    (re.compile(r",?\s+\band\s+(?=and\b)", re.IGNORECASE), " "),
    (re.compile(r"\s{2,}"), " "),
    (re.compile(r"^[\s,.;:]+"), ""),
)
# Between an article and the thing's name stand adjectives; with one of these there, it is another thing's article.
_NO_ADJECTIVE = "with|of|on|in|at|and|or|to|from|by|near|beside|under|behind|over|is|are|has|holding|wearing"

_ARTICLE = r"(?:a|an|the)?\s*"
_IT_IS = r"(?<=[.!?])\s+(?:it|this|the\s+\w+)\s+is\s+(?:an?)\s+"
_OF = r"(?:of|showing|shows|depicting|depicts)\s+"
_LEAD = r"(?P<lead>\b(?:with|and|has|having)\s+|,\s*)?"
_OWNER = r"(?:\b(?:a|an|her|his|their|the)\s+)?"
# "her eyes closed" is an expression, which changes from picture to picture.
_STATE = r"(?!\s+(?:are\s+|is\s+)?(?:closed|open|shut|half))"
_ON = r"(?P<on>\s+and\s+(?=(?:a|an|the)\b))?"


class Sentences:
    """Cleans sentences by one policy and the words that a person excludes, replaces, and calls the thing by."""

    def __init__(self, policy: Policy, exclude: Sequence[str], replacements: Mapping[str, str], named: str, head: str):
        self._steps: list[tuple[str, re.Pattern[str], Callable[[re.Match[str]], str]]] = []
        if policy.openings:
            opening = (
                rf"^\s*(?:(?:this|it)\s+is\s+)?{_ARTICLE}(?:[\w-]+\s+){{0,4}}?(?:{_any(policy.openings)})s?\s+{_OF}"
            )
            self._steps.append(("--kind", re.compile(opening, re.IGNORECASE), lambda match: ""))
            # A sentence that says nothing else: "It is an oil painting."
            only = rf"{_IT_IS}(?:[\w-]+\s+){{0,4}}?(?:{_any(policy.openings)})\s*(?:\.|$)"
            self._steps.append(("--kind", re.compile(only, re.IGNORECASE), lambda match: ""))
        if policy.phrases:
            # With "of" at its end, a phrase takes along what follows: "in the style of ...".
            named_after = [phrase for phrase in policy.phrases if phrase.endswith(" of")]
            if named_after:
                pattern = re.compile(rf"(?<!\w)(?:{_any(named_after)})\s+[^,.;:]*", re.IGNORECASE)
                self._steps.append(("--kind", pattern, lambda match: ""))
            self._steps.append(("--kind", _phrases(policy.phrases), lambda match: ""))
        if policy.nouns:
            adjectives = rf"(?:\b(?:{_any(policy.adjectives)})[\s,]+(?:and\s+)?)*"
            nouns = rf"{adjectives}\b(?:{_any(policy.nouns)})\b{_STATE}"
            # ", her long hair blowing in the wind": what the trait does goes with it.
            aside = re.compile(rf",\s*(?:her|his|their)\s+{nouns}[^,.;]*", re.IGNORECASE)
            self._steps.append(("--kind", aside, lambda match: ""))
            traits = rf"{_LEAD}{_OWNER}{nouns}{_ON}"
            self._steps.append(("--kind", re.compile(traits, re.IGNORECASE), _without_trait))
        if named:
            # "a red backpack" becomes "ohwx backpack": what describes it is what shall be learned.
            called = (
                rf"\b(?:a|an|the)\s+(?:(?!(?:{_NO_ADJECTIVE})\b)(?!\w+ing\b)[\w-]+,?\s+){{0,3}}?{re.escape(named)}\b"
            )
            self._steps.append(("--class-word", re.compile(called, re.IGNORECASE), lambda match: head))
        for old, new in replacements.items():
            self._steps.append(("--replace", _phrases([old]), lambda match, new=new: new))  # type: ignore[misc]
        if exclude:
            self._steps.append(("--exclude", _phrases(exclude), lambda match: ""))

    def clean(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """Return the sentence as it may stand, and (words, rule) of what was taken out."""
        text, removed = " ".join(text.split()), []
        for rule, pattern, instead in self._steps:
            removed += [(match.group().strip(" ,"), rule) for match in pattern.finditer(text)]
            text = pattern.sub(instead, text)
        if not removed:
            return text, []
        for pattern, gap in _GAPS:
            text = pattern.sub(gap, text)
        return text.strip(), removed


def normal(text: str) -> str:
    """Return a phrase as it is compared: without case, and with spaces for underscores."""
    return " ".join(text.replace("_", " ").split()).casefold() or text.strip()


def _any(words: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"


def _phrases(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{_any(words)})(?!\w)", re.IGNORECASE)


def _without_trait(match: re.Match[str]) -> str:
    """Leave "with" where something else is joined to the trait: "with blue eyes and a red dress"."""
    lead = (match["lead"] or "").strip(" ,").lower()
    if match["on"]:
        return "with " if lead == "with" else " and "
    return "," if (match["lead"] or "").startswith(",") else ""
