"""What the doctor says: findings, each with what, why it matters, how many, what to look at and how to mend it.

The sentences of the finding `blurry` of topic "pictures" stand in the message catalogue as `pictures.blurry.what`,
`.why` and `.fix`; placeholders are `{count}` and the finding's `params`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lora_scripts import messages
from lora_scripts.data.record import Note

TOPICS = ("pictures", "captions", "texts")
EXAMPLES = 3
"""A finding about words or about the whole set shows at most so many examples."""


class Severity(StrEnum):
    """How much harm it does."""

    MUST = "must_fix"
    SHOULD = "should_look"
    GOOD = "good_to_know"


@dataclass(frozen=True)
class Item:
    """One thing to look at.

    Attributes:
        files: names relative to the folder, with "/"; several where they belong together, the one to keep first. For a
            row of a file of rows "data.jsonl:12", the line counted from 1.
        detail: what was measured, or a quotation, or None.
        box: (left, top, right, bottom) as shares of the first picture, 0 to 1, of what is meant; None for all of it.
    """

    files: tuple[str, ...]
    detail: Note | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        topic, name: where its sentences stand, see the top of this file.
        count: how many pictures, captions or rows it is about.
        params: further values for its sentences.
        items: every file it is about; empty for a finding about words or the whole set.
        examples: for such a finding: words, captions or numbers, never names of files that are not to blame.
        fix: name of what `--fix` can do about it, see `fixing`, or "".
        reason: why a person chose to ignore it; "" where it counts.
    """

    topic: str
    name: str
    severity: Severity
    count: int
    params: Mapping[str, object] = field(default_factory=dict)
    items: Sequence[Item] = ()
    examples: Sequence[str] = ()
    fix: str = ""
    reason: str = ""

    @property
    def id(self) -> str:
        """What an ignore list calls it: "pictures.blurry"."""
        return f"{self.topic}.{self.name}"

    def sentence(self, part: str) -> str:
        """Return its "what", "why" or "fix" in the user's language."""
        params = {"count": self.count, **self.params}
        if self.topic == "pictures":
            return messages.text(f"pictures.{self.name}.{part}", **params)
        if self.topic == "captions":
            return messages.text(f"captions.{self.name}.{part}", **params)
        return messages.text(f"texts.{self.name}.{part}", **params)
