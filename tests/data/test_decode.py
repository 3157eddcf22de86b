"""Pictures of every mode, orientation and kind of damage."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lora_scripts.data.decode import (
    MAX_PIXELS,
    crop_box,
    decode,
    decode_bytes,
    displayed_size,
    fit,
    read_bytes,
    read_header,
)
from lora_scripts.errors import DataError


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def refusal(path: Path, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        decode(path, **options)
    assert path.name in str(caught.value)
    return caught.value


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from its raw rows (filter bytes included)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bomb() -> bytes:
    """10,000 x 10,000 pixels in 12 kB."""
    return png(10_000, 10_000, 1, 0, bytes(10_000 * 1251))


UPRIGHT = numpy.zeros((24, 48, 3), numpy.uint8)
UPRIGHT[:12, :24], UPRIGHT[:12, 24:], UPRIGHT[12:, :24], UPRIGHT[12:, 24:] = (
    (250, 0, 0),
    (0, 250, 0),
    (0, 0, 250),
    (250, 250, 0),
)


def stored(orientation: int) -> Image.Image:
    """What a camera stores of UPRIGHT: EXIF says which side row 0 and column 0 show."""
    row_zero, column_zero = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    pixels = UPRIGHT
    if "right" in (row_zero, column_zero):
        pixels = pixels[:, ::-1]
    if "bottom" in (row_zero, column_zero):
        pixels = pixels[::-1]
    return Image.fromarray(numpy.ascontiguousarray(pixels.swapaxes(0, 1) if orientation >= 5 else pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(tmp_path: Path, form: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    picture = stored(orientation)
    assert picture.size == ((24, 48) if orientation >= 5 else (48, 24))
    path = tmp_path / f"x.{form.lower()}"
    path.write_bytes(encoded(picture, form, exif=exif, **options))
    assert abs(numpy.asarray(decode(path)).astype(int) - UPRIGHT).max() <= 2
    assert displayed_size(path) == decode(path).size == (48, 24)


def test_a_png_with_its_exif_behind_the_pixels_is_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(stored(6), "PNG", exif=exif)
    begin = whole.index(b"eXIf") - 4
    length = 12 + struct.unpack_from(">I", whole, begin)[0]
    end = whole.index(b"IEND") - 4
    moved = whole[:begin] + whole[begin + length : end] + whole[begin : begin + length] + whole[end:]
    (tmp_path / "x.png").write_bytes(moved)
    assert displayed_size(tmp_path / "x.png") == decode(tmp_path / "x.png").size == (48, 24)


@pytest.mark.parametrize("value", [0, 9, 6000])
def test_senseless_orientations_leave_the_picture_as_it_is(tmp_path: Path, value: int):
    exif = Image.Exif()
    exif[0x0112] = value
    (tmp_path / "x.jpg").write_bytes(encoded(Image.fromarray(UPRIGHT), "JPEG", exif=exif))
    assert displayed_size(tmp_path / "x.jpg") == decode(tmp_path / "x.jpg").size == (48, 24)


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path):
    (tmp_path / "x.jpg").write_bytes(encoded(Image.fromarray(UPRIGHT), "JPEG", exif=b"Exif\0\0rubbish"))
    assert decode(tmp_path / "x.jpg").size == displayed_size(tmp_path / "x.jpg") == (48, 24)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(form: str):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    decoded = decode_bytes(data, Path("x"))
    assert decoded.first_of_several and read_header(data, Path("x")).first_of_several
    assert decoded.picture.getpixel((5, 5)) == (250, 0, 0)
    assert not decode_bytes(encoded(frames[0], form, **options), Path("x")).first_of_several


def test_a_zero_byte_file_is_refused(tmp_path: Path):
    (tmp_path / "empty.png").write_bytes(b"")
    error = refusal(tmp_path / "empty.png")
    assert error.code == "data.picture_empty" and "save it again or remove it" in str(error)


def test_a_web_page_named_jpg_is_refused(tmp_path: Path):
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    error = refusal(tmp_path / "page.jpg")
    assert error.code == "data.picture_format"
    assert "HTML" in str(error) and "PNG, JPEG, WEBP, BMP, TIFF, GIF" in str(error) and "convert it" in str(error)


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"8BPS\0\1", "PSD"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"PK\3\4", "ZIP"), (b"\1\2\3", "01 02 03")],
)
def test_other_formats_are_named(tmp_path: Path, start: bytes, name: str):
    (tmp_path / "x.png").write_bytes(start)
    assert name in str(refusal(tmp_path / "x.png"))


def test_formats_outside_the_list_are_not_decoded(tmp_path: Path):
    for form in ("PPM", "TGA", "ICNS", "PCX"):
        path = tmp_path / f"{form}.png"
        path.write_bytes(encoded(Image.new("RGB", (16, 16)), form))
        assert refusal(path).code == "data.picture_format"


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(1).integers(0, 256, (side, side, 3), numpy.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_half_a_file_is_refused(tmp_path: Path, form: str):
    data = encoded(noise(), form)
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    error = refusal(path)
    assert error.code in ("data.picture_truncated", "data.picture_damaged")
    assert "again or remove it" in str(error)
    if form == "JPEG":
        assert error.code == "data.picture_truncated" and "ends too early" in str(error)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_is_always_told_in_our_words():
    chance = random.Random(5)
    refused = 0
    files = [encoded(noise(24), form) for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")]
    files += [encoded(Image.new(mode, (24, 24)), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
    files += [encoded(Image.new(mode, (24, 24)), "TIFF") for mode in ("CMYK", "LAB", "I", "F")]
    for _ in range(3000):
        data = bytearray(chance.choice(files))
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
        for read in (decode_bytes, read_header):
            try:
                read(bytes(data), Path("x.png"))
            except DataError as error:
                refused += 1
                assert "x.png" in str(error)
    assert refused > 500


def test_pixel_bombs_are_refused_before_they_are_decoded(tmp_path: Path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb())
    assert path.stat().st_size < 13_000
    error = refusal(path)
    assert error.code == "data.too_many_pixels"
    assert "100.0 million pixels" in str(error) and "64 million" in str(error) and "scale it down" in str(error)
    with pytest.raises(DataError, match="million"):
        displayed_size(path)


def test_larger_bombs_and_own_caps(tmp_path: Path):
    path = tmp_path / "huge.png"
    path.write_bytes(png(20_000, 20_000, 1, 0, b"\0"))
    assert "400.0 million" in str(refusal(path))
    (tmp_path / "small.png").write_bytes(encoded(noise(), "PNG"))
    assert refusal(tmp_path / "small.png", max_pixels=4000).code == "data.too_many_pixels"
    assert decode(tmp_path / "small.png", max_pixels=4096).size == (64, 64)
    assert MAX_PIXELS == 64_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="measures resident memory the POSIX way")
def test_pixel_bombs_cost_no_memory(tmp_path: Path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "fine.png").write_bytes(encoded(noise(), "PNG"))
    program = """
import resource, sys
from pathlib import Path
from lora_scripts.data.decode import decode
from lora_scripts.errors import DataError
folder = Path(sys.argv[1])
decode(folder / "fine.png")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(folder / "bomb.png")
except DataError as error:
    print(error.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    code, growth = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert code == "data.too_many_pixels" and int(growth) < 20_000 * (1024 if sys.platform == "darwin" else 1)


def test_bombs_are_refused_in_every_thread(tmp_path: Path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: refusal(tmp_path / "bomb.png").code, range(64)))
    assert codes == ["data.too_many_pixels"] * 64


def test_files_larger_than_any_picture_are_not_read(tmp_path: Path):
    path = tmp_path / "film.png"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    error = refusal(path)
    assert error.code == "data.file_too_large" and "scale it down or remove it" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "pipe.png").code == "data.not_a_file"
    assert refusal(tmp_path).code == "data.not_a_file"


def test_an_absent_file_is_told(tmp_path: Path):
    error = refusal(tmp_path / "gone.png")
    assert error.code == "data.unreadable" and "check that it exists" in str(error)


def test_a_picture_that_changed_is_not_taken_for_the_old_one(tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(encoded(noise(), "PNG"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert decode(path, sha256=digest).size == (64, 64)
    path.write_bytes(encoded(noise(32), "PNG"))
    error = refusal(path, sha256=digest)
    assert error.code == "data.picture_changed" and "start the command again" in str(error)


def test_fit_of_the_same_size_changes_no_pixel():
    picture = noise()
    assert fit(picture, (64, 64)).tobytes() == picture.tobytes()


def test_fit_cuts_the_centre_when_only_one_side_is_too_long():
    picture = Image.fromarray(numpy.random.default_rng(2).integers(0, 256, (64, 96, 3), numpy.uint8))
    assert crop_box((96, 64), (64, 64)) == (16, 0, 80, 64)
    assert fit(picture, (64, 64)).tobytes() == picture.crop((16, 0, 80, 64)).tobytes()


def test_fit_scales_and_cuts_in_one():
    pixels = numpy.zeros((100, 300, 3), numpy.uint8)
    pixels[:, 100:200] = 255
    got = numpy.asarray(fit(Image.fromarray(pixels), (50, 50)))
    assert got.shape == (50, 50, 3) and got[:, 1:-1].min() > 200
    assert crop_box((300, 100), (50, 50)) == (100, 0, 200, 100)
    assert crop_box((100, 300), (64, 32)) == (0, 125, 100, 175)


@pytest.mark.parametrize("bucket", [(65, 64), (64, 72), (128, 128)])
def test_fit_never_enlarges(bucket: tuple[int, int]):
    with pytest.raises(DataError, match="enlarged") as caught:
        fit(noise(), bucket)
    assert "64x64" in str(caught.value) and f"{bucket[0]}x{bucket[1]}" in str(caught.value)


def test_what_is_read_is_what_is_hashed(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(encoded(noise(), "PNG"))
    assert read_bytes(tmp_path / "x.png") == (tmp_path / "x.png").read_bytes()
