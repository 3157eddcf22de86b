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
from PIL import Image, ImageCms

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


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, gamma: float, primaries: tuple[tuple[float, float, float], ...] = ()) -> bytes:
    """A minimal ICC version 2 profile: one gamma, and for RGB the D50-adapted XYZ of the primaries."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + b"".join(map(fixed, (0.9642, 1.0, 0.8249))))]
    tags += [(b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79))]
    tags += [(b"cprt", b"text\0\0\0\0none\0")]
    tags += [(b"kTRC", curve)] if space == b"GRAY" else [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=False):
        tags.append((name, b"XYZ \0\0\0\0" + b"".join(map(fixed, xyz))))
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s12x4s", size, b"lcms", 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    head += bytes(68 - len(head)) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head + bytes(128 - len(head)) + table + body


DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def as_srgb(colour: tuple[int, int, int], gamma: float, primaries) -> tuple[int, ...]:
    """The same conversion by matrices and the sRGB curve, without a colour management library."""
    linear = (numpy.array(colour) / 255) ** gamma
    values = numpy.linalg.solve(numpy.array(SRGB).T, numpy.array(primaries).T @ linear)
    curve = numpy.where(values <= 0.0031308, values * 12.92, 1.055 * numpy.abs(values) ** (1 / 2.4) - 0.055)
    return tuple(int(value) for value in numpy.rint(curve.clip(0, 1) * 255))


def ycck() -> bytes:
    """A JPEG whose four channels are luma, two chromas and black: Adobe's transform byte says 2."""
    data = encoded(Image.new("CMYK", (16, 16), (200, 127, 127, 0)), "JPEG", quality=100)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    return data[:place] + b"\x02" + data[place + 1 :]


def palette(transparent: bool) -> bytes:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    return encoded(picture, "PNG", **({"transparency": 1} if transparent else {}))


def deep(mode: str, value: float) -> Image.Image:
    types = {"I;16": numpy.uint16, "I;16B": ">u2", "I": numpy.int32, "F": numpy.float32}
    return Image.fromarray(numpy.full((8, 8), value, types[mode]))


RGB16 = png(2, 2, 16, 2, (b"\0" + struct.pack(">6H", *[40000] * 6)) * 2)
GREY16_KEY = png(2, 2, 16, 0, (b"\0" + struct.pack(">2H", 40000, 40000)) * 2, (b"tRNS", struct.pack(">H", 40000)))
P3_PNG = encoded(Image.new("RGB", (8, 8), (200, 100, 50)), "PNG", icc_profile=profile(b"RGB ", 2.2, DISPLAY_P3))
ADOBE_JPEG = encoded(
    Image.new("RGB", (16, 16), (120, 180, 60)), "JPEG", quality=100, icc_profile=profile(b"RGB ", 563 / 256, ADOBE_RGB)
)


def stored_pixel(data: bytes) -> tuple[int, int, int]:
    """The numbers in a file, which a JPEG rounds."""
    return Image.open(io.BytesIO(data)).getpixel((0, 0))


# Half-transparent, so that the conversion must come before the white ground.
P3_ALPHA = encoded(Image.new("RGBA", (8, 8), (200, 100, 50, 128)), "PNG", icc_profile=profile(b"RGB ", 2.2, DISPLAY_P3))

GOLDEN = {
    "1": (encoded(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "L": (encoded(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77)),
    "LA": (encoded(Image.new("LA", (8, 8), (77, 128)), "PNG"), (166, 166, 166)),
    "LA transparent": (encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"), (255, 255, 255)),
    "L+tRNS": (encoded(Image.new("L", (8, 8), 77), "PNG", transparency=77), (255, 255, 255)),
    "1+tRNS": (encoded(Image.new("1", (8, 8), 0), "PNG", transparency=0), (255, 255, 255)),
    "P": (palette(transparent=False), (200, 100, 50)),
    "P+tRNS": (palette(transparent=True), (255, 255, 255)),
    "RGB": (encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG"), (1, 2, 3)),
    "RGB+tRNS": (encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
    "RGB 16 bit": (RGB16, (156, 156, 156)),
    "RGBA transparent red": (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
    "RGBA half red": (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "RGBA webp": (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "WEBP", lossless=True), (255, 127, 127)),
    "CMYK tiff": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "CMYK jpeg": (encoded(Image.new("CMYK", (16, 16), (55, 155, 205, 0)), "JPEG", quality=100), (200, 100, 50)),
    "YCCK jpeg": (ycck(), (200, 200, 200)),
    "LAB": (encoded(Image.new("LAB", (8, 8), (140, 158, 88)), "TIFF"), (155, 114, 202)),
    "I;16": (encoded(deep("I;16", 40000), "PNG"), (156, 156, 156)),
    "I;16 tiff": (encoded(deep("I;16", 40000), "TIFF"), (156, 156, 156)),
    "I;16B": (encoded(deep("I;16B", 40000), "TIFF"), (156, 156, 156)),
    "I;16+tRNS": (GREY16_KEY, (255, 255, 255)),
    "I": (encoded(deep("I", 40000), "TIFF"), (156, 156, 156)),
    "I 32 bit": (encoded(deep("I", 2**30), "TIFF"), (128, 128, 128)),
    "F unit": (encoded(deep("F", 0.5), "TIFF"), (128, 128, 128)),
    "F bytes": (encoded(deep("F", 156.0), "TIFF"), (156, 156, 156)),
    "F words": (encoded(deep("F", 40000.0), "TIFF"), (156, 156, 156)),
    "Display-P3": (P3_PNG, as_srgb((200, 100, 50), 2.2, DISPLAY_P3)),
    "Display-P3 half": (P3_ALPHA, tuple(round((c + 255) / 2) for c in as_srgb((200, 100, 50), 2.2, DISPLAY_P3))),
    "AdobeRGB jpeg": (ADOBE_JPEG, as_srgb(stored_pixel(ADOBE_JPEG), 563 / 256, ADOBE_RGB)),
    "L in AdobeRGB": (
        encoded(Image.new("L", (8, 8), 100), "PNG", icc_profile=profile(b"RGB ", 563 / 256, ADOBE_RGB)),
        as_srgb((100, 100, 100), 563 / 256, ADOBE_RGB),
    ),
    "L in grey gamma 1": (
        encoded(Image.new("L", (8, 8), 55), "PNG", icc_profile=profile(b"GRAY", 1.0)),
        as_srgb((55, 55, 55), 1.0, SRGB),
    ),
    "bmp": (encoded(Image.new("RGB", (8, 8), (9, 8, 7)), "BMP"), (9, 8, 7)),
    "gif": (encoded(Image.new("RGB", (8, 8), (9, 8, 7)), "GIF"), (9, 8, 7)),
}


def test_the_golden_colours_cover_every_mode():
    assert len(GOLDEN) == 34
    modes = {Image.open(io.BytesIO(data)).mode for data, _ in GOLDEN.values()}
    assert modes == {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F"}
    # The conversions do something: without them the stored numbers would come out.
    assert as_srgb((200, 100, 50), 2.2, DISPLAY_P3) == (216, 93, 24)
    assert as_srgb((120, 180, 60), 563 / 256, ADOBE_RGB) == (80, 181, 42)


@pytest.mark.parametrize("case", GOLDEN)
def test_colours_are_right(case: str):
    data, wanted = GOLDEN[case]
    decoded = decode_bytes(data, Path("x"))
    assert decoded.picture.mode == "RGB" and not decoded.profile_ignored
    pixels = numpy.asarray(decoded.picture).astype(int)
    assert abs(pixels - numpy.array(wanted)).max() <= 1, pixels[0, 0]


def test_sixteen_bit_gradients_keep_their_steps(tmp_path: Path):
    values = numpy.linspace(0, 65535, 256).round().astype(numpy.uint16).reshape(16, 16)
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(values), "PNG"))
    grey = numpy.asarray(decode(tmp_path / "x.png"))[..., 0]
    assert grey.ravel().tolist() == list(range(256))


@pytest.mark.parametrize(("mode", "value"), [("F", float("nan")), ("F", -1.0), ("F", 1e9), ("I", -5)])
def test_values_that_mean_no_colour_are_refused(tmp_path: Path, mode: str, value: float):
    path = tmp_path / "deep.tif"
    path.write_bytes(encoded(deep(mode, value), "TIFF"))
    error = refusal(path)
    assert error.code == "data.pixel_range" and "save it with 8 or 16 bits" in str(error)


@pytest.mark.parametrize("damaged", [b"no profile at all", profile(b"GRAY", 2.2), profile(b"RGB ", 2.2, SRGB)[:200]])
def test_a_profile_that_does_not_fit_is_ignored_and_told(damaged: bytes):
    data = encoded(Image.new("RGB", (8, 8), (200, 100, 50)), "PNG", icc_profile=damaged)
    decoded = decode_bytes(data, Path("x"))
    assert decoded.profile_ignored
    assert decoded.picture.getpixel((0, 0)) == (200, 100, 50)


def test_pillows_own_srgb_profile_changes_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), numpy.uint8))
    got = decode_bytes(encoded(noise, "PNG", icc_profile=srgb), Path("x")).picture
    assert abs(numpy.asarray(got).astype(int) - numpy.asarray(noise)).max() <= 1


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
    files += [data for data, _ in GOLDEN.values()]
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
