"""What a caption becomes on one visit: which one, its tags dropped and shuffled, words around it, or nothing at all.

Tags are what stands between commas, Chinese ones too; they are compared without regard to case.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random


@dataclass(frozen=True)
class CaptionRules:
    """How a caption varies from visit to visit (key `caption` of the config).

    Attributes:
        trigger: put in front of every caption that does not contain it.
        shuffle: shuffle the comma-separated parts behind the kept ones.
        keep_tokens: comma-separated parts that stay in front.
        keep_separator: what stands before it stays in front; taken out itself.
        keep_tags: tags that are never dropped.
        tag_dropout: chance of each other tag to be left out on a visit.
        tag_chances: chance of a tag to be seen, by tag.
        dropout: chance that a visit sees the empty caption instead.
        prefix, suffix: text in front of and behind every caption that is not dropped.
    """

    trigger: str = ""
    shuffle: bool = False
    keep_tokens: int = 0
    keep_separator: str = ""
    keep_tags: tuple[str, ...] = ()
    tag_dropout: float = 0.0
    tag_chances: Mapping[str, float] = field(default_factory=dict)
    dropout: float = 0.0
    prefix: str = ""
    suffix: str = ""


def draw(
    captions: Sequence[str], rules: CaptionRules, random: Random, flip: bool, weights: Sequence[float] = ()
) -> tuple[str, bool]:
    """Deal one visit of a picture.

    The same four numbers are drawn whatever the rules say (caption, dropout, flip, order), so that turning one rule
    on does not change what the others deal. Which tags are dropped follows from the fourth, one number a tag.

    Args:
        captions: what the picture may be shown with; non-empty.
        rules: see `CaptionRules`. The empty caption of `dropout` is without trigger, prefix and suffix.
        random: the visit's own generator.
        flip: whether the picture may be mirrored; half of the visits are.
        weights: how often each caption is drawn, relative to the others; empty where all are drawn alike.

    Returns:
        (caption, mirrored). With no rule on, a caption is returned letter for letter.
    """
    which, dropped, mirrored = random.random(), random.random(), random.random()
    bits = random.getrandbits(64)
    caption = captions[int(which * len(captions))] if not weights else captions[_heaviest(which, weights)]
    caption = _around(_varied(caption, rules, bits), rules)
    return "" if dropped < rules.dropout else caption, flip and mirrored < 0.5


def plain(caption: str, rules: CaptionRules) -> str:
    """Return a caption by the rules that leave nothing to chance: separator, prefix, suffix and trigger."""
    front, middle, back = _thirds(caption, rules)
    separated = rules.keep_separator and rules.keep_separator in caption
    return _around(_joined(front, middle, back) if separated else caption, rules)


def tags_of(caption: str, rules: CaptionRules) -> list[str]:
    """Return every tag of a caption, as written."""
    return [tag for third in _thirds(caption, rules) for tag in third if tag]


def with_trigger(caption: str, trigger: str) -> str:
    """Put the trigger in front of a caption that does not contain it as a word of its own, in any case."""
    if not trigger:
        return caption
    # Scripts without spaces have no word borders to ask for.
    before = r"(?<![A-Za-z0-9_])" if re.match(r"[A-Za-z0-9_]", trigger) else ""
    after = r"(?![A-Za-z0-9_])" if re.search(r"[A-Za-z0-9_]\Z", trigger) else ""
    if re.search(before + re.escape(trigger) + after, caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _heaviest(which: float, weights: Sequence[float]) -> int:
    """Return the place that a number in 0..1 falls on, where each place is as wide as its weight."""
    edges = list(accumulate(weights))
    return min(bisect_right(edges, which * edges[-1]), len(edges) - 1)


def _around(caption: str, rules: CaptionRules) -> str:
    """Put prefix and suffix around it, and the trigger in front of all that."""
    if rules.prefix or rules.suffix:
        caption = " ".join(part for part in (rules.prefix.strip(), caption, rules.suffix.strip()) if part)
    return with_trigger(caption, rules.trigger)


def _varied(caption: str, rules: CaptionRules, bits: int) -> str:
    """Drop and shuffle tags; those that are kept in front, or behind a second separator, stay where they are."""
    front, middle, back = _thirds(caption, rules)
    separated = bool(rules.keep_separator) and rules.keep_separator in caption
    dropping = bool(rules.tag_dropout or rules.tag_chances)
    if not (separated or dropping or (rules.shuffle and len(middle) > 1)):
        return caption
    places = list(range(len(middle)))
    if rules.shuffle:
        Random(bits).shuffle(places)
    if dropping:
        seen = _seen(middle, rules, Random(f"tags {bits}"))
        places = [place for place in places if seen[place]]
    return _joined(front, [middle[place] for place in places], back)


def _seen(tags: Sequence[str], rules: CaptionRules, chance: Random) -> list[bool]:
    """Say of each tag whether this visit sees it; one number a tag is drawn, whatever the rules say of it."""
    kept = {tag.strip().casefold() for tag in rules.keep_tags}
    chances = {tag.strip().casefold(): value for tag, value in rules.tag_chances.items()}
    seen = []
    for tag in tags:
        number, name = chance.random(), tag.casefold()
        seen.append(name in kept or number < chances.get(name, 1 - rules.tag_dropout))
    return seen


def _thirds(caption: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """Return the tags that stay in front, those that may move or go, and those that stay behind.

    A caption with the separator keeps what is before the first one, and what is behind the second; `keep_tokens` then
    says nothing.
    """
    mark = rules.keep_separator
    if mark and mark in caption:
        front, _, rest = caption.partition(mark)
        middle, _, back = rest.partition(mark)
        return _split(front), _split(middle), _split(back.replace(mark, ","))
    parts = _split(caption, empty=True)
    return parts[: rules.keep_tokens], parts[rules.keep_tokens :], []


def _split(text: str, *, empty: bool = False) -> list[str]:
    parts = [part.strip() for part in re.split("[,\uff0c]", text)]
    return parts if empty else [part for part in parts if part]


def _joined(*thirds: Sequence[str]) -> str:
    return ", ".join(part for third in thirds for part in third if part)
