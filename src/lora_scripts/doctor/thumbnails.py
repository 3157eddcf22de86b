"""Small pictures for the report, as `data:` addresses, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from lora_scripts.data.decode import decode
from lora_scripts.errors import LoraScriptsError

MAX_SIDE = 256
MAX_PICTURES = 200
MAX_BYTES = 11_000_000
"""Of all of them before base64 makes them a third longer."""
QUALITY = 78


@dataclass(frozen=True)
class Thumbnail:
    """A picture's address, and the size it is shown at."""

    address: str
    width: int
    height: int


@dataclass
class Thumbnails:
    """Makes each picture's thumbnail once, up to a number and a size of all together.

    Attributes:
        shown: how often one was given out; the same picture may stand at several findings.
    """

    shown: int = 0
    _bytes: int = 0
    _made: dict[Path, Thumbnail | None] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether no more are given out."""
        return self.shown >= MAX_PICTURES or self._bytes >= MAX_BYTES

    def of(self, path: Path) -> Thumbnail | None:
        """Return a picture's thumbnail, or None where it cannot be read or there are enough."""
        if self.full:
            return None
        if path not in self._made:
            self._made[path] = _make(path)
        made = self._made[path]
        if made is not None:
            self.shown += 1
            self._bytes += len(made.address) * 3 // 4
        return made


def _make(path: Path) -> Thumbnail | None:
    from PIL import Image

    try:
        picture = decode(path)
    except (LoraScriptsError, OSError, ValueError):
        return None
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Thumbnail(f"data:image/jpeg;base64,{encoded}", picture.width, picture.height)
