"""BLIP: one short sentence a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.contracts import Label

if TYPE_CHECKING:
    from PIL import Image

    from lora_scripts.captioners._generation import Writer

NEEDS_MODEL = True
VERSION = 2


class Config(BaseModel):
    """Its own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: str = ""
    tokens: int = Field(50, ge=1, le=512)
    beams: int = Field(3, ge=1, le=32)
    batch: int = Field(8, ge=1, le=1024)


def build(config: Config, model: str | None, device: str) -> Any:
    """Load the model; see `contracts.Captioner`."""
    from lora_scripts.captioners import _folders, _generation

    def kind() -> Any:
        from transformers import BlipForConditionalGeneration

        return BlipForConditionalGeneration

    assert model is not None
    writer = _generation.load(model, kind, ("blip",), device)
    said = config.model_dump_json(exclude={"batch"})
    made = Blip(config, writer, _folders.identity(writer.folder, f"blip {VERSION} {said}"))
    _generation.tried(model, made.inputs)
    return made


class Blip:
    """One loaded model."""

    def __init__(self, config: Config, writer: Writer, identity: str):
        self.config, self.writer, self.identity = config, writer, identity
        self.title, self.batch_size = f"BLIP, {writer.name}", config.batch

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label a batch; see `contracts.Captioner`."""
        from lora_scripts.captioners._generation import ready, was_cut
        from lora_scripts.captioners._prose import clean

        tokens, settings = self.config.tokens, self.writer.model.generation_config
        made = self.writer.generate(self.inputs([ready(p) for p in pictures]), tokens, num_beams=self.config.beams)
        texts = self.writer.processor.batch_decode(made, skip_special_tokens=True)
        return [clean(text, whole=not was_cut(ids, tokens, settings)) for text, ids in zip(texts, made, strict=True)]

    def inputs(self, shown: Sequence[Image.Image]) -> Any:
        """Return what the model takes."""
        texts = {"text": [self.config.start] * len(shown)} if self.config.start else {}
        return self.writer.processor(images=list(shown), return_tensors="pt", **texts)
