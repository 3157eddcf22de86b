"""Which examples each optimizer step sees: pure functions of (examples, seed, epoch), so resuming needs only a count.

A step's set of visits does not depend on how it is split: batch size 4, 2 with two micro-batches, 1 with four, or two
processes all see the same visits, with the same seeds.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.data.record import Example


@dataclass(frozen=True)
class Visit:
    """One showing of one example.

    Attributes:
        example: index into the examples.
        epoch: from 0; -1 for held-out measurements, which are the same every time.
        repeat: from 0, below the example's visits in that epoch.
    """

    example: int
    epoch: int
    repeat: int


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part and on their order."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def visits(examples: Sequence[Example], epoch: int) -> list[Visit]:
    """Return every visit of one epoch, in the examples' order; each epoch has as many."""
    counts = _counts(examples, epoch)
    return [Visit(i, epoch, repeat) for i, count in enumerate(counts) for repeat in range(count)]


def visits_by_purpose(examples: Sequence[Example]) -> tuple[int, int]:
    """Return how many visits of an epoch are there to learn, and how many for regularisation."""
    counts = _counts(examples, 0)
    kept = sum(n for n, example in zip(counts, examples, strict=True) if is_regularisation(example))
    return sum(counts) - kept, kept


def is_regularisation(example: Example) -> bool:
    """Say whether an example only keeps the base from forgetting; of pictures alone there are such."""
    return bool(getattr(example, "regularisation", False))


def _counts(examples: Sequence[Example], epoch: int) -> list[int]:
    """Return each example's visits in one epoch: its repeats, or its share of what its set is dealt in turn.

    A set's places (an example has `repeats` of them) stand in a ring, and each epoch goes on where the one before
    stopped: after any number of epochs no place has been visited more than once more often than another.
    """
    counts = [example.repeats for example in examples]
    rings: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        deal = getattr(example, "deal", None)
        if deal is not None:
            rings[deal].append(i)
    # Held-out measurements see everything.
    if not rings or epoch < 0:
        return counts
    dealt = {i for members in rings.values() for i in members}
    trained = sum(n for i, n in enumerate(counts) if i not in dealt and not is_regularisation(examples[i]))
    trained += sum(n or 0 for (_, n), members in rings.items() if not is_regularisation(examples[members[0]]))
    for (_, wanted), members in rings.items():
        number = trained if wanted is None else wanted
        places = [counts[i] for i in members]
        first, ring = 0, sum(places)
        for i, width in zip(members, places, strict=True):
            before, after = (_passed(turn, ring, first, width) for turn in (epoch * number, (epoch + 1) * number))
            counts[i] = after - before
            first += width
    return counts


def _passed(turns: int, ring: int, first: int, width: int) -> int:
    """Return how many of the first `turns` around a ring fell on the places from `first` to `first + width`."""
    whole, rest = divmod(turns, ring)
    return whole * width + min(max(rest - first, 0), width)


def steps_of_epoch(examples: Sequence[Example], epoch: int, seed: int, step_size: int) -> list[list[Visit]]:
    """Return the epoch's optimizer steps, each a list of at most `step_size` visits.

    Visits of one group stay together as far as they fill whole steps; what is left over is put into mixed steps.
    There are ceil(visits / step_size) steps, the last drawn one possibly smaller.
    """
    order = visits(examples, epoch)
    chooser = random.Random(seed_of(seed, epoch, "order"))
    chooser.shuffle(order)
    groups: dict[object, list[Visit]] = defaultdict(list)
    for visit in order:
        groups[examples[visit.example].group].append(visit)
    steps: list[list[Visit]] = []
    left: list[Visit] = []
    for members in groups.values():
        whole = len(members) // step_size * step_size
        steps += [members[i : i + step_size] for i in range(0, whole, step_size)]
        left += members[whole:]
    steps += [left[i : i + step_size] for i in range(0, len(left), step_size)]
    chooser.shuffle(steps)
    return steps


def micro_batches(
    step: Sequence[Visit],
    examples: Sequence[Example],
    batch_size: int,
    *,
    budget: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> list[list[Visit]]:
    """Split one step into micro-batches of one group each, and return those of process `rank`.

    Args:
        batch_size: most examples a micro-batch.
        budget: most length a micro-batch, where length counts; a longer example is alone. Like lengths come together.
    """
    groups: dict[object, list[Visit]] = defaultdict(list)
    for visit in step:
        groups[examples[visit.example].group].append(visit)
    batches: list[list[Visit]] = []
    for members in groups.values():
        longest_first = sorted(members, key=lambda visit: -examples[visit.example].length)
        room = 0
        for position, visit in enumerate(longest_first):
            length = examples[visit.example].length
            full = len(batches[-1]) == batch_size if position else True
            if full or (budget is not None and length > room):
                batches.append([])
                room = budget or 0
            batches[-1].append(visit)
            room -= length
    return batches[rank::world]


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split off a share of the examples by a hash of seed and content, so that adding one moves no other.

    Examples of one `split_key` (the same picture at two sizes, the messages of one customer) fall on the same side.
    Regularisation is never held out: what is measured is what is learned.
    """
    train: list[Example] = []
    held: list[Example] = []
    for example in examples:
        chosen = seed_of(seed, example.split_key, "held out") / 2**63 < share
        (held if chosen and not is_regularisation(example) else train).append(example)
    return train, held
