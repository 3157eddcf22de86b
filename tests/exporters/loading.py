"""LoRA files put to use by diffusers, and by three lines of arithmetic: what tests of the exporters compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.adapters.networks import networks, outputs


def by_diffusers(path: Path, strength: float, *, linear: bool = False) -> dict[str, torch.Tensor]:
    """Load a file as users of diffusers do, and return the networks' outputs."""
    modules = networks(linear)
    pipeline = _pipeline(modules)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="lora")
    pipeline.set_adapters(["lora"], [strength])
    return outputs(modules)


def by_hand(path: Path, strength: float, *, linear: bool = False) -> dict[str, torch.Tensor]:
    """Apply a kohya file: W + strength * alpha / rank * up @ down, modules found by their flattened names."""
    modules = networks(linear)
    tensors = load_file(path)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
    used = 0
    for component, module in modules.items():
        for name, part in module.named_modules():
            key = prefixes[component] + name.replace(".", "_")
            if f"{key}.alpha" not in tensors:
                continue
            up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
            product = up.flatten(1) @ down.flatten(1)
            with torch.no_grad():
                part.weight += (strength * tensors[f"{key}.alpha"] / len(down) * product).view_as(part.weight)
            used += 3
    assert used == len(tensors) > 0
    return outputs(modules)


def _pipeline(modules: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=32)
    return StableDiffusionPipeline(
        vae=vae,
        tokenizer=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **modules,
    )


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any output."""
    assert first.keys() == second.keys() == {"unet", "text_encoder"}
    return max(float((first[name] - second[name]).abs().max()) for name in first)
