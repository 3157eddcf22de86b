"""Labels as such: how many rows each has, and which are the same label spelt twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor import terms
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.texts.privacy import quoted

if TYPE_CHECKING:
    from lora_scripts.doctor.texts.text import Text

FEWEST_ROWS = 5
SMALL_SHARE = 0.1
"""Of the rows that the largest label has."""
WORD, RARE, OFTEN = 5, 3, 10
"""A misspelt label has so many letters at least, so many rows at most, and the right one so many more."""
MOST_LABELS = 500
"""Labels beyond which misspelt ones are not looked for."""


def find(texts: Sequence[Text]) -> list[Finding]:
    """Return findings about the labels of a set, if it has any."""
    counts = Counter(text.label for text in texts if text.label)
    if not counts:
        return []
    right = {**_misspelt(counts), **_spelt_alike(counts)}
    found = [_balance(counts)]
    if right:
        items = [
            Item(
                (text.name,),
                Note("texts.label_spelling.detail", {"label": quoted(text.label), "right": quoted(right[text.label])}),
            )
            for text in texts
            if text.label in right
        ]
        found.append(Finding("texts", "label_spelling", Severity.MUST, len(items), items=items))
    largest = max(counts.values())
    rare = [label for label, n in counts.items() if n < FEWEST_ROWS or n < SMALL_SHARE * largest]
    rare = sorted((label for label in rare if label not in right), key=lambda label: (counts[label], label))
    if rare:
        examples = [f"{quoted(label)} ({counts[label]})" for label in rare[:EXAMPLES]]
        params = {"labels": len(counts), "largest": largest}
        found.append(Finding("texts", "label_rare", Severity.SHOULD, len(rare), params, examples=examples))
    return found


def _balance(counts: Counter[str]) -> Finding:
    most = counts.most_common()
    params = {"labels": len(counts), "most": most[0][1], "least": most[-1][1]}
    examples = [f"{quoted(label)} ({n})" for label, n in most[:EXAMPLES]]
    return Finding("texts", "labels", Severity.GOOD, counts.total(), params, examples=examples)


def _spelt_alike(counts: Counter[str]) -> dict[str, str]:
    """Return labels that differ from a more frequent one by case, spaces or signs alone, and that one."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for label, _ in counts.most_common():
        spellings["".join(filter(str.isalnum, terms.normal(label))) or label].append(label)
    return {label: labels[0] for labels in spellings.values() for label in labels[1:]}


def _misspelt(counts: Counter[str]) -> dict[str, str]:
    """Return rare labels that are one letter away from a frequent one, and that one."""
    if len(counts) > MOST_LABELS:
        return {}
    rare = [label for label, n in counts.items() if n <= RARE and len(label) >= WORD and label.isascii()]
    often = [label for label, n in counts.items() if n >= OFTEN and not label[-1].isdigit()]
    near = {label: [other for other in often if terms.distance(label, other, 1) <= 1] for label in rare}
    return {label: others[0] for label, others in near.items() if others}
