"""Pictures that stand out as bad: blurry, too dark, too bright, empty, with bars, saved with too much loss.

What is normal differs from set to set: line art is mostly white, night scenes are dark, water colours are soft. So a
picture is compared with the rest of its set, and where there are too few pictures to know what is normal, nothing is
said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy

from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.measuring import Measured

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Picture, Survey

FEWEST = 6
"""Pictures from which a median says what is normal."""
ROBUST = 1.4826
"""Makes a median deviation comparable with a standard deviation, for a normal distribution."""
OUTLIER = 3.5
"""Robust deviations from the median, as Iglewicz and Hoaglin advise (1993, How to Detect and Handle Outliers)."""
SOFTER = 1.7
"""A blurry picture's edges are at least so much less steep than the median's, however alike the others are."""
SHARP_ENOUGH = 0.5
"""Share of an edge within one pixel from which a picture is sharp, whatever the others are."""
EMPTY = 8
"""Levels within which all values of a picture of one colour lie; JPEG makes some of them."""
DARK, DARK_ELSEWHERE = 36, 128
"""Brightness of the brightest spot: of a picture that is too dark at most, of a usual one at least."""
BRIGHT, BRIGHT_ELSEWHERE = 150, 110
"""Brightness of the darkest hundredth: of a picture that is too bright at least, of a usual one at most."""
WHITE, WHITE_ELSEWHERE = 0.5, 0.3
"""Share of white: of a picture that is too bright at least, of a usual one at most (drawings on white have more)."""
RARE = 0.15
"""Share of the pictures beyond which darkness or paleness is how the set is."""
LOSSY = 40
"""Quality of a JPEG below which blocks of eight pixels and frayed edges are seen, and learned."""


def find(survey: Survey) -> Sequence[Finding]:
    """Return the pictures that stand out."""
    seen = [(picture, picture.measured) for picture in survey.readable if picture.measured is not None]
    empty = [Item((picture.name,)) for picture, each in seen if each.spread <= EMPTY]
    seen = [(picture, each) for picture, each in seen if each.spread > EMPTY]
    lossy = [
        Item((picture.name,), Note("pictures.lossy.detail", {"quality": each.quality}))
        for picture, each in seen
        if 0 < each.quality < LOSSY and _is_used_at_its_size(picture, survey)
    ]
    barred = [Item((picture.name,), None, each.bars) for picture, each in seen if each.bars is not None]
    found = [
        Finding("pictures", "empty", Severity.SHOULD, len(empty), items=empty),
        _blurry(seen),
        *_exposed(seen),
        Finding("pictures", "bars", Severity.SHOULD, len(barred), items=barred),
        Finding("pictures", "lossy", Severity.GOOD, len(lossy), {"quality": LOSSY}, lossy),
    ]
    return [finding for finding in found if finding.count]


def _is_used_at_its_size(picture: Picture, survey: Survey) -> bool:
    """Say whether blocks stay visible; scaling down to less than half removes them."""
    return math.sqrt(picture.size[0] * picture.size[1]) < 2 * survey.settings.resolution


def _blurry(seen: Sequence[tuple[Picture, Measured]]) -> Finding:
    """Find pictures whose steepest edges are much less steep than the set's; those without edges have no sharpness."""
    edged = [(picture, each.sharpness) for picture, each in seen if each.sharpness > 0]
    items = []
    if len(edged) >= FEWEST:
        steep = numpy.log([sharpness for _, sharpness in edged])
        middle = float(numpy.median(steep))
        deviation = ROBUST * float(numpy.median(numpy.abs(steep - middle)))
        least = min(middle - max(OUTLIER * deviation, math.log(SOFTER)), math.log(SHARP_ENOUGH))
        for (picture, sharpness), value in zip(edged, steep, strict=True):
            if value < least:
                params = {"times": f"{math.exp(middle) / sharpness:.1f}"}
                items.append(Item((picture.name,), Note("pictures.blurry.detail", params)))
    return Finding("pictures", "blurry", Severity.SHOULD, len(items), items=items)


def _exposed(seen: Sequence[tuple[Picture, Measured]]) -> list[Finding]:
    """Find pictures that are nearly black or washed out, in a set that is neither."""

    def usual(of: Callable[[Measured], float]) -> float:
        return float(numpy.median([of(each) for _, each in seen])) if len(seen) >= FEWEST else math.nan

    dark, bright = [], []
    # A comparison with NaN is false: where nothing is known to be usual, nothing is unusual.
    if usual(lambda each: each.bright) >= DARK_ELSEWHERE:
        dark = [Item((picture.name,)) for picture, each in seen if each.bright <= DARK]
    if usual(lambda each: each.dark) <= BRIGHT_ELSEWHERE and usual(lambda each: each.white) <= WHITE_ELSEWHERE:
        bright = [Item((picture.name,)) for picture, each in seen if each.dark >= BRIGHT and each.white >= WHITE]
    return [
        Finding("pictures", name, Severity.SHOULD, len(items), items=items)
        for name, items in (("dark", dark), ("bright", bright))
        if len(items) <= RARE * len(seen)
    ]
