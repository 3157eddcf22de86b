"""Models that write: loaded from a folder or hub id, safetensors only, no code of theirs run, greedy by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.captioners import _folders
from lora_scripts.errors import BaseModelError, MachineError

if TYPE_CHECKING:
    from PIL import Image

PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
# Wider than this many times its other side, a picture is cut: some processors make thousands of tiles of it.
MAX_ASPECT = 8


@dataclass(frozen=True)
class Writer:
    """A loaded model, its processor, and what identifies both."""

    name: str
    folder: Path
    model: Any
    processor: Any
    device: str

    def generate(self, inputs: Any, tokens: int, **more: Any) -> Any:
        """Return token ids, (N, L), without sampling."""
        import torch

        moved = {
            key: value.to(self.device, self.model.dtype if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
        }
        with torch.inference_mode():
            return self.model.generate(**moved, max_new_tokens=tokens, do_sample=False, **more)


def load(model: str, kind: Callable[[], Any], types: Sequence[str], device: str, dtype: str = "auto") -> Writer:
    """Load a model and its processor.

    Args:
        kind: returns the class that loads the model.
        types: the `model_type`s that it may be; empty for any that the class knows.
        dtype: "auto" is float32 on a CPU and what the files say elsewhere.

    Raises:
        BaseModelError: it is another model, incomplete, or its weights are pickles.
        MachineError: the hub cannot be reached, or its processor needs torchvision.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor

    folder = _folders.find(model, PATTERNS)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config: Any = AutoConfig.from_pretrained(folder, **options)
        if types and config.model_type not in types:
            raise BaseModelError("captioner.other_model", model=model, found=config.model_type, wanted=", ".join(types))
        if not list(folder.glob("*.safetensors")):
            raise BaseModelError("captioner.no_safetensors", model=model)
        held = "float32" if dtype == "auto" and device == "cpu" else dtype
        made = kind().from_pretrained(folder, use_safetensors=True, dtype=held, **options).to(device).eval()
        processor = AutoProcessor.from_pretrained(folder, **options)
    except ImportError as error:
        if "torchvision" in str(error).lower():
            raise MachineError("captioner.needs_torchvision", model=model) from error
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise BaseModelError("captioner.model_broken", model=model, reason=reason) from error
    return Writer(model, folder, made, processor, device)


def ready(picture: Image.Image) -> Image.Image:
    """Return a picture that every processor takes: RGB, and no sliver."""
    width, height = picture.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        half = MAX_ASPECT * min(width, height) // 2
        left, top = max(0, width // 2 - half), max(0, height // 2 - half)
        picture = picture.crop((left, top, min(width, left + 2 * half), min(height, top + 2 * half)))
    small = min(picture.size)
    if small < 8:
        scale = 8 / small
        picture = picture.resize((max(8, round(picture.width * scale)), max(8, round(picture.height * scale))))
    return picture.convert("RGB")


def was_cut(ids: Any, tokens: int, end: Any) -> bool:
    """Say whether generated ids, (L,), filled all the room without an end."""
    ends = {end} if isinstance(end, int) else set(end or ())
    return len(ids) >= tokens and not ends & set(ids.tolist())
