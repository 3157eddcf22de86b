"""Settings of the networks in a file of the original layout, read off the shapes of its tensors.

A smaller model of the layout works too; at full size the settings equal the public ones key for key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lora_scripts.families._architecture import Encoder, Layout
from lora_scripts.families._stream import TensorFile

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SIZE_EMBEDDING = f"{UNET}label_emb.0.0.weight"
HEAD_WIDTH = 64
# Height and width as they were, top and left of the cut, height and width as they are.
SIZES = 6


def has(file: TensorFile, prefix: str) -> bool:
    """Say whether any tensor's name begins so."""
    return any(name.startswith(prefix) for name in file.shapes)


def _numbers(file: TensorFile, pattern: str) -> list[int]:
    """Return the sorted numbers that a pattern's group takes."""
    compiled = re.compile(pattern)
    return sorted({int(match.group(1)) for name in file.shapes if (match := compiled.match(name))})


def _levels(file: TensorFile) -> tuple[list[int], list[int], int]:
    """Return (channels, transformer blocks: 0 where a level does not attend) by level, and the layers of the first."""
    prefix = f"{UNET}input_blocks."
    channels: list[int] = []
    depths: list[int] = []
    resnets = [0]
    fresh = True
    for number in _numbers(file, re.escape(prefix) + r"(\d+)\.")[1:]:
        if f"{prefix}{number}.0.op.weight" in file.shapes:
            fresh = True
            resnets.append(0)
            continue
        width = file.shapes[f"{prefix}{number}.0.out_layers.3.weight"][0]
        attends = f"{prefix}{number}.1.norm.weight" in file.shapes
        if fresh:
            channels.append(width)
            blocks = _numbers(file, re.escape(f"{prefix}{number}.1.transformer_blocks.") + r"(\d+)\.")
            depths.append(len(blocks) if attends else 0)
        fresh = False
        resnets[-1] += 1
    return channels, depths, resnets[0]


def unet_config(file: TensorFile, layout: Layout) -> dict[str, Any]:
    """Return UNet2DConditionModel's settings.

    Raises:
        KeyError: a tensor that tells one of them is missing.
        IndexError, ValueError: likewise.
    """
    shapes = file.shapes
    channels, depths, layers = _levels(file)
    crosses = [name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight")]
    linear = any(len(shapes[n]) == 2 for n in shapes if n.startswith(UNET) and n.endswith(".proj_in.weight"))
    config: dict[str, Any] = {
        "act_fn": "silu",
        "attention_head_dim": layout.heads or [max(1, width // HEAD_WIDTH) for width in channels],
        "block_out_channels": channels,
        "cross_attention_dim": shapes[crosses[0]][1],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "layers_per_block": layers,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        **layout.unet,
    }
    if linear:
        config["use_linear_projection"] = True
    return config | (_with_sizes(file, layout, depths) if SIZE_EMBEDDING in shapes else {})


def _with_sizes(file: TensorFile, layout: Layout, depths: Sequence[int]) -> dict[str, Any]:
    """Return the settings of a UNet that is told sizes and the pooled text too."""
    given = file.shapes[SIZE_EMBEDDING][1]
    pooled = file.shapes[f"{[*layout.encoders.values()][-1].prefix}text_projection"][1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (given - pooled) // SIZES,
        "projection_class_embeddings_input_dim": given,
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
    }


def vae_config(file: TensorFile, layout: Layout) -> dict[str, Any]:
    """Return AutoencoderKL's settings; raises as `unet_config`."""
    levels = _numbers(file, re.escape(VAE) + r"encoder\.down\.(\d+)\.")
    channels = [file.shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in levels]
    blocks = _numbers(file, re.escape(VAE) + r"encoder\.down\.0\.block\.(\d+)\.")
    return {
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "in_channels": 3,
        "latent_channels": file.shapes[f"{VAE}post_quant_conv.weight"][1],
        "layers_per_block": len(blocks),
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": layout.resolution,
        "scaling_factor": layout.scaling,
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
    }


def text_config(file: TensorFile, encoder: Encoder) -> dict[str, Any]:
    """Return CLIPTextConfig's settings, without the layers that were left out in training; raises as `unet_config`."""
    shapes = file.shapes
    prefix = text_prefix(file, encoder)
    if encoder.is_open:
        words, places = "token_embedding.weight", "positional_embedding"
        blocks, inner = "transformer.resblocks.", "mlp.c_fc.weight"
    else:
        words, places = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
        blocks, inner = "encoder.layers.", "mlp.fc1.weight"
    layers = len(_numbers(file, re.escape(prefix + blocks) + r"(\d+)\.")) - encoder.unused
    count, width = shapes[prefix + words]
    return {
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}{blocks}0.{inner}"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": shapes[prefix + places][0],
        "hidden_act": "gelu" if encoder.is_open else "quick_gelu",
        "layer_norm_eps": 1e-05,
        "projection_dim": shapes.get(f"{prefix}text_projection", (width, width))[1] if not encoder.unused else width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def text_prefix(file: TensorFile, encoder: Encoder) -> str:
    """Return what the tensors of a text encoder begin with; some old converters left "text_model." out."""
    nested = f"{encoder.prefix}text_model."
    return nested if has(file, nested) else encoder.prefix
