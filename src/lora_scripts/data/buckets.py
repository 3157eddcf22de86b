"""Which size a picture is trained at: a bucket that fills the pixel budget and loses little of the picture."""

from __future__ import annotations

import math
from functools import lru_cache

MAX_ASPECT = 4
"""No bucket is longer than this many times its short side."""


@lru_cache(maxsize=4096)
def choose(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int] | None:
    """Return the bucket (width, height) for a picture, or None where it is smaller than one `multiple` a side.

    A bucket's sides are multiples of `multiple`, its area is at most resolution x resolution, neither side is
    longer than the picture's (nothing is ever upscaled) nor longer than `MAX_ASPECT` times the other. Of these the
    one with the largest (share of the picture that is kept) x (side of a square of the bucket's area) is taken: to
    crop a tenth away counts like a tenth of the linear resolution. A picture below the budget thus gets the largest
    bucket that fits into it, unless a slightly smaller one crops much less.

    Args:
        size: (width, height) in pixels as displayed.
        resolution: side in pixels of the square whose area is the budget.
        multiple: what both sides must be divisible by, in pixels.
    """
    width = size[0]
    best: tuple[tuple[float, int, int, int], tuple[int, int]] | None = None
    widest = min(width, math.isqrt(MAX_ASPECT * resolution * resolution))
    for columns in range(multiple, widest + 1, multiple):
        for rows in _heights(columns, size, resolution, multiple):
            area = columns * rows
            # Both factors squared. All parts but the last of a rank are the same for a turned picture, so that it
            # gets the turned bucket.
            score = kept(size, (columns, rows)) ** 2 * area
            rank = (score, area, -max(columns, rows), columns)
            if best is None or rank > best[0]:
                best = (rank, (columns, rows))
    return best[1] if best else None


def kept(size: tuple[int, int], bucket: tuple[int, int]) -> float:
    """Return the share of the picture's area, 0 to 1, that is left after scaling and cropping to the bucket."""
    across, down = bucket[0] * size[1], bucket[1] * size[0]
    return min(across, down) / max(across, down)


def _heights(columns: int, size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, ...]:
    """The heights worth trying for a width: the score falls on both sides of the picture's own shape."""
    lowest = -(-columns // (MAX_ASPECT * multiple)) * multiple
    highest = min(size[1], resolution * resolution // columns, columns * MAX_ASPECT) // multiple * multiple
    if highest < lowest:
        return ()
    exact = columns * size[1] // size[0] // multiple * multiple
    return tuple({min(max(rows, lowest), highest) for rows in (exact, exact + multiple)})
