"""What is measured of one decoded picture: a handful of numbers, at the size that it is trained at.

A photograph of 4000 pixels that is a little soft is sharp once it is scaled down for training, so everything is
measured at that size. Numbers mean something only against the rest of the set; `quality` compares them.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from lora_scripts.data.decode import FORMATS

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 768
"""Side of a square in pixels beyond which sharpness is not measured: it costs time and tells nothing more."""
WINDOW = 8
"""Pixels over which an edge is looked at; one that takes longer to rise is called a gradient."""
STRIDE = 3
EDGE = 24
"""Levels of brightness, of 255, that an edge rises at least; noise and JPEG do less."""
STRONG = 0.35
"""An edge counts that has this share of the picture's strongest contrast."""
STEEPEST = 99.5
"""Percentile: a picture is as sharp as its steepest edges, whatever else is out of focus on purpose."""
UNIFORM = 10
"""Levels that a line of pixels of a bar may differ by, which JPEG needs."""
LEAST_BAR, LEAST_CONTENT = 0.025, 0.3
"""Shares of a side: a bar that is narrower is a frame or a mistake of one pixel, between two bars is a picture."""
GROUND, MOST_GROUND = 3, 0.1
"""Levels about the colour of the bars, and the share of the content that may lie there: else it is the ground."""
BLOCK = 8
"""Pixels of a block of JPEG."""
STANDARD_LUMA_SUM = 3687
"""Sum of the luminance table of ITU-T T.81 K.1, which quality 50 uses as it is."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Numbers of one picture.

    Attributes:
        sharpness: 0 to 1, share of an edge's height that its steepest pixel rises; 0 where there is no edge at all.
        dark, bright: 1st and 99.9th percentile of brightness, 0 to 255; a few lamps make a night bright.
        white: share of the pixels that are white or nearly.
        spread: levels, 0 to 255, between the least and the largest value of the channel that differs most.
        bars: (left, top, right, bottom) of the content between two bars, as shares; None where there are none.
        quality: about what a JPEG was saved with, 1 to 100; 0 for other formats.
    """

    sharpness: float
    dark: int
    bright: int
    white: float
    spread: int
    bars: tuple[float, float, float, float] | None = None
    quality: int = 0


def measure(picture: Image.Image, data: bytes, resolution: int) -> Measured:
    """Measure an RGB picture, whose file has `data`, for training at `resolution`."""
    from PIL import Image

    side = min(resolution, LARGEST)
    scale = max(1.0, math.sqrt(picture.width * picture.height) / side)
    reduced = picture.reduce(int(scale)) if scale >= 2 else picture
    size = (max(1, round(picture.width / scale)), max(1, round(picture.height / scale)))
    grey = reduced.convert("L")
    trained = grey if size == grey.size else grey.resize(size, Image.Resampling.BICUBIC)
    histogram = numpy.cumsum(grey.histogram()) / (grey.width * grey.height)
    dark, bright = (int(numpy.searchsorted(histogram, share)) for share in (0.01, 0.999))
    return Measured(
        sharpness=steepness(numpy.asarray(trained)),
        dark=dark,
        bright=bright,
        white=float(1 - histogram[249]),
        spread=max(high - low for low, high in reduced.getextrema()),  # type: ignore[misc]
        bars=bars(numpy.asarray(reduced)),
        quality=jpeg_quality(data),
    )


def steepness(grey: numpy.ndarray) -> float:
    """Return how steep the steepest strong edges are: 1 rises within a pixel, 1 / `WINDOW` over the whole window.

    For a step blurred by a Gaussian of sigma pixels it is about 0.4 / sigma. Contrast, noise below `EDGE`, and how much
    of the picture is flat do not change it.

    Args:
        grey: uint8 (height, width).
    """
    heights, steps = [], []
    for lines in (grey[::STRIDE], grey.T[::STRIDE]):
        if lines.shape[1] <= WINDOW:
            continue
        levels = numpy.ascontiguousarray(lines).astype(numpy.int16)
        height = _extreme(levels, WINDOW, numpy.maximum) - _extreme(levels, WINDOW, numpy.minimum)
        # The step in the middle of its window: at the rim of one there is always a step, and half of its edge only.
        middle = levels[:, WINDOW // 2 - 1 :][:, : height.shape[1] + 1]
        heights.append(height.ravel())
        steps.append(numpy.abs(numpy.diff(middle, axis=1)).ravel())
    if not heights:
        return 0.0
    height, step = numpy.concatenate(heights), numpy.concatenate(steps)
    strong = height >= max(EDGE, STRONG * float(height.max(initial=0)))
    if not strong.any():
        return 0.0
    return float(numpy.percentile(step[strong] / height[strong], STEEPEST))


def _extreme(lines: numpy.ndarray, window: int, larger: numpy.ufunc) -> numpy.ndarray:
    """Return the largest (or smallest) of each `window` values in a row, by windows that double."""
    reach = 1
    values = lines
    while reach < window:
        further = min(reach, window - reach)
        values = larger(values[:, :-further], values[:, further:])
        reach += further
    return values


def bars(pixels: numpy.ndarray) -> tuple[float, float, float, float] | None:
    """Return the box of the content between two bars on opposite sides, as shares, or None.

    A bar is of one neutral colour, the same on both sides, and ends in a straight edge along which most pixels differ
    from it: a drawing on white ground touches its ground in a few places only. Bars on all four sides are a frame, or
    the ground of a drawing, and left alone.

    Args:
        pixels: uint8 (height, width, 3).
    """
    planes = numpy.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(numpy.int16)
    found = [_bars_above_and_below(lines) for lines in (planes, planes.transpose(0, 2, 1))]
    if (found[0] is None) == (found[1] is None):
        return None
    if found[0] is not None:
        return (0.0, found[0][0], 1.0, found[0][1])
    assert found[1] is not None
    return (found[1][0], 0.0, found[1][1], 1.0)


def _bars_above_and_below(planes: numpy.ndarray) -> tuple[float, float] | None:
    """Return where the content begins and ends, for int16 (3, rows, columns)."""
    rows = planes.shape[1]
    above = _bar(planes)
    below = _bar(planes[:, ::-1]) if above is not None else None
    if above is None or below is None:
        return None
    content = planes[:, above[0] : rows - below[0]]
    if numpy.abs(above[1] - below[1]).max() > UNIFORM or content.shape[1] < LEAST_CONTENT * rows:
        return None
    if (_distance(content, above[1]) <= GROUND).mean() > MOST_GROUND:
        return None
    return above[0] / rows, 1 - below[0] / rows


def _bar(planes: numpy.ndarray) -> tuple[int, numpy.ndarray] | None:
    """Return the rows of a bar at the top, and its colour."""
    rows = planes.shape[1]
    colour = numpy.median(planes[:, 0], axis=1).astype(numpy.int16)
    if numpy.ptp(colour) > UNIFORM:
        return None
    least = max(2, math.ceil(LEAST_BAR * rows))
    # Most pictures end here; the rest is looked at in full.
    if _distance(planes[:, :least], colour).max() > UNIFORM:
        return None
    differs = _distance(planes, colour)
    ends = (differs > 2 * UNIFORM).mean(axis=1) >= 0.5
    if not ends.any():
        return None
    height = int(ends.argmax())
    # A block of JPEG that holds the edge is frayed; further up nothing is.
    clean = max(least, height - BLOCK)
    if height < least or differs[:clean].max() > UNIFORM:
        return None
    # JPEG and scaling blur the edge over some rows.
    row = min(rows - 1, height + max(2, rows // 100))
    across = (differs[row] > 2 * UNIFORM).mean()
    alike = numpy.ptp(planes[:, row], axis=1).max() <= 2 * UNIFORM
    return None if across < 0.75 or alike else (height, colour)


def _distance(planes: numpy.ndarray, colour: numpy.ndarray) -> numpy.ndarray:
    """Return how far each pixel is from a colour, in the channel in which it is furthest."""
    return numpy.abs(planes - colour[:, None, None]).max(axis=0)


def jpeg_quality(data: bytes) -> int:
    """Return about which quality a JPEG file was saved with, by its luminance table; 0 for other files."""
    from PIL import Image

    if not data.startswith(b"\xff\xd8"):
        return 0
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            tables = getattr(image, "quantization", {})
    except (OSError, SyntaxError, ValueError):
        return 0
    if 0 not in tables:
        return 0
    percent = 100 * sum(tables[0]) / STANDARD_LUMA_SUM
    quality = (200 - percent) / 2 if percent <= 100 else 5000 / percent
    return max(1, min(100, round(quality)))


def nature(data: bytes, *, profile_ignored: bool) -> tuple[str, int, str]:
    """Return (format, EXIF orientation, what had to be converted) of a file that can be decoded; see `Picture`."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        form, mode = image.format or "", image.mode
        try:
            # Not the PNG reader's own, which decodes the whole picture.
            value = Image.Image.getexif(image).get(0x0112)
        except Exception:  # noqa: BLE001 - viewers show a picture with a damaged EXIF block as it is stored
            value = 1
        orientation = value if isinstance(value, int) and 1 <= value <= 8 else 1
        if mode == "CMYK":
            return form, orientation, "cmyk"
        if mode.startswith("I") or mode == "F" or _is_deep(image, data):
            return form, orientation, "deep"
        profile = image.info.get("icc_profile")
    foreign = bool(profile) and not profile_ignored and not _is_srgb(profile or b"")
    return form, orientation, "profile" if foreign else ""


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Say whether a channel has more than 8 bits; Pillow cuts colours of 16 bits down while it reads them."""
    if image.format == "PNG":
        return len(data) > 24 and data[24] == 16
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, 8)  # type: ignore[attr-defined]
        return max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return False


def _is_srgb(profile: bytes) -> bool:
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return True
    # "c2" and "uRGB" are compact spellings of sRGB that web services embed.
    return "srgb" in name.lower() or name.strip().lower() in ("c2", "urgb")
