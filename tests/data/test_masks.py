"""Masks: what they let count, where they are averaged to, and that both follow the pixels."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lora_scripts.data import masks
from lora_scripts.data.decode import crop_box, decode_bytes
from lora_scripts.data.record import PictureExample
from lora_scripts.errors import DataError

WHOLE = (0.0, 0.0, 8.0, 4.0)


def grey(values: numpy.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(numpy.uint8))


def png(picture: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def values(data: bytes) -> numpy.ndarray:
    return numpy.asarray(masks.from_bytes(data, Path("mask.png")))


def test_a_cell_is_the_mean_of_its_pixels():
    drawn = numpy.random.default_rng(3).integers(0, 256, (4, 8))
    made = masks.shrink(grey(drawn), WHOLE, (4, 2))
    wanted = drawn.reshape(2, 2, 4, 2).mean(axis=(1, 3)) / 255
    assert made.dtype == numpy.float32 and numpy.allclose(made, wanted, atol=1e-6)


def test_a_pixel_that_two_cells_share_is_shared():
    line = grey(numpy.array([[0, 255, 0]]))
    assert masks.shrink(line, (0.0, 0.0, 3.0, 1.0), (2, 1))[0].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert masks.shrink(line, (0.5, 0.0, 2.5, 1.0), (1, 1)).tolist() == [[0.5]]


def test_white_is_exactly_one_and_a_single_pixel_is_never_lost():
    white = grey(numpy.full((301, 517), 255))
    assert (masks.shrink(white, crop_box(white.size, (64, 40)), (8, 5)) == 1).all()
    dot = numpy.zeros((300, 500))
    dot[150, 250] = 1
    made = masks.shrink(grey(dot), (0.0, 0.0, 500.0, 300.0), (5, 3))
    assert made.sum() == pytest.approx(1 / 255 / 100**2, rel=1e-4)


def test_the_crop_takes_the_same_part_as_the_pixels():
    """A picture that is its own mask: averaged after `fit`, or straight from the mask, about the same comes out."""
    from lora_scripts.data.decode import fit

    across = numpy.linspace(0, 255, 200)[None].repeat(90, axis=0)
    mask, bucket = grey(across), (64, 64)
    made = masks.shrink(mask, crop_box(mask.size, bucket), (8, 8))
    pixels = numpy.asarray(fit(mask.convert("RGB"), bucket))[..., 0].reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255
    assert numpy.abs(made - pixels).max() < 0.01
    assert made[0, 0] == pytest.approx(0.303, abs=0.01) and made[0, -1] == pytest.approx(0.697, abs=0.01)


def test_red_counts_and_what_is_transparent_does_not():
    coloured = numpy.zeros((1, 3, 3))
    coloured[0] = [(255, 0, 0), (0, 255, 255), (100, 255, 0)]
    assert values(png(grey(coloured))).tolist() == [[255, 0, 100]]
    seen = numpy.full((1, 3, 4), 255)
    seen[0, :, 3] = (255, 0, 128)
    assert values(png(grey(seen))).tolist() == [[255, 0, 128]]
    deep = Image.fromarray(numpy.array([[65535, 0, 32768]], dtype=numpy.uint16))
    assert values(png(deep)).tolist() == [[255, 0, 128]]


def test_transparency_is_a_mask_where_there_is_any():
    opaque = numpy.full((2, 2, 4), 255)
    assert masks.transparency(decode_bytes(png(grey(opaque)), Path("a.png"))) is None
    assert masks.transparency(decode_bytes(png(grey(opaque[..., :3])), Path("a.png"))) is None
    opaque[0, 1, 3] = 7
    found = masks.transparency(decode_bytes(png(grey(opaque)), Path("a.png")))
    assert found is not None and numpy.asarray(found).tolist() == [[255, 7], [255, 255]]


def test_transparency_is_turned_with_its_picture():
    drawn = numpy.full((2, 3, 4), 255)
    drawn[0, 0, 3] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_bytes(png(grey(drawn), exif=exif), Path("a.png"))
    assert decoded.picture.size == decoded.opacity.size == (2, 3)
    assert numpy.asarray(decoded.opacity)[0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("columns", "bucket", "reached"),
    [((45, 55), (64, 64), True), ((0, 40), (64, 64), False), ((0, 40), (128, 64), True), ((0, 52), (64, 64), True)],
)
def test_a_cover_knows_what_the_crop_leaves(columns: tuple[int, int], bucket: tuple[int, int], reached: bool):
    drawn = numpy.zeros((100, 200))
    drawn[:, slice(*columns)] = 255
    assert masks.cover(grey(drawn)).reaches(bucket) is reached


def test_a_mask_that_has_changed_is_refused(tmp_path: Path):
    path = tmp_path / "mask.png"
    path.write_bytes(png(grey(numpy.full((4, 8), 255))))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    example = PictureExample("0/a", tmp_path / "a.png", "", ("",), (8, 4), (8, 4), mask=path, mask_sha256=digest)
    assert masks.load(example).size == (8, 4)
    path.write_bytes(png(grey(numpy.full((4, 8), 254))))
    with pytest.raises(DataError) as caught:
        masks.load(example)
    assert caught.value.code == "data.picture_changed" and "mask.png" in str(caught.value)
