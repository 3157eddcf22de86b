"""Florence-2: a sentence, a paragraph or more, by its tasks. The weights must be in transformers' own layout.

Those of `florence-community` are; those of `microsoft` come with code of their own, which is not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.contracts import Label
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from PIL import Image

    from lora_scripts.captioners._generation import Writer

NEEDS_MODEL = True
VERSION = 2
TASKS = {"caption": "<CAPTION>", "detailed": "<DETAILED_CAPTION>", "more_detailed": "<MORE_DETAILED_CAPTION>"}


class Config(BaseModel):
    """Its own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["caption", "detailed", "more_detailed"] = "detailed"
    tokens: int = Field(256, ge=1, le=1024)
    beams: int = Field(3, ge=1, le=32)
    batch: int = Field(4, ge=1, le=1024)


def build(config: Config, model: str | None, device: str) -> Any:
    """Load the model; see `contracts.Captioner`.

    Raises:
        BaseModelError: its weights need code of their own.
    """
    from lora_scripts.captioners import _folders, _generation

    def kind() -> Any:
        from transformers import Florence2ForConditionalGeneration

        return Florence2ForConditionalGeneration

    assert model is not None
    if model.startswith("microsoft/"):
        raise BaseModelError("captioner.florence_code", model=model)
    try:
        writer = _generation.load(model, kind, ("florence2",), device)
    except BaseModelError as error:
        # A copy of Microsoft's folder.
        code = "captioner.florence_code" if error.code == "captioner.own_code" else error.code
        raise BaseModelError(code, **error.params) from error
    said = config.model_dump_json(exclude={"batch"})
    made = Florence(config, writer, _folders.identity(writer.folder, f"florence2 {VERSION} {said}"))
    _generation.tried(model, made.inputs)
    return made


class Florence:
    """One loaded model."""

    def __init__(self, config: Config, writer: Writer, identity: str):
        self.config, self.writer, self.identity = config, writer, identity
        self.title, self.batch_size = f"Florence-2, {writer.name}", config.batch

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label a batch; see `contracts.Captioner`."""
        from lora_scripts.captioners._generation import ready, was_cut
        from lora_scripts.captioners._prose import clean

        tokens, settings = self.config.tokens, self.writer.model.generation_config
        made = self.writer.generate(self.inputs([ready(p) for p in pictures]), tokens, num_beams=self.config.beams)
        texts = self.writer.processor.batch_decode(made, skip_special_tokens=True)
        cut = [was_cut(ids[1:], tokens, settings) for ids in made]
        return [clean(text, whole=not broken) for text, broken in zip(texts, cut, strict=True)]

    def inputs(self, shown: Sequence[Image.Image]) -> Any:
        """Return what the model takes."""
        task = TASKS[self.config.task]
        return self.writer.processor(text=[task] * len(shown), images=list(shown), return_tensors="pt")
