"""Rows that say the same, or nearly: among themselves, under different labels, and in both parts of a set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.texts import similar
from lora_scripts.doctor.texts.privacy import quoted

if TYPE_CHECKING:
    from lora_scripts.doctor.texts.text import Text

MOST_NAMED = 20
"""Rows of one group of equal ones that are named."""


def find(texts: Sequence[Text], held: Sequence[Text] = ()) -> list[Finding]:
    """Return findings about rows of either part that are too much like each other."""
    index = similar.Index([text.topic for text in (*texts, *held)])
    within = [(first, second) for first, second, _ in index.pairs() if second < len(texts)]
    found = [*_exact(texts), *_near(texts, within), *_contradictions(texts, within)]
    if held:
        across = list(index.pairs(len(texts)))
        found += _leaks(texts, held, across)
    return found


def _same(text: Text) -> Hashable:
    """Return what is equal in rows that teach the same."""
    return (_flat(text.asked), tuple(map(_flat, text.answers)), _flat(text.rejected), text.label, text.liked)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _exact(texts: Sequence[Text]) -> list[Finding]:
    places: dict[Hashable, list[Text]] = defaultdict(list)
    for text in texts:
        places[_same(text)].append(text)
    items = [
        Item(
            tuple(text.name for text in same[:MOST_NAMED]),
            Note("texts.duplicate.detail", {"text": quoted(same[0].topic)}),
        )
        for same in places.values()
        if len(same) > 1
    ]
    repeated = sum(len(same) - 1 for same in places.values())
    return [Finding("texts", "duplicate", Severity.SHOULD, repeated, items=items)] if items else []


def _near(texts: Sequence[Text], pairs: Sequence[tuple[int, int]]) -> list[Finding]:
    """Return the finding about rows that differ in little; equal ones, or such under two labels, are others'."""
    unlike = [
        (first, second)
        for first, second in pairs
        if _same(texts[first]) != _same(texts[second]) and texts[first].label == texts[second].label
    ]
    groups = similar.groups(unlike)
    items = [
        Item(
            tuple(texts[place].name for place in group[:MOST_NAMED]),
            Note(
                "texts.nearly_equal.detail",
                {"first": quoted(texts[group[0]].topic), "second": quoted(texts[group[1]].topic)},
            ),
        )
        for group in groups
    ]
    count = sum(len(group) - 1 for group in groups)
    return [Finding("texts", "nearly_equal", Severity.SHOULD, count, items=items)] if items else []


def _contradictions(texts: Sequence[Text], pairs: Iterable[tuple[int, int]]) -> list[Finding]:
    """Return findings about one message under two labels, or one answer both liked and not."""
    places: dict[Hashable, list[Text]] = defaultdict(list)
    for text in texts:
        # What differs in signs and capitals alone is the same message.
        asked = similar.plain(text.asked) or text.asked
        if text.label:
            places[asked, "label"].append(text)
        if text.liked is not None:
            places[asked, tuple(map(similar.plain, text.answers))].append(text)
    items, named = [], set()
    for same in places.values():
        by_verdict = {(text.label, text.liked): text for text in reversed(same)}
        if len(by_verdict) > 1:
            different = sorted(by_verdict.values(), key=same.index)
            items.append(Item(tuple(text.name for text in different), _verdicts("contradiction", different)))
            named |= {text.name for text in same}
    found = [Finding("texts", "contradiction", Severity.MUST, len(items), items=items)] if items else []
    near = [
        (texts[first], texts[second])
        for first, second in pairs
        if texts[first].label != texts[second].label and not {texts[first].name, texts[second].name} <= named
    ]
    if near:
        items = [Item((a.name, b.name), _verdicts("near_contradiction", (a, b))) for a, b in near]
        found.append(Finding("texts", "near_contradiction", Severity.SHOULD, len(items), items=items))
    return found


def _verdicts(name: str, texts: Sequence[Text]) -> Note:
    verdicts = [text.label or ("+" if text.liked else "-") for text in texts]
    params = {"labels": quoted(" / ".join(verdicts)), "text": quoted(texts[0].asked)}
    return Note(f"texts.{name}.detail", params)


def _leaks(texts: Sequence[Text], held: Sequence[Text], pairs: Iterable[tuple[int, int, float]]) -> list[Finding]:
    """Return findings about rows to learn from that give away what the held-out part asks."""
    asked: dict[str, Text] = {}
    groups: dict[str, Text] = {}
    for text in held:
        asked.setdefault(_question(text), text)
        groups.setdefault(text.group, text)
    found: dict[str, list[Item]] = defaultdict(list)
    named = set()
    for text in texts:
        if (question := _question(text)) and question in asked:
            detail = Note("texts.leak.detail", {"text": quoted(question)})
            found["leak"].append(Item((text.name, asked[question].name), detail))
            named.add(text.name)
    for first, second, alike in pairs:
        text, other = texts[first], held[second - len(texts)]
        if text.name not in named:
            params = {"text": quoted(text.topic), "other": quoted(other.topic), "share": f"{alike:.0%}"}
            found["near_leak"].append(Item((text.name, other.name), Note("texts.near_leak.detail", params)))
            named.add(text.name)
    for text in texts:
        if text.group and text.group in groups and text.name not in named:
            detail = Note("texts.group_leak.detail", {"group": quoted(text.group)})
            found["group_leak"].append(Item((text.name, groups[text.group].name), detail))
    return [Finding("texts", name, Severity.MUST, len(items), items=items) for name, items in found.items()]


def _question(text: Text) -> str:
    return similar.plain(text.asked or text.whole) or text.asked
