"""How much disk a run needs, as arithmetic on what was measured, and whether it is there.

Checkpoints are measured by the rehearsal before the first step; an optimizer that has not stepped yet has nothing to
write then, so what most keep is counted besides. Cache entries are measured as they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import MachineError
from lora_scripts.files import room
from lora_scripts.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

# A save may grow a little: names of larger steps, longer lists of facts.
SPARE = 1.1


@dataclass(frozen=True)
class Need:
    """What a run will still write below its output folder.

    Attributes:
        checkpoint: bytes of one.
        count: checkpoints that will be there at once, besides those that are there already.
        exports: bytes of the LoRA files at the end.
    """

    checkpoint: int
    count: int
    exports: int

    @property
    def bytes(self) -> int:
        """In all."""
        return self.checkpoint * self.count + self.exports

    def told(self, folder: Path, free: int) -> dict[str, object]:
        """Return the values of the sentences about it."""
        return {
            "path": folder,
            "need": format_bytes(self.bytes),
            "count": self.count,
            "size": format_bytes(self.checkpoint),
            "exports": format_bytes(self.exports),
            "free": format_bytes(free),
        }


def to_come(
    planned: Collection[int], existing: Collection[int], keep: int | None, every: int | None, best: bool
) -> int:
    """Return how many more checkpoints than now there will be at the worst moment.

    Args:
        planned: steps that will be saved yet.
        existing: steps that are there.
        keep, every: see `checkpoint.prune`.
        best: one more may stay because it did best.
    """
    new = set(planned) - set(existing)
    if keep is None:
        return len(new)
    stay = {step for step in {*new, *existing} if every and step % every == 0}
    # The new one is written before the oldest goes.
    at_once = keep + 1 + (1 if best else 0) + len(stay)
    return min(len(new), max(1, at_once - len(existing))) if new else 0


def unborn(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that an optimizer will keep and does not keep before its first step: two moments a weight."""
    if any(name.startswith("optimizer/") for name in tensors):
        return 0
    return 2 * sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("weight/"))


def check_run(folder: Path, need: Need) -> int:
    """Return the free bytes of the file system that the output is on.

    Raises:
        MachineError: they are fewer than the run needs.
    """
    free, _ = room(folder)
    if need.bytes > free:
        raise MachineError("train.disk_short", **need.told(folder, free))
    return free


def check_save(folder: Path, size: int) -> None:
    """Look before a save, so that nothing is begun that cannot be finished.

    Args:
        size: bytes of the last one.

    Raises:
        MachineError: there is no room for another, or no file can be made.
    """
    free, full_of_files = room(folder)
    if full_of_files and free:
        raise MachineError("train.no_inodes", path=folder, reason="ENOSPC", free=format_bytes(free))
    if free < size * SPARE:
        raise MachineError("train.no_room", path=folder, need=format_bytes(size * SPARE), free=format_bytes(free))


class CacheWatch:
    """Looks, while a cache is filled, whether what is left to encode will fit.

    Args:
        folder: of the cache.
        written: returns the bytes that were written into it so far.
    """

    def __init__(self, folder: Path, written: Callable[[], int]):
        self.folder, self.written = folder, written
        self._part, self._before = "", 0
        self._last = written()

    def __call__(self, part: str, done: int, total: int) -> None:
        """Look after each piece of the work: `done` of `total` entries of a part.

        Raises:
            MachineError: the rest of this part, in entries like those made, does not fit.
        """
        if part != self._part:
            self._part, self._before = part, self._last
        self._last = self.written()
        need = (self._last - self._before) * (total - done) // max(done, 1)
        free, _ = room(self.folder)
        if need > free:
            raise MachineError("train.cache_short", path=self.folder, need=format_bytes(need), free=format_bytes(free))
