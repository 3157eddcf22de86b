"""Small copies of all pictures, in a scratch file on disk: duplicates and marks are looked for in them.

In memory they would take 15 kB a picture, and grow with the set. The file has no name and is gone with the process.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from PIL import Image

SIDE = 64
"""Of the copy that duplicates are looked for in, in pixels; it is stretched to a square, so shares are places."""
COLOUR_SIDE = 16
STRIP = (160, 32)
"""(width, height) of the copies of the uppermost and the lowest fifth, where marks are."""
STRIP_SHARE = 0.2

_PARTS = (SIDE * SIDE, 2 * COLOUR_SIDE * COLOUR_SIDE, STRIP[0] * STRIP[1], STRIP[0] * STRIP[1])
RECORD = sum(_PARTS)
_BEFORE_STRIPS = _PARTS[0] + _PARTS[1]


@dataclass
class Miniatures:
    """A scratch file of records of one size."""

    count: int = 0

    def __post_init__(self) -> None:
        # Kept open as long as the survey: closing it deletes it.
        self._file = tempfile.TemporaryFile(prefix="lora-doctor-")
        self._lock = threading.Lock()

    def add(self, record: bytes) -> int:
        """Append what `shrink` made, and return its row."""
        with self._lock:
            self._file.seek(self.count * RECORD)
            self._file.write(record)
            self.count += 1
            return self.count - 1

    def grey(self, rows: Sequence[int]) -> numpy.ndarray:
        """Return uint8 (rows, SIDE, SIDE): brightness."""
        return self._read(rows, 0, _PARTS[0]).reshape(-1, SIDE, SIDE)

    def colour(self, rows: Sequence[int]) -> numpy.ndarray:
        """Return uint8 (rows, 2, COLOUR_SIDE, COLOUR_SIDE): Cb and Cr."""
        return self._read(rows, _PARTS[0], _PARTS[1]).reshape(-1, 2, COLOUR_SIDE, COLOUR_SIDE)

    def strips(self, rows: Sequence[int]) -> numpy.ndarray:
        """Return uint8 (rows, 2, height, width): brightness of the uppermost and the lowest fifth."""
        return self._read(rows, _BEFORE_STRIPS, 2 * _PARTS[2]).reshape(-1, 2, STRIP[1], STRIP[0])

    def _read(self, rows: Sequence[int], start: int, length: int) -> numpy.ndarray:
        found = numpy.empty((len(rows), length), numpy.uint8)
        with self._lock:
            for place, row in enumerate(rows):
                self._file.seek(int(row) * RECORD + start)
                self._file.readinto(found[place].data)
        return found


def shrink(picture: Image.Image) -> bytes:
    """Return the record of an RGB picture."""
    from PIL import Image

    box = Image.Resampling.BOX
    strip = STRIP_SHARE * picture.height
    parts: list[Image.Image] = []
    luma, *chroma = picture.resize((SIDE, SIDE), box, reducing_gap=2.0).convert("YCbCr").split()
    parts += [luma, *(channel.resize((COLOUR_SIDE, COLOUR_SIDE), box) for channel in chroma)]
    for top in (0.0, picture.height - strip):
        area = (0.0, top, float(picture.width), top + strip)
        parts.append(picture.resize(STRIP, box, box=area, reducing_gap=2.0).convert("L"))
    return b"".join(part.tobytes() for part in parts)
