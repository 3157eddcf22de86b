"""Tiny real models and pictures, made in code: a diffusers folder, original-layout files, coloured shapes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

TEXT_WIDTH = 64
# Of the base with two text encoders: distinct, so that no two can be mistaken for each other.
FIRST_WIDTH, SECOND_WIDTH, POOLED_WIDTH, SIZE_WIDTH = 32, 64, 48, 8
VOCABULARY = 49408
LATENT_CHANNELS = 4


def unet_settings(version: int = 1) -> dict[str, Any]:
    extra = {"use_linear_projection": True} if version == 2 else {}
    return {
        "sample_size": 64,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 8 if version == 1 else [1, 1],
        "norm_num_groups": 32,
        **extra,
    }


def text_settings(version: int = 1) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu" if version == 1 else "gelu",
        "projection_dim": TEXT_WIDTH,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def vae_settings() -> dict[str, Any]:
    return {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def xl_unet_settings() -> dict[str, Any]:
    """Three levels, two layers each, attention in the last two: the modules are named as the public model's."""
    return {
        "sample_size": 128,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": FIRST_WIDTH + SECOND_WIDTH,
        "attention_head_dim": [1, 1, 1],
        "norm_num_groups": 32,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * SIZE_WIDTH,
    }


@cache
def xl_parts() -> dict[str, Any]:
    """UNet, autoencoder and two text encoders with seeded random weights; likewise."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = text_settings() | {"hidden_size": FIRST_WIDTH, "intermediate_size": 64, "num_hidden_layers": 3}
    second = text_settings(2) | {"hidden_size": SECOND_WIDTH, "num_hidden_layers": 4}
    with torch.random.fork_rng():
        torch.manual_seed(12)
        return {
            "unet": UNet2DConditionModel.from_config(xl_unet_settings()).eval(),
            "vae": AutoencoderKL.from_config(vae_settings() | {"scaling_factor": 0.13025}).eval(),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**first | {"projection_dim": FIRST_WIDTH})).eval(),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**second | {"projection_dim": POOLED_WIDTH})
            ).eval(),
        }


@cache
def parts(version: int = 1) -> dict[str, Any]:
    """UNet, autoencoder and text encoder with seeded random weights; call `copy.deepcopy` before changing one."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(11)
        return {
            "unet": UNet2DConditionModel.from_config(unet_settings(version)).eval(),
            "vae": AutoencoderKL.from_config(vae_settings()).eval(),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_settings(version))).eval(),
        }


def tiny_sd_folder(path: Path, version: int = 1) -> Path:
    """Write an ordinary diffusers folder in float32."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    from lora_scripts.families import _single_file

    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        **parts(version),
        tokenizer=CLIPTokenizer.from_pretrained(Path(_single_file.__file__).parent / "clip_tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    config = path / "unet" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"sample_size": 16}))
    return path


def tiny_sdxl_folder(path: Path) -> Path:
    """Write a diffusers folder with two text encoders in float32."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    from lora_scripts.families import _single_file

    words = Path(_single_file.__file__).parent / "clip_tokenizer"
    StableDiffusionXLPipeline(
        **xl_parts(),
        tokenizer=CLIPTokenizer.from_pretrained(words),
        tokenizer_2=CLIPTokenizer.from_pretrained(words, pad_token="!"),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
    ).save_pretrained(path)
    config = path / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
    return path


def tiny_sdxl_file(path: Path, dtype: torch.dtype = torch.float32, **metadata: str) -> Path:
    """Write the same weights in the original layout."""
    tensors = xl_to_original(xl_parts())
    save_file(
        {k: v.detach().to(dtype).contiguous().clone() for k, v in tensors.items()}, path, metadata=metadata or None
    )
    return path


def xl_to_original(models: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Rename the tensors of a base with two text encoders to the names of the original repository."""
    second = models["text_encoder_2"]
    tensors = unet_to_original(models["unet"]) | vae_to_original(models["vae"])
    tensors |= clip_to_original(models["text_encoder"], "conditioner.embedders.0.transformer.")
    tensors |= open_clip_to_original(second.text_model, "conditioner.embedders.1.model.")
    projection = second.text_projection.weight
    tensors["conditioner.embedders.1.model.text_projection"] = projection.detach().T
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.zeros((), device=projection.device)
    return tensors


def tiny_single_file(path: Path, version: int = 1, dtype: torch.dtype = torch.float32, **metadata: str) -> Path:
    """Write the same weights in the original layout."""
    models = parts(version)
    tensors = unet_to_original(models["unet"]) | vae_to_original(models["vae"])
    tensors |= text_to_original(models["text_encoder"], version)
    save_file(
        {k: v.detach().to(dtype).contiguous().clone() for k, v in tensors.items()}, path, metadata=metadata or None
    )
    return path


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def unet_to_original(unet: Any) -> dict[str, torch.Tensor]:
    """Rename a UNet's tensors to the names of the original repository."""
    prefix = "model.diffusion_model."
    levels = len(unet.config.block_out_channels)
    per = unet.config.layers_per_block
    blocks: dict[str, str] = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    blocks |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    blocks |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    number = 1
    for level in range(levels):
        for layer in range(per):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        blocks[f"mid_block.{name}"] = f"middle_block.{i}"
    number = 0
    for level in range(levels):
        attends = "CrossAttn" in unet.config.up_block_types[level]
        for layer in range(per + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == per:
                blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number}.{2 if attends else 1}.conv"
            number += 1
    renamed = {}
    for name, tensor in unet.state_dict().items():
        block = max((b for b in blocks if name.startswith(b + ".")), key=len)
        rest = name[len(block) + 1 :]
        if ".resnets." in f".{block}.":
            part, _, kind = rest.rpartition(".")
            rest = f"{_RESNET[part]}.{kind}"
        renamed[f"{prefix}{blocks[block]}.{rest}"] = tensor
    return renamed


def vae_to_original(vae: Any) -> dict[str, torch.Tensor]:
    """Rename an autoencoder's tensors; its attention was 1 x 1 convolutions."""
    levels = len(vae.config.block_out_channels)
    renamed = {}
    for name, tensor in vae.state_dict().items():
        new = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        new = new.replace("conv_shortcut", "nin_shortcut")
        for level in range(levels):
            new = new.replace(f"down_blocks.{level}.resnets", f"down.{level}.block")
            new = new.replace(f"down_blocks.{level}.downsamplers.0", f"down.{level}.downsample")
            new = new.replace(f"up_blocks.{level}.resnets", f"up.{levels - 1 - level}.block")
            new = new.replace(f"up_blocks.{level}.upsamplers.0", f"up.{levels - 1 - level}.upsample")
        if ".attn_1." in new:
            words = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
            for word, old in words.items():
                new = new.replace(f".{word}.", f".{old}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        renamed[f"first_stage_model.{new}"] = tensor
    return renamed


def text_to_original(text_encoder: Any, version: int) -> dict[str, torch.Tensor]:
    """Rename a text encoder's tensors: transformers' own names for 1.x, OpenCLIP's for 2.x with one layer more."""
    if version == 1:
        return clip_to_original(text_encoder, "cond_stage_model.transformer.")
    return open_clip_to_original(text_encoder, "cond_stage_model.model.", extra=1)


def clip_to_original(text_encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Put a prefix in front of transformers' own names."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    return {f"{prefix}text_model.{name}": tensor for name, tensor in bare.items()}


def open_clip_to_original(text_encoder: Any, prefix: str, extra: int = 0) -> dict[str, torch.Tensor]:
    """Rename a text encoder's tensors to OpenCLIP's names, with `extra` copies of the last layer."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in text_encoder.state_dict().items()}
    renamed = {
        f"{prefix}token_embedding.weight": bare["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": bare["embeddings.position_embedding.weight"],
        f"{prefix}ln_final.weight": bare["final_layer_norm.weight"],
        f"{prefix}ln_final.bias": bare["final_layer_norm.bias"],
    }
    layers = 1 + max(int(name.split(".")[2]) for name in bare if name.startswith("encoder.layers."))
    words = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    words["self_attn.out_proj"] = "attn.out_proj"
    for layer in range(layers + extra):
        old = f"encoder.layers.{min(layer, layers - 1)}."
        new = f"{prefix}transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for word, name in words.items():
                renamed[f"{new}{name}.{kind}"] = bare[f"{old}{word}.{kind}"]
            fused = [bare[f"{old}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            renamed[f"{new}attn.in_proj_{kind}"] = torch.cat(fused)
    return renamed


def tiny_pictures(folder: Path, count: int, size: tuple[int, int] = (48, 48)) -> Path:
    """Draw coloured discs, each another."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", size, "white")
        colour = (37 * number % 256, 91 * number % 256, 53 * number % 256)
        ImageDraw.Draw(picture).ellipse((4, 4, 20 + 3 * number % 24, 40), fill=colour)
        picture.save(folder / f"disc{number}.png")
    return folder
