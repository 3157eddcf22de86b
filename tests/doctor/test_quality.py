from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageFilter

from lora_scripts.doctor import quality
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.measuring import bars, jpeg_quality, steepness
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.survey import survey
from tests.doctor import drawn_pictures

SIZE = (384, 320)
ICONS = Path(__file__).parents[2] / "examples" / "style_high_contrast"


def findings(folder: Path, resolution: int = 384) -> dict[str, Finding]:
    found = {each.name: each for each in quality.find(survey(Settings(folder, resolution=resolution)))}
    assert all(finding.sentence(part) for finding in found.values() for part in ("what", "why", "fix"))
    return found


def named(finding: Finding) -> list[str]:
    return [name for item in finding.items for name in item.files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    drawn_pictures.save_all(tmp_path, "photograph", 12, SIZE)
    return tmp_path


def with_bars(number: int, colour: str, *, above: bool) -> Image.Image:
    content = (SIZE[0], SIZE[1] - 80) if above else (SIZE[0] - 96, SIZE[1])
    picture = Image.new("RGB", SIZE, colour)
    picture.paste(drawn_pictures.draw("photograph", number, content), (0, 40) if above else (48, 0))
    return picture


def test_pictures_that_stand_out(folder: Path) -> None:
    drawn_pictures.draw("photograph", 50, SIZE).filter(ImageFilter.GaussianBlur(2)).save(folder / "soft.jpg")
    drawn_pictures.draw("photograph", 51, SIZE).point(lambda value: value // 8).save(folder / "dark.jpg")
    drawn_pictures.draw("photograph", 52, SIZE).point(lambda value: min(255, 170 + value)).save(folder / "pale.jpg")
    drawn_pictures.draw("photograph", 53, SIZE).save(folder / "frayed.jpg", quality=15)
    Image.new("RGB", SIZE, (200, 10, 10)).save(folder / "red.jpg")
    with_bars(54, "black", above=True).save(folder / "film.jpg", quality=85)
    with_bars(55, "white", above=False).save(folder / "phone.jpg", quality=85)
    found = findings(folder)
    assert {name: named(finding) for name, finding in found.items()} == {
        "blurry": ["soft.jpg"],
        "dark": ["dark.jpg"],
        "bright": ["pale.jpg"],
        "empty": ["red.jpg"],
        "bars": ["film.jpg", "phone.jpg"],
        "lossy": ["frayed.jpg"],
    }
    assert {name for name, finding in found.items() if finding.severity == Severity.GOOD} == {"lossy"}
    assert found["bars"].items[0].box == pytest.approx((0, 40 / 320, 1, 280 / 320), abs=0.005)
    assert found["bars"].items[1].box == pytest.approx((48 / 384, 0, 336 / 384, 1), abs=0.005)


@pytest.mark.parametrize("kind", drawn_pictures.KINDS)
def test_nothing_is_said_of_fine_pictures_of_one_kind(kind: str, tmp_path: Path) -> None:
    drawn_pictures.save_all(tmp_path, kind, 30, (192, 160))
    assert findings(tmp_path, 192) == {}


def test_nothing_is_said_of_fine_pictures_of_all_kinds(tmp_path: Path) -> None:
    for kind in drawn_pictures.KINDS:
        drawn_pictures.save_all(tmp_path / kind, kind, 12, (192, 160))
    assert findings(tmp_path, 192) == {}


def test_nothing_is_said_of_icons() -> None:
    assert len(list(ICONS.glob("*.png"))) == 60
    assert findings(ICONS, 64) == {}


def test_what_is_usual_in_a_set_is_not_called_blurry(tmp_path: Path) -> None:
    for number in range(12):
        picture = drawn_pictures.draw("photograph", number, SIZE)
        picture.filter(ImageFilter.GaussianBlur(2)).save(tmp_path / f"{number}.jpg")
    assert findings(tmp_path) == {}


def test_a_large_soft_photograph_is_sharp_at_its_training_size(folder: Path) -> None:
    large = drawn_pictures.draw("photograph", 60, (4 * SIZE[0], 4 * SIZE[1]))
    large.filter(ImageFilter.GaussianBlur(2)).save(folder / "large.jpg")
    assert findings(folder) == {}


def test_steepness_of_a_blurred_step() -> None:
    step = Image.new("L", (64, 64))
    step.paste(255, (32, 0, 64, 64))
    measured = [steepness(numpy.asarray(step.filter(ImageFilter.GaussianBlur(sigma)))) for sigma in (0, 1, 2)]
    assert measured == pytest.approx([1.0, 0.38, 0.21], abs=0.05)
    assert steepness(numpy.full((64, 64), 7, numpy.uint8)) == 0
    assert steepness(numpy.zeros((3, 3), numpy.uint8)) == 0


def test_a_drawing_on_white_has_no_bars() -> None:
    picture = numpy.full((100, 100, 3), 255, numpy.uint8)
    picture[20:80, 30:70] = 0
    assert bars(picture) is None
    picture[20:80] = numpy.random.default_rng(0).integers(0, 200, (60, 100, 3))
    assert bars(picture) == (0.0, 0.2, 1.0, 0.8)
    # A flag has stripes of colours; a band of one colour is no content.
    picture[20:80] = (200, 0, 0)
    assert bars(picture) is None


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
def test_quality_is_read_from_the_file(quality: int, tmp_path: Path) -> None:
    drawn_pictures.draw("gradient", 0, (64, 64)).save(tmp_path / "a.jpg", quality=quality)
    assert abs(jpeg_quality((tmp_path / "a.jpg").read_bytes()) - quality) <= 1
    assert jpeg_quality(b"\xff\xd8\xff broken") == 0
