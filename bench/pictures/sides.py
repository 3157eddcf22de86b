"""The sides: each trains on a job's pictures and saves a LoRA as diffusers does; the package says what differs."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.pictures.bases import CASES

RANK = 8
MAX_NORM = 1.0
SEED = 7
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@dataclass(frozen=True)
class Job:
    """What a run is given.

    Attributes:
        case: a key of `CASES`.
        base: a diffusers folder.
        pictures: a folder with metadata.csv.
    """

    case: str
    base: Path
    pictures: Path
    steps: int

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what the parent wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(values["case"], Path(values["base"]), Path(values["pictures"]), values["steps"])


@dataclass(frozen=True)
class Trained:
    """What a side measured of itself: of each optimizer step the seconds and the loss before it."""

    seconds: list[float]
    losses: list[float]


def our_config(job: Job, out: Path) -> dict[str, Any]:
    """Return a run config that leaves out whatever the package may choose by itself."""
    case = CASES[job.case]
    return {
        "train_data_dir": str(job.pictures),
        "base_model": str(job.base),
        "output_dir": str(out),
        "cache_dir": str(out.with_name(f"{out.name}-cache")),
        "resolution": case.pixels,
        "seed": SEED,
        "lora_rank": RANK,
        "lora_targets": "attention",
        "batch_size": case.batch,
        "gradient_accumulation": 1,
        "steps": job.steps,
        "learning_rate": case.rate,
        "schedule": "constant",
        "warmup": 0,
        "max_grad_norm": MAX_NORM,
        "save_steps": 1_000_000,
        "preview": False,
    }


def ours(job: Job, out: Path) -> Trained:
    """Train through the package's public use-case."""
    from lora_scripts import app
    from lora_scripts.config.load import from_mapping

    app.train(from_mapping(our_config(job, out)))
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "Stepped"]
    return Trained([step["seconds"] for step in steps], [step["loss"] for step in steps])


def recipe(job: Job, out: Path, mixed: str) -> Trained:
    """Train as diffusers' script for text-to-image LoRA does, step by step."""
    import torch
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.training_utils import cast_training_params
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict
    from transformers import CLIPTextModel, CLIPTokenizer

    case = CASES[job.case]
    torch.manual_seed(SEED)
    accelerator = Accelerator(mixed_precision=mixed)
    dtype = torch.bfloat16 if mixed == "bf16" else torch.float32
    scheduler = DDPMScheduler.from_pretrained(job.base, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(job.base, subfolder="tokenizer")
    text = CLIPTextModel.from_pretrained(job.base, subfolder="text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(job.base, subfolder="vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(job.base, subfolder="unet", torch_dtype=torch.float32)
    for frozen in (text, vae, unet):
        frozen.requires_grad_(False)
        frozen.to(accelerator.device, dtype=dtype)
    add_pairs(unet)
    if mixed == "bf16":
        cast_training_params(unet, dtype=torch.float32)
    learned = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=case.rate, weight_decay=0.01)
    rows = read_rows(job.pictures, tokenizer, case.pixels)
    loader = torch.utils.data.DataLoader(rows, batch_size=case.batch, shuffle=True)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    seconds, losses = [], []
    batches = _endless(loader)
    unet.train()
    for _ in range(job.steps):
        started = time.perf_counter()
        pixels, ids = next(batches)
        latents = vae.encode(pixels.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),)).long()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        states = text(ids, return_dict=False)[0]
        is_v = scheduler.config.prediction_type == "v_prediction"
        wanted = scheduler.get_velocity(latents, noise, timesteps) if is_v else noise
        predicted = unet(noisy, timesteps, states, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), wanted.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learned, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    bare = accelerator.unwrap_model(unet).to(torch.float32)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(bare))
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=layers, safe_serialization=True)
    return Trained(seconds, losses)


def add_pairs(unet: Any) -> None:
    """Put the recipe's pairs into a UNet."""
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))


def read_rows(folder: Path, tokenizer: Any, pixels: int) -> list[tuple[Any, Any]]:
    """Return (pixels in -1..1, ids) of every picture; the recipe decodes at each visit, which this spares it."""
    import numpy as np
    import torch
    from PIL import Image

    rows = []
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            picture = Image.open(folder / row["file_name"]).convert("RGB").resize((pixels, pixels))
            values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
            ids = tokenizer(
                row["prompt"],
                max_length=tokenizer.model_max_length,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            ).input_ids[0]
            rows.append((values, ids))
    return rows


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def recipe_float32(job: Job, out: Path) -> Trained:
    """See the package."""
    return recipe(job, out, "no")


def recipe_bf16(job: Job, out: Path) -> Trained:
    """See the package."""
    return recipe(job, out, "bf16")


SIDES = {"ours": ours, "recipe-float32": recipe_float32, "recipe-bf16": recipe_bf16}
