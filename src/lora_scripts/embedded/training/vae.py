"""Train the autoencoder and cache every training picture's latent mean and deviation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from .data import load_pictures
from .networks import build_vae
from .state import Stage

BATCH = 16
KL_WEIGHT = 2e-3
WARM_UP = 60


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(n, 64, 64, 3) uint8 -> (n, 3, 64, 64) float32 in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def gradient_l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the finite differences in x and y: what keeps edges sharp."""
    dx = (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean()
    return dx + (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()


def factor(step: int, total: int) -> float:
    """Warm-up over 60 steps, then constant, then linear to zero over the last 70 %."""
    return min(1.0, (step + 1) / WARM_UP, max(0.0, (total - step) / (0.7 * total)))


def train(work: Path, total: int) -> None:
    """Train `total` steps (loss: L1 + 0.5 gradient-L1 + MSE + 2e-3 KL per latent dimension)."""
    torch.manual_seed(0)
    vae = build_vae()
    pictures, _ = load_pictures(work)
    stage = Stage(work / "vae.safetensors", {"vae": vae}, rate=2e-3, ema_decay=0.995, seed=1)

    def one_step() -> torch.Tensor:
        generator = stage.generator()
        chosen = torch.randint(len(pictures), (BATCH,), generator=generator)
        real = to_tensor(pictures[chosen.numpy()])
        flip = torch.rand(BATCH, generator=generator) < 0.5
        real[flip] = real[flip].flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(real).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            made = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample
        made = made.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        reconstruction = F.l1_loss(made, real) + 0.5 * gradient_l1(made, real) + F.mse_loss(made, real)
        return reconstruction + KL_WEIGHT * divergence

    stage.run(total, one_step, lambda step: factor(step, total), log=work / "training_log.jsonl")
    stage.use_average()
    vae.save_pretrained(work / "vae")


@torch.no_grad()
def cache_latents(work: Path) -> None:
    """Write `latents.safetensors`: mean and deviation of each picture and its mirror, and the latents' own scale."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    pictures, rows = load_pictures(work)
    means, deviations, errors = [], [], []
    for start in range(0, len(pictures), 64):
        real = to_tensor(pictures[start : start + 64])
        posterior = vae.encode(torch.cat([real, real.flip(-1)])).latent_dist
        means.append(torch.stack(posterior.mean.chunk(2), 1))
        deviations.append(torch.stack(posterior.std.chunk(2), 1))
        made = vae.decode(posterior.mean[: len(real)]).sample.clamp(-1, 1)
        errors.append(((made - real) / 2).square().mean(dim=(1, 2, 3)))
    mean, deviation, error = torch.cat(means), torch.cat(deviations), torch.cat(errors)
    decibels = -10 * error.log10()
    scale = 1 / float((mean.var() + deviation.square().mean()).sqrt())
    save_file(
        {"mean": mean, "deviation": deviation, "scaling_factor": torch.tensor(scale)}, work / "latents.safetensors"
    )
    for style in sorted({r["style"] for r in rows}):
        keep = torch.tensor([r["style"] == style for r in rows])
        print(f"{style}: {decibels[keep].mean():.2f} dB")
    print(f"all: {decibels.mean():.2f} dB, scaling factor {scale:.4f}")
