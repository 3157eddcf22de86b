"""Write the trained model as an ordinary fp16 pipeline folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from .data import load_pictures
from .networks import build_scheduler, build_text_encoder, build_unet, load_tokenizer
from .state import Stage

SHARD = "14MB"


def export(work: Path, folder: Path) -> None:
    """Write `folder` from the averaged weights: fp16, shards under 15 MB, concepts, manifest and log beside."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from safetensors import safe_open

    tokenizer = load_tokenizer(work / "tokenizer")
    text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    stage = Stage(
        work / "unet.safetensors", {"text_encoder": text_encoder, "unet": unet}, rate=0.0, ema_decay=0.0, seed=0
    )
    stage.use_average()
    vae = AutoencoderKL.from_pretrained(work / "vae")
    with safe_open(work / "latents.safetensors", "pt") as file:
        vae.register_to_config(scaling_factor=round(float(file.get_tensor("scaling_factor")), 5))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    for name in ("unet", "vae", "text_encoder"):
        shutil.rmtree(folder / name, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=SHARD)
    # The weights are half the size on disk, but plain `from_pretrained` should run on a CPU: diffusers loads float32
    # unless told otherwise, transformers what the config says.
    _change(folder / "text_encoder" / "config.json", dtype="float32")
    _change(folder / "vae" / "config.json", _name_or_path="")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(work / "tokenizer" / name, folder / "tokenizer" / name)
    _, rows = load_pictures(work)
    names = dict.fromkeys(row["name"] for row in rows if row["is_concept"])
    (folder / "concepts.txt").write_text("\n".join(names) + "\n")
    shutil.copyfile(work / "manifest.json", folder / "manifest.jsonl")
    shutil.copyfile(work / "training_log.jsonl", folder / "training_log.jsonl")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"step {stage.step}: {total / 1e6:.1f} MB, {len(names)} concepts")


def _change(path: Path, **values: str) -> None:
    """Set values of a JSON file; an empty one removes the key."""
    settings = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != ""}, indent=2) + "\n")
