"""What a labelling tells, while it works and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lora_scripts.data.record import Dropped
from lora_scripts.labels.rules import Written


class Tell(Protocol):
    """Is told sentences, and how far the work has come."""

    def say(self, code: str, **params: object) -> None:
        """Say a sentence of the catalogue."""

    def advance(self, done: int, total: int) -> None:
        """So many pictures are done."""


@dataclass
class Outcome:
    """What became of a folder.

    Attributes:
        new: pictures that got a caption, or another one.
        yours, machines: pictures whose captions were kept: a person's, or a machine's.
        unreadable: files that are no picture, or whose caption cannot be read or written.
        doubtful: (how sure, name, reasons) of captions that a person should look at.
        speakers: how many pictures who labelled.
        frequent: phrases that were left out because too many captions had them.
        review: see `quality.review`.
    """

    new: int = 0
    yours: int = 0
    machines: int = 0
    unreadable: list[Dropped] = field(default_factory=list)
    doubtful: list[tuple[float, str, str]] = field(default_factory=list)
    speakers: Counter[str] = field(default_factory=Counter)
    frequent: tuple[str, ...] = ()
    review: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Change:
    """What a run would do to one caption."""

    name: str
    before: str | None
    written: Written
