"""What is known of a folder of pictures after reading it once: the base of every check of pictures and captions.

Each picture is read, decoded and measured once, by a few threads, and forgotten. What stays in memory is a `Picture`,
less than 1 kB; the small copies that duplicates and marks are looked for in lie in a scratch file on disk.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from lora_scripts.data import decode
from lora_scripts.data.folder import Folder, no_pictures, walk
from lora_scripts.data.record import Dropped
from lora_scripts.doctor.measuring import Measured, measure, nature
from lora_scripts.doctor.miniatures import Miniatures, shrink
from lora_scripts.doctor.reading_captions import read_captions
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import DataError, Problem

Tell = Callable[..., object]
THREADS = 4
"""Decoding and scaling run beside each other; more threads would only hold more pictures at a time."""
LARGE_PIXELS = 16_000_000
"""Pictures with more are decoded one at a time: each takes several hundred megabytes for a moment."""
EVERY_SECONDS = 5.0
"""Between two words about the progress."""

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
    miniatures, told = Miniatures(), time.monotonic()
    pictures: list[Picture] = []
    for picture, small in _in_order(files, settings.resolution):
        pictures.append(picture if small is None else replace(picture, row=miniatures.add(small)))
        if tell is not None and time.monotonic() - told > EVERY_SECONDS:
            told = time.monotonic()
            tell("pictures.progress", done=len(pictures), total=len(files))
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
        with _ONE_LARGE if size[0] * size[1] > LARGE_PIXELS else nullcontext():
            decoded = decode.decode_bytes(data, path)
            measured, small = measure(decoded.picture, data, resolution), shrink(decoded.picture)
    except DataError as error:
        return Picture(name, root, sha256, size, Dropped(path, error.code, error.params)), None
    form, orientation, converted = nature(data, profile_ignored=decoded.profile_ignored)
    picture = Picture(
        name,
        root,
        sha256,
        decoded.picture.size,
        # Phones put previews and depth behind a photograph; it is one picture all the same.
        format="JPEG" if form == "MPO" else form,
        orientation=orientation,
        converted=converted,
        profile_ignored=decoded.profile_ignored,
        several=decoded.first_of_several and form != "MPO",
        transparent=_transparent(decoded),
        measured=measured,
    )
    return picture, small


def _transparent(decoded: decode.Decoded) -> float:
    if decoded.opacity is None:
        return 0.0
    histogram = decoded.opacity.histogram()
    return sum(histogram[:128]) / max(1, sum(histogram))


def _in_order(files: Sequence[tuple[Path, str]], resolution: int) -> Iterator[tuple[Picture, bytes | None]]:
    """Yield what `look_at` returns for each file; few pictures are held at a time, however many there are."""
    threads = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        names = iter(files)
        begun = deque(pool.submit(look_at, *file, resolution) for file in islice(names, 2 * threads))
        while begun:
            done = begun.popleft().result()
            begun.extend(pool.submit(look_at, *file, resolution) for file in islice(names, 1))
            yield done


def _without_held(folder: Folder, settings: Settings) -> Folder:
    """Leave out what belongs to a held-out folder that lies inside the other one."""
    if settings.held_out is None:
        return folder
    held, root = settings.held_out.resolve(), settings.path.resolve()
    if held == root or not held.is_relative_to(root):
        return folder
    start = held.relative_to(root).as_posix() + "/"
    return Folder(
        [name for name in folder.pictures if not name.startswith(start)],
        [name for name in folder.others if not name.startswith(start)],
        [dropped for dropped in folder.skipped if not dropped.path.resolve().is_relative_to(held)],
    )
