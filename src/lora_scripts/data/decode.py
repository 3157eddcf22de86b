"""Pictures from files: decoded once, fully and safely, to the RGB that a person sees.

What every picture goes through, in this order: size cap from the header, full decode, first frame of several,
deep grey values to 8 bits, the embedded colour profile to sRGB, transparency over white, EXIF orientation.
PIL and numpy are imported where they are used, since the config check loads this file.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.errors import DataError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# Photographs in a format that is not decoded: a person who puts them here wants them trained on.
FOREIGN_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
MAX_PIXELS = 64_000_000
# No allowed format needs more than 16 bytes a pixel uncompressed, and a small picture may carry large metadata.
_BYTES_PER_PIXEL, _METADATA_BYTES = 16, 64 * 2**20

# What Pillow's decoders raise on damaged files.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
_SIGNATURES = (
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "PSD"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"version https://git-lfs", "Git LFS"),
)
# Pillow's catch of warnings changes state of the whole process, and pictures are opened by several threads.
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """A decoded picture and what the user should know of it.

    Attributes:
        picture: RGB, upright.
        opacity: L, upright: 255 where it was opaque before it was put over white; None where it has no transparency.
        first_of_several: the file is animated or has several pages, and the others were left out.
        profile_ignored: its colour profile is damaged or for another kind of picture.
    """

    picture: Image.Image
    first_of_several: bool = False
    profile_ignored: bool = False
    opacity: Image.Image | None = None


@dataclass(frozen=True)
class Header:
    """What a picture's first bytes tell: (width, height) as displayed, and whether it has further frames."""

    size: tuple[int, int]
    first_of_several: bool


def decode(path: Path, *, max_pixels: int = MAX_PIXELS, sha256: str | None = None) -> Image.Image:
    """Return the picture as a person sees it: RGB, upright, over white; of an animation the first frame.

    Args:
        path: a PNG, JPEG, WEBP, BMP, TIFF or GIF file; the bytes decide, not the suffix.
        max_pixels: pictures with more are refused before they are decoded.
        sha256: what the file's bytes must hash to, so that work cached under that hash cannot be another picture's.

    Raises:
        DataError: the file cannot be read, is not a picture, is damaged, too large, or has changed.
    """
    data = read_bytes(path, max_pixels=max_pixels)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError("data.picture_changed", path=path)
    return decode_bytes(data, path, max_pixels=max_pixels).picture


def displayed_size(path: Path) -> tuple[int, int]:
    """Return (width, height) after EXIF rotation, from the header; equal to the size of `decode(path)`.

    Raises:
        DataError: as for `decode`; damage behind the header is not seen.
    """
    return read_header(read_bytes(path), path).size


def fit(picture: Image.Image, bucket: tuple[int, int]) -> Image.Image:
    """Scale the picture down (Lanczos) and cut its centre, to exactly `bucket` (width, height); never upscale.

    Raises:
        DataError: the picture is smaller than the bucket.
    """
    from PIL import Image

    if picture.width < bucket[0] or picture.height < bucket[1]:
        size, wanted = f"{picture.width}x{picture.height}", f"{bucket[0]}x{bucket[1]}"
        raise DataError("data.smaller_than_bucket", size=size, bucket=wanted)
    return picture.resize(bucket, Image.Resampling.LANCZOS, box=crop_box(picture.size, bucket))


def crop_box(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) in the picture's pixels of the centred part that becomes the bucket.

    What `fit` makes of a picture is decided by its bytes, this box and the bucket: they belong into a cache key.
    """
    (width, height), (columns, rows) = size, bucket
    if width * rows >= columns * height:
        margin = (width - height * columns / rows) / 2
        return (margin, 0.0, width - margin, float(height))
    margin = (height - width * rows / columns) / 2
    return (0.0, margin, float(width), height - margin)


def read_bytes(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the bytes of a regular file that may hold a picture of `max_pixels`.

    Raises:
        DataError: it cannot be read, is a pipe, folder or device, is empty, or is larger than any such picture.
    """
    allowed = max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("data.not_a_file", path=path)
        if status.st_size > allowed:
            size, limit = f"{status.st_size / 1e6:.0f}", f"{allowed / 1e6:.0f}"
            raise DataError("data.file_too_large", path=path, megabytes=size, allowed=limit)
        data = path.read_bytes()
    except OSError as error:
        raise DataError("data.unreadable", path=path, reason=error.strerror or error) from error
    if not data:
        raise DataError("data.picture_empty", path=path)
    return data


def read_header(data: bytes, path: Path, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Return what the header says, without decoding the pixels.

    Raises:
        DataError: the bytes are no allowed picture, or it has more than `max_pixels`.
    """
    image = _open(data, path, max_pixels)
    try:
        orientation = 1 if image.format == "TIFF" and _tiff_turns(image) else _orientation(image, data)
        width, height = image.size
        several = bool(getattr(image, "is_animated", False))
    except _BROKEN as error:
        raise _damage(error, path) from error
    return Header((height, width) if orientation >= 5 else (width, height), several)


def decode_bytes(data: bytes, path: Path, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a picture's bytes; `path` only names it in messages.

    Raises:
        DataError: the bytes are no allowed picture, too large or damaged.
    """
    image = _open(data, path, max_pixels)
    try:
        several = bool(getattr(image, "is_animated", False))
        image.load()
        orientation = _orientation(image)
        picture, opacity, profile_ignored = _to_rgb(image, path)
        picture = _upright(picture, orientation)
        opacity = None if opacity is None else _upright(opacity, orientation)
    except _BROKEN as error:
        raise _damage(error, path) from error
    return Decoded(picture, several, profile_ignored, opacity)


def _open(data: bytes, path: Path, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header; nothing larger than the cap gets past here."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        # Pillow's own sentence holds the number of pixels, and nothing else does.
        number = re.search(r"\d+", str(error))
        raise _too_many_pixels(int(number.group()) if number else max_pixels, max_pixels, path) from error
    except UnidentifiedImageError as error:
        kind = _looks_like(data)
        if kind in FORMATS:
            raise DataError("data.picture_damaged", path=path, reason=f"{kind}: header") from error
        raise DataError("data.picture_format", path=path, looks=kind, allowed=", ".join(FORMATS)) from error
    except _BROKEN as error:
        raise _damage(error, path) from error
    if image.width * image.height > max_pixels:
        raise _too_many_pixels(image.width * image.height, max_pixels, path)
    return image


def _too_many_pixels(pixels: int, max_pixels: int, path: Path) -> DataError:
    return DataError(
        "data.too_many_pixels", path=path, megapixels=f"{pixels / 1e6:.1f}", allowed=f"{max_pixels / 1e6:g}"
    )


def _damage(error: BaseException, path: Path) -> DataError:
    """Tell a file that ends too early from one that is damaged otherwise."""
    if "truncated" in str(error).lower():
        return DataError("data.picture_truncated", path=path)
    return DataError("data.picture_damaged", path=path, reason=str(error) or type(error).__name__)


def _looks_like(data: bytes) -> str:
    """Name the format that the first bytes belong to, else print them."""
    for offset, signature, name in _SIGNATURES:
        if data[offset:].startswith(signature):
            return name
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    return "XML" if start.startswith((b"<?xml", b"<svg")) else data[:8].hex(" ")


def _orientation(image: Image.Image, undecoded: bytes | None = None) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it makes no sense."""
    from PIL import Image

    try:
        # The PNG reader decodes the whole picture to find an EXIF chunk behind the pixels; look for one instead.
        if undecoded is not None and image.format == "PNG" and not _png_text_behind_pixels(undecoded):
            value = Image.Image.getexif(image).get(0x0112)
        else:
            value = image.getexif().get(0x0112)
    except _BROKEN:
        # Viewers show a picture with a damaged EXIF block as it is stored, and so must we.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _tiff_turns(image: Image.Image) -> bool:
    """Say whether Pillow's TIFF reader has applied the orientation to `size` already."""
    return image.tag_v2.get(0x0112) in (5, 6, 7, 8)  # type: ignore[attr-defined]


def _png_text_behind_pixels(data: bytes) -> bool:
    position, pixels_seen = 8, False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if pixels_seen and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        pixels_seen = pixels_seen or kind == b"IDAT"
        position += 12 + length
    return False


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def _to_rgb(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None, bool]:
    """Return (RGB picture, its opacity, whether its colour profile had to be ignored)."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    colour, alpha = _split_alpha(image, path)
    converted = _through_profile(colour, profile) if profile else None
    profile_ignored = bool(profile) and converted is None
    if converted is None:
        converted = _lab_to_rgb(colour) if colour.mode == "LAB" else colour.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", converted.size, "white")
        white.paste(converted, mask=alpha)
        converted = white
    return converted, alpha, profile_ignored


def _split_alpha(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours in a mode of 8 bits a channel, and the opacity (L) where there is any."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image, path)
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode in ("P", "RGBX", "HSV", "YCbCr") else image, None
    if image.mode in ("LA", "La"):
        both = image.convert("LA")
        return both.getchannel("L"), both.getchannel("A")
    both = image.convert("RGBA")
    if image.mode in ("1", "L"):
        return both.getchannel("R"), both.getchannel("A")
    return both.convert("RGB"), both.getchannel("A")


def _eight_bits(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Scale grey values of 16 bits, 32 bits or floats to 8 bits; Pillow's own conversion only cuts them off.

    Whole numbers up to 65535 count as 16-bit values; floats count as 0..1, 0..255 or 0..65535, the least that fits.
    """
    import numpy
    from PIL import Image

    values = numpy.asarray(image)
    low, high = float(values.min()), float(values.max())
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, float(2**31 - 1))
    white = next((white for white in whites if high <= white), None)
    # Written so that a NaN fails too.
    if white is None or not low >= 0:
        raise DataError("data.pixel_range", path=path, low=f"{low:g}", high=f"{high:g}")
    scaled = numpy.rint(values.astype(numpy.float32) * numpy.float32(255 / white))
    grey = Image.fromarray(scaled.astype(numpy.uint8))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey, None
    return grey, Image.fromarray(numpy.where(values == key, 0, 255).astype(numpy.uint8))


def _through_profile(colour: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert to sRGB by the embedded profile; None where that is damaged or for another kind of picture."""
    from PIL import ImageCms

    modes = {"RGB": ("RGB", "L", "1"), "GRAY": ("L",), "CMYK": ("CMYK",), "Lab": ("LAB",)}
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if colour.mode not in modes.get(space, ()):
            return None
        # Grey pictures often carry a profile for colours: their values mean three equal ones.
        return ImageCms.profileToProfile(
            colour.convert("RGB") if space == "RGB" else colour,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, *_BROKEN):
        return None


def _lab_to_rgb(colour: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(colour, lab, srgb, outputMode="RGB")  # type: ignore[return-value]
