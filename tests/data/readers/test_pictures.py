"""A whole folder: what is found, dropped, captioned, bucketed and said."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
import unicodedata
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lora_scripts import messages, registry
from lora_scripts.data.readers.pictures import read
from lora_scripts.data.record import CaptionRules, Dataset, PictureExample, Scan, Sizes
from lora_scripts.errors import ConfigError, DataError

SMALL = Sizes((64,), 8)


def picture(path: Path, size: tuple[int, int] = (64, 64), seed: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = numpy.random.default_rng(seed if seed is not None else zlib.crc32(path.name.encode()))
    form = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), path.suffix[1:].upper())
    stream = io.BytesIO()
    Image.fromarray(drawn.integers(0, 256, (size[1], size[0], 3), numpy.uint8)).save(stream, form)
    path.write_bytes(stream.getvalue())
    return path


def scan(*folders: Path | Dataset, sizes: Sizes = SMALL, **options) -> Scan:
    result = read([folder if isinstance(folder, Dataset) else Dataset(folder) for folder in folders], sizes, **options)
    # Every sentence can be said, and each dropped file is named in its own.
    for note in result.notes:
        assert messages.text(note.code, **note.params)
    for dropped in result.dropped:
        assert dropped.path.name.isascii() is False or dropped.path.name in messages.text(
            dropped.code, **dropped.params
        )
    return result


def refusal(*folders: Path | Dataset, **options) -> str:
    with pytest.raises(DataError) as caught:
        scan(*folders, **options)
    return str(caught.value)


def said(result: Scan, code: str) -> dict:
    (params,) = [dict(note.params) for note in result.notes if note.code == f"data.{code}"]
    return params


def ids(result: Scan) -> list[str]:
    return [example.id for example in result.examples]


def reasons(result: Scan) -> dict[str, str]:
    return {dropped.path.name: dropped.code.removeprefix("data.") for dropped in result.dropped}


def test_the_reader_is_registered():
    assert "pictures" in registry.names("readers") and "_folder" not in registry.names("readers")
    assert registry.load("readers", "pictures").read is read


def test_a_folder_with_a_table(tmp_path: Path):
    for name in ("cat.png", "sub/dog.jpg", "bird.webp"):
        picture(tmp_path / name)
    rows = "file_name,prompt\ncat.png,a cat\nsub/dog.jpg,a dog\nbird.webp,a bird\n"
    (tmp_path / "metadata.csv").write_text(rows)
    rules = CaptionRules(trigger="sks", dropout=0.1)
    result = scan(Dataset(tmp_path, repeats=3, weight=0.5, captions=rules, flip=True))
    assert result.found == 3 and not result.dropped
    assert ids(result) == ["0/bird.webp@64x64", "0/cat.png@64x64", "0/sub/dog.jpg@64x64"]
    path = tmp_path / "cat.png"
    assert result.examples[1] == PictureExample(
        id="0/cat.png@64x64",
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        captions=("a cat",),
        size=(64, 64),
        bucket=(64, 64),
        caption_rules=rules,
        flip=True,
        repeats=3,
        weight=0.5,
    )
    assert {note.code for note in result.notes} == {"data.pictures_found", "data.captions_from", "data.sizes"}
    assert said(result, "pictures_found") == {"count": 3}
    assert said(result, "captions_from") == {"source": "metadata.csv", "count": 3}
    assert said(result, "sizes") == {"count": 1, "buckets": "64x64: 3"}


def test_one_picture_alone(tmp_path: Path):
    picture(tmp_path / "only.png")
    result = scan(tmp_path)
    assert ids(result) == ["0/only.png@64x64"] and result.examples[0].captions == ("",)
    assert said(result, "without_caption") == {"count": 1, "examples": "only.png"}


def test_a_missing_folder(tmp_path: Path):
    message = refusal(tmp_path / "gone")
    assert "gone does not exist" in message and "train_data_dir" in message


def test_a_file_is_no_folder(tmp_path: Path):
    message = refusal(picture(tmp_path / "cat.png"))
    assert "cat.png is a file" in message and "train_data_dir" in message


def test_an_empty_folder(tmp_path: Path):
    message = refusal(tmp_path)
    assert tmp_path.name in message and "is empty" in message and "PNG, JPEG, WEBP, BMP, TIFF, GIF" in message


def test_a_folder_without_pictures(tmp_path: Path):
    (tmp_path / "notes.docx").write_bytes(b"x")
    message = refusal(tmp_path)
    assert "no pictures" in message and "notes.docx" in message and "PNG, JPEG" in message


def test_a_folder_of_hidden_pictures(tmp_path: Path):
    picture(tmp_path / ".cat.png")
    message = refusal(tmp_path)
    assert ".cat.png" in message and "rename it" in message


def test_bad_files_are_set_aside_with_their_reason(tmp_path: Path):
    for index in range(40):
        picture(tmp_path / f"{index:02}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    whole = picture(tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic0000")
    result = scan(tmp_path)
    assert result.found == 44 and len(result.examples) == 40
    assert reasons(result) == {
        "empty.png": "picture_empty",
        "page.jpg": "picture_format",
        "cut.jpg": "picture_truncated",
        "phone.heic": "picture_format",
    }
    assert said(result, "dropped") == {"count": 4}
    assert said(result, "without_caption")["count"] == 40


def test_too_many_bad_files_stop_the_run(tmp_path: Path):
    for index in range(5):
        picture(tmp_path / f"{index}.png")
        (tmp_path / f"bad{index}.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert "5 of 10 pictures" in message and "10%" in message and "max_bad_fraction" in message
    assert all(f"bad{index}.png is empty" in message for index in range(3)) and "bad3.png" not in message
    assert len(scan(tmp_path, max_bad_fraction=0.5).examples) == 5
    with pytest.raises(DataError, match=r"5 of 10"):
        scan(tmp_path, max_bad_fraction=0.49)


def test_a_row_of_a_bad_picture_is_not_absent(tmp_path: Path):
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,prompt\ngood.png,x\nbad.png,y\n")
    result = scan(tmp_path, max_bad_fraction=0.5)
    assert said(result, "captions_from") == {"source": "metadata.csv", "count": 1}
    (tmp_path / "metadata.csv").write_text("file_name,prompt\ngood.png,x\nbad.png,y\ngone.png,z\n")
    assert "gone.png" in refusal(tmp_path, max_bad_fraction=0.5)


def test_captions_are_checked_before_pictures_are_decoded(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,prompt\ngone.png,x\n")
    assert "gone.png" in refusal(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")
def test_links_pipes_and_hidden_files_are_passed_over(tmp_path: Path):
    data, outside = tmp_path / "data", tmp_path / "outside"
    picture(data / "cat.png")
    picture(outside / "secret.png")
    (data / "sub").mkdir()
    (data / "sub" / "up").symlink_to(data)
    (data / "self.png").symlink_to(data / "self.png")
    (data / "nowhere.png").symlink_to(data / "gone.png")
    (data / "out.png").symlink_to(outside / "secret.png")
    (data / "out_folder").symlink_to(outside)
    (data / "inside.png").symlink_to("cat.png")
    os.mkfifo(data / "pipe.png")
    os.mkfifo(data / "pipe")
    (data / "null.png").symlink_to("/dev/null")
    picture(data / ".hidden.png")
    picture(data / ".git" / "object.png")
    (data / ".DS_Store").write_bytes(b"x")
    started = time.monotonic()
    result = scan(data)
    assert time.monotonic() - started < 5
    assert ids(result) == ["0/cat.png@64x64", "0/inside.png@64x64"]
    assert reasons(result) == {
        "up": "link_to_folder",
        "self.png": "link_broken",
        "nowhere.png": "link_broken",
        "out.png": "link_outside",
        "out_folder": "link_outside",
        "pipe.png": "not_a_file",
        "pipe": "not_a_file",
        "null.png": "link_outside",
        ".hidden.png": "hidden",
        ".git": "hidden",
    }
    assert said(result, "duplicates") == {"count": 1, "examples": "cat.png = inside.png"}


@pytest.mark.skipif(sys.platform == "win32", reason="a link as a folder")
def test_the_folder_itself_may_be_a_link(tmp_path: Path):
    picture(tmp_path / "real" / "cat.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert ids(scan(tmp_path / "link")) == ["0/cat.png@64x64"]


NAMES = [
    "café.png",
    unicodedata.normalize("NFD", "naïve.png"),
    "猫 🐈.png",
    "שלום.png",
    'it\'s "odd" %20.png',
    "-x.png",
]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file systems that change names")
def test_names_survive(tmp_path: Path):
    names = [*NAMES, "two\nlines.png"]
    for name in names:
        picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"about {name}", encoding="utf-8")
    result = scan(tmp_path)
    assert len(result.examples) == 7 and {example.path.name for example in result.examples} == set(names)
    assert all(example.captions == (f"about {example.path.name}",) for example in result.examples)
    assert ids(result) == sorted(f"0/{name}@64x64" for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_names_that_are_no_text_are_set_aside(tmp_path: Path):
    picture(tmp_path / "fine.png")
    with open(os.fsencode(tmp_path) + b"/bad\xff.png", "wb") as file:
        file.write((tmp_path / "fine.png").read_bytes())
    (dropped,) = scan(tmp_path).dropped
    assert dropped.code == "data.name_not_utf8"
    assert "bad\\xff.png" in messages.text(dropped.code, **dropped.params)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_one_may_not_read_is_set_aside(tmp_path: Path):
    picture(tmp_path / "fine.png")
    picture(tmp_path / "secret.png").chmod(0)
    assert reasons(scan(tmp_path, max_bad_fraction=0.5)) == {"secret.png": "unreadable"}


def test_kohya_folders_repeat(tmp_path: Path):
    picture(tmp_path / "10_red cat" / "a.png")
    picture(tmp_path / "2_dog" / "b.png")
    picture(tmp_path / "0_off" / "c.png")
    picture(tmp_path / "d.png")
    result = scan(Dataset(tmp_path, repeats=3))
    found = {example.path.name: (example.repeats, example.captions[0]) for example in result.examples}
    assert found == {"a.png": (30, "red cat"), "b.png": (6, "dog"), "d.png": (3, "")}
    assert result.found == 4
    assert said(result, "folder_off") == {"folder": "0_off", "repeats": 0, "count": 1}
    repeats = [dict(note.params) for note in result.notes if note.code == "data.folder_repeats"]
    assert repeats == [
        {"folder": "10_red cat", "repeats": 10, "count": 1},
        {"folder": "2_dog", "repeats": 2, "count": 1},
    ]


def test_nothing_but_folders_that_are_off(tmp_path: Path):
    picture(tmp_path / "0_off" / "c.png")
    message = refusal(tmp_path)
    assert "0_" in message and "rename a folder" in message


def test_several_folders_and_resolutions(tmp_path: Path):
    picture(tmp_path / "one" / "a.png", (200, 200))
    picture(tmp_path / "one" / "small.png", (40, 40))
    picture(tmp_path / "two" / "a.png", (300, 150))
    result = scan(tmp_path / "one", tmp_path / "two", sizes=Sizes((64, 96), 8))
    # The small one has one bucket whatever the resolution, and is not shown twice for it.
    assert ids(result) == [
        "0/a.png@64x64",
        "0/a.png@96x96",
        "0/small.png@40x40",
        "1/a.png@128x64",
        "1/a.png@80x40",
    ]
    assert result.found == 3
    smaller = [dict(note.params) for note in result.notes if note.code == "data.smaller"]
    assert smaller == [{"count": 1, "examples": "small.png", "resolution": size} for size in (64, 96)]


def test_exif_decides_the_bucket(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 64)).save(tmp_path / "x.jpg", exif=exif)
    (example,) = scan(tmp_path).examples
    assert example.size == (64, 128) and example.bucket == (40, 80)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (1, 5000)])
def test_pictures_below_the_smallest_step_are_set_aside(tmp_path: Path, size: tuple[int, int]):
    picture(tmp_path / "fine.png")
    picture(tmp_path / "tiny.png", size)
    (dropped,) = scan(tmp_path).dropped
    assert dropped.code == "data.picture_too_small"
    message = messages.text(dropped.code, **dropped.params)
    assert "tiny.png" in message and f"{size[0]}x{size[1]}" in message and "at least 8" in message


def test_very_long_pictures_are_set_aside_and_long_ones_told(tmp_path: Path):
    picture(tmp_path / "banner.png", (1600, 100))
    picture(tmp_path / "strip.png", (600, 100))
    picture(tmp_path / "wide.png", (400, 100))
    result = scan(tmp_path)
    assert ids(result) == ["0/strip.png@128x32", "0/wide.png@128x32"]
    (dropped,) = result.dropped
    message = messages.text(dropped.code, **dropped.params)
    assert "banner.png" in message and "1600x100" in message and "4:1" in message and "crop it yourself" in message
    assert said(result, "cropped") == {"count": 1, "examples": "strip.png@128x32"}


def test_nothing_usable_at_all(tmp_path: Path):
    picture(tmp_path / "tiny.png", (4, 4))
    message = refusal(tmp_path)
    assert "None of the pictures" in message and "tiny.png is 4x4" in message and "use a larger picture" in message


def test_a_resolution_below_the_step_is_a_mistake_of_the_config(tmp_path: Path):
    picture(tmp_path / "x.png")
    with pytest.raises(ConfigError, match="resolution is 32; this base works in steps of 64"):
        read([Dataset(tmp_path)], Sizes((32,), 64))


def test_oddities_are_told(tmp_path: Path):
    picture(tmp_path / "a.png", seed=1)
    picture(tmp_path / "copy.png", seed=1)
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (64, 64)).save(tmp_path / "profile.png", icc_profile=b"none")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "orphan.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,prompt\n")
    (tmp_path / "a.txt").write_text("a caption")
    result = scan(tmp_path)
    assert said(result, "duplicates") == {"count": 1, "examples": "a.png = copy.png"}
    assert said(result, "first_frame") == {"count": 1, "examples": "moving.gif"}
    assert said(result, "profile_ignored") == {"count": 1, "examples": "profile.png"}
    assert said(result, "other_files") == {"count": 3, "examples": "notes.md, orphan.txt, sub/metadata.csv"}
    assert said(result, "captions_beside") == {"source": ".txt", "count": 1}
    assert said(result, "without_caption")["count"] == 3


def test_known_pictures_are_not_decoded_again(tmp_path: Path):
    path = picture(tmp_path / "x.png", (80, 80))
    first = scan(tmp_path)
    known = {example.sha256: example.size for example in first.examples}
    assert scan(tmp_path, known=known) == first
    # Damaged behind the header: only a decode sees it.
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    half = hashlib.sha256(path.read_bytes()).hexdigest()
    assert "x.png" in refusal(tmp_path, known=known)
    assert ids(scan(tmp_path, known={half: (80, 80)})) == ids(first)


def test_what_changes_the_data_changes_the_fingerprint(tmp_path: Path):
    picture(tmp_path / "x.png", seed=1)
    (tmp_path / "x.txt").write_text("one")
    prints = [scan(tmp_path).examples[0].fingerprint]
    prints.append(scan(tmp_path).examples[0].fingerprint)
    (tmp_path / "x.txt").write_text("two")
    prints.append(scan(tmp_path).examples[0].fingerprint)
    picture(tmp_path / "x.png", seed=2)
    prints.append(scan(tmp_path).examples[0].fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_thousand_small_pictures_take_seconds(tmp_path: Path):
    one = picture(tmp_path / "0.png").read_bytes()
    for index in range(1000):
        # A comment behind the picture makes the bytes differ.
        (tmp_path / f"{index}.png").write_bytes(one + str(index).encode())
        (tmp_path / f"{index}.txt").write_text(f"picture {index}")
    started = time.process_time()
    result = scan(tmp_path)
    assert len(result.examples) == 1000 and result.examples[0].captions == ("picture 0",)
    assert said(result, "captions_beside") == {"source": ".txt", "count": 1000}
    assert time.process_time() - started < 10
