"""Which programs load which file, as read in their sources; the least that a person must know before sharing one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Layout -> kind of update -> programs. PEFT's own kinds outside plain pairs are loaded by peft alone.
_PICTURES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "kohya": {
        "lora": ("Stable Diffusion WebUI", "Forge", "ComfyUI", "InvokeAI", "diffusers", "kohya sd-scripts"),
        # The WebUI norms over inputs, ComfyUI divides by the norm of the base's rows, diffusers drops the magnitudes.
        "dora": ("LyCORIS",),
        "loha": ("Stable Diffusion WebUI", "Forge", "ComfyUI", "InvokeAI"),
        "lokr": ("Stable Diffusion WebUI", "Forge", "ComfyUI", "InvokeAI"),
    },
    # ComfyUI and Forge have no names for a UNet's attention layers in this layout.
    "diffusers": {"lora": ("diffusers",), "dora": ("diffusers",)},
    "peft": {kind: ("peft",) for kind in ("lora", "dora", "loha", "lokr")},
}
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "lora": ("peft", "transformers", "vLLM", "SGLang", "llama.cpp (lora-scripts export --to gguf)", "Ollama"),
    "dora": ("peft", "transformers"),
    "loha": ("peft",),
    "lokr": ("peft",),
}


@dataclass(frozen=True)
class Facts:
    """What decides who loads a file.

    Attributes:
        kind: of its updates.
        mixed_alpha: modules of one component have different alphas.
        is_text: it is for a language model.
    """

    layout: str
    kind: str
    mixed_alpha: bool = False
    is_text: bool = False


def that_load(facts: Facts) -> tuple[str, ...]:
    """Return the programs that load the file and compute the right thing with it."""
    table = _TEXTS if facts.is_text else _PICTURES.get(facts.layout, {})
    found = table.get(facts.kind, ())
    if facts.layout == "kohya" and facts.mixed_alpha:
        # It takes one module's alpha for all of an attention layer's.
        return tuple(name for name in found if name != "diffusers")
    return found
