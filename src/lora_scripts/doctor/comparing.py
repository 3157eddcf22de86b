"""Whether a picture is the same as a part of another, pixel by pixel on their small copies.

Drawings, icons and gradients have the same overall shape without being the same picture, so correlation alone is not
enough: after the best place and size are found, each pixel of one must lie among its neighbours of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy

from lora_scripts.doctor.miniatures import COLOUR_SIDE, SIDE

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) as shares of a picture, 0 to 1."""
View = tuple[numpy.ndarray, numpy.ndarray]
"""Brightness (SIDE, SIDE) and colour (2, COLOUR_SIDE, COLOUR_SIDE) of a picture, uint8."""

GRID = 32
"""Pixels a side at which the place is looked for."""
FIRST_STEP, LAST_STEP = 0.04, 0.004
"""Shares of the picture by which a window is moved at first and at last; the last is a quarter of a pixel."""
PROMISING = 0.85
"""Correlation after the first moves below which no finer ones help."""
SAME = 0.93
"""Correlation, at the best place, of what is left after the smooth part is taken away."""
DETAIL = 2.5
"""Standard deviation of what is left, in levels: less is noise of the compression, and no sign of anything."""
APART = 10.0
"""Levels that a pixel may lie outside of the range of its neighbours, after the change of contrast is taken away."""
MOST_APART = 0.004
"""Share of the pixels that may; a detail that was drawn anew takes more."""
GAIN = (0.6, 1.6)
"""Change of contrast that is still the same picture."""
TONE, TWO_TONES = 12, 0.6
"""Levels around a tone that belong to it, and the share of the pixels that lie at the two commonest of a sign."""
COLOURLESS = 4.0
"""Deviation of a colour channel, in levels, up to which a picture has no colours, or one."""
TINT, PATTERN = 22.0, 7.0
"""Mean change of a colour channel, and the mean difference that may be left after it, in levels."""


@dataclass(frozen=True)
class Match:
    """`part` is what `box` shows of `whole`, mirrored or not; `score` is a correlation."""

    whole: int
    part: int
    box: Box
    mirrored: bool
    score: float


def areas(start: float, end: float, count: int, side: int = SIDE) -> numpy.ndarray:
    """Return (count, side): the weights that average a stretch of a line, given in shares, into `count` cells."""
    edges = numpy.linspace(start, end, count + 1) * side
    pixels = numpy.arange(side)
    low = numpy.maximum(edges[:-1, None], pixels)
    high = numpy.minimum(edges[1:, None], pixels + 1)
    weights = numpy.clip(high - low, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def compare(whole: View, part: View, box: Box, *, mirrored: bool) -> Match | None:
    """Return where in `whole` the picture `part` lies, near `box`, or None where it does not."""
    if mirrored and _is_sign(part):
        return None
    grey, colour = (each[..., ::-1] if mirrored else each for each in part)
    target = _reduced(grey.astype(numpy.float64), GRID)
    source = whole[0].astype(numpy.float64)
    score, box = _settle(source, target, box)
    if score < SAME:
        return None
    side = min(SIDE, max(GRID, round(SIDE * min(box[2] - box[0], box[3] - box[1]))))
    seen = _cut(source, box, side)
    if not _agree(seen, _reduced(grey.astype(numpy.float64), side)) or not _same_colours(whole[1], colour, box):
        return None
    return Match(0, 1, box, mirrored, score)


def _is_sign(view: View) -> bool:
    """Say whether a picture is drawn in two tones without colours: an arrow up is not a mirrored arrow down."""
    grey, colour = view
    if colour.reshape(2, -1).std(axis=1).max() > COLOURLESS:
        return False
    histogram = numpy.convolve(numpy.bincount(grey.ravel(), minlength=256), numpy.ones(2 * TONE + 1, int))
    covered = numpy.zeros(256, bool)
    for _ in range(2):
        middle = int(histogram[TONE:-TONE].argmax())
        covered[max(0, middle - TONE) : middle + TONE + 1] = True
        histogram[max(0, middle - TONE) : middle + 3 * TONE + 1] = 0
    return float(covered[grey].mean()) > TWO_TONES


def _reduced(picture: numpy.ndarray, side: int) -> numpy.ndarray:
    weights = areas(0.0, 1.0, side, picture.shape[-1])
    return weights @ picture @ weights.T


def _cut(picture: numpy.ndarray, box: Box, side: int) -> numpy.ndarray:
    size = picture.shape[-1]
    return areas(box[1], box[3], side, size) @ picture @ areas(box[0], box[2], side, size).T


def _settle(source: numpy.ndarray, target: numpy.ndarray, box: Box) -> tuple[float, Box]:
    """Move and scale the window in ever smaller steps while that makes it more alike; return (correlation, box)."""
    wanted = _standard(target)
    # The whole picture is a likely place, and one that is tried exactly.
    starts = [box, (0.0, 0.0, 1.0, 1.0)] if (box[2] - box[0]) * (box[3] - box[1]) > 0.8 else [box]
    best, box = max((_alike(source, wanted, each), each) for each in starts)
    step = FIRST_STEP
    while step >= LAST_STEP:
        moved = True
        for _ in range(8):
            if not moved:
                break
            moved = False
            for change in _changes(step):
                tried = _moved(box, change)
                score = _alike(source, wanted, tried) if tried is not None else -1.0
                if score > best + 1e-6:
                    best, box, moved = score, tried or box, True
        if best < PROMISING and step == FIRST_STEP:
            break
        step /= 2
    return best, box


def _changes(step: float) -> list[tuple[float, float, float]]:
    """(right, down, larger) as shares: each alone, both ways."""
    return [
        (step, 0, 0), (-step, 0, 0), (0, step, 0), (0, -step, 0), (0, 0, step), (0, 0, -step),
        (step / 2, 0, step), (-step / 2, 0, step), (0, step / 2, step), (0, -step / 2, step),
        (step / 2, 0, -step), (-step / 2, 0, -step), (0, step / 2, -step), (0, -step / 2, -step),
    ]  # fmt: skip


def _moved(box: Box, change: tuple[float, float, float]) -> Box | None:
    """Return the changed window, with its shape kept; None where it leaves the picture."""
    right, down, larger = change
    width, height = box[2] - box[0], box[3] - box[1]
    grown = 1 + larger
    across, along = width * (grown - 1) / 2, height * (grown - 1) / 2
    moved = (box[0] + right - across, box[1] + down - along, box[2] + right + across, box[3] + down + along)
    slack = 0.01
    if min(moved) < -slack or max(moved) > 1 + slack:
        return None
    left, top, end, bottom = (min(1.0, max(0.0, edge)) for edge in moved)
    return left, top, end, bottom


def _alike(source: numpy.ndarray, wanted: numpy.ndarray, box: Box) -> float:
    return float((_standard(_cut(source, box, GRID)) * wanted).mean())


def _standard(picture: numpy.ndarray) -> numpy.ndarray:
    centred = picture - picture.mean()
    return centred / max(float(centred.std()), 1e-6)


def _agree(seen: numpy.ndarray, other: numpy.ndarray) -> bool:
    """Say whether two pictures of one size have the same details, whatever their contrast and brightness."""
    first, second = _details(seen), _details(other)
    if min(first.std(), second.std()) < DETAIL:
        return False
    if (_standard(first) * _standard(second)).mean() < SAME - 0.05:
        return False
    gain = float((_standard(seen) * _standard(other)).mean()) * other.std() / max(float(seen.std()), 1e-6)
    if not GAIN[0] <= gain <= GAIN[1]:
        return False
    fitted = gain * (seen - seen.mean()) + other.mean()
    return max(_apart(fitted, other), _apart(other, fitted)) <= MOST_APART


def _details(picture: numpy.ndarray) -> numpy.ndarray:
    """Take away the quadratic surface that fits best: gradients and vignettes are alike without being the same."""
    terms = surface_terms(len(picture))
    flat = picture.reshape(-1)
    return (flat - terms @ (numpy.linalg.pinv(terms) @ flat)).reshape(picture.shape)


@cache
def surface_terms(side: int) -> numpy.ndarray:
    """Return (side * side, 6): what a quadratic surface over a square is made of."""
    across, down = numpy.meshgrid(numpy.linspace(-1, 1, side), numpy.linspace(-1, 1, side))
    return numpy.stack([across * 0 + 1, across, down, across * down, across**2, down**2], axis=-1).reshape(-1, 6)


def _apart(picture: numpy.ndarray, other: numpy.ndarray) -> float:
    """Return the share of the pixels of `other` that lie outside of what surrounds their place in `picture`."""
    padded = numpy.pad(picture, 1, mode="edge")
    side = len(picture)
    around = numpy.stack([padded[y : y + side, x : x + side] for y in range(3) for x in range(3)])
    above, below = other - around.max(axis=0), around.min(axis=0) - other
    return float((numpy.maximum(above, below) > APART).mean())


def _same_colours(whole: numpy.ndarray, part: numpy.ndarray, box: Box) -> bool:
    side = max(4, round(COLOUR_SIDE * min(box[2] - box[0], box[3] - box[1])))
    for first, second in zip(whole.astype(numpy.float64), part.astype(numpy.float64), strict=True):
        difference = _cut(first, box, side) - _reduced(second, side)
        shift = float(difference.mean())
        if abs(shift) > TINT or float(numpy.abs(difference - shift).mean()) > PATTERN:
            return False
    return True
