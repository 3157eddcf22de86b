"""Train text encoder and UNet jointly, from scratch, on cached latents."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .data import STYLE_SUFFIX, captions, load_pictures
from .networks import build_scheduler, build_text_encoder, build_unet, load_tokenizer, train_tokenizer
from .state import Stage

BATCH = 64
WARM_UP = 200
CONSTANT_UNTIL = 0.4
FLOOR = 0.02
EMPTY_CAPTION = 0.1
# Mirrors help shapes early on; the last part shows every picture as it is, so that arrows and letters face their way.
MIRRORS_UNTIL = 0.9
STYLE_WEIGHTS = {"noto": 2.0, "flat": 1.0, "3d": 1.0}


def factor(step: int, total: int) -> float:
    """Warm-up, constant until 40 %, then linear to 2 %."""
    progress = step / total
    decay = 1.0 if progress < CONSTANT_UNTIL else 1 - (1 - FLOOR) * (progress - CONSTANT_UNTIL) / (1 - CONSTANT_UNTIL)
    return min((step + 1) / WARM_UP, decay)


def prepare_tokens(work: Path) -> tuple[object, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (tokenizer, token table (n, 4, 24), empty caption (24,), latent indices (n,))."""
    _, rows = load_pictures(work)
    kept = [(i, row) for i, row in enumerate(rows) if row["is_concept"] and row["style"] in STYLE_SUFFIX]
    folder = work / "tokenizer"
    if not (folder / "vocab.json").exists():
        texts = [text for row in rows if row["style"] in STYLE_SUFFIX for text in captions(row)]
        train_tokenizer(texts, folder)
    tokenizer = load_tokenizer(folder)

    def ids(texts: list[str]) -> torch.Tensor:
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    table = torch.stack([ids(captions(row)) for _, row in kept])
    return tokenizer, table, ids([""])[0], torch.tensor([i for i, _ in kept])


def sampling_weights(work: Path) -> torch.Tensor:
    """Noto, flat and 3D are drawn 2 : 1 : 1 whatever their counts."""
    _, rows = load_pictures(work)
    kept = [row for row in rows if row["is_concept"] and row["style"] in STYLE_SUFFIX]
    counts: dict[str, int] = defaultdict(int)
    for row in kept:
        counts[row["style"]] += 1
    return torch.tensor([STYLE_WEIGHTS[row["style"]] / counts[row["style"]] for row in kept])


def train(work: Path, total: int, start_from: Path | None = None) -> None:
    """Train to `total` steps: batch 64, AdamW 1e-3, bf16 autocast, v-prediction, average .999."""
    tokenizer, table, empty, indices = prepare_tokens(work)
    with safe_open(work / "latents.safetensors", "pt") as file:
        scale = float(file.get_tensor("scaling_factor"))
        mean, deviation = file.get_tensor("mean")[indices] * scale, file.get_tensor("deviation")[indices] * scale
    weights = sampling_weights(work)
    torch.manual_seed(0)
    text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    if start_from is not None:
        _load_weights(text_encoder, unet, start_from)
    alphas = build_scheduler().alphas_cumprod
    modules = {"text_encoder": text_encoder, "unet": unet}
    stage = Stage(work / "unet.safetensors", modules, rate=1e-3, ema_decay=0.999, seed=2)

    def one_step() -> torch.Tensor:
        generator = stage.generator()
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        wording = torch.randint(table.shape[1], (BATCH,), generator=generator)
        mirrored = torch.randint(2, (BATCH,), generator=generator) * int(stage.step < MIRRORS_UNTIL * total)
        tokens = table[chosen, wording].clone()
        tokens[torch.rand(BATCH, generator=generator) < EMPTY_CAPTION] = empty
        latents = mean[chosen, mirrored]
        latents = latents + deviation[chosen, mirrored] * torch.randn(latents.shape, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(alphas), (BATCH,), generator=generator)
        alpha = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            states = text_encoder(tokens).last_hidden_state
            predicted = unet(alpha * latents + sigma * noise, timesteps, states).sample
        return F.mse_loss(predicted.float(), alpha * noise - sigma * latents)  # v, arXiv:2202.00512

    stage.run(total, one_step, lambda step: factor(step, total), log=work / "training_log.jsonl")


def _load_weights(text_encoder, unet, folder: Path) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict())
    unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict())
