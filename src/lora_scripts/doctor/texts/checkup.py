"""What is wrong with a set of texts: every check over the rows of a file or folder, and of the held-out part.

`find` returns a `Checkup`: its `findings`, and `looked_at`, the rows that were looked at, held-out ones among them.

What grows with the set: the rows' text, as in a run, and some 300 bytes a row for what is compared; a classifier that
looks for wrong labels is fitted to no more than `classifier.MOST` rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_scripts.doctor.finding import Finding
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.texts import (
    damage,
    duplicates,
    forms,
    label_errors,
    labels,
    lengths,
    privacy,
    reading,
)


@dataclass(frozen=True)
class Checkup:
    """What was found, and in how many rows (also counting those that cannot be read, and the held-out part)."""

    findings: Sequence[Finding]
    looked_at: int


def find(settings: Settings, tell: Callable[[int, int], object] | None = None) -> Checkup:
    """Look at every row.

    Args:
        tell: called with (steps done, steps in all) as the work goes on.

    Raises:
        DataError: there is no such file or folder, or no file of texts in it.
        BaseModelError: the base is none that is known.
    """
    readings = [reading.read(settings.path)]
    if settings.held_out is not None:
        prefix = reading.held_prefix(settings.path, settings.held_out)
        readings.append(reading.read(settings.held_out, prefix))
    texts = reading.with_labels(readings[0].texts)
    held = reading.with_labels(readings[1].texts) if len(readings) > 1 else []
    every = [*texts, *held]
    steps: tuple[Callable[[], Sequence[Finding]], ...] = (
        lambda: reading.find(readings),
        lambda: damage.find(every),
        lambda: privacy.find(every),
        lambda: duplicates.find(texts, held),
        lambda: [*labels.find(texts), *label_errors.find(texts)],
        lambda: lengths.find(settings, texts),
        lambda: forms.find(texts),
    )
    found: list[Finding] = []
    for number, step in enumerate(steps):
        if tell is not None:
            tell(number, len(steps))
        found += step()
    if tell is not None:
        tell(len(steps), len(steps))
    return Checkup(found, sum(each.seen for each in readings))
