"""Booru tags with probabilities, by a WD14 tagger in ONNX Runtime: `model.onnx` and `selected_tags.csv` of one folder.

What these models take, by their authors' description: the picture put into the middle of a white square, scaled to the
model's side, blue before red, values 0 to 255. Every tag is a yes or no of its own, so the scores are probabilities.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.contracts import Label, Tag
from lora_scripts.data.record import Note
from lora_scripts.errors import BaseModelError, MachineError

if TYPE_CHECKING:
    import numpy
    from PIL import Image

NEEDS_MODEL = True
VERSION = 2
PATTERNS = ("model.onnx", "selected_tags.csv")
# What other boorus number besides, such as artists (1), is not said.
GROUPS = {"0": "general", "4": "character", "9": "rating"}
# Faces made of signs, whose underscores are not spaces.
FACE = re.compile(r"[^a-z]*_[^a-z]*|[0-9xouv><=;:^@|+.~-]{1,3}_[0-9xouv><=;:^@|+.~-]{1,3}")
SERIES = re.compile(r"(.+)_\((.+)\)")
UNSURE = 0.5


class Config(BaseModel):
    """Its own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    general: float = Field(0.35, ge=0, le=1)
    character: float = Field(0.85, ge=0, le=1)
    rating: Literal["off", "first", "last"] = "off"
    order: Literal["confidence", "alphabet"] = "confidence"
    expand: bool = False
    spaces: bool = True
    escape: bool = False
    most: int = Field(60, ge=1, le=10_000)
    batch: int = Field(8, ge=1, le=1024)


@dataclass(frozen=True)
class Named:
    """One output of the model."""

    name: str
    group: str


def build(config: Config, model: str | None, device: str) -> Any:
    """Load the model; see `contracts.Captioner`.

    Raises:
        MachineError: ONNX Runtime is not installed.
        BaseModelError: the files are missing or do not belong together.
    """
    from lora_scripts.captioners import _folders

    assert model is not None
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError("llm.no_extra", what="captioner: wd14", extra="onnx") from error
    folder = _folders.find(model, PATTERNS)
    for name in PATTERNS:
        if not (folder / name).is_file():
            raise BaseModelError("captioner.file_missing", model=model, name=name)
    tags = _read_tags(folder / PATTERNS[1])
    wanted: list[Any] = []
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        wanted = [("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2] or 0)})]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    said = config.model_dump_json(exclude={"batch"})
    identity = _folders.identity(folder, f"wd14 {VERSION} {said}")
    try:
        session = onnxruntime.InferenceSession(folder / PATTERNS[0], settings, [*wanted, "CPUExecutionProvider"])
        tagger = Tagger(config, model, session, tags, identity)
        tagger.tried()
    except BaseModelError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise BaseModelError("captioner.onnx_broken", model=model, reason=reason) from error
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        # The usual wheel has no CUDA, and a machine with a GPU asks for it by itself.
        tagger.title += ", on the CPU (this ONNX Runtime has no CUDA)"
    return tagger


def _read_tags(path: Path) -> list[Named]:
    """Read selected_tags.csv: the columns name and category, a row for each output.

    Raises:
        BaseModelError: it is no such table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        if short := next((number for number, row in enumerate(rows, 2) if not row["name"] or not row["category"]), 0):
            raise ValueError(f"line {short}")
        return [Named(row["name"], GROUPS.get(row["category"], "other")) for row in rows]
    except (OSError, ValueError, csv.Error, KeyError, TypeError) as error:
        raise BaseModelError("captioner.tags_broken", path=path, reason=str(error) or type(error).__name__) from error


class Tagger:
    """One loaded tagger."""

    def __init__(self, config: Config, model: str, session: Any, tags: Sequence[Named], identity: str):
        self.config, self.session, self.tags, self.identity = config, session, list(tags), identity
        self.title, self.batch_size = f"WD14, {Path(model).name}", config.batch
        given, out = session.get_inputs()[0], session.get_outputs()[0]
        self.model, shape = model, given.shape
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
            raise BaseModelError("captioner.onnx_broken", model=model, reason=f"input {shape}, not (n, side, side, 3)")
        self.side, self.input, self.output = shape[1], given.name, out.name
        # Some are exported for one picture at a time.
        self.fixed = shape[0] if isinstance(shape[0], int) else None

    def tried(self) -> None:
        """Show it a picture.

        Raises:
            BaseModelError: its answer is not a probability for each tag.
        """
        import numpy
        from PIL import Image

        scores = self._run(self._ready(Image.new("RGB", (3, 2), (200, 90, 20)))[None])
        if scores.ndim != 2 or scores.shape[1] != len(self.tags):
            outputs = scores.shape[-1] if scores.ndim else 1
            raise BaseModelError("captioner.tags_count", model=self.model, outputs=outputs, tags=len(self.tags))
        if not numpy.isfinite(scores).all() or scores.min() < -1e-3 or scores.max() > 1.001:
            reason = f"outputs from {scores.min():.2f} to {scores.max():.2f}, not 0 to 1"
            raise BaseModelError("captioner.onnx_broken", model=self.model, reason=reason)

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label a batch; see `contracts.Captioner`."""
        import numpy

        ready = numpy.stack([self._ready(picture) for picture in pictures])
        parts = [ready[i : i + (self.fixed or len(ready))] for i in range(0, len(ready), self.fixed or len(ready))]
        rows = numpy.concatenate([self._run(part) for part in parts])
        return [self._label(row) for row in rows]

    def _run(self, part: numpy.ndarray) -> numpy.ndarray:
        import numpy

        count = len(part)
        if self.fixed and count < self.fixed:
            part = numpy.concatenate([part, numpy.zeros((self.fixed - count, *part.shape[1:]), numpy.float32)])
        return self.session.run([self.output], {self.input: part})[0][:count]

    def _ready(self, picture: Image.Image) -> numpy.ndarray:
        import numpy
        from PIL import Image

        # First the square, then its size: the order in which they were trained, which blends the edges.
        side = max(picture.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture.convert("RGB"), ((side - picture.width) // 2, (side - picture.height) // 2))
        if side != self.side:
            square = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return numpy.ascontiguousarray(numpy.asarray(square, dtype=numpy.float32)[:, :, ::-1])

    def _label(self, row: numpy.ndarray) -> Label:
        scored = [(named, round(float(score), 4)) for named, score in zip(self.tags, row, strict=True)]
        least = {"general": self.config.general, "character": self.config.character}
        found = [Tag(self._written(n.name), s, n.group) for n, s in scored if s >= least.get(n.group, 2.0)]
        found.sort(key=lambda tag: (-tag.score, tag.text))
        found = self._expanded(found)[: self.config.most]
        if self.config.order == "alphabet":
            found.sort(key=lambda tag: tag.text)
        sure = sum(tag.score for tag in found) / len(found) if found else 0.0
        ratings = [(score, named.name) for named, score in scored if named.group == "rating"]
        if ratings and self.config.rating != "off":
            score, name = max(ratings)
            rating = Tag(self._written(name), score, "rating")
            found = [rating, *found] if self.config.rating == "first" else [*found, rating]
        doubts = () if sure >= UNSURE else (Note("captioner.few_tags", {"count": len(found), "sure": f"{sure:.0%}"}),)
        return Label("", tuple(found), round(sure, 4), doubts)

    def _expanded(self, tags: list[Tag]) -> list[Tag]:
        """Put the series of "name_(series)" behind it as a tag of its own, where that is wished."""
        if not self.config.expand:
            return tags
        made: dict[str, Tag] = {}
        for tag in tags:
            match = SERIES.fullmatch(tag.text.replace(" ", "_").replace("\\", ""))
            texts = [part.replace("_", " ") if self.config.spaces else part for part in match.groups()] if match else []
            for text in texts or [tag.text]:
                made.setdefault(text, Tag(text, tag.score, tag.group))
        return list(made.values())

    def _written(self, name: str) -> str:
        text = name.replace("_", " ") if self.config.spaces and not FACE.fullmatch(name) else name
        return re.sub(r"([()])", r"\\\1", text) if self.config.escape else text
