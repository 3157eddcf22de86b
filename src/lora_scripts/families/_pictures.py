"""What families of pictures share, whatever their networks are: keys, reader, draws, and how results are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lora_scripts import registry
from lora_scripts.contracts import Base, Draw
from lora_scripts.data import captions
from lora_scripts.data.record import Dataset, Note, PictureExample, Scan
from lora_scripts.errors import ConfigError
from lora_scripts.families import _drawing, _sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from lora_scripts.data.cache import Cache


class Config(BaseModel):
    """The keys of the run config that mean something to families of pictures alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction_type: str = "auto"
    resolution: tuple[int, ...] = ()
    metadata_path: Path | None = None
    missing_pictures: str = "error"
    max_bad_fraction: float = 0.1
    caption: Any = None
    flip: bool = False
    mask: Any = None
    clip_skip: int = 1
    offload_blocks: int = 0
    attention: str = "auto"
    train_text_encoder: Any = None


class Pictures:
    """A part of `contracts.Family`."""

    name: ClassVar[str]
    reads: ClassVar[str] = "pictures"
    Config: ClassVar[type[BaseModel]] = Config
    objectives: ClassVar[tuple[str, ...]] = ("denoise",)

    @classmethod
    def defaults(cls, base: Base, given: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
        """The schema's defaults are these families'."""
        return {}

    @classmethod
    def scan(
        cls, base: Base, datasets: Sequence[Dataset], options: Any, cache: Cache | None, *, held: Sequence[Dataset] = ()
    ) -> Scan:
        """Find pictures and captions, with a bucket for each."""
        if held:
            raise ConfigError("config.no_held_files", family=cls.name)
        most = cls.most_skips(base)
        if options.clip_skip > most:
            raise ConfigError("base.clip_skip", value=options.clip_skip, path=base.path, most=most)
        reader = registry.load("readers", cls.reads)
        return reader.read(datasets, base.sizes(options.resolution), max_bad_fraction=options.max_bad_fraction)

    @classmethod
    def most_skips(cls, base: Base) -> int:
        """Return the largest `clip_skip` that the base's text encoders have layers for."""
        return 1

    @classmethod
    def explain(cls, base: Base, examples: Sequence[PictureExample], count: int) -> list[str]:
        """Nothing: a picture is seen in its folder."""
        return []

    @classmethod
    def usage(cls, base: Base, files: Mapping[str, Path], facts: Mapping[str, Any], example: PictureExample) -> list:
        """Say where the WebUI wants the file, or how to draw here."""
        file = files.get("kohya") or next(iter(files.values()))
        if base.webui and "kohya" in files:
            return [Note("cli.result.webui", {"path": file, "line": f"<lora:{file.stem}:0.8>"})]
        draw = {"base": base.reference or base.path, "path": file, "prompt": example.title}
        return [Note("cli.result.no_webui", draw)]

    def draw(self, example: PictureExample, random: Random) -> Draw:
        """Deal caption and mirror by the example's rules."""
        caption, flip = captions.draw(
            example.captions, example.caption_rules, random, example.flip, example.caption_weights
        )
        return Draw(caption, flip)

    @classmethod
    def preview_settings(
        cls, base: Base, section: Any, examples: Sequence[PictureExample]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The config's prompts, else captions spread evenly over the data; drawn at the commonest size."""
        return _drawing.wishes(section, examples)

    @staticmethod
    def lay_out(before: Sequence[Image], after: Sequence[Image], prompts: Sequence[str], stem: Path) -> Path:
        """Write two rows of pictures, and the prompts as text beside them."""
        return _sheet.write(before, after, prompts, stem)

    def scores(self, examples: Sequence[PictureExample], facts: Mapping[str, Any], answers: int) -> Mapping[str, Any]:
        """Nothing: pictures are judged by their held-out loss and by eye."""
        return {}

    @staticmethod
    def leave(folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Path]:
        """Nothing: the LoRA files are all."""
        return []
