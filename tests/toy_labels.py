"""A captioner as a third party would bring one, and pictures for it: it names the colour of a picture's middle.

`register(folder)` puts it on the way of Python, for this process and those it starts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from PIL import Image

from lora_scripts import registry

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250, 250, 250)}
MODULE = '''
"""Colours."""
import hashlib, time
from pathlib import Path
from pydantic import BaseModel, ConfigDict
from lora_scripts.contracts import Label, Tag
from lora_scripts.data.record import Note

NEEDS_MODEL = False
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250, 250, 250)}


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float = 0.0
    log: Path | None = None
    sentence: str = ""
    voice: str = "toy"
    always: str = ""
    judges: bool = False


def build(config, model, device):
    return Toy(config)


class Toy:
    batch_size = 4

    def __init__(self, config):
        self.config = config
        self.title = f"{config.voice} captioner"
        self.identity = hashlib.sha256(f"{config.voice} {config.sentence} {config.always}".encode()).hexdigest()
        self.judges_captions = config.judges

    def caption(self, pictures):
        time.sleep(self.config.seconds)
        if self.config.log:
            with self.config.log.open("a") as file:
                for picture in pictures:
                    file.write(hashlib.sha256(picture.tobytes()).hexdigest() + "\\n")
        return [self.label(picture) for picture in pictures]

    def label(self, picture):
        middle = picture.getpixel((picture.width // 2, picture.height // 2))
        apart = {name: sum(abs(a - b) for a, b in zip(middle, colour)) for name, colour in COLOURS.items()}
        name = min(apart, key=apart.get)
        sure = 1 - apart[name] / 765
        tags = [Tag(f"{name}_square", sure, "subject"), Tag("oil painting", 0.5, "medium")]
        tags += [Tag(f"on a table", 0.4, "setting")]
        tags += [Tag(word, 0.3, "palette") for word in self.config.always.split(",") if word]
        doubts = (Note("label.doubt_nothing"),) if sure < 0.7 else ()
        if self.config.sentence:
            return Label(self.config.sentence.replace("COLOUR", name), (), sure, doubts, self.config.voice)
        return Label("", tuple(tags), sure, doubts, self.config.voice)

    def embed_pictures(self, pictures):
        import numpy
        points = numpy.array([p.getpixel((p.width // 2, p.height // 2)) for p in pictures], dtype="float32") - 120
        return points / numpy.linalg.norm(points, axis=1, keepdims=True)

    def embed_texts(self, texts):
        import numpy
        names = [next((n for n in COLOURS if n in text), "white") for text in texts]
        points = numpy.array([COLOURS[name] for name in names], dtype="float32") - 120
        return points / numpy.linalg.norm(points, axis=1, keepdims=True)
'''


def register(folder: Path, monkeypatch) -> None:
    """Make the captioner `toy` known: a module and what an installed package says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy_captioner.py").write_text(MODULE, encoding="utf-8")
    info = folder / "toy_captioner-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-captioner\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lora_scripts.captioners]\ntoy = toy_captioner\n")
    monkeypatch.syspath_prepend(str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    forget()


def forget() -> None:
    """Look for plug-ins anew."""
    registry.names.cache_clear()
    registry._points.cache_clear()
    sys.modules.pop("toy_captioner", None)


def picture(path: Path, colour: str, shade: int = 0) -> Path:
    """Draw a square of one colour; `shade` makes it another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue = COLOURS[colour]
    Image.new("RGB", (8, 8), (max(0, red - shade), max(0, green - shade), max(0, blue - shade))).save(path)
    return path


def folder(path: Path, count: int = 8) -> Path:
    """Draw a folder of pictures of all colours."""
    for i in range(count):
        picture(path / f"{i:03d}.png", list(COLOURS)[i % len(COLOURS)], shade=i // len(COLOURS))
    return path
