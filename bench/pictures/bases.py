"""The bases and pictures that the cases train on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "style_high_contrast"


@dataclass(frozen=True)
class Case:
    """What is alike for all sides: `pixels` a side of a picture, `batch` pictures a step."""

    name: str
    pixels: int
    batch: int
    steps: int
    rate: float


CASES = {
    "embedded": Case("embedded", pixels=64, batch=16, steps=200, rate=2e-3),
    "shape": Case("shape", pixels=256, batch=1, steps=10, rate=1e-4),
}


def write_shape(folder: Path) -> None:
    """Write a pipeline of Stable Diffusion 1.5's shape with random weights of the usual size, in half precision."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from lora_scripts.families import _single_file

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    width = (128, 256, 512, 512)
    vae = AutoencoderKL(
        block_out_channels=width,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2)
    )
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    torch.set_default_dtype(torch.float32)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(Path(_single_file.__file__).parent / "clip_tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)


def write_pictures(folder: Path, count: int, pixels: int) -> None:
    """Write noise with a caption each: what is in a picture changes no time."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    lines = ["file_name,prompt"]
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,a picture of noise number {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def operations(base: Path, pixels: int, batch: int) -> float:
    """Count one step's floating-point operations, forward and backward, on the meta device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from bench.pictures.sides import add_pairs

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "unet"))
    positions = json.loads((base / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    levels = len(AutoencoderKL.load_config(base / "vae")["block_out_channels"])
    unet.requires_grad_(False)
    add_pairs(unet)
    unet.to("meta")
    side = pixels // 2 ** (levels - 1)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        noisy = torch.empty(batch, unet.config.in_channels, side, side)
        states = torch.empty(batch, positions, unet.config.cross_attention_dim)
        unet(noisy, torch.zeros(batch, dtype=torch.long), states).sample.sum().backward()
    return float(counter.get_total_flops())
