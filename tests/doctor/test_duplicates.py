from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageOps

from lora_scripts.doctor import alike, duplicates
from lora_scripts.doctor.alike import Entry, groups, search
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.miniatures import Miniatures, shrink
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.survey import survey
from tests.doctor import drawn_pictures

SIZE = (320, 256)
ICONS = Path(__file__).parents[2] / "examples" / "style_high_contrast"


def findings(folder: Path, held_out: Path | None = None) -> dict[str, Finding]:
    found = {each.name: each for each in duplicates.find(survey(Settings(folder, held_out=held_out, multiple=32)))}
    assert all(finding.sentence(part) for finding in found.values() for part in ("what", "why", "fix"))
    return found


def opened(folder: Path, number: int) -> Image.Image:
    with Image.open(folder / f"photograph_{number:03d}.jpg") as picture:
        return picture.convert("RGB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    drawn_pictures.save_all(tmp_path / "set", "photograph", 12, SIZE)
    return tmp_path / "set"


def test_equal_files_keep_the_one_with_a_caption_then_the_shortest_name(folder: Path) -> None:
    shutil.copy(folder / "photograph_000.jpg", folder / "a.jpg")
    shutil.copy(folder / "photograph_001.jpg", folder / "b.jpg")
    (folder / "photograph_001.txt").write_text("a thing", encoding="utf-8")
    found = findings(folder)
    assert found.keys() == {"exact"}
    assert [item.files for item in found["exact"].items] == [
        ("a.jpg", "photograph_000.jpg"),
        ("photograph_001.jpg", "b.jpg"),
    ]
    assert (found["exact"].severity, found["exact"].fix, found["exact"].count) == (Severity.MUST, "move_aside", 2)


def test_the_same_picture_saved_again_scaled_or_recoloured(folder: Path) -> None:
    opened(folder, 0).save(folder / "again.jpg", quality=70)
    opened(folder, 0).resize((160, 128)).save(folder / "half.png")
    warm = Image.blend(opened(folder, 1), Image.new("RGB", SIZE, (255, 180, 80)), 0.12)
    warm.save(folder / "warm.jpg", quality=60)
    ImageOps.mirror(opened(folder, 2)).save(folder / "mirrored.jpg", quality=60)
    found = findings(folder)
    assert found.keys() == {"near", "mirrored"}
    assert [item.files for item in found["near"].items] == [
        ("photograph_000.jpg", "again.jpg", "half.png"),
        ("photograph_001.jpg", "warm.jpg"),
    ]
    assert (found["near"].count, found["near"].severity) == (3, Severity.SHOULD)
    assert [item.files for item in found["mirrored"].items] == [("photograph_002.jpg", "mirrored.jpg")]


def test_parts_of_another_picture_are_found_with_their_place(folder: Path) -> None:
    # From a corner, from the middle and enlarged, of another shape, and mirrored.
    boxes = {"corner": (0.0, 0.0, 0.837, 0.837), "middle": (0.2, 0.25, 0.85, 0.9), "square": (0.1, 0.0, 0.9, 1.0)}
    for number, (name, box) in enumerate(boxes.items()):
        part = opened(folder, number).crop(
            tuple(round(share * side) for share, side in zip(box, SIZE * 2, strict=True))
        )
        part.resize((part.width * 6 // 5, part.height * 6 // 5)).save(folder / f"{name}.jpg", quality=75)
    ImageOps.mirror(opened(folder, 3).crop((40, 20, 280, 212))).save(folder / "turned.jpg")
    found = findings(folder)
    assert found.keys() == {"crop"}
    items = {item.files[1]: item for item in found["crop"].items}
    assert {name: item.files[0] for name, item in items.items()} == {
        "corner.jpg": "photograph_000.jpg",
        "middle.jpg": "photograph_001.jpg",
        "square.jpg": "photograph_002.jpg",
        "turned.jpg": "photograph_003.jpg",
    }
    for name, box in boxes.items():
        assert items[f"{name}.jpg"].box == pytest.approx(box, abs=0.02)


def test_copies_between_training_and_held_out_pictures(folder: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    drawn_pictures.save_all(held, "portrait", 3, SIZE)
    shutil.copy(folder / "photograph_004.jpg", held / "same.jpg")
    opened(folder, 5).resize((200, 160)).save(held / "smaller.png")
    opened(folder, 6).crop((30, 30, 300, 240)).save(held / "part.jpg")
    found = findings(folder, held)
    assert found.keys() == {"leak", "leak_near"}
    assert [item.files for item in found["leak"].items] == [("../held/same.jpg", "photograph_004.jpg")]
    assert {item.files for item in found["leak_near"].items} == {
        ("../held/smaller.png", "photograph_005.jpg"),
        ("../held/part.jpg", "photograph_006.jpg"),
    }
    assert all(finding.severity == Severity.MUST for finding in found.values())


@pytest.mark.parametrize("kind", drawn_pictures.KINDS)
def test_different_pictures_of_one_kind_are_not_taken_for_copies(kind: str, tmp_path: Path) -> None:
    drawn_pictures.save_all(tmp_path, kind, 30, (192, 160))
    assert findings(tmp_path) == {}


def test_icons_are_not_taken_for_copies() -> None:
    assert len(list(ICONS.glob("*.png"))) == 60
    assert findings(ICONS) == {}


def test_lists_find_what_comparing_all_with_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, miniatures, entries = numpy.random.default_rng(0), Miniatures(), []
    pictures = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), numpy.uint8)).resize((96, 96)) for _ in range(150)]
    pictures += [picture.crop((6, 10, 86, 90)) for picture in pictures[::5]]
    entries = [Entry(miniatures.add(shrink(picture)), picture.size) for picture in pictures]
    everything = {(match.whole, match.part) for match in search(entries, miniatures)}
    assert {(5 * number, 150 + number) for number in range(30)} <= everything
    monkeypatch.setattr(alike, "FEW", 50)
    by_lists = {(match.whole, match.part) for match in search(entries, miniatures)}
    assert by_lists <= everything and len(by_lists) >= 0.9 * len(everything)


def test_groups_are_transitive() -> None:
    assert groups([(4, 5), (1, 2), (2, 3), (3, 1)]) == [[1, 2, 3], [4, 5]]
