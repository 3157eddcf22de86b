"""Masks at latent resolution, for the families that draw: their requests, their encoding, their stacking.

Shapes: B = batch, H, W = latent height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_scripts.contracts import Draw, Request
from lora_scripts.data import decode, masks
from lora_scripts.data.record import PictureExample

if TYPE_CHECKING:
    from torch import Tensor

PART = "mask"
# Counted up when `encode` gives other numbers for the same mask.
VERSION = 1


def encoder_key(scale: int) -> str:
    """sha256 over what turns a mask into latents' numbers: there are no weights, only the pixels a latent spans."""
    return hashlib.sha256(f"{PART}\0{VERSION}\0{scale}".encode()).hexdigest()


def requests(example: PictureExample, draw: Draw) -> list[Request]:
    """The example's mask at this crop and mirror; none where all of the picture counts."""
    if example.mask is None:
        return []
    digest = example.sha256 if example.mask == masks.ALPHA else example.mask_sha256
    kind = masks.ALPHA if example.mask == masks.ALPHA else "file"
    crop = decode.crop_box(example.size, example.bucket)
    parts = (kind, digest, crop, example.bucket, draw.flip)
    content = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    return [Request(PART, content, (example, draw.flip))]


def encode(payload: tuple[PictureExample, bool], scale: int) -> Mapping[str, Tensor]:
    """Return {"mask": (1, H, W) float32 in 0..1}, the mask's mean over each latent's pixels.

    Args:
        payload: of one of `requests`.
        scale: pixels a latent spans, across and down.

    Raises:
        DataError: the mask's file has changed since the data were read.
    """
    import torch

    example, flip = payload
    size = example.bucket[0] // scale, example.bucket[1] // scale
    shrunk = masks.shrink(masks.load(example), decode.crop_box(example.size, example.bucket), size)
    mask = torch.from_numpy(shrunk)[None]
    return {PART: mask.flip(-1).contiguous() if flip else mask}


def stack(entries: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return {"mask": (B, 1, H, W)}, 1 in rows that have none, or nothing where no row has one."""
    import torch

    known = next((entry[PART] for entry in entries if PART in entry), None)
    if known is None:
        return {}
    return {PART: torch.stack([entry.get(PART, torch.ones_like(known)) for entry in entries])}
