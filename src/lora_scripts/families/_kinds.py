"""What a safetensors file is when it is not a whole checkpoint of the family that is asked, told by its names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lora_scripts import messages, registry
from lora_scripts.errors import BaseModelError

# Suffixes of files that may hold pickles: they are never opened.
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pt2")

_LORA = r"^lora_(unet|te\d?)_|\.lora_(down|up|A|B)\b|\.(hada_w1_a|lokr_w1|oft_blocks|dora_scale)\b"
# Pattern of a tensor's name -> what the file is: a family, or a kind that none loads. The first that matches any name
# decides, so that a newer checkpoint, which has the tensors of an older one too, is called by its own name.
_KINDS = (
    (r"^conditioner\.embedders\.0\.model\.", "refiner"),
    (r"^conditioner\.", "sdxl"),
    (r"^model\.diffusion_model\..*transformer_blocks\.1\.", "sdxl"),
    (r"(^|\.)joint_blocks\.\d+\.", "sd3"),
    (r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.\d+\.", "flux"),
    (r"^control_model\.|^controlnet_", "controlnet"),
    (r"^model\.diffusion_model\.label_emb\.|^noise_augmentor\.", "unclip"),
    (r"^(model\.)?layers\.\d+\.(self_attn|mlp)\.|^lm_head\.|^model\.embed_tokens\.", "llm"),
    (r"^emb_params$|^string_to_param|^clip_[lg]$", "embedding"),
)
# What has none of these marks is of the first family that had files of this layout.
_OLDEST = "sd"
_NAMES = {
    "refiner": "base.kind_refiner",
    "sd3": "base.kind_sd3",
    "flux": "base.kind_flux",
    "controlnet": "base.kind_controlnet",
    "unclip": "base.kind_unclip",
    "llm": "base.kind_llm",
    "embedding": "base.kind_embedding",
}
_PARTS = (
    (r"^(down_blocks|up_blocks|mid_block)\.", "base.part_unet"),
    (r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block|down|up|mid)\.", "base.part_vae"),
    (r"^(text_model\.)?(encoder\.layers|embeddings)\.", "base.part_text_encoder"),
    (r"^(input_blocks|output_blocks|middle_block)\.", "base.part_unet"),
    (r"^first_stage_model\.", "base.part_vae"),
    (r"^cond_stage_model\.", "base.part_text_encoder"),
)


def has(names: Iterable[str], pattern: str) -> bool:
    """Say whether the pattern is found in any name."""
    compiled = re.compile(pattern)
    return any(compiled.search(name) for name in names)


def refuse_pickle(path: Path) -> None:
    """Refuse a file that may be a pickle, by its name, without opening it.

    Raises:
        BaseModelError: tells how to convert it.
    """
    if path.suffix.lower() in PICKLES:
        raise BaseModelError("base.pickle", path=path)


def is_mine(path: Path, names: Iterable[str], family: str, *, has_unet: bool) -> bool:
    """Say whether a file is this family's, whole or not; another registered family's is left to that one.

    Args:
        has_unet: the UNet of an original-layout checkpoint is there.

    Raises:
        BaseModelError: says what the file is where no family loads it.
    """
    if has(names, _LORA):
        raise BaseModelError("base.is_lora", path=path)
    kind = next((kind for pattern, kind in _KINDS if has(names, pattern)), _OLDEST)
    if kind in registry.names("families"):
        if kind == _OLDEST == family and not has_unet:
            _refuse_parts(path, names)
            return False
        return kind == family
    raise BaseModelError("base.other_kind", path=path, found=name_of(kind))


def name_of(kind: str) -> str:
    """Return what a kind that no family loads is called in a sentence."""
    return messages.text(_NAMES[kind])


def _refuse_parts(path: Path, names: Iterable[str]) -> None:
    """Refuse what is only a part of a checkpoint; returns where it is nothing that is known."""
    if has(names, r"^model_ema\."):
        raise BaseModelError("base.ema_only", path=path)
    for pattern, code in _PARTS:
        if has(names, pattern):
            raise BaseModelError("base.single_part", path=path, found=messages.text(code))


def pipelines() -> dict[str, str]:
    """Return the registered family of every pipeline that a model_index.json may name."""
    plugins = {name: registry.load("families", name).plugin for name in registry.names("families")}
    return {kind: name for name, plugin in plugins.items() for kind in getattr(plugin, "pipelines", ())}
