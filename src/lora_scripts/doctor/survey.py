"""What is known of a folder of pictures after reading it once: the base of every check of pictures and captions.

Each picture is read, decoded and measured once, by a few threads, and forgotten. What stays in memory is a `Picture`,
less than 1 kB; the small copies that duplicates and marks are looked for in lie in a scratch file on disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from lora_scripts.data import decode
from lora_scripts.data.folder import Folder, no_pictures, walk
from lora_scripts.data.record import Dropped
from lora_scripts.doctor.measuring import Measured, measure
from lora_scripts.doctor.miniatures import Miniatures, shrink
from lora_scripts.doctor.reading_captions import read_captions
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import DataError, Problem

Tell = Callable[..., object]
THREADS = 4
"""Decoding and scaling run beside each other; more threads would only hold more pictures at a time."""
LARGE_PIXELS = 16_000_000
"""Pictures with more are decoded one at a time: each takes several hundred megabytes for a moment."""
FAR_APART = 25
"""So many pictures lie between two words about the progress."""

_ONE_LARGE = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """One file, and what was measured of it.

    Attributes:
        name: relative to its folder, with "/".
        root: the folder.
        sha256: of the file's bytes; "" where they cannot be read.
        size: (width, height) as displayed; (0, 0) where it is not known.
        problem: why it cannot be trained on, as a message code, or None. Nothing below is known then.
        format: "PNG", "JPEG" ..., of its bytes, not its name.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        converted: what is not 8-bit sRGB: "cmyk", "profile" (of another colour space), "deep" (16 bits a channel),
            "" where nothing is converted.
        profile_ignored: its colour profile is damaged or for another kind of picture.
        several: animated or with several pages; only the first is used.
        transparent: share of the pixels through which most of the ground shows.
        measured: see `Measured`.
        row: its number in `Survey.miniatures`; -1 where it has none.
    """

    name: str
    root: Path
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    problem: Dropped | None = None
    format: str = ""
    orientation: int = 1
    converted: str = ""
    profile_ignored: bool = False
    several: bool = False
    transparent: float = 0.0
    measured: Measured | None = None
    row: int = -1

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / self.name


@dataclass(frozen=True)
class Survey:
    """A folder of pictures, read once.

    Attributes:
        folder: what lies in `settings.path`, without what belongs to the held-out part.
        pictures: every picture file of the folder, those that cannot be read too, by name.
        held: those of `settings.held_out`.
        captions: by picture name, all captions of each; a picture without any is absent.
        caption_sources: the file that each picture's captions stand in: a table or a file beside the picture.
        caption_problems: what a training run would refuse about caption files.
        miniatures: small copies of the readable pictures, `pictures` and `held` alike, by `Picture.row`.
        tell: is told how far checks are, see `survey`.
    """

    settings: Settings
    folder: Folder
    pictures: Sequence[Picture]
    held: Sequence[Picture] = ()
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caption_sources: Mapping[str, Path] = field(default_factory=dict)
    caption_problems: Sequence[Problem] = ()
    miniatures: Miniatures = field(default_factory=Miniatures)
    tell: Tell | None = None

    @property
    def readable(self) -> list[Picture]:
        """The pictures of the folder that can be decoded."""
        return [picture for picture in self.pictures if picture.problem is None]


def survey(settings: Settings, tell: Tell | None = None) -> Survey:
    """Read a folder of pictures, and its held-out part.

    Args:
        tell: is told how far it is, as `tell(code, done=..., total=...)`.

    Raises:
        DataError: the folder, or the held-out one, is absent or has no pictures; nothing a picture holds raises.
    """
    folder = _without_held(walk(settings.path), settings)
    if not folder.pictures:
        raise no_pictures(settings.path, folder)
    held_names: list[str] = []
    if settings.held_out is not None:
        held_folder = walk(settings.held_out)
        held_names = held_folder.pictures
        if not held_names:
            raise no_pictures(settings.held_out, held_folder)
    captions, sources, problems = read_captions(settings, folder)
    files = [(settings.path, name) for name in folder.pictures]
    files += [(settings.held_out, name) for name in held_names if settings.held_out is not None]
    miniatures, pictures = Miniatures(), []
    for number, (picture, small) in enumerate(_in_order(files, settings.resolution), start=1):
        pictures.append(picture if small is None else replace(picture, row=miniatures.add(small)))
        if tell is not None and (number % FAR_APART == 0 or number == len(files)):
            tell("pictures.progress.reading", done=number, total=len(files))
    own = len(folder.pictures)
    return Survey(settings, folder, pictures[:own], pictures[own:], captions, sources, problems, miniatures, tell)


def look_at(root: Path, name: str, resolution: int) -> tuple[Picture, bytes | None]:
    """Read and measure one picture; return it with its small copies, or with None where it cannot be decoded."""
    path = root / name
    sha256, size = "", (0, 0)
    try:
        data = decode.read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        size = decode.read_header(data, path).size
        with _ONE_LARGE if size[0] * size[1] > LARGE_PIXELS else _nothing():
            decoded = decode.decode_bytes(data, path)
            measured, small = measure(decoded.picture, data, resolution), shrink(decoded.picture)
    except DataError as error:
        return Picture(name, root, sha256, size, Dropped(path, error.code, error.params)), None
    picture = Picture(
        name,
        root,
        sha256,
        decoded.picture.size,
        profile_ignored=decoded.profile_ignored,
        several=decoded.first_of_several,
        transparent=_transparent(decoded),
        measured=measured,
        **_nature(data),
    )
    return picture, small


def _nature(data: bytes) -> dict[str, object]:
    ...
