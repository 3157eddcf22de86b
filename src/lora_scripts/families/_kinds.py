"""What a safetensors file is when it is not a whole Stable Diffusion 1.x or 2.x checkpoint, told by its names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lora_scripts import messages
from lora_scripts.errors import BaseModelError

# Suffixes of files that may hold pickles: they are never opened.
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pt2")

# Pattern of a tensor's name -> what the file is. The first that matches any name decides, so that a Stable Diffusion XL
# checkpoint, which has the tensors of an older one too, is called by its own name.
_LORA = r"^lora_(unet|te\d?)_|\.lora_(down|up|A|B)\b|\.(hada_w1_a|lokr_w1|oft_blocks|dora_scale)\b"
_OTHERS = (
    (r"^conditioner\.", "base.kind_sdxl"),
    (r"^model\.diffusion_model\..*transformer_blocks\.1\.", "base.kind_sdxl"),
    (r"(^|\.)joint_blocks\.\d+\.", "base.kind_sd3"),
    (r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.\d+\.", "base.kind_flux"),
    (r"^control_model\.|^controlnet_", "base.kind_controlnet"),
    (r"^model\.diffusion_model\.label_emb\.|^noise_augmentor\.", "base.kind_unclip"),
    (r"^(model\.)?layers\.\d+\.(self_attn|mlp)\.|^lm_head\.|^model\.embed_tokens\.", "base.kind_llm"),
    (r"^emb_params$|^string_to_param|^clip_[lg]$", "base.kind_embedding"),
)
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


def refuse_others(path: Path, names: Iterable[str], *, has_unet: bool) -> None:
    """Refuse what is known to be something else than a text-to-image checkpoint of 1.x or 2.x.

    Args:
        has_unet: the UNet of an original-layout checkpoint is there.

    Raises:
        BaseModelError: says what the file is; returns where it is none of these.
    """
    if has(names, _LORA):
        raise BaseModelError("base.is_lora", path=path)
    for pattern, code in _OTHERS:
        if has(names, pattern):
            raise BaseModelError("base.other_kind", path=path, found=messages.text(code))
    if has_unet:
        return
    if has(names, r"^model_ema\."):
        raise BaseModelError("base.ema_only", path=path)
    for pattern, code in _PARTS:
        if has(names, pattern):
            raise BaseModelError("base.single_part", path=path, found=messages.text(code))
