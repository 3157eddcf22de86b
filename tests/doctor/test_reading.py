from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from lora_scripts.doctor import reading
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.survey import survey
from tests.doctor import drawn_pictures

SIZE = (96, 80)
PARTS = ("what", "why", "fix")


def findings(folder: Path) -> dict[str, Finding]:
    found = {finding.name: finding for finding in reading.find(survey(Settings(folder)))}
    for finding in found.values():
        assert all(finding.sentence(part) for part in PARTS)
        assert finding.count == sum(len(item.files) for item in finding.items) or not finding.items
    return found


def named(finding: Finding) -> list[str]:
    return [name for item in finding.items for name in item.files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    drawn_pictures.save_all(tmp_path, "photograph", 4, SIZE)
    return tmp_path


def test_nothing_is_said_of_fine_pictures(folder: Path) -> None:
    (folder / "README.md").write_text("about", encoding="utf-8")
    (folder / "LICENSE").write_text("free", encoding="utf-8")
    (folder / "metadata.csv").write_text("file_name,prompt\nphotograph_000.jpg,x\n", encoding="utf-8")
    assert findings(folder) == {}


def test_what_training_cannot_read(folder: Path) -> None:
    data = (folder / "photograph_000.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    (folder / "page.jpg").write_text("<html></html>", encoding="utf-8")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    found = findings(folder)
    assert found.keys() == {"unreadable", "foreign_format"}
    assert named(found["unreadable"]) == ["cut.jpg", "empty.png", "page.jpg"]
    assert (found["unreadable"].severity, found["unreadable"].fix) == (Severity.MUST, "move_aside")
    details = [item.detail.code for item in found["unreadable"].items if item.detail]
    assert details == ["data.picture_truncated", "data.picture_empty", "data.picture_format"]
    assert named(found["foreign_format"]) == ["phone.heic"]
    assert (found["foreign_format"].severity, found["foreign_format"].fix) == (Severity.MUST, "")


def test_what_is_read_otherwise_than_one_may_think(folder: Path) -> None:
    drawn_pictures.draw("photograph", 10, SIZE).save(folder / "really_webp.png", format="WEBP")
    frames = [drawn_pictures.draw("illustration", number, SIZE) for number in (11, 12)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    half = drawn_pictures.draw("photograph", 13, SIZE).convert("RGBA")
    half.paste((0, 0, 0, 0), (0, 0, 48, 80))
    half.save(folder / "half.png")
    found = findings(folder)
    assert {name: named(finding) for name, finding in found.items()} == {
        "wrong_suffix": ["really_webp.png"],
        "several": ["moving.gif"],
        "transparent": ["half.png"],
    }
    assert all(finding.severity == Severity.SHOULD for finding in found.values())
    assert found["wrong_suffix"].fix == "rename_suffix"
    assert found["transparent"].items[0].detail.params == {"percent": 50}  # type: ignore[union-attr]


def test_what_is_put_right_by_itself(folder: Path) -> None:
    picture = drawn_pictures.draw("photograph", 20, SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(numpy.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(numpy.uint16)).save(folder / "deep.png")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture.save(folder / "strange.png", icc_profile=lab)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(folder / "usual.png", icc_profile=srgb)
    found = findings(folder)
    assert {name: named(finding) for name, finding in found.items()} == {
        "turned": ["turned.jpg"],
        "converted": ["deep.png", "print.jpg"],
        "profile_ignored": ["strange.png"],
    }
    assert all(finding.severity == Severity.GOOD for finding in found.values())
    assert [item.detail.code for item in found["converted"].items if item.detail] == [
        "pictures.converted.deep",
        "pictures.converted.cmyk",
    ]


def test_a_set_of_transparent_pictures_names_none(tmp_path: Path) -> None:
    for number in range(6):
        picture = drawn_pictures.draw("photograph", number, SIZE).convert("RGBA")
        picture.paste((0, 0, 0, 0), (0, 0, 96, 30))
        picture.save(tmp_path / f"{number}.png")
    found = findings(tmp_path)
    assert found.keys() == {"transparent_set"}
    assert (found["transparent_set"].count, found["transparent_set"].items) == (6, ())


def test_what_lies_there_besides(folder: Path) -> None:
    for name in ("a.mp4", "b.psd", "c.zip", "d.svg"):
        (folder / name).write_bytes(b"x")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / ".lora-doctor").mkdir()
    found = findings(folder)
    assert found.keys() == {"strays", "hidden"}
    assert (found["strays"].count, found["strays"].examples, found["strays"].items) == (
        4,
        ("a.mp4", "b.psd", "c.zip"),
        (),
    )
    assert named(found["hidden"]) == [".hidden.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="links and names that differ in case only")
def test_links_and_names_that_collide(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    drawn_pictures.draw("photograph", 30, SIZE).save(outside)
    os.symlink(outside, folder / "link.png")
    drawn_pictures.draw("photograph", 31, SIZE).save(folder / "Sea.png")
    drawn_pictures.draw("photograph", 32, SIZE).save(folder / "sea.PNG")
    drawn_pictures.draw("photograph", 33, SIZE).save(folder / "caf\u00e9.png")
    drawn_pictures.draw("photograph", 34, SIZE).save(folder / "cafe\u0301.png")
    found = findings(folder)
    assert found.keys() == {"skipped", "same_name"}
    assert named(found["skipped"]) == ["link.png"]
    assert {frozenset(item.files) for item in found["same_name"].items} == {
        frozenset({"Sea.png", "sea.PNG"}),
        frozenset({"caf\u00e9.png", "cafe\u0301.png"}),
    }
