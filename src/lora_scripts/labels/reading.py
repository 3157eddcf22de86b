"""Pictures ahead of the model: read, hashed and decoded by a few threads, so many at a time that memory is bounded."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.decode import decode_bytes, read_bytes
from lora_scripts.data.record import Dropped
from lora_scripts.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_THREADS = 4
"""A picture of the largest allowed size takes some 500 MB while it is decoded."""
MAX_SIDE = 1536
"""No labelling model looks closer; larger pictures are scaled down before they wait for it."""


@dataclass(frozen=True)
class Seen:
    """A picture file.

    Attributes:
        picture: RGB, upright, at most `MAX_SIDE` a side; None where it was not asked for or cannot be read.
        problem: why it cannot be read.
    """

    name: str
    sha256: str = ""
    picture: Image.Image | None = None
    problem: Dropped | None = None


def stream(
    folder: Path, names: Sequence[str], decodes: Callable[[str, str], bool], ahead: int
) -> Generator[Seen, None, None]:
    """Yield every picture, in order.

    Args:
        decodes: says of (name, sha256) whether the pixels are needed; asked by several threads.
        ahead: how many may wait.
    """
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Seen]] = deque()
    try:
        # Pillow warns of oddities in metadata that do not touch the pixels, by lines of its own code.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            for name in names:
                waiting.append(pool.submit(_see, folder, name, decodes))
                if len(waiting) >= ahead + threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # An interrupt need not wait for the rest.
        pool.shutdown(cancel_futures=True)


def _see(folder: Path, name: str, decodes: Callable[[str, str], bool]) -> Seen:
    path = folder / name
    try:
        data = read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        if not decodes(name, sha256):
            return Seen(name, sha256)
        return Seen(name, sha256, _small(decode_bytes(data, path).picture))
    except DataError as error:
        return Seen(name, problem=Dropped(path, error.code, error.params))


def _small(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if max(picture.size) > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture
