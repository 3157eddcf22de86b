"""Growing a caption greedily: phrase after phrase, each the one that brings the caption closest to the picture.

Cosines are rounded before they are compared, so that the size of a batch decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy

from lora_scripts.contracts import Tag

if TYPE_CHECKING:
    from lora_scripts.captioners._towers import Towers

Offered = Sequence[tuple[Tag, numpy.ndarray]]
DIGITS = 5
FIRST = "subject"
# Of the phrases that could be next, as many texts are encoded as this: those that the mean of vectors puts first.
TRIED = 12


@dataclass(frozen=True)
class Limits:
    """How far a caption may grow.

    Attributes:
        room: most phrases of each group, in the order of the groups in a caption.
        most: most phrases in all.
        gain: least gain of a further phrase.
    """

    room: Mapping[str, int]
    most: int
    gain: float


@dataclass
class _Growth:
    """One caption while it grows."""

    left: list[tuple[Tag, numpy.ndarray]]
    total: numpy.ndarray
    tags: list[Tag] = field(default_factory=list)
    best: float = -1.0

    def ranked(self, seen: numpy.ndarray, limits: Limits) -> tuple[list[int], numpy.ndarray]:
        """Return which of what is left may be next, the closest first, and how close the mean is with each."""
        used = [tag.group for tag in self.tags]
        open_ = [i for i, (tag, _) in enumerate(self.left) if used.count(tag.group) < limits.room[tag.group]]
        if not open_ or len(self.tags) >= limits.most:
            return [], numpy.zeros(0)
        sums = self.total + numpy.stack([self.left[i][1] for i in open_])
        closeness = numpy.round(sums @ seen / numpy.linalg.norm(sums, axis=1), DIGITS)
        order = numpy.argsort(-closeness, kind="stable")
        return [open_[i] for i in order], closeness[order]

    def take(self, place: int, closeness: float, gain: float) -> bool:
        """Take a phrase if it gains enough; say whether it did."""
        if self.tags and closeness < self.best + gain:
            return False
        tag, vector = self.left.pop(place)
        self.tags.append(tag)
        self.total, self.best = self.total + vector, closeness
        return True


def by_vectors(seen: numpy.ndarray, offered: Offered, limits: Limits) -> list[Tag]:
    """Return the phrases whose mean vector is closest to the picture's."""
    growth = _Growth(list(offered), numpy.zeros_like(seen))
    while True:
        places, closeness = growth.ranked(seen, limits)
        if not places or not growth.take(places[0], float(closeness[0]), limits.gain):
            return growth.tags


def by_texts(towers: Towers, rows: numpy.ndarray, offered: Sequence[Offered], limits: Limits) -> list[list[Tag]]:
    """Return of each picture the phrases whose joined text is closest to it; texts of all pictures go together.

    A caption begins with the closest subject, where one is offered.
    """
    growths = [_Growth(list(one), numpy.zeros_like(row)) for one, row in zip(offered, rows, strict=True)]
    growing = list(range(len(growths)))
    while growing:
        tried: dict[int, list[tuple[int, str]]] = {}
        for i in growing:
            places, _ = growths[i].ranked(rows[i], limits)
            if not growths[i].tags:
                places = [place for place in places if growths[i].left[place][0].group == FIRST] or places
            joined = [
                (place, _joined([*growths[i].tags, growths[i].left[place][0]], limits)) for place in places[:TRIED]
            ]
            if joined:
                tried[i] = joined
        if not tried:
            break
        distinct = dict.fromkeys(text for joined in tried.values() for _, text in joined)
        texts = {text: j for j, text in enumerate(distinct)}
        read = towers.embed_texts(list(texts))
        growing = [i for i in tried if _next(growths[i], rows[i], tried[i], (texts, read), limits.gain)]
    return [growth.tags for growth in growths]


def _next(
    growth: _Growth,
    seen: numpy.ndarray,
    tried: Sequence[tuple[int, str]],
    known: tuple[Mapping[str, int], numpy.ndarray],
    gain: float,
) -> bool:
    """Take the phrase whose joined text is closest; say whether it gained enough."""
    texts, read = known
    closeness = numpy.round(read[[texts[text] for _, text in tried]] @ seen, DIGITS)
    best = int(closeness.argmax())
    return growth.take(tried[best][0], float(closeness[best]), gain)


def _joined(tags: Sequence[Tag], limits: Limits) -> str:
    order = list(limits.room)
    return ", ".join(tag.text for tag in sorted(tags, key=lambda tag: (order.index(tag.group), -tag.score, tag.text)))
