"""Golden colours: what a picture of each mode and colour profile looks like."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from lora_scripts.data.decode import decode, decode_bytes
from lora_scripts.errors import DataError


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from its raw rows (filter bytes included)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


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
    with pytest.raises(DataError, match=r"deep\.tif .*save it with 8 or 16 bits"):
        decode(path)


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
