"""Reads LoRA files the way diffusers' pipelines do, by diffusers' own conversion and PEFT's own rule for alphas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.names import canonical

# What diffusers asks of a UNet's config to find its blocks under the original repository's names.
_UNET = SimpleNamespace(layers_per_block=2)


def read(path: Path, adapter: Adapter) -> Adapter:
    """Return what diffusers understands of a file: for each component of `adapter`, updates by canonical path."""
    state, alphas, settings = _state(str(path))
    found = {component: _component(component, state, alphas, settings) for component in adapter.pairs}
    return Adapter(found, adapter.meta)


def modules(stems: Iterable[str], components: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the component and the canonical path that diffusers gives to each name of a kohya file.

    Diffusers is shown pairs of one number, which tells afterwards where it has put them.
    """
    import torch

    ordered = sorted(stems)
    shown = {}
    for number, stem in enumerate(ordered):
        for half in ("lora_down", "lora_up"):
            shown[f"{stem}.{half}.weight"] = torch.full((1, 1), float(number))
    state, alphas, settings = _state(shown)
    found = {}
    for component in components:
        for path, pair in _component(component, state, alphas, settings).items():
            found[ordered[int(pair.down)]] = component, path
    return found


def _state(source: Any) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    state, alphas, settings = StableDiffusionLoraLoaderMixin.lora_state_dict(
        source, unet_config=_UNET, local_files_only=True, use_safetensors=True, return_lora_metadata=True
    )
    return state, alphas or {}, settings or {}


def _component(
    component: str, state: Mapping[str, Any], alphas: Mapping[str, Any], whole: Mapping[str, Any]
) -> dict[str, Any]:
    from diffusers.utils import convert_unet_state_dict_to_peft, get_peft_kwargs

    own, scales, settings = (_own(component, table) for table in (state, alphas, whole))
    if not any("lora_A" in key for key in own):
        if component == "unet":
            own = convert_unet_state_dict_to_peft(own)
        else:
            own = _modern_text(own)
            scales = _text_alphas(scales)
    ranks = {key: tensor.shape[1] for key, tensor in own.items() if "lora_B" in key}
    if not ranks:
        return {}
    settings = settings or get_peft_kwargs(ranks, scales, own, is_unet=component == "unet")
    build = registry.load("adapters", "dora" if settings.get("use_dora") else "lora").build
    updates = {}
    for key, down in own.items():
        path, found, _ = key.partition(".lora_A")
        if found:
            up = own[key.replace("lora_A", "lora_B")]
            given = {"down": down.float(), "up": up.float()}
            if settings.get("use_dora"):
                given["magnitude"] = own[f"{path}.lora_magnitude_vector.weight"].float()
            updates[canonical(component, path)] = build(given, _alpha(path, settings))
    return updates


def _own(component: str, table: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in table.items() if key.startswith(start)}


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
