"""A folder of pictures with known faults, and clean pictures of several kinds that nothing may be said of.

Clean are: photograph-like scenes (noise of all scales, light, grain), flat illustrations, icons of simple shapes, and
gradients, some with bands over them. Captions are sentences beside each picture; all begin with the trigger, and one
word stands in nine of ten.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFilter

TRIGGER, MISSPELT, FUSED = "zwxfolk", "zwxflok", "lantern"
SIZE = (768, 512)
EACH = 9
"""Clean pictures of each of the four kinds."""


@dataclass(frozen=True)
class Planted:
    """What was put where; names relative to the folder, of pairs the original first."""

    root: Path
    clean: list[str]
    duplicates: list[tuple[str, str]]
    cut: tuple[str, str]
    small: str
    blurry: str
    truncated: str
    rotated: str
    lone_caption: str
    uncaptioned: str
    misspelt: str


def photograph(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A scene with structure of every scale: 1/f noise, a horizon, light from one side, and grain."""
    random = numpy.random.default_rng(seed)
    width, height = size
    across, down = numpy.meshgrid(numpy.fft.fftfreq(width), numpy.fft.fftfreq(height))
    falloff = 1 / numpy.maximum(numpy.hypot(across, down), 1 / width) ** 1.1
    layers = []
    for _ in range(2):
        noise = numpy.fft.ifft2(numpy.fft.fft2(random.normal(size=(height, width))) * falloff).real
        layers.append((noise - noise.mean()) / noise.std())
    light = numpy.linspace(-1, 1, width)[None, :] * random.uniform(-0.6, 0.6)
    horizon = (numpy.arange(height)[:, None] > height * random.uniform(0.4, 0.7)) * random.uniform(0.4, 0.9)
    tint = random.uniform(0.6, 1.2, size=(2, 3))
    pixels = 118 + 42 * (layers[0] + light - horizon)[..., None] * tint[0] + 22 * layers[1][..., None] * tint[1]
    pixels += random.normal(scale=3, size=(height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))


def illustration(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Flat colours with hard edges: hills, a sun, houses."""
    random = numpy.random.default_rng(1000 + seed)
    width, height = size

    def colour() -> tuple[int, ...]:
        return tuple(int(c) for c in random.integers(30, 245, 3))

    picture = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(picture)
    x, y, r = random.integers(60, width - 60), random.integers(40, height // 3), random.integers(30, 80)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour())
    for level in range(4):
        top = height * (0.4 + 0.12 * level)
        heights = top + random.uniform(-60, 60, 9)
        edge = [(width * i / 8, float(h)) for i, h in enumerate(heights)]
        draw.polygon([*edge, (width, height), (0, height)], fill=colour())
    for _ in range(7):
        x, y = random.integers(10, width - 90), random.integers(height // 2, height - 90)
        w, h = random.integers(30, 80, 2)
        draw.rectangle((x, y, x + w, y + h), fill=colour(), outline=(25, 25, 25), width=3)
        draw.polygon([(x - 6, y), (x + w / 2, y - h * 0.6), (x + w + 6, y)], fill=colour(), outline=(25, 25, 25))
    return picture


def icon(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Few large shapes on one ground, as icons have them."""
    random = numpy.random.default_rng(2000 + seed)
    width, height = size
    ground = tuple(int(c) for c in random.integers(200, 256, 3))
    picture = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(picture)
    for _ in range(3 + seed % 3):
        x, y = random.uniform(0.15, 0.85) * width, random.uniform(0.2, 0.8) * height
        r = random.uniform(50, 150)
        sides, turn = int(random.integers(3, 9)), float(random.uniform(0, 360))
        fill = tuple(int(c) for c in random.integers(0, 190, 3))
        draw.regular_polygon((x, y, r), sides, rotation=turn, fill=fill, outline=(10, 10, 10), width=6)
    return picture


def gradient(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Colours that run into each other without an edge; in every second one some bands lie over them."""
    random = numpy.random.default_rng(3000 + seed)
    width, height = size
    x, y = numpy.meshgrid(numpy.linspace(0, 1, width), numpy.linspace(0, 1, height))
    first, second, third = random.uniform(20, 235, size=(3, 3))
    turn = random.uniform(0, 2 * numpy.pi)
    along = (numpy.cos(turn) * (x - 0.5) + numpy.sin(turn) * (y - 0.5) + 0.7) / 1.4
    around = numpy.hypot(x - random.uniform(0.2, 0.8), y - random.uniform(0.2, 0.8)).clip(0, 1)
    pixels = first + (second - first) * along[..., None] + (third - first) * around[..., None] * 0.6
    picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(3 * (seed % 2)):
        left, wide = random.uniform(0, 0.8) * width, random.uniform(20, 70)
        lean = random.uniform(-150, 150)
        band = [(left, 0), (left + wide, 0), (left + wide + lean, height), (left + lean, height)]
        draw.polygon(band, fill=tuple(int(c) for c in random.integers(0, 256, 3)))
    return picture


KINDS = {"photograph": photograph, "illustration": illustration, "icon": icon, "gradient": gradient}
PLACES = "harbour meadow attic bridge orchard glacier kitchen station canyon library rooftop valley".split()
THINGS = "fox kettle violin ladder sparrow bicycle crown barrel piano ship lizard clock mill owl drum kite".split()
DEEDS = "resting waiting falling turning leaning hiding shining drifting".split()


def sentence(number: int) -> str:
    """A caption like no other's; `FUSED` is left out of every eleventh."""
    thing, other = THINGS[number % len(THINGS)], THINGS[(number * 5 + 3) % len(THINGS)]
    place, deed = PLACES[(number * 7) % len(PLACES)], DEEDS[(number * 3) % len(DEEDS)]
    fused = "" if number % 11 == 10 else f" near one {FUSED}"
    return f"{TRIGGER}, {deed} {thing} with {number} {other}s in some {place}{fused}"


def plant(root: Path) -> Planted:
    """Make the folder."""
    root.mkdir(parents=True)
    clean = []
    for kind, make in KINDS.items():
        for number in range(EACH):
            size = SIZE if number % 3 else (SIZE[1], SIZE[0])
            name = f"{kind}_{number}.{'jpg' if kind == 'photograph' else 'png'}"
            _save(make(number, size), root / name)
            clean.append(name)
    # The same bytes again; and the same picture smaller and in another format.
    shutil.copy(root / "illustration_1.png", root / "copied.png")
    with Image.open(root / "photograph_2.jpg") as picture:
        picture.resize((690, 460), Image.Resampling.LANCZOS).save(root / "saved_again.jpg", quality=82)
    with Image.open(root / "photograph_4.jpg") as picture:
        picture.crop((130, 60, 700, 480)).save(root / "cut_out.jpg", quality=92)
    _save(illustration(50).resize((210, 140), Image.Resampling.LANCZOS), root / "tiny.png")
    _save(photograph(60).filter(ImageFilter.GaussianBlur(7)), root / "out_of_focus.jpg")
    _save(photograph(61), root / "half.jpg")
    data = (root / "half.jpg").read_bytes()
    (root / "half.jpg").write_bytes(data[: len(data) // 2])
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph(62).rotate(90, expand=True).save(root / "turned.jpg", quality=92, exif=turned)
    _save(illustration(63), root / "wordless.png")
    extra = ["copied.png", "saved_again.jpg", "cut_out.jpg", "tiny.png", "out_of_focus.jpg", "half.jpg", "turned.jpg"]
    for number, name in enumerate([*clean, *extra]):
        (root / name).with_suffix(".txt").write_text(f"{sentence(number)}\n", encoding="utf-8")
    wrong = root / "icon_4.txt"
    wrong.write_text(wrong.read_text(encoding="utf-8").replace(TRIGGER, MISSPELT), encoding="utf-8")
    (root / "nobody.txt").write_text(f"{sentence(99)}\n", encoding="utf-8")
    return Planted(
        root,
        clean,
        [("illustration_1.png", "copied.png"), ("photograph_2.jpg", "saved_again.jpg")],
        ("photograph_4.jpg", "cut_out.jpg"),
        "tiny.png",
        "out_of_focus.jpg",
        "half.jpg",
        "turned.jpg",
        "nobody.txt",
        "wordless.png",
        "icon_4.png",
    )


def _save(picture: Image.Image, path: Path) -> None:
    if path.suffix == ".jpg":
        picture.save(path, quality=92)
    else:
        picture.save(path, compress_level=1)
