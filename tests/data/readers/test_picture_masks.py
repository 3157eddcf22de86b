"""A folder with masks: which belongs to which picture, and every way in which they cannot be used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lora_scripts.data.record import Dataset, Sizes
from tests.data.readers.test_pictures import ids, picture, refusal, said, scan


def mask(path: Path, size: tuple[int, int] = (64, 64), value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def masked(folder: Path, where: Path | str, **options) -> Dataset:
    return Dataset(folder, mask=str(where), **options)


def transparent(path: Path, opacity: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = numpy.full((64, 64, 4), 255, numpy.uint8)
    values[:32, :, 3] = opacity
    Image.fromarray(values).save(path)
    return path


def test_a_mask_is_found_by_relative_name(tmp_path: Path):
    for name in ("cat.png", "sub/dog.jpg", "Bird.webp"):
        picture(tmp_path / "own" / name)
    made = {"cat": mask(tmp_path / "masks/cat.png"), "dog": mask(tmp_path / "masks/sub/dog.webp")}
    made["bird"] = mask(tmp_path / "masks/bird-masklabel.png")
    result = scan(masked(tmp_path / "own", tmp_path / "masks"))
    found = {example.path.stem.lower(): example for example in result.examples}
    assert {name: example.mask for name, example in found.items()} == made
    assert found["dog"].mask_sha256 == hashlib.sha256(made["dog"].read_bytes()).hexdigest()
    assert said(result, "masked") == {"count": 3, "source": str(tmp_path / "masks")}


@pytest.mark.parametrize("where", ["own/masks", "own"])
def test_masks_among_the_pictures_are_no_pictures(tmp_path: Path, where: str):
    picture(tmp_path / "own/10_cat/a.png")
    path = mask(tmp_path / where / ("10_cat/a.png" if where != "own" else "10_cat/a-masklabel.png"))
    result = scan(masked(tmp_path / "own", tmp_path / where))
    assert ids(result) == ["0/10_cat/a.png@64x64"] and result.found == 1
    assert result.examples[0].mask == path and result.examples[0].repeats == 10


def test_labels_of_masks_are_told_where_masks_are_off(tmp_path: Path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "alone-masklabel.png")
    mask(tmp_path / "a-masklabel.png")
    result = scan(tmp_path)
    assert ids(result) == ["0/a.png@64x64", "0/alone-masklabel.png@64x64"]
    assert said(result, "mask_files_unused") == {"count": 1, "examples": "a-masklabel.png"}


def test_masks_of_nothing_are_told(tmp_path: Path):
    picture(tmp_path / "own/a.png")
    for name in ("a.png", "b.png", "sub/a.png"):
        mask(tmp_path / "masks" / name)
    result = scan(masked(tmp_path / "own", tmp_path / "masks"))
    assert said(result, "mask_files_unused") == {"count": 2, "examples": "b.png, sub/a.png"}


def test_transparency_as_a_mask(tmp_path: Path):
    picture(tmp_path / "photo.jpg")
    transparent(tmp_path / "opaque.png", opacity=255)
    transparent(tmp_path / "cut.png")
    result = scan(masked(tmp_path, "alpha"))
    assert {example.path.name: example.mask for example in result.examples} == {
        "cut.png": "alpha",
        "opaque.png": None,
        "photo.jpg": None,
    }
    assert said(result, "masked") == {"count": 1, "source": "alpha"}
    assert said(result, "masks_opaque") == {"count": 2, "examples": "opaque.png, photo.jpg"}


def test_transparency_is_looked_at_where_sizes_are_known(tmp_path: Path):
    digest = hashlib.sha256(transparent(tmp_path / "cut.png").read_bytes()).hexdigest()
    result = scan(masked(tmp_path, "alpha"), known={digest: (64, 64)})
    assert [example.mask for example in result.examples] == ["alpha"]


def test_the_mask_belongs_to_the_fingerprint(tmp_path: Path):
    transparent(tmp_path / "own/a.png")
    plain = scan(tmp_path / "own").examples[0].fingerprint
    seen = {plain, scan(masked(tmp_path / "own", "alpha")).examples[0].fingerprint}
    for value in (255, 254):
        mask(tmp_path / "masks/a.png", value=value)
        seen.add(scan(masked(tmp_path / "own", tmp_path / "masks")).examples[0].fingerprint)
    assert len(seen) == 4


def _absent(folder: Path) -> str:
    picture(folder / "own/b.png")
    return "1 of 2 pictures have no mask"


def _size(folder: Path) -> str:
    mask(folder / "masks/a.png", (64, 32))
    return "a.png 64x32 / 64x64"


def _black(folder: Path) -> str:
    mask(folder / "masks/a.png", value=0)
    return "let nothing count"


def _cropped(folder: Path) -> str:
    """White only at an end of a picture too long for any bucket."""
    picture(folder / "own/a.png", (400, 64))
    mask(folder / "masks/a.png", (400, 64), 0)
    drawn = Image.open(folder / "masks/a.png")
    drawn.paste(255, (0, 0, 5, 64))
    drawn.save(folder / "masks/a.png")
    return "let nothing count"


def _twice(folder: Path) -> str:
    mask(folder / "masks/a.webp")
    return "two masks of a.png: a.png and a.webp"


def _damaged(folder: Path) -> str:
    path = folder / "masks/a.png"
    path.write_bytes(path.read_bytes()[:60])
    return "masks/a.png"


def _no_folder(folder: Path) -> str:
    (folder / "masks").rename(folder / "elsewhere")
    return "masks does not exist; mask is alpha"


def _only_masks(folder: Path) -> str:
    (folder / "masks").rename(folder / "own/masks")
    (folder / "own/a.png").unlink()
    (folder / "masks").symlink_to(folder / "own/masks")
    return "holds nothing but masks"


REFUSALS = [_absent, _size, _black, _cropped, _twice, _damaged, _no_folder, _only_masks]


@pytest.mark.parametrize("harm", REFUSALS)
def test_refused_in_one_sentence(tmp_path: Path, harm):
    picture(tmp_path / "own/a.png")
    mask(tmp_path / "masks/a.png")
    assert scan(masked(tmp_path / "own", tmp_path / "masks")).examples
    wanted = harm(tmp_path)
    message = refusal(masked(tmp_path / "own", tmp_path / "masks"))
    assert wanted in message and "\n" not in message and message.endswith(".")


def test_the_refusals_are_all():
    assert len(REFUSALS) == 8


def test_a_picture_that_is_transparent_all_over(tmp_path: Path):
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert "nothing.png" in refusal(masked(tmp_path, "alpha"))


def test_a_turned_picture_wants_a_turned_mask(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "own").mkdir()
    Image.new("RGB", (64, 96)).save(tmp_path / "own/a.jpg", exif=exif)
    mask(tmp_path / "masks/a.png", (64, 96))
    assert "64x96 / 96x64" in refusal(masked(tmp_path / "own", tmp_path / "masks"))
    mask(tmp_path / "masks/a.png", (96, 64))
    assert scan(masked(tmp_path / "own", tmp_path / "masks"), sizes=Sizes((64,), 8)).examples
