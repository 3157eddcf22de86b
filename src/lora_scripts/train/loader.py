"""From a step's number to its micro-batches: draws, cached pieces, collation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lora_scripts.contracts import Batch, Draw, Family, Request
from lora_scripts.data.cache import Cache, entry_key
from lora_scripts.data.order import Visit, is_regularisation, micro_batches, seed_of, steps_of_epoch, visits
from lora_scripts.data.record import Example
from lora_scripts.errors import DataError

CHUNK = 16
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between tries to read a file of the data: a network drive may come back."""


@dataclass(frozen=True)
class Filled:
    """What filling the cache did: entries found, and entries made."""

    reused: int
    made: int


class Loader:
    """Micro-batches by step number.

    Args:
        family: draws, requests and collates.
        examples: what an epoch visits.
        step_size: visits a step over all processes.
        batch_size: visits a micro-batch at most.
        budget: length a micro-batch at most, where length counts.

    Attributes:
        waiting: told what cannot be read, and the seconds until it is tried again.
    """

    def __init__(
        self,
        family: Family,
        examples: Sequence[Example],
        cache: Cache,
        *,
        seed: int,
        step_size: int,
        batch_size: int,
        budget: int | None = None,
    ):
        self.family, self.examples, self.cache = family, examples, cache
        self.seed, self.step_size, self.batch_size, self.budget = seed, step_size, batch_size, budget
        self.rank, self.world = 0, 1
        self.waiting: Callable[[DataError, float], object] = lambda error, seconds: None
        self.steps_per_epoch = -(-len(visits(examples, 0)) // step_size)
        self._keys: dict[str, str] = {}
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: steps_of_epoch(self.examples, epoch, self.seed, self.step_size)
        )

    def __call__(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of step `step` (from 0)."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        chosen = self._epoch(epoch)[inside]
        return [self.batch(part) for part in self._split(chosen)]

    def held_out(self, without: Collection[str] = ()) -> list[list[Batch]]:
        """Return every example once, but the ids `without`, with draws that never change, for a measurement."""
        chosen = [visit for visit in visits(self.examples, -1) if self.examples[visit.example].id not in without]
        return [[self.batch(part)] for part in self._split(chosen)]

    def shrink(self, batch_size: int) -> None:
        """Put at most so many examples into a micro-batch from here on, and half of the length where that counts."""
        self.batch_size = batch_size
        self.budget = None if self.budget is None else max(1, self.budget // 2)

    def largest(self) -> list[Batch]:
        """Return one micro-batch of the largest group, for the rehearsal."""
        group = max((example.group for example in self.examples), key=_area)
        members = [Visit(i, 0, 0) for i, example in enumerate(self.examples) if example.group == group]
        parts = micro_batches(members, self.examples, self.batch_size, budget=self.budget)
        return [self.batch(max(parts, key=lambda part: sum(self.examples[v.example].length for v in part)))]

    def _split(self, visited: Sequence[Visit]) -> list[list[Visit]]:
        """Return this process's micro-batches of these visits."""
        return micro_batches(
            visited, self.examples, self.batch_size, budget=self.budget, rank=self.rank, world=self.world
        )

    def draw(self, visit: Visit) -> Draw:
        """Return what a visit is dealt."""
        example = self.examples[visit.example]
        seed = seed_of(self.seed, visit.epoch, visit.repeat, example.id, "draw")
        return self.family.draw(example, random.Random(seed))

    def batch(self, members: Sequence[Visit]) -> Batch:
        """Collate one micro-batch; its weight is known here, before any forward pass."""
        import torch

        examples = [self.examples[visit.example] for visit in members]
        entries = []
        for example, visit in zip(examples, members, strict=True):
            entry: dict[str, Any] = {}
            for request in self.family.requests(example, self.draw(visit)):
                entry |= self._piece(request)
            entries.append(entry)
        weights = torch.tensor([example.weight for example in examples])
        seeds = [
            seed_of(self.seed, visit.epoch, visit.repeat, example.id, "noise")
            for example, visit in zip(examples, members, strict=True)
        ]
        return Batch(
            weight=sum(example.mass for example in examples),
            weights=weights,
            tensors=self.family.collate(examples, entries),
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            ids=[example.id for example in examples],
            regularisation=[is_regularisation(example) for example in examples],
        )

    def fill(self, epochs: int, *, held_out: bool = False, tell: Callable[[str, int, int], None]) -> Filled:
        """Make this process's share of the cache entries that the epochs need, part by part, before the first step.

        Args:
            epochs: how many will be run; their draws decide which captions and mirrors are needed.
            held_out: fill for `held_out` instead.
            tell: called with (part, done, total) as it goes.
        """
        wanted: dict[str, Request] = {}
        for visit in self._all_visits(epochs, held_out):
            for request in self.family.requests(self.examples[visit.example], self.draw(visit)):
                wanted.setdefault(self._key(request), request)
        # By place among the wanted, not among the missing: what others make meanwhile must not move the shares.
        mine = list(wanted)[self.rank :: self.world]
        missing = {key: wanted[key] for key in mine if not self.cache.has(key)}
        for part in sorted({request.part for request in missing.values()}):
            keys = [key for key, request in missing.items() if request.part == part]
            for start in range(0, len(keys), CHUNK):
                chunk = keys[start : start + CHUNK]
                for key, tensors in zip(chunk, self._encode([missing[key] for key in chunk]), strict=True):
                    self.cache.put(key, tensors)
                tell(part, min(start + CHUNK, len(keys)), len(keys))
        return Filled(reused=len(mine) - len(missing), made=len(missing))

    def _all_visits(self, epochs: int, held_out: bool) -> Iterator[Visit]:
        for epoch in [-1] if held_out else range(epochs):
            yield from visits(self.examples, epoch)

    def _key(self, request: Request) -> str:
        if request.part not in self._keys:
            self._keys[request.part] = self.family.encoder_key(request.part)
        return entry_key(request.part, self._keys[request.part], request.content)

    def _piece(self, request: Request) -> Any:
        """Return a cached piece; one that vanished or tore since it was made is made again."""
        key = self._key(request)
        try:
            return self.cache.get(key)
        except KeyError:
            tensors = self._encode([request])[0]
            self.cache.put(key, tensors)
            return tensors

    def _encode(self, requests: Sequence[Request]) -> Sequence[Any]:
        """Encode; what cannot be read is tried again for a while.

        Raises:
            DataError: it still cannot be read, or it is not what it was.
        """
        for seconds in PAUSES:
            try:
                return self.family.encode(requests)
            except DataError as error:
                if error.code != "data.unreadable":
                    raise
                self.waiting(error, seconds)
                time.sleep(seconds)
        return self.family.encode(requests)


def _area(group: Any) -> float:
    if isinstance(group, tuple):
        area = 1
        for side in group:
            area *= side
        return area
    return group if isinstance(group, int | float) else 0
