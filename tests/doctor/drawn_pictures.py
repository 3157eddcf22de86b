"""Pictures of several kinds that nothing is wrong with, drawn anew for each number: photographs, drawings, patterns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("photograph", "portrait", "illustration", "line_art", "gradient", "noise", "night")


def draw(kind: str, number: int, size: tuple[int, int] = (640, 512)) -> Image.Image:
    """Return the picture `number` of a kind."""
    return _DRAWERS[kind](numpy.random.default_rng([KINDS.index(kind), number]), size)


def save_all(
    folder: Path, kind: str, count: int, size: tuple[int, int] = (640, 512), suffix: str = ".jpg"
) -> list[str]:
    """Draw `count` pictures of a kind into a folder; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{kind}_{number:03d}{suffix}" for number in range(count)]
    for number, name in enumerate(names):
        draw(kind, number, size).save(folder / name, quality=92)
    return names


def _cloud(rng: numpy.random.Generator, size: tuple[int, int], power: float = 1.3) -> numpy.ndarray:
    """Noise whose spectrum falls as in photographs: 0 to 1, (height, width)."""
    width, height = size
    frequency = numpy.hypot(numpy.fft.fftfreq(height)[:, None] * height, numpy.fft.rfftfreq(width)[None] * width)
    spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    values = numpy.fft.irfft2(spectrum / numpy.maximum(frequency, 1) ** power, (height, width))
    low, high = numpy.percentile(values, (1, 99))
    return numpy.clip((values - low) / (high - low), 0, 1)


def _colour(rng: numpy.random.Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(low, high, 3))  # type: ignore[return-value]


def _textured(rng: numpy.random.Generator, size: tuple[int, int], colours: tuple) -> Image.Image:
    cloud = _cloud(rng, size)[..., None]
    first, second = (numpy.array(colour, float) for colour in colours)
    values = first + (second - first) * cloud + rng.normal(0, 2, (size[1], size[0], 3))
    return Image.fromarray(numpy.clip(values, 0, 255).astype(numpy.uint8))


def _photograph(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Things in front of each other, each with its own texture: the "dead leaves" of natural images."""
    picture = _textured(rng, size, (_colour(rng), _colour(rng)))
    for _ in range(int(rng.integers(10, 30))):
        mask = Image.new("L", size)
        centre, radius = rng.uniform(0, 1, 2) * size, size[1] * 0.5 / rng.uniform(1.3, 12)
        turn, count = rng.uniform(0, 6.28), int(rng.integers(3, 9))
        angles = turn + numpy.arange(count) * 6.283 / count
        reach = radius * rng.uniform(0.6, 1.4, count)
        corners = [
            (float(x), float(y))
            for x, y in centre + numpy.stack([numpy.cos(angles), numpy.sin(angles)], 1) * reach[:, None]
        ]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        tile = _textured(rng, (size[0] // 2, size[1] // 2), (_colour(rng), _colour(rng))).resize(size)
        picture.paste(tile, mask=mask.filter(ImageFilter.GaussianBlur(0.6)))
    return picture


def _portrait(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Something sharp before a ground that is out of focus on purpose."""
    picture = _photograph(rng, size).filter(ImageFilter.GaussianBlur(12))
    front, mask = _photograph(rng, size), Image.new("L", size)
    box = (size[0] * 0.3, size[1] * 0.2, size[0] * 0.7, size[1] * 0.95)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    picture.paste(front, mask=mask.filter(ImageFilter.GaussianBlur(0.5)))
    return picture


def _illustration(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Flat shapes on one flat ground."""
    large = (2 * size[0], 2 * size[1])
    picture = Image.new("RGB", large, _colour(rng, 80))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 9))):
        left, top = rng.uniform(-0.1, 0.8, 2) * large
        right, bottom = (left, top) + rng.uniform(0.1, 0.5, 2) * large
        shape = (pen.ellipse, pen.rectangle)[int(rng.integers(2))]
        shape((left, top, right, bottom), fill=_colour(rng))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _line_art(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Black strokes on white."""
    large = (2 * size[0], 2 * size[1])
    picture = Image.new("RGB", large, "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 14))):
        points = numpy.cumsum(rng.normal(0, 60, (12, 2)), axis=0) + rng.uniform(0.25, 0.75, 2) * large
        pen.line([(float(x), float(y)) for x, y in points], fill="black", width=int(rng.integers(3, 12)), joint="curve")
    return picture.resize(size, Image.Resampling.LANCZOS)


def _gradient(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    angle, (first, second) = rng.uniform(0, 6.28), rng.uniform(0, 255, (2, 3))
    across, down = numpy.meshgrid(numpy.linspace(-1, 1, size[0]), numpy.linspace(-1, 1, size[1]))
    share = ((across * numpy.cos(angle) + down * numpy.sin(angle)) / 2.83 + 0.5)[..., None]
    return Image.fromarray((first + (second - first) * share).astype(numpy.uint8))


def _noise(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), numpy.uint8))


def _night(rng: numpy.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Little light, and some lamps."""
    picture = _photograph(rng, size).point(lambda value: value // 5)
    pen = ImageDraw.Draw(picture)
    for x, y in rng.uniform(0, 0.95, (12, 2)) * size:
        pen.ellipse((x, y, x + 16, y + 16), fill=(255, 240, 200))
    return picture


_DRAWERS: dict[str, Callable[[numpy.random.Generator, tuple[int, int]], Image.Image]] = {
    "photograph": _photograph,
    "portrait": _portrait,
    "illustration": _illustration,
    "line_art": _line_art,
    "gradient": _gradient,
    "noise": _noise,
    "night": _night,
}
