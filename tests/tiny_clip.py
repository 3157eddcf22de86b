"""Tiny models with two towers, built in code: a CLIP of transformers, and a folder like the embedded labeller's."""

from __future__ import annotations

import json
from pathlib import Path

import torch

NAMES = ("red square", "blue disc", "green stripe")
TEXTS = ("a red square", "a blue disc", "a picture of a green stripe", "on a white background", "black and white")


def _tokenizer(folder: Path) -> object:
    from lora_scripts.embedded.training.networks import train_tokenizer

    return train_tokenizer([*NAMES, *TEXTS], folder)


def build_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIPModel of two layers a tower with its tokenizer, and pictures of 32 pixels."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = _tokenizer(folder)
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**shape, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": 0},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def build_towers(folder: Path, seed: int = 0) -> Path:
    """Random towers under the file names of the embedded labeller."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, ResNetConfig, ResNetForImageClassification

    tokenizer = _tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    image = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=8)
    CLIPTextModelWithProjection(text).save_pretrained(folder / "text_tower")
    ResNetForImageClassification(image).save_pretrained(folder / "image_tower")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    settings = {"schema": 1, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "logit_scale": 16.0}
    (folder / "towers.json").write_text(json.dumps(settings))
    return folder
