"""Reads a LoRA file the way diffusers' pipelines do, by diffusers' own conversion and PEFT's own rule for alphas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.names import canonical


def read(path: Path, adapter: Adapter) -> Adapter:
    """Return what diffusers understands of a file: for each component of `adapter`, pairs by canonical path."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(path), local_files_only=True, use_safetensors=True
    )
    pairs = {component: _component(component, state, alphas or {}) for component in adapter.pairs}
    return Adapter(pairs, adapter.meta)


def _component(component: str, state: Mapping[str, Any], alphas: Mapping[str, Any]) -> dict[str, LoraPair]:
    from diffusers.utils import convert_unet_state_dict_to_peft, get_peft_kwargs

    own = {k.removeprefix(f"{component}."): v for k, v in state.items() if k.startswith(f"{component}.")}
    scales = {k.removeprefix(f"{component}."): v for k, v in alphas.items() if k.startswith(f"{component}.")}
    if not any("lora_A" in key for key in own):
        if component == "unet":
            own = convert_unet_state_dict_to_peft(own)
        else:
            own = _modern_text(own)
            scales = _text_alphas(scales)
    ranks = {key: tensor.shape[1] for key, tensor in own.items() if "lora_B" in key}
    if not ranks:
        return {}
    settings = get_peft_kwargs(ranks, scales, own, is_unet=component == "unet")
    pairs = {}
    for key, down in own.items():
        path, found, _ = key.partition(".lora_A")
        if found:
            up = own[key.replace("lora_A", "lora_B")]
            pairs[canonical(component, path)] = LoraPair(down.float(), up.float(), _alpha(path, settings))
    return pairs


def _modern_text(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename a text encoder's tensors by diffusers' own table; its guess of the kind needs all four projections."""
    from diffusers.utils import convert_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    return convert_state_dict_to_peft(state, original_type=StateDictType.DIFFUSERS_OLD)


def _text_alphas(scales: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the alphas of a text encoder as diffusers renames its tensors."""
    marked = {key.removesuffix(".alpha"): value for key, value in scales.items()}
    return {f"{key}.alpha": value for key, value in _modern_text(marked).items()}


def _alpha(path: str, settings: Mapping[str, Any]) -> float:
    for pattern, alpha in settings["alpha_pattern"].items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return float(alpha)
    return float(settings["lora_alpha"])
