from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw

from lora_scripts.doctor import marks
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.survey import survey
from tests.doctor import drawn_pictures

SIZE = (384, 320)
ICONS = Path(__file__).parents[2] / "examples" / "style_high_contrast"


def findings(folder: Path) -> list[Finding]:
    found = list(marks.find(survey(Settings(folder, resolution=384))))
    assert all(finding.sentence(part) for finding in found for part in ("what", "why", "fix"))
    return found


def stamp(picture: Image.Image, place: tuple[int, int], text: str) -> Image.Image:
    over = Image.new("RGBA", picture.size)
    ImageDraw.Draw(over).text(place, text, fill=(255, 255, 255, 170), font_size=14)
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


@pytest.mark.parametrize("place", [(250, 292), (10, 8), (130, 296)])
def test_a_watermark_is_found_where_it_is(place: tuple[int, int], tmp_path: Path) -> None:
    names = drawn_pictures.save_all(tmp_path, "photograph", 24, SIZE)
    stamped = names[::3]
    for name in stamped:
        with Image.open(tmp_path / name) as picture:
            marked = stamp(picture.convert("RGB"), place, "studio-name.com")
        marked.save(tmp_path / name, quality=90)
    (found,) = findings(tmp_path)
    assert sorted({name for item in found.items for name in item.files}) == stamped
    assert (found.severity, found.count) == (Severity.SHOULD, 8)
    left, top, right, bottom = found.items[0].box or (0, 0, 0, 0)
    assert left <= (place[0] + 20) / SIZE[0] <= right and top <= (place[1] + 8) / SIZE[1] <= bottom
    assert right - left < 0.5 and bottom - top <= 0.2


def test_different_words_at_one_place_are_no_mark(tmp_path: Path) -> None:
    names = drawn_pictures.save_all(tmp_path, "photograph", 16, SIZE)
    letters = numpy.random.default_rng(0).choice(list("abcdefghijkmnopqrstuvwxyz"), (len(names), 18))
    for name, word in zip(names, letters, strict=True):
        with Image.open(tmp_path / name) as picture:
            marked = stamp(picture.convert("RGB"), (20, 292), "".join(word))
        marked.save(tmp_path / name)
    assert findings(tmp_path) == []


@pytest.mark.parametrize("kind", drawn_pictures.KINDS)
def test_pictures_of_one_kind_have_no_marks(kind: str, tmp_path: Path) -> None:
    drawn_pictures.save_all(tmp_path, kind, 40, (192, 160))
    assert findings(tmp_path) == []


def test_icons_have_no_marks() -> None:
    assert len(list(ICONS.glob("*.png"))) == 60
    assert findings(ICONS) == []


def test_pictures_before_the_same_ground_have_no_marks(tmp_path: Path) -> None:
    ground = drawn_pictures.draw("photograph", 0, SIZE)
    for number in range(12):
        picture = ground.copy()
        picture.paste(drawn_pictures.draw("photograph", 1 + number, (200, 160)), (90, 80))
        picture.save(tmp_path / f"{number}.png")
    assert findings(tmp_path) == []
