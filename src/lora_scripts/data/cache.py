"""Encoded pieces on disk under the hash of everything that made them, so that no entry can go stale.

One safetensors file an entry, in 256 sub-folders, written to a temporary name and renamed. A torn entry (power
cut, full disk) is noticed when it is read and made again. Several runs may share one folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.files import STAGED_PREFIX, cannot_write, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
MEMORY_BYTES = 2 << 30
STALE_SECONDS = 600
"""An entry is written in far less; what is older was left by a process that was killed."""


def entry_key(part: str, encoder: str, content: str) -> str:
    """Return the key of an entry: sha256 over schema, part, encoder weights and content."""
    return hashlib.sha256("\0".join((str(SCHEMA_VERSION), part, encoder, content)).encode()).hexdigest()


class Cache:
    """A folder of entries, with the most recently used ones in memory.

    Args:
        folder: created when the first entry is written.
        memory_bytes: upper bound of what is kept in memory.

    Attributes:
        written: bytes put into the folder by this object.
    """

    def __init__(self, folder: Path, *, memory_bytes: int = MEMORY_BYTES):
        self.folder, self.memory_bytes = folder, memory_bytes
        self._memory: OrderedDict[str, Mapping[str, Tensor]] = OrderedDict()
        self._held = 0
        self.written = 0

    def check(self) -> None:
        """Refuse a folder that cannot be written, as far as that can be told without writing.

        Raises:
            MachineError: it, or what it would be made in, is no folder or may not be written.
        """
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            number = errno.ENOTDIR
        elif not os.access(place, os.W_OK | os.X_OK):
            number = errno.EACCES
        else:
            return
        raise cannot_write(self.folder, OSError(number, os.strerror(number)))

    def open(self) -> None:
        """Make the folder, try to write into it, and sweep what a kill between writing and renaming left.

        Raises:
            MachineError: the folder cannot be written.
        """
        probe = self.folder / f"{STAGED_PREFIX}{os.getpid()}-probe"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        oldest = time.time() - STALE_SECONDS
        for staged in self.folder.glob(f"[0-9a-f][0-9a-f]/{STAGED_PREFIX}*"):
            # Another run may sweep, or finish its entry, at the same time.
            with contextlib.suppress(OSError):
                if staged.stat().st_mtime < oldest:
                    staged.unlink()

    def path(self, key: str) -> Path:
        """Return where an entry lies."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Say whether a complete entry exists: its size is what its header promises."""
        if key in self._memory:
            return True
        try:
            with self.path(key).open("rb") as file:
                return _is_whole(file, os.fstat(file.fileno()).st_size)
        except OSError:
            return False

    def get(self, key: str) -> Mapping[str, Tensor]:
        """Return an entry's tensors.

        Raises:
            KeyError: the entry is absent or torn.
        """
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(self.path(key).read_bytes())
        except (OSError, SafetensorError) as error:
            raise KeyError(key) from error
        self._keep(key, tensors)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry atomically.

        Raises:
            MachineError: the disk is full or the folder cannot be written.
        """
        from safetensors.torch import save

        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        write_bytes(path, data, durable=False)
        self.written += len(data)
        self._keep(key, tensors)

    def _keep(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self._memory[key] = tensors
        self._held += _size(tensors)
        while self._held > self.memory_bytes and len(self._memory) > 1:
            _, dropped = self._memory.popitem(last=False)
            self._held -= _size(dropped)


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _is_whole(file, size: int) -> bool:
    """A safetensors file is whole when header length + header + the last offset equal its size."""
    import json

    start = file.read(8)
    if len(start) < 8:
        return False
    (length,) = struct.unpack("<Q", start)
    if length > size - 8:
        return False
    try:
        header = json.loads(file.read(length))
        end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
        return 8 + length + end == size
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
