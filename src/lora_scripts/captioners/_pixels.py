"""Words that are measured, not guessed: the ground a picture stands on, its colours, and where its subject is."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_scripts.contracts import Tag

if TYPE_CHECKING:
    import numpy
    from PIL import Image

SIDE = 96
# Of 0 to 255, in each channel: what still counts as the ground's colour.
GROUND_TOLERANCE = 24
PLAIN_SHARE = 0.7
COLOUR_SHARE = 0.25
SMALL, LARGE = 0.18, 0.8
OFF_CENTRE = 0.15
GREY_SATURATION = 0.16


@dataclass(frozen=True)
class Seen:
    """What was measured.

    Attributes:
        plain: the subject stands on a ground of one colour.
        tags: of the groups "palette", "setting" and "framing"; scores are shares of the picture.
    """

    plain: bool
    tags: tuple[Tag, ...]


def measure(picture: Image.Image) -> Seen:
    """Return the words for one RGB picture."""
    import numpy
    from PIL import Image

    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    values = numpy.asarray(picture.resize(size, Image.Resampling.BOX), dtype=numpy.int16)
    border = numpy.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    ground = numpy.median(border, axis=0)
    on_border = float((numpy.abs(border - ground).max(-1) <= GROUND_TOLERANCE).mean())
    plain = on_border >= PLAIN_SHARE
    subject = numpy.abs(values - ground).max(-1) > GROUND_TOLERANCE if plain else numpy.ones(values.shape[:2], bool)
    if not subject.any():
        return Seen(plain, (Tag(f"plain {name(ground)}", 1.0, "palette"),))
    tags = _colours(values[subject])
    if plain:
        tags += [Tag(f"on a {name(ground)} background", round(on_border, 4), "setting"), *_place(subject)]
    return Seen(plain, tuple(tags))


def name(colour: numpy.ndarray) -> str:
    """Return a plain English word for an RGB colour of 0 to 255."""
    red, green, blue = (float(channel) / 255 for channel in colour)
    hue, light, _ = colorsys.rgb_to_hls(red, green, blue)
    spread = max(red, green, blue) - min(red, green, blue)
    if spread < GREY_SATURATION:
        return "black" if light < 0.2 else "white" if light > 0.88 else "grey"
    degrees = hue * 360
    if degrees < 18 or degrees >= 345:
        return "pink" if light > 0.72 else "red"
    if degrees < 45:
        return "brown" if light < 0.42 else "beige" if light > 0.8 else "orange"
    bounds = ((68, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"), (290, "purple"), (345, "pink"))
    return next(word for end, word in bounds if degrees < end)


def _colours(pixels: numpy.ndarray) -> list[Tag]:
    """Return the one or two colours that cover most; black and white together have a name of their own."""
    import numpy

    # 4 levels a channel are enough to count by.
    coarse, counts = numpy.unique(pixels // 32, axis=0, return_counts=True)
    shares: dict[str, float] = {}
    for level, count in zip(coarse, counts, strict=True):
        word = name(level * 32 + 16)
        shares[word] = shares.get(word, 0.0) + float(count) / len(pixels)
    ordered = sorted(shares.items(), key=lambda item: (-round(item[1], 4), item[0]))
    large = [(word, round(share, 4)) for word, share in ordered if share >= COLOUR_SHARE][:2] or [ordered[0]]
    if shares.keys() <= {"black", "white", "grey"} and "black" in dict(large):
        return [Tag("black and white", 1.0, "palette")]
    return [Tag(word, round(share, 4), "palette") for word, share in large]


def _place(subject: numpy.ndarray) -> list[Tag]:
    """Return how large the subject is in the frame, and where, if not in the middle."""
    import numpy

    rows, columns = numpy.flatnonzero(subject.any(1)), numpy.flatnonzero(subject.any(0))
    height, width = subject.shape
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    area = float((bottom - top) * (right - left)) / (height * width)
    tags = []
    if area < SMALL:
        tags.append(Tag("small in the frame", round(1 - area, 4), "framing"))
    elif area > LARGE:
        tags.append(Tag("filling the frame", round(area, 4), "framing"))
    across, down = (left + right) / 2 / width - 0.5, (top + bottom) / 2 / height - 0.5
    if abs(across) > OFF_CENTRE:
        tags.append(Tag("on the left" if across < 0 else "on the right", round(abs(across) * 2, 4), "framing"))
    if abs(down) > OFF_CENTRE:
        tags.append(Tag("near the top" if down < 0 else "near the bottom", round(abs(down) * 2, 4), "framing"))
    return tags
