"""Any vision-language model that transformers knows and that follows a chat: Qwen-VL, SmolVLM, LLaVA, JoyCaption ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.contracts import Label
from lora_scripts.data.record import Note
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from PIL import Image

    from lora_scripts.captioners._generation import Writer

NEEDS_MODEL = True
VERSION = 2
LENGTHS = {
    "concise": "Describe this picture in one short sentence.",
    "standard": "Describe this picture in one or two plain sentences: what is seen, where, and in which light.",
    "detailed": (
        "Describe this picture in a paragraph: subject, pose, expression, clothing, surroundings, framing, viewpoint, "
        "light and colours."
    ),
    "tags": "List what is seen in this picture as short tags, separated by commas, the most important first.",
}
MANNERS = " Say only what is seen, decidedly; no guesses, no opinion, no preface."


class Config(BaseModel):
    """Its own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = ""
    length: Literal["concise", "standard", "detailed", "tags"] = "standard"
    leave_out: str = ""
    tokens: int = Field(200, ge=1, le=4096)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


def build(config: Config, model: str | None, device: str) -> Any:
    """Load the model; see `contracts.Captioner`.

    Raises:
        BaseModelError: it follows no chat.
    """
    from lora_scripts.captioners import _folders, _generation

    def kind() -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText

    assert model is not None
    writer = _generation.load(model, kind, (), device, config.dtype)
    if not getattr(writer.processor, "chat_template", None):
        raise BaseModelError("captioner.no_chat", model=model)
    said = config.model_dump_json()
    made = VisionLanguage(config, writer, _folders.identity(writer.folder, f"vlm {VERSION} {said}"))
    _generation.tried(model, made.inputs)
    return made


class VisionLanguage:
    """One loaded model; pictures one at a time, since their numbers of tokens differ."""

    batch_size = 1

    def __init__(self, config: Config, writer: Writer, identity: str):
        self.config, self.writer, self.identity = config, writer, identity
        self.title = writer.name
        asked = config.prompt or LENGTHS[config.length] + MANNERS
        self.prompt = f"{asked} Leave out: {config.leave_out}." if config.leave_out else asked

    def caption(self, pictures: Sequence[Image.Image]) -> list[Label]:
        """Label one picture after another; see `contracts.Captioner`."""
        return [self._label(picture) for picture in pictures]

    def _label(self, picture: Image.Image) -> Label:
        from lora_scripts.captioners._generation import ready, was_cut
        from lora_scripts.captioners._prose import clean

        try:
            inputs = self.inputs([ready(picture)])
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            return Label(doubts=(Note("captioner.not_shown", {"reason": reason}),))
        made = self.writer.generate(inputs, self.config.tokens)[0][inputs["input_ids"].shape[1] :]
        said = self.writer.processor.decode(made, skip_special_tokens=True)
        return clean(said, whole=not was_cut(made, self.config.tokens, self.writer.model.generation_config))

    def inputs(self, shown: Sequence[Image.Image]) -> Any:
        """Return what the model takes, for one picture."""
        parts = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        text = self._turn(parts)
        if "'type': 'image'" in text:
            # Some, JoyCaption's among them, place the picture themselves and take the content for plain words.
            text = self._turn(self.prompt)
        return self.writer.processor(text=[text], images=list(shown), return_tensors="pt")

    def _turn(self, content: Any) -> str:
        turn = {"role": "user", "content": content}
        return self.writer.processor.apply_chat_template([turn], add_generation_prompt=True)
