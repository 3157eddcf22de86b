"""Marks: the same small pattern at the same place of several pictures, as a watermark, a signature or a date has it.

A model that sees it a hundred times draws it. No text is read: what counts is that several pictures, which are not
alike otherwise, have the same lines in a strip at their upper or lower edge, where nearly all marks are. One picture
alone shows nothing; a signature that is there once does no harm either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.miniatures import STRIP, STRIP_SHARE

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Picture, Survey

SAMPLE = 400
"""Pictures among which a pattern is looked for; whatever is found is then looked for in all."""
FEWEST, LEAST_SHARE = 4, 0.02
"""A pattern is in so many pictures, and in this share of them, at least."""
TILE = (40, 16)
"""(width, height) of the places that are compared: a quarter of the picture's width, a tenth of its height."""
CLIP = 24.0
"""Levels at which lines count alike, so that the strongest line of a picture does not drown a faint mark."""
LINES = 2.0
"""Standard deviation of what is left without the smooth part, in levels, below which a place is empty."""
LIKE = 0.6
"""Correlation of two places that show the same; of places of different pictures it is 0.4 at most."""
HAS_IT = 0.5
UNLIKE = 0.35
"""Correlation of the rest of the strip, and of the pictures, above which they just have the same ground or frame."""
STEADY, BY_CHANCE = 0.8, 3.5
"""A pixel belongs to the mark whose mean is so many times its deviation over the pictures, and its standard error."""
STROKES, LEAST_ROWS = 8, 2
"""Changes between light and dark along a line of the mark, and lines that have them: letters do, a frame does not."""
MOST_OUTSIDE = 0.25
"""Steady pixels elsewhere in the strip, as a share of the mark's own."""
MOST_MARKS = 5


@dataclass(frozen=True)
class _Mark:
    """A pattern: which strip (0 above, 1 below), where in it (pixels), and its mean lines."""

    strip: int
    box: tuple[int, int, int, int]
    lines: numpy.ndarray

    @property
    def share(self) -> tuple[float, float, float, float]:
        """Its box as shares of the picture."""
        left, top, right, bottom = self.box
        first = self.strip * (1 - STRIP_SHARE)
        scale = STRIP_SHARE / STRIP[1]
        return left / STRIP[0], first + top * scale, right / STRIP[0], first + bottom * scale


def find(survey: Survey) -> Sequence[Finding]:
    """Return the pictures that share a mark."""
    readable = [picture for picture in survey.readable if picture.row >= 0]
    if len(readable) < FEWEST:
        return []
    step = max(1, len(readable) // SAMPLE)
    marks = _marks(readable[::step][:SAMPLE], survey)
    items = [item for mark in marks for item in _having(mark, readable, survey)]
    names = {item.files for item in items}
    return [Finding("pictures", "marks", Severity.SHOULD, len(names), items=items)] if items else []


def _having(mark: _Mark, pictures: Sequence[Picture], survey: Survey) -> Iterator[Item]:
    left, top, right, bottom = mark.box
    wanted = _unit(mark.lines.reshape(1, -1))[0]
    for start in range(0, len(pictures), SAMPLE):
        some = pictures[start : start + SAMPLE]
        strips = _lines(survey.miniatures.strips([picture.row for picture in some])[:, mark.strip])
        likeness = _unit(strips[:, top:bottom, left:right].reshape(len(some), -1)) @ wanted
        yield from (
            Item((picture.name,), None, mark.share)
            for picture, like in zip(some, likeness, strict=True)
            if like >= HAS_IT
        )


def _marks(sample: Sequence[Picture], survey: Survey) -> list[_Mark]:
    """Return the patterns that pictures of the sample share."""
    rows = [picture.row for picture in sample]
    grey = survey.miniatures.grey(rows).astype(numpy.float32)
    alike = _correlations(grey.reshape(len(rows), -1))
    strips = survey.miniatures.strips(rows)
    found: list[_Mark] = []
    for strip in (0, 1):
        lines = _lines(strips[:, strip])
        for top in range(0, STRIP[1] - TILE[1] + 1, TILE[1] // 2):
            for left in range(0, STRIP[0] - TILE[0] + 1, TILE[0] // 2):
                if len(found) < MOST_MARKS and not any(_overlap(mark, strip, left, top) for mark in found):
                    mark = _mark(lines, alike, strip, (left, top))
                    found += [mark] if mark is not None else []
    return found


def _overlap(mark: _Mark, strip: int, left: int, top: int) -> bool:
    first, above, last, below = mark.box
    return mark.strip == strip and left < last and left + TILE[0] > first and top < below and top + TILE[1] > above


def _mark(lines: numpy.ndarray, alike: numpy.ndarray, strip: int, place: tuple[int, int]) -> _Mark | None:
    """Return the pattern that most pictures share around one place of a strip.

    Args:
        lines: (pictures, height, width), see `_lines`.
        alike: (pictures, pictures), how alike they are as a whole.
        place: (left, top) of the tile.
    """
    left, top = place
    tile = lines[:, top : top + TILE[1], left : left + TILE[0]].reshape(len(lines), -1)
    same = (_correlations(tile) > LIKE) & (alike < UNLIKE)
    least = max(FEWEST, round(LEAST_SHARE * len(lines)))
    partners = same.sum(axis=1)
    if partners.max() + 1 < least:
        return None
    first = int(partners.argmax())
    members = lines[same[first] | (numpy.arange(len(lines)) == first)]
    mean = members.mean(axis=0)
    least_steady = max(STEADY, BY_CHANCE / numpy.sqrt(len(members)))
    steady = _with_neighbours((numpy.abs(mean) > LINES) & (numpy.abs(mean) > least_steady * members.std(axis=0)))
    box = _around(steady, place)
    if box is None or _goes_on(steady, box, strip):
        return None
    inside = (slice(box[1], box[3]), slice(box[0], box[2]))
    drawn = _is_drawn(numpy.where(steady, numpy.sign(mean), 0)[inside])
    return _Mark(strip, box, mean[inside]) if drawn and _is_alone(members, box) else None


def _around(steady: numpy.ndarray, place: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the box of the steady pixels in and next to the tile, with a pixel around it."""
    left, top = place
    reach = numpy.zeros_like(steady)
    reach[max(0, top - TILE[1]) : top + 2 * TILE[1], max(0, left - TILE[0]) : left + 2 * TILE[0]] = True
    down, across = numpy.nonzero(steady & reach)
    height, width = steady.shape
    if not len(down):
        return None
    return (
        max(0, int(across.min()) - 1),
        max(0, int(down.min()) - 1),
        min(width, int(across.max()) + 2),
        min(height, int(down.max()) + 2),
    )


def _with_neighbours(steady: numpy.ndarray) -> numpy.ndarray:
    """Leave out pixels that are steady alone, by chance."""
    padded = numpy.pad(steady, 1).astype(int)
    height, width = steady.shape
    around = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return steady & (around >= 3)


def _goes_on(steady: numpy.ndarray, box: tuple[int, int, int, int], strip: int) -> bool:
    """Say whether a pattern is a part of something larger: of a frame, or of a shape that the pictures share."""
    left, top, right, bottom = box
    inner = box[3] >= STRIP[1] if strip == 0 else box[1] <= 0
    inside = int(steady[top:bottom, left:right].sum())
    return inner or int(steady.sum()) > (1 + MOST_OUTSIDE) * inside


def _is_drawn(signs: numpy.ndarray) -> bool:
    """Say whether a pattern has as many strokes as writing or a drawing, in more than one line of pixels.

    Args:
        signs: of the steady pixels, 1 lighter or -1 darker than around them; 0 elsewhere.
    """
    rich = 0
    for row in signs:
        kept = row[row != 0]
        rich += int((kept[1:] != kept[:-1]).sum()) >= STROKES
    return rich >= LEAST_ROWS


def _is_alone(members: numpy.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Say whether the pictures differ around the pattern; else they share a ground, a frame or a screen."""
    left, top, right, bottom = box
    if (right - left) * (bottom - top) > 0.6 * members[0].size:
        return False
    rest = members.copy()
    rest[:, top:bottom, left:right] = 0
    likeness = _correlations(rest.reshape(len(rest), -1))
    pairs = likeness[numpy.triu_indices(len(rest), 1)]
    return float(numpy.median(pairs)) < UNLIKE


def _lines(strips: numpy.ndarray) -> numpy.ndarray:
    """Return float32 strips without their smooth part: each pixel less the mean of the 5 x 5 around it, clipped."""
    values = strips.astype(numpy.float32)
    padded = numpy.pad(values, ((0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = values.shape[1:]
    rows = numpy.sum([padded[:, y : y + height] for y in range(5)], axis=0)
    mean = numpy.sum([rows[:, :, x : x + width] for x in range(5)], axis=0) / 25
    return numpy.clip(values - mean, -CLIP, CLIP)


def _unit(rows: numpy.ndarray) -> numpy.ndarray:
    """Return rows of mean 0 and length 1; rows without lines are 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    length = numpy.maximum(numpy.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return numpy.where(deviation > LINES, centred / length, 0)


def _correlations(rows: numpy.ndarray) -> numpy.ndarray:
    """Return how alike each row is to each other; 0 with itself."""
    unit = _unit(rows)
    found = unit @ unit.T
    numpy.fill_diagonal(found, 0)
    return found
