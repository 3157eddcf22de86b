from __future__ import annotations

import hashlib
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.data.decode import decode
from lora_scripts.doctor import survey as surveys
from lora_scripts.doctor.measuring import Measured
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.survey import Picture, survey
from lora_scripts.errors import DataError
from tests.doctor import drawn_pictures

SMALL = (160, 128)


def test_what_is_known_of_a_picture(tmp_path: Path) -> None:
    names = drawn_pictures.save_all(tmp_path, "photograph", 3, SMALL)
    (tmp_path / names[0]).with_suffix(".txt").write_text("a thing", encoding="utf-8")
    seen = survey(Settings(tmp_path))
    assert [picture.name for picture in seen.pictures] == names
    first = seen.pictures[0]
    assert (first.size, first.format, first.problem, first.row) == (SMALL, "JPEG", None, 0)
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert seen.captions == {names[0]: ("a thing",)}
    assert seen.caption_sources == {names[0]: tmp_path / "photograph_000.txt"}
    assert seen.miniatures.count == 3
    small = decode(tmp_path / names[1]).resize((64, 64), Image.Resampling.BOX).convert("L")
    shown = seen.miniatures.grey([1])[0]
    assert abs(int(shown[20, 30]) - int(small.getpixel((30, 20)))) <= 3  # type: ignore[arg-type]


def test_what_cannot_be_read_is_a_problem_and_the_rest_is_read(tmp_path: Path) -> None:
    names = drawn_pictures.save_all(tmp_path, "photograph", 2, SMALL)
    data = (tmp_path / names[0]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").touch()
    seen = survey(Settings(tmp_path))
    codes = {picture.name: picture.problem.code for picture in seen.pictures if picture.problem}
    assert codes == {"cut.jpg": "data.picture_truncated", "empty.png": "data.picture_empty"}
    assert [picture.name for picture in seen.readable] == names
    assert [picture.row for picture in seen.readable] == [0, 1]


def test_a_held_out_folder_inside_is_no_part_of_the_set(tmp_path: Path) -> None:
    drawn_pictures.save_all(tmp_path, "photograph", 2, SMALL)
    drawn_pictures.save_all(tmp_path / "held", "portrait", 3, SMALL)
    (tmp_path / "held" / "portrait_000.txt").write_text("x", encoding="utf-8")
    seen = survey(Settings(tmp_path, held_out=tmp_path / "held"))
    assert len(seen.pictures) == 2 and len(seen.held) == 3
    assert seen.folder.others == [] and seen.captions == {}


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        survey(Settings(tmp_path))
    drawn_pictures.save_all(tmp_path / "train", "photograph", 1, SMALL)
    (tmp_path / "held").mkdir()
    with pytest.raises(DataError, match="is empty"):
        survey(Settings(tmp_path / "train", held_out=tmp_path / "held"))


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_pictures.save_all(tmp_path, "gradient", 5, SMALL)
    monkeypatch.setattr(surveys, "EVERY_SECONDS", -1.0)
    told: list[tuple[str, int, int]] = []
    survey(Settings(tmp_path), lambda code, *, done, total: told.append((code, done, total)))
    assert told == [("pictures.progress", done, 5) for done in range(1, 6)]


def test_each_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = drawn_pictures.save_all(tmp_path, "gradient", 12, SMALL)
    decoded: list[str] = []
    real = surveys.decode.decode_bytes

    def counting(data: bytes, path: Path):
        decoded.append(path.name)
        return real(data, path)

    monkeypatch.setattr(surveys.decode, "decode_bytes", counting)
    survey(Settings(tmp_path))
    assert sorted(decoded) == names


def test_a_picture_takes_less_than_a_kilobyte(tmp_path: Path) -> None:
    drawn_pictures.save_all(tmp_path, "photograph", 1, SMALL)
    picture = survey(Settings(tmp_path)).pictures[0]
    held = sum(sys.getsizeof(getattr(picture, each.name)) for each in fields(Picture) if each.name != "root")
    held += sum(sys.getsizeof(getattr(picture.measured, each.name)) for each in fields(Measured))
    assert sys.getsizeof(picture) + held < 1000
