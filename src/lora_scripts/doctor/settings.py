"""What the doctor is told of a data set besides where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What to look at, and what it is for.

    Attributes:
        path: a folder of pictures, a folder of texts, or a file of rows.
        held_out: pictures or texts that are only measured; None where there are none.
        metadata: an explicit caption file, or None to look for the usual ones.
        resolution: side in pixels of the square whose area pictures are trained at.
        multiple: what both sides of a bucket are divisible by, in pixels.
        batch_size: pictures of one bucket that a step would like to have.
        trigger: the word that calls the thing; None to infer it, "" where there is none.
        kind: "person", "thing", "style" or "": what is learned, for what captions should leave out.
        base: a base model whose tokenizer counts tokens; None counts with CLIP's, for texts with words.
        max_tokens: beyond which a caption or row is too long; None is the base's own limit.
        model: folder or hub id of a CLIP that compares captions with pictures; None leaves that out.
    """

    path: Path
    held_out: Path | None = None
    metadata: Path | None = None
    resolution: int = 512
    multiple: int = 64
    batch_size: int = 4
    trigger: str | None = None
    kind: str = ""
    base: Path | None = None
    max_tokens: int | None = None
    model: str | None = None
