"""Noise, targets and loss weights of discrete-time diffusion.

Shapes: B = batch, C = channels, H, W = latent height and width, T = timesteps. `alphas_cumprod` is alpha-bar of
arXiv:2006.11239; sqrt(alpha-bar) is "alpha_t" and sqrt(1 - alpha-bar) "sigma_t" elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def _levels(alphas_cumprod_T: Tensor, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_t and sigma_t as (B, 1, 1, 1)."""
    alpha_bar = alphas_cumprod_T.to(timesteps_B.device)[timesteps_B].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def draw_timesteps(num_timesteps: int, generators: Sequence[torch.Generator], quantile: float | None) -> Tensor:
    """Return (B,) timesteps: uniform from each row's generator, or all at `quantile` in 0..1 of the range."""
    import torch

    if quantile is not None:
        return torch.full((len(generators),), min(num_timesteps - 1, int(quantile * num_timesteps)))
    return torch.cat([torch.randint(num_timesteps, (1,), generator=generator) for generator in generators])


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator], offset: float = 0.0) -> Tensor:
    """Return (B, C, H, W) float32 normal noise, row by row, plus `offset` times one normal number a channel."""
    import torch

    rows = []
    for generator in generators:
        row = torch.randn(tuple(shape[1:]), generator=generator)
        if offset:
            row = row + offset * torch.randn((shape[1], 1, 1), generator=generator)
        rows.append(row)
    return torch.stack(rows)


def add_noise(clean_BCHW: Tensor, noise_BCHW: Tensor, alphas_cumprod_T: Tensor, timesteps_B: Tensor) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t epsilon (arXiv:2006.11239, eq. 4)."""
    alpha, sigma = _levels(alphas_cumprod_T, timesteps_B)
    return alpha * clean_BCHW + sigma * noise_BCHW


def target(
    prediction_type: str, clean_BCHW: Tensor, noise_BCHW: Tensor, alphas_cumprod_T: Tensor, timesteps_B: Tensor
) -> Tensor:
    """What the network should say: epsilon, or v = alpha_t epsilon - sigma_t x_0 (arXiv:2202.00512, section 2.4)."""
    if prediction_type == "epsilon":
        return noise_BCHW
    if prediction_type != "v_prediction":
        raise ValueError(prediction_type)
    alpha, sigma = _levels(alphas_cumprod_T, timesteps_B)
    return alpha * noise_BCHW - sigma * clean_BCHW


def min_snr_weights(prediction_type: str, alphas_cumprod_T: Tensor, timesteps_B: Tensor, gamma: float) -> Tensor:
    """(B,) Min-SNR-gamma weights (arXiv:2303.09556, section 3.4): min(SNR, gamma) over SNR, or over SNR + 1 for v.

    At zero terminal SNR the epsilon form is 1, its limit.
    """
    alpha_bar = alphas_cumprod_T.to(timesteps_B.device)[timesteps_B]
    snr = alpha_bar / (1 - alpha_bar).clamp_min(1e-12)
    limited = snr.clamp_max(gamma)
    if prediction_type == "v_prediction":
        return limited / (snr + 1)
    return (limited / snr.clamp_min(1e-12)).where(snr > 0, 1.0)
