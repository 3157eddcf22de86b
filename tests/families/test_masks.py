"""Masks as a family's cached pieces: same crop and mirror as the latents, whole rows where there is none."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from lora_scripts.contracts import Draw
from lora_scripts.data.record import PictureExample
from lora_scripts.families import _masks


@pytest.fixture
def example(tmp_path: Path) -> PictureExample:
    path = tmp_path / "mask.png"
    Image.fromarray(numpy.arange(0, 256, 8, dtype=numpy.uint8)[None].repeat(24, axis=0)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PictureExample("0/a", tmp_path / "a.png", "ab", ("",), (32, 24), (24, 24), mask=path, mask_sha256=digest)


def only(example: PictureExample, **draw) -> _masks.Request:
    (request,) = _masks.requests(example, Draw(**draw))
    return request


def test_a_mask_at_latent_resolution(example: PictureExample):
    mask = _masks.encode(only(example).payload, 8)["mask"]
    assert mask.shape == (1, 3, 3) and mask.dtype == torch.float32
    # Columns 4 to 28 of 32 are left, eight to a latent: values 32 to 216.
    wanted = torch.arange(32, 224, 8).view(3, 8).float().mean(dim=1) / 255
    assert torch.allclose(mask[0], wanted.expand(3, 3), atol=1e-6)
    assert torch.equal(_masks.encode(only(example, flip=True).payload, 8)["mask"], mask.flip(-1))


def test_what_changes_the_mask_changes_its_key(example: PictureExample):
    others = [
        replace(example, mask_sha256="other"),
        replace(example, mask="alpha"),
        replace(example, bucket=(16, 24)),
        replace(example, size=(40, 24)),
    ]
    contents = {only(one).content for one in (example, *others)} | {only(example, flip=True).content}
    assert len(contents) == 6
    assert only(example, caption="any").content == only(replace(example, id="1/b")).content
    assert len({_masks.encoder_key(8), _masks.encoder_key(4)}) == 2 and _masks.encoder_key(8) == _masks.encoder_key(8)


def test_no_mask_no_request(example: PictureExample):
    assert _masks.requests(replace(example, mask=None, mask_sha256=""), Draw()) == []


def test_rows_without_one_count_whole():
    mask = torch.rand(1, 2, 3)
    assert _masks.stack([{}, {"other": mask}]) == {}
    stacked = _masks.stack([{}, {"mask": mask}])["mask"]
    assert stacked.shape == (2, 1, 2, 3) and torch.equal(stacked[1], mask) and bool((stacked[0] == 1).all())
