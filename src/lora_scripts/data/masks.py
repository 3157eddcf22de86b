"""What of a picture counts: a mask is white (1) where it does and black (0) where it does not.

A mask is the picture's own transparency, or a grey picture of the same size. It is averaged by area to a network's
latents, inside the same box of the picture that `decode.fit` turns into pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.decode import Decoded, crop_box, decode_bytes, read_bytes
from lora_scripts.data.record import PictureExample
from lora_scripts.errors import DataError

if TYPE_CHECKING:
    import numpy
    from PIL import Image

ALPHA = "alpha"
# A share that is 1 but for rounding is 1, so that a white mask changes nothing at all.
_WHOLE = 1 - 1e-5


@dataclass(frozen=True)
class Cover:
    """Where a mask lets anything count: for each column and each row of pixels, whether it holds any."""

    size: tuple[int, int]
    columns: bytes
    rows: bytes

    def reaches(self, bucket: tuple[int, int]) -> bool:
        """Say whether anything is left of it in the part of the picture that becomes the bucket."""
        left, top, right, bottom = crop_box(self.size, bucket)
        # The crop cuts columns or rows, never both, so that the two can be asked one by one.
        inside = self.columns[int(left) : math.ceil(right)], self.rows[int(top) : math.ceil(bottom)]
        return all(any(line) for line in inside)


def cover(mask: Image.Image) -> Cover:
    """Return where the mask is not black."""
    columns, rows = mask.getprojection()
    return Cover(mask.size, bytes(columns), bytes(rows))


def transparency(decoded: Decoded) -> Image.Image | None:
    """Return a picture's opacity as its mask (L), or None where it is opaque all over."""
    opacity = decoded.opacity
    return None if opacity is None or opacity.getextrema()[0] == 255 else opacity


def from_bytes(data: bytes, path: Path) -> Image.Image:
    """Return the mask (L) that a picture file holds: its red values; what is transparent does not count.

    Raises:
        DataError: the bytes are no allowed picture, too large or damaged.
    """
    from PIL import ImageChops

    decoded = decode_bytes(data, path)
    red = decoded.picture.getchannel("R")
    if decoded.opacity is None:
        return red
    # It lies over white: over black it is darker by what shines through.
    return ImageChops.subtract(red, ImageChops.invert(decoded.opacity))


def load(example: PictureExample) -> Image.Image:
    """Return the example's mask (L), of its picture's size.

    Raises:
        DataError: the file cannot be read, or has changed since the data were read.
    """
    if example.mask == ALPHA:
        path, digest = example.path, example.sha256
    else:
        path, digest = Path(str(example.mask)), example.mask_sha256
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError("data.picture_changed", path=path)
    mask = transparency(decode_bytes(data, path)) if example.mask == ALPHA else from_bytes(data, path)
    assert mask is not None and mask.size == example.size
    return mask


def shrink(mask: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]) -> numpy.ndarray:
    """Return (rows, columns) float32 in 0..1: the mean of the mask over each cell's area of the box.

    Args:
        box: (left, top, right, bottom) in the mask's pixels, fractions allowed.
        size: (columns, rows) of the result.
    """
    import numpy

    values = numpy.asarray(mask, dtype=numpy.float32) / 255
    across = _shares(box[0], box[2], size[0], mask.width)
    down = _shares(box[1], box[3], size[1], mask.height)
    means = numpy.clip(down @ values @ across.T, 0, 1)
    return numpy.where(means > _WHOLE, numpy.float32(1), means)


def _shares(start: float, stop: float, cells: int, pixels: int) -> numpy.ndarray:
    """(cells, pixels) float32: the share of each cell of a line from `start` to `stop` that each pixel covers."""
    import numpy

    edges = numpy.linspace(start, stop, cells + 1)
    left = numpy.arange(pixels)
    overlap = numpy.minimum(edges[1:, None], left + 1) - numpy.maximum(edges[:-1, None], left)
    return (overlap.clip(min=0) * (cells / (stop - start))).astype(numpy.float32)
