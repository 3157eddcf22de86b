"""LoRA files made without our exporters, sentences that were told, and a base with a LoRA inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lora_scripts import messages
from lora_scripts.adapters.adapter import LoraPair

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
HEADER = {
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
    "ss_network_module": "networks.lora",
    "ss_output_name": "tiny style",
    "ss_sd_model_name": "tiny-base",
    "ss_base_weights_hash": "ab" * 32,
    "ss_resolution": "64,96",
    "ss_steps": "70",
    "ss_epoch": "3",
    "ss_learning_rate": "0.0003",
    "ss_optimizer": "lion",
    "ss_noise_offset": "None",
    "ss_tag_frequency": '{"10_cat": {"cat": 3, "red hat": 2}, "2_dog": {"cat": 1}}',
    "modelspec.trigger_phrase": "in tiny style",
}


class Told(list[str]):
    """The sentences that were told, and their codes."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []

    def __call__(self, code: str, **params: object) -> None:
        self.codes.append(code)
        self.append(messages.text(code, **params))


def random_pairs(
    unet: Any, text: Any = None, *, rank: int = 4, alpha: float = 4.0, seed: int = 1, only: str = ""
) -> dict[str, dict[str, LoraPair]]:
    """Return random pairs for every attention projection, feed-forward layer and larger convolution of live modules."""
    generator = torch.Generator().manual_seed(seed)
    words = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "net.2")
    words += ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
    made: dict[str, dict[str, LoraPair]] = {}
    for component, module in {"unet": unet, "text_encoder": text}.items():
        for path, layer in module.named_modules() if module is not None else ():
            if not path.endswith(words) or only not in path:
                continue
            weight = layer.weight
            full = path if component == "unet" or path.startswith("text_model.") else f"text_model.{path}"
            down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
            up = 0.3 * torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:]), generator=generator)
            made.setdefault(component, {})[full] = LoraPair(down, up, alpha)
    return made


def kohya(
    path: Path,
    pairs: Mapping[str, Mapping[str, LoraPair]],
    *,
    dtype: torch.dtype = torch.float32,
    alpha_dtype: torch.dtype | None = None,
    header: Mapping[str, str] | None = None,
) -> Path:
    """Write a file as kohya's tools do, with the safetensors library."""
    tensors = {}
    for component, part in pairs.items():
        for module, pair in part.items():
            name = PREFIXES[component] + module.replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = pair.down.to(dtype).contiguous()
            tensors[f"{name}.lora_up.weight"] = pair.up.to(dtype).contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(pair.alpha).to(alpha_dtype or dtype)
    save_file(tensors, path, metadata=dict(HEADER if header is None else header))
    return path


def delta(pair: LoraPair) -> torch.Tensor:
    """Return the update in float64."""
    return (pair.up.double().flatten(1) @ pair.down.double().flatten(1)) * (float(pair.alpha) / len(pair.down))


def deltas(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return all updates by "component.module"."""
    return {f"{c}.{m}": delta(pair) for c, part in pairs.items() for m, pair in part.items()}
