"""What a reader hands to everything above it: examples, what was dropped, and what should be said."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lora_scripts.data.captions import CaptionRules as CaptionRules
from lora_scripts.data.captions import plain


class Example(Protocol):
    """One thing to learn from; whatever its kind, the loader needs only this.

    Attributes:
        id: stable name inside the run, such as "0/cat.png@64x64"; seeds its random draws.
        fingerprint: sha256 over its bytes and captions; a changed one is changed data.
        group: examples of one group may share a micro-batch (same size).
        repeats: visits an epoch.
        weight: how much one visit counts in the loss.
        mass: what one visit adds to a step's weight: its weight, times its target tokens where it is text.
        kind: what an objective asks for: "picture", "chat", "pair", ...
        length: what it takes in a micro-batch: 1 for a picture, tokens for a text.
        shape: what its cost depends on.
        split_key: examples of one key are never split between training and held-out part.
        title: what a preview would ask for to get something like it.
    """

    @property
    def id(self) -> str:
        """See above."""

    @property
    def fingerprint(self) -> str:
        """See above."""

    @property
    def group(self) -> Hashable:
        """See above."""

    @property
    def repeats(self) -> int:
        """See above."""

    @property
    def weight(self) -> float:
        """See above."""

    @property
    def mass(self) -> float:
        """See above."""

    @property
    def kind(self) -> str:
        """See above."""

    @property
    def length(self) -> int:
        """See above."""

    @property
    def shape(self) -> Hashable:
        """See above."""

    @property
    def split_key(self) -> str:
        """See above."""

    @property
    def title(self) -> str:
        """See above."""


AS_TRAINED = "as trained"


@dataclass(frozen=True)
class Dataset:
    """One entry of `datasets:`, resolved: what a reader is given.

    Attributes:
        path: folder (or file) of the data.
        metadata: an explicit caption file, or None to look for the usual ones.
        missing_pictures: "error" or "ignore", for caption rows whose picture is absent.
        class_words: caption of pictures that have none.
        mask: None, "alpha", or a folder of masks named as the pictures.
        regularisation: only keeps the base from forgetting; the trigger is left out.
        visits: of the whole folder an epoch, dealt in turn; `AS_TRAINED` is as many as the sets to learn from get, and
            None leaves it to the repeats.
    """

    path: Path
    metadata: Path | None = None
    repeats: int = 1
    weight: float = 1.0
    captions: CaptionRules = field(default_factory=CaptionRules)
    flip: bool = False
    missing_pictures: str = "error"
    class_words: str = ""
    mask: str | None = None
    regularisation: bool = False
    visits: int | str | None = None


@dataclass(frozen=True)
class Sizes:
    """What a base wants of picture sizes.

    Attributes:
        resolutions: training sizes in pixels; a picture of each area budget `r * r` is made per entry.
        multiple: width and height of every bucket are multiples of this many pixels.
    """

    resolutions: tuple[int, ...]
    multiple: int


@dataclass(frozen=True)
class PictureExample:
    """One picture at one bucket, with the captions it may be shown with.

    Attributes:
        path: the file.
        sha256: of the file's bytes.
        captions: non-empty; one is drawn a visit.
        caption_weights: how often each is drawn, relative to the others; empty where all are drawn alike.
        mask: "alpha" where the picture's own transparency says what counts, a mask file, or None where all counts.
        mask_sha256: of the mask file's bytes, else "".
        regularisation: keeps the base from forgetting; `prior: base` replaces its target.
        deal: (name, visits) of the set of examples that are visited in turn, so many times an epoch all together
            (None: as often as what is learned from), each in proportion to its `repeats`; None where `repeats` is
            the number of its visits.
        size: (width, height) as displayed, after EXIF rotation.
        bucket: (width, height) it is scaled and cropped to; multiples of `Sizes.multiple`.
    """

    id: str
    path: Path
    sha256: str
    captions: tuple[str, ...]
    size: tuple[int, int]
    bucket: tuple[int, int]
    caption_rules: CaptionRules = field(default_factory=CaptionRules)
    flip: bool = False
    repeats: int = 1
    weight: float = 1.0
    caption_weights: tuple[float, ...] = ()
    mask: Path | str | None = None
    mask_sha256: str = ""
    regularisation: bool = False
    deal: tuple[str, int | None] | None = None

    @property
    def group(self) -> tuple[int, int]:
        """The bucket: pictures of one size may share a micro-batch."""
        return self.bucket

    @property
    def mass(self) -> float:
        """Its weight: a picture is one thing to learn from, whatever its size."""
        return self.weight

    @property
    def kind(self) -> str:
        """What `denoise` learns from."""
        return "picture"

    @property
    def length(self) -> int:
        """One place in a micro-batch."""
        return 1

    @property
    def shape(self) -> tuple[int, int]:
        """The bucket."""
        return self.bucket

    @property
    def split_key(self) -> str:
        """The same picture at two sizes stays on one side."""
        return self.sha256

    @property
    def title(self) -> str:
        """The first caption as every visit sees it."""
        return plain(self.captions[0], self.caption_rules)

    @property
    def fingerprint(self) -> str:
        """Changes with the picture's bytes, its bucket, any caption or its weight, and its mask."""
        import hashlib

        parts = [self.sha256, str(self.bucket), *self.captions]
        # No caption holds these marks; what has neither is called as it was before there were any.
        if self.caption_weights:
            parts += ["\1weights", *map(repr, self.caption_weights)]
        if self.mask is not None:
            parts += ["\1mask", self.mask_sha256 or str(self.mask)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        weight: how much its tokens count; None leaves that to the config's `train_on`, 0 keeps it out of the loss.
    """

    role: str
    content: str
    weight: float | None = None


@dataclass(frozen=True)
class TextRow:
    """One row of a text data set, whatever format it came in; not yet tokens.

    Attributes:
        id: "<data set>/<file>:<row>", with "#<part>" where one row of a file becomes several.
        kind: "chat" (turns to learn from), "completion" (a prompt and what follows it), "text" (all of it is learned),
            "pair" (one prompt, a better and a worse answer) or "thumb" (an answer that was liked or not).
        prompt: the turns before the answer; for "completion" one user turn, rendered by the chat template where
            the base has one and else as it is; for "text" empty.
        answer: for "chat" the empty tuple (the turns to learn are inside `prompt`), else the answer's turns; for
            "text" one turn that holds the text.
        rejected: for "pair" the worse answer's turns.
        liked: for "thumb".
        label: the class that the row's answer names, for the task's own metric; "" where it is not a label row.
        task: "classify", "draft" or "" for a row of another format.
        message: for task rows, the customer's message.
        group: rows of one group (customer, thread) are never split between training and held-out part.
        language: as the row says, or "".
    """

    id: str
    kind: str
    prompt: tuple[Message, ...] = ()
    answer: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    liked: bool | None = None
    label: str = ""
    task: str = ""
    message: str = ""
    group: str = ""
    language: str = ""
    weight: float = 1.0
    repeats: int = 1


@dataclass(frozen=True)
class Dropped:
    """A file that is not trained on, with the reason as a message code."""

    path: Path
    code: str
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """Something the plan says about the data, as a message code."""

    code: str
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Scan:
    """What a reader found.

    Attributes:
        examples: sorted by id.
        found: files looked at, before any was dropped.
        dropped: quarantined files, each with its reason.
        notes: what the plan should say: where captions came from, how many of each.
        held: examples of the data that are only measured.
        facts: what the family needs to know of the data later, as JSON values.
    """

    examples: Sequence[Example]
    found: int
    dropped: Sequence[Dropped] = ()
    notes: Sequence[Note] = ()
    held: Sequence[Example] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
