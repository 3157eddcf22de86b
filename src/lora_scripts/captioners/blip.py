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
VERSION = 1


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
    return Blip(config, writer, _folders.identity(writer.folder, f"blip {VERSION} {said}"))


class Blip:
    """One loaded model."""

    def __init__(self, config: Config, writer: Writer, identity: str):
        self.config, self.writer, self.identity = config, writer, identity
        self.title, self.batch_size = f"BLIP, {writer.name}", config.batch

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label a batch; see `contracts.Captioner`."""
        from lora_scripts.captioners._generation import ready
        from lora_scripts.captioners._prose import clean

        shown = [ready(picture) for picture in pictures]
        texts = {"text": [self.config.start] * len(shown)} if self.config.start else {}
        inputs = self.writer.processor(images=shown, return_tensors="pt", **texts)
        made = self.writer.generate(inputs, self.config.tokens, num_beams=self.config.beams)
        return [clean(text) for text in self.writer.processor.batch_decode(made, skip_special_tokens=True)]
