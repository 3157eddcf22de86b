"""Pictures that are broken, hostile, oddly shaped or oddly named, from the folder to what a person reads."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts.data.readers import pictures as reader
from lora_scripts.data.record import Dataset, PictureExample, Scan, Sizes
from tests import tiny

POSIX = pytest.mark.skipif(os.name != "posix", reason="such names and files are POSIX's")
# macOS keeps one Unicode form of a name, Windows forbids most of these.
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the file system takes such names on Linux only")


def scan(folder: Path, **options) -> Scan:
    return reader.read([Dataset(folder)], Sizes((64,), 8), **options)


def bomb(path: Path, side: int) -> Path:
    """Write a PNG of `side` x `side` grey pixels that takes some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side // 8 + 1) * side, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def harm(folder: Path) -> None:
    """Add four files that are no pictures, and one whose name lies about its format but is one."""
    (folder / "empty.png").write_bytes(b"")
    whole = folder / "cut.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (folder / "notes.webp").write_bytes(b"only words")
    Image.new("RGB", (48, 48), "red").save(folder / "really_a_png.jpg", format="PNG")


def test_f65_bad_images_are_listed_with_their_reasons(data, settings, plan, contents):
    tiny.tiny_pictures(data, 4)
    harm(data)
    before = contents(data)
    told = plan(settings | {"max_bad_fraction": 0.6})
    for name, reason in {
        "empty.png": "0 bytes",
        "cut.jpg": "ends too early",
        "page.jpg": "looks like HTML",
        "notes.webp": "not a picture",
    }.items():
        assert any(name in line and reason in line for line in told.splitlines()), name
    assert "Files left out: 4." in told and "really_a_png" not in told.partition("Files left out")[2]
    assert contents(data) == before


def test_f65_bad_images_beyond_the_allowed_share_stop_the_run(data, settings, command, contents, tmp_path):
    tiny.tiny_pictures(data, 4)
    harm(data)
    before = contents(data)
    answer = command("train", settings)
    assert answer.code == 3 and "4 of 9 pictures" in answer.error and "max_bad_fraction" in answer.error
    assert "10%" in answer.error and len(answer.error.splitlines()) == 1
    assert contents(data) == before and not (tmp_path / "out").exists()


def test_f66_pixel_bombs_are_refused_before_they_are_decoded(data, settings, plan):
    tiny.tiny_pictures(data, 4)
    sizes = [bomb(data / f"bomb{side}.png", side).stat().st_size for side in (10_000, 20_000)]
    assert sizes[0] < 20_000 and sizes[1] < 60_000
    resource = pytest.importorskip("resource")
    # The reader's own libraries are loaded by now.
    scan(tiny.tiny_pictures(data.parent / "others", 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = plan(settings | {"max_bad_fraction": 0.5})
    assert "100.0 million pixels" in told and "400.0 million pixels" in told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (50 << 10) * (1024 if _bytes() else 1)


def _bytes() -> bool:
    """Say whether peak memory is counted in bytes here, rather than in KiB."""
    return sys.platform == "darwin"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_f67_exif_1_to_8_are_upright_in_size_and_pixels(data, orientation):
    from lora_scripts.data import decode

    stored = Image.new("RGB", (96, 48), "white")
    stored.paste("red", (0, 0, 48, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(data / "a.png", exif=exif)
    (example,) = scan(data).examples
    assert isinstance(example, PictureExample)
    assert example.size == ((48, 96) if orientation >= 5 else (96, 48))
    assert (example.bucket[0] < example.bucket[1]) == (orientation >= 5)
    upright = decode.fit(decode.decode(example.path, sha256=example.sha256), example.bucket)
    # Where the stored corner (left, top) is displayed: EXIF 2.32, section 4.6.4.
    right, bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    width, height = upright.size
    red = upright.getpixel((width - 4 if right else 3, height - 4 if bottom else 3))
    other = upright.getpixel((3 if right else width - 4, 3 if bottom else height - 4))
    assert red == (255, 0, 0) and other == (255, 255, 255)


MODES = {
    "CMYK.jpg": (Image.new("CMYK", (64, 64), (0, 255, 255, 0)), (255, 0, 0), 40),
    "I;16.png": (Image.new("I;16", (64, 64), 40_000), (156, 156, 156), 1),
    "F.tif": (Image.new("F", (64, 64), 0.5), (128, 128, 128), 1),
    "1.png": (Image.new("1", (64, 64), 1), (255, 255, 255), 0),
    "LA.png": (Image.new("LA", (64, 64), (0, 0)), (255, 255, 255), 0),
    "RGBA.png": (Image.new("RGBA", (64, 64), (255, 0, 0, 0)), (255, 255, 255), 0),
    "P.gif": (Image.new("RGB", (64, 64), (0, 0, 255)).quantize(4), (0, 0, 255), 1),
}


@pytest.mark.parametrize("name", MODES)
def test_f68_odd_modes_reach_the_example_as_the_rgb_a_person_sees(data, name):
    from lora_scripts.data import decode

    picture, wanted, tolerance = MODES[name]
    picture.save(data / name)
    found = scan(data)
    (example,) = found.examples
    assert not found.dropped and isinstance(example, PictureExample)
    colour = decode.decode(example.path, sha256=example.sha256).getpixel((5, 5))
    assert max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= tolerance


def test_f68_the_modes_are_all():
    assert len(MODES) == 7


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "MPO"])
def test_f69_animated_and_several_pages_give_the_first_and_say_so(data, settings, plan, form):
    frames = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue", "green")]
    suffix = "jpg" if form == "MPO" else form.lower()
    frames[0].save(data / f"moving.{suffix}", format=form, save_all=True, append_images=frames[1:])
    told = plan(settings)
    if form != "MPO":
        assert f"only the first is used: 1 (moving.{suffix})" in told
    (example,) = scan(data).examples
    from lora_scripts.data import decode

    assert isinstance(example, PictureExample)
    red, _, blue = decode.decode(example.path).getpixel((5, 5))
    assert red > 240 and blue < 15


def test_f69_a_thousand_frames_cost_no_more_than_one(data):
    import time

    frames = [Image.new("P", (48, 48), number % 8) for number in range(1000)]
    frames[0].save(data / "many.gif", save_all=True, append_images=frames[1:])
    started = time.perf_counter()
    assert len(scan(data).examples) == 1
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("size", "words"), [((1, 1), "at least 8 a side"), ((1, 5000), "at least 8"), ((1600, 100), "")]
)
def test_f70_extreme_shapes_name_the_rule(data, size, words):
    tiny.tiny_pictures(data, 3)
    Image.new("RGB", size).save(data / "odd.png")
    found = scan(data)
    from lora_scripts import messages

    sentences = [messages.text(one.code, **one.params) for one in found.dropped]
    assert len(sentences) == 1 and f"{size[0]}x{size[1]}" in sentences[0] and "odd.png" in sentences[0]
    assert words in sentences[0] and (words or "buckets are at most" in sentences[0])


@LINUX
@pytest.mark.parametrize("pair", [("x.png", "x.jpg"), ("A.PNG", "a.png")])
def test_f71_name_collision_lists_both(data, settings, command, pair):
    for name in pair:
        Image.new("RGB", (48, 48), "red").save(data / name)
    sidecar = data / f"{Path(pair[1]).stem}.txt"
    sidecar.write_text("one caption for two")
    answer = command("train", settings)
    assert answer.code == 3 and f"share the caption file {sidecar.name}" in answer.error
    assert all(name in answer.error for name in pair)


def test_f72_duplicate_content_is_told_with_its_weight(data, settings, plan):
    tiny.tiny_pictures(data, 3)
    (data / "again.png").write_bytes((data / "disc1.png").read_bytes())
    told = plan(settings)
    assert "content is there already: 1 (again.png = disc1.png); each counts as often as it is there" in told


@POSIX
def test_f73_links_and_pipes_are_passed_over_with_a_reason_and_no_hang(data, settings, plan, tmp_path):
    tiny.tiny_pictures(data, 3)
    outside = tiny.tiny_pictures(tmp_path / "outside", 1) / "disc0.png"
    (data / "loop.png").symlink_to(data / "loop.png")
    (data / "up").symlink_to(data)
    (data / "out.png").symlink_to(outside)
    (data / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(data / "pipe.png")
    told = plan(settings)
    assert "Pictures found: 3." in told and "Files left out: 5." in told
    for name, reason in {
        "loop.png": "leads nowhere or to itself",
        "up ": "link to the folder",
        "out.png": "leaves the data folder",
        "zero.png": "leaves the data folder",
        "pipe.png": "is a pipe",
    }.items():
        assert any(name in line and reason in line for line in told.splitlines()), name


NAMES = (
    "caf\u00e9.png",
    "cafe\u0301s.png",
    "\U0001f600.png",
    "\u0645\u0631\u062d\u0628\u0627.png",
    'it\'s "so".png',
    "100%s {path} %d.png",
    "two\nlines.png",
    "\x1b[2Jclear.png",
    "-rf.png",
    "CON.png",
    "dot..png",
    "l" * 251 + ".png",
)


@LINUX
def test_f74_unicode_names_round_trip_from_scan_to_plan_and_run(data, settings, command):
    import json

    for number, name in enumerate(NAMES):
        Image.new("RGB", (48, 48), (20 * number, 0, 0)).save(data / name)
    (data / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": name, "prompt": f"thing {i}"}) for i, name in enumerate(NAMES))
    )
    (data / "broken\x1b[31m\n.png").write_bytes(b"")
    settings |= {"epochs": 1, "batch_size": 12}
    answer = command("train", settings)
    assert answer.code == 0, answer.error
    assert "Captions from metadata.jsonl: 12." in answer.out
    assert "\x1b" not in answer.out and "broken\\x1b[31m\\n.png is empty" in answer.out
    record = json.loads((data.parent / "out" / "run.json").read_text(encoding="utf-8"))
    assert {key[2:].rpartition("@")[0] for key in record["data"]} == {*NAMES}
    # The same command knows every file again.
    assert command("train", settings).code == 0


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_f36_perm_denied_input_is_listed(data, settings, plan):
    tiny.tiny_pictures(data, 10)
    (data / "disc3.png").chmod(0)
    told = plan(settings)
    assert "Files left out: 1." in told and "disc3.png cannot be read (Permission denied)" in told


@pytest.mark.parametrize(
    "key", ["train_data_dir", "metadata_path", "base_model", "output_dir", "cache_dir", "init_lora"]
)
@pytest.mark.parametrize("value", ["/tmp/" + "l" * 300, "a\0b"], ids=["long", "NUL"])
def test_f39_long_or_reserved_name_of_a_setting_is_refused_in_a_sentence(data, settings, command, key, value):
    tiny.tiny_pictures(data, 2)
    answer = command("check", settings | {key: value})
    assert answer.code == 2 and len(answer.error.splitlines()) == 1 and len(answer.error) < 900


@LINUX
def test_f39_a_row_with_a_name_that_no_file_can_have_is_an_absent_picture(data, settings, command):
    tiny.tiny_pictures(data, 2)
    long = "l" * 300 + ".png"
    (data / "metadata.csv").write_text(f"file_name,prompt\ndisc0.png,a\n{long},b\n")
    answer = command("check", settings)
    assert answer.code == 3 and long in answer.error and "missing_pictures: ignore" in answer.error
