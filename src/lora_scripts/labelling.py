"""What a labelling model says of a picture, and what it must be able to do; part of `contracts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lora_scripts.data.record import Note

if TYPE_CHECKING:
    import numpy
    from PIL import Image


@dataclass(frozen=True)
class Tag:
    """One phrase about a picture.

    Attributes:
        text: as it should stand in a caption.
        score: 0 to 1; what it means is the captioner's to say: a probability, or a share within its group.
        group: "subject", "medium", "pose" ...; for tag models "general", "character", "rating"; or "".
    """

    text: str
    score: float
    group: str = ""


@dataclass(frozen=True)
class Label:
    """What a captioner says of one picture.

    Attributes:
        text: a sentence, or "" where it gives phrases only.
        tags: in the order in which they should stand.
        sure: 0 to 1, how sure it is on the whole; None where the model tells nothing of the kind.
        doubts: why a person should look at this one.
        speaker: who spoke, where a captioner has several voices: "clip", "pixels"; else "".
    """

    text: str = ""
    tags: tuple[Tag, ...] = ()
    sure: float | None = None
    doubts: tuple[Note, ...] = ()
    speaker: str = ""


class Captioner(Protocol):
    """One labelling model. It sees decoded RGB pictures and never a file.

    Its module defines `Config` (a frozen pydantic model of its own options), `NEEDS_MODEL` (whether a folder or hub id
    must be given) and `build(config, model, device)`, where `model` is that folder, hub id or address, or None.

    Attributes:
        title: for people: "CLIP, openai/clip-vit-large-patch14".
        identity: hex digits over the model's weights and every setting; the same identity and picture give the same
            label.
        batch_size: how many pictures it likes to get at a time.
    """

    title: str
    identity: str
    batch_size: int

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label a batch, in order. One picture that cannot be labelled has doubts and no words; it stops no other."""


class Embedder(Protocol):
    """What a captioner with two towers can do besides: pictures and texts as points of one space."""

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> numpy.ndarray:
        """(n, d) float32 of norm 1."""

    def embed_texts(self, texts: Sequence[str]) -> numpy.ndarray:
        """(n, d) float32 of norm 1; texts beyond the model's length are cut."""
