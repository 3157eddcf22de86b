"""Models that write: loaded from a folder or hub id, safetensors only, no code of theirs run, greedy by default."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lora_scripts.captioners import _folders
from lora_scripts.errors import BaseModelError, MachineError

if TYPE_CHECKING:
    from PIL import Image

PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
# Wider than this many times its other side, a picture is cut: some processors make thousands of tiles of it.
MAX_ASPECT = 8
VIDEOS = "video_processor"
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


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
        MachineError: the hub cannot be reached, or the model needs a package that is not here.
    """
    from transformers import AutoConfig

    folder = _folders.find(model, PATTERNS)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _in_words(model, unknown=_has_own_code(folder)):
        config: Any = AutoConfig.from_pretrained(folder, **options)
    if types and config.model_type not in types:
        raise BaseModelError("captioner.other_model", model=model, found=config.model_type, wanted=", ".join(types))
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError("captioner.no_safetensors", model=model)
    with _in_words(model):
        held = "float32" if dtype == "auto" and device == "cpu" else dtype
        made, told = kind().from_pretrained(
            folder, use_safetensors=True, dtype=held, output_loading_info=True, **options
        )
        # What the files lack got random values: it would write, and write nonsense.
        if absent := sorted(told["missing_keys"]):
            raise BaseModelError("captioner.weights_absent", model=model, count=len(absent), part=absent[0])
        processor = _processor(folder, type(config), options)
        return Writer(model, folder, made.to(device).eval(), processor, device)


def tried(model: str, shows: Callable[[Sequence[Image.Image]], Any]) -> None:
    """Let the processor take a picture: what cannot be shown any is told now, and not for each picture of a folder.

    Raises:
        BaseModelError: it takes none.
    """
    from PIL import Image

    with _in_words(model):
        shows([ready(Image.new("RGB", (48, 32), (200, 90, 20)))])


@contextmanager
def _in_words(model: str, *, unknown: bool = False) -> Iterator[None]:
    """Turn what transformers raises into sentences.

    Args:
        unknown: what fails is a model that comes with code of its own.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from jinja2 import TemplateError
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        if "torchvision" in str(error).lower():
            raise MachineError("captioner.needs_torchvision", model=model) from error
        raise MachineError("captioner.needs_package", model=model, reason=_first_line(error)) from error
    except (*_BROKEN, SafetensorError, StrictDataclassError, TemplateError) as error:
        if unknown:
            raise BaseModelError("captioner.own_code", model=model) from error
        raise BaseModelError("captioner.model_broken", model=model, reason=_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _has_own_code(folder: Path) -> bool:
    """Say whether a model names Python files of its own, which are not run."""
    try:
        return "auto_map" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError, TypeError):
        return False


def _processor(folder: Path, config: type, options: dict[str, Any]) -> Any:
    """Load a processor; where only its part for videos needs torchvision, without that part."""
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        return AutoProcessor.from_pretrained(folder, **options)
    except ImportError as error:
        if "torchvision" not in str(error).lower() or config not in PROCESSOR_MAPPING:
            raise
        whole: Any = PROCESSOR_MAPPING[config]
        parts = whole.get_attributes()
        if VIDEOS not in parts:
            raise

    class Pictures(whole):
        """The processor, but for videos."""

        # SmolVLM's asks for these even where no video is shown.
        video_processor = SimpleNamespace(num_frames=0, fps=0)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in parts if part != VIDEOS]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **more: Any) -> Any:
            return super().from_args_and_dict(args, {**processor_dict, VIDEOS: None}, **more)

    return Pictures.from_pretrained(folder, **options)


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


def was_cut(ids: Any, tokens: int, settings: Any) -> bool:
    """Say whether generated ids, (L,), filled all the room without an end.

    Args:
        ids: without the prompt, and without the token that a decoder starts with, which for BART is its end.
        settings: the model's generation config. Where it forces an end at the last place, that one tells nothing.
    """
    end = settings.eos_token_id
    ends = {end} if isinstance(end, int) else set(end or ())
    said = ids.tolist()[: tokens - 1] if getattr(settings, "forced_eos_token_id", None) is not None else ids.tolist()
    return len(ids) >= tokens and not ends & set(said)
