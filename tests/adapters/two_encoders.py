"""A tiny UNet of the public layout with two text encoders, and random adapters of it."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import torch

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.names import canonical
from tests.adapters import networks as one_encoder

META = AdapterMeta(
    family="sdxl",
    name="tiny large style",
    base_name="tiny-large",
    base_hash="ef" * 32,
    variant="sdxl",
    resolution=(128, 128),
    steps=7,
    epochs=1,
    training={"num_train_images": "12"},
)
# kohya's defaults: every linear layer and 1x1 convolution of the transformers, and of the text encoders' layers.
KOHYA = {
    "unet": r".*attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\..*))",
    "text_encoder": r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    "text_encoder_2": r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
}
CONVOLUTIONS = r".*(resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)|samplers\.0\.conv)"
EVERYWHERE = {**KOHYA, "unet": f"{KOHYA['unet']}|{CONVOLUTIONS}"}

# A few layers of every sort, for tests that are about files rather than outputs.
SOME = {
    "unet": r"(mid_block\.attentions|mid_block\.resnets\.0|down_blocks\.1\.(resnets\.0|downsamplers))\..*",
    "text_encoder": r".*layers\.1\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    "text_encoder_2": r".*layers\.2\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
}


def _text(hidden: int, layers: int, pooled: int) -> Any:
    from transformers import CLIPTextConfig

    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return CLIPTextConfig(
        vocab_size=64, num_attention_heads=4, max_position_embeddings=16, projection_dim=pooled, **sizes, **special
    )


@cache
def _originals() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(6)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 1, 2),
            cross_attention_dim=32 + 48,
            attention_head_dim=(4, 4, 4),
            norm_num_groups=32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        )
        first, second = CLIPTextModel(_text(32, 2, 32)), CLIPTextModelWithProjection(_text(48, 3, 40))
    return {"unet": unet.eval(), "text_encoder": first.eval(), "text_encoder_2": second.eval()}


def two_encoders() -> dict[str, Any]:
    """Return fresh copies with seeded weights."""
    return copy.deepcopy(_originals())


@torch.no_grad()
def outputs(modules: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run the networks on fixed inputs, the text encoders' outputs feeding the UNet."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 64, (1, 16), generator=generator)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    first = modules["text_encoder"](ids, output_hidden_states=True).hidden_states[-2]
    answer = modules["text_encoder_2"](ids, output_hidden_states=True)
    second, pooled = answer.hidden_states[-2], answer.text_embeds
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
    states = torch.cat([first, second], dim=-1)
    unet = modules["unet"](latents, torch.tensor([700]), states, added_cond_kwargs=added).sample
    return {"unet": unet, "text_encoder": first, "text_encoder_2": torch.cat([second.flatten(1), pooled], dim=1)}


def layers(family: str, targets: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return a family's tiny live layers that the patterns choose, by component and canonical path."""
    modules = two_encoders() if family == "sdxl" else one_encoder.networks()
    found: dict[str, dict[str, Any]] = {}
    for component, network in modules.items():
        pattern = (targets or EVERYWHERE).get(component)
        for path, layer in network.named_modules():
            full = canonical(component, path)
            if pattern and type(layer).__name__ in ("Linear", "Conv2d") and re.fullmatch(pattern, full):
                found.setdefault(component, {})[full] = layer
    return found


@cache
def _kind(kind: str) -> Any:
    return registry.load("adapters", kind)


def update(kind: str, weight: torch.Tensor, rank: int, alpha: float, generator: torch.Generator) -> Any:
    """Return a random update of a weight, its tensors of the sizes that peft gives them."""
    from peft.tuners.lokr.layer import factorization

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    out, columns, kernel = weight.shape[0], weight[0].numel(), tuple(weight.shape[2:])
    if kind in ("lora", "dora"):
        given = {"down": random(rank, *weight.shape[1:]), "up": random(out, rank, *(1 for _ in kernel))}
        if kind == "dora":
            given["magnitude"] = weight.detach().flatten(1).norm(dim=1) * (1 + random(out))
    elif kind == "loha":
        given = {"w1_a": random(out, rank), "w1_b": random(rank, columns)}
        given |= {"w2_a": random(out, rank), "w2_b": random(rank, columns)}
    else:
        (p, q), (u, v) = factorization(out), factorization(weight.shape[1])
        positions = columns // weight.shape[1]
        given = {"w1": random(p, u)}
        if rank >= max(q, v) / 2:
            given["w2"] = random(q, v, *kernel)
        else:
            given |= {"w2_a": random(q, rank), "w2_b": random(rank, v * positions)}
    return _kind(kind).build(given, alpha)


def adapter(
    family: str = "sdxl",
    kind: str = "lora",
    targets: dict[str, str] | None = None,
    *,
    rank: int = 4,
    alpha: float = 4.0,
) -> Adapter:
    """Return a random adapter of a family's tiny networks, strong enough to move their outputs."""
    from dataclasses import replace

    generator = torch.Generator().manual_seed(9)
    meta = replace(META if family == "sdxl" else one_encoder.META, kind=kind)
    pairs = {
        component: {path: update(kind, layer.weight, rank, alpha, generator) for path, layer in part.items()}
        for component, part in layers(family, targets).items()
    }
    return Adapter(pairs, meta)


@torch.no_grad()
def moved(made: Adapter, strength: float = 1.0) -> dict[str, torch.Tensor]:
    """Return the outputs of the family's tiny networks with the updates inside their weights."""
    family = made.meta.family
    modules = two_encoders() if family == "sdxl" else one_encoder.networks()
    for component, pairs in made.pairs.items():
        named = {canonical(component, path): layer for path, layer in modules[component].named_modules()}
        for path, one in pairs.items():
            weight = named[path].weight
            weight += strength * one.delta(weight).view_as(weight)
    return outputs(modules) if family == "sdxl" else one_encoder.outputs(modules)
