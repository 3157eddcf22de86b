"""Noise and targets equal diffusers' own schedulers; Min-SNR equals its formula."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from lora_scripts.diffusion import noise


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(5, 4, 8, 8, generator=generator)
    return clean, torch.randn(clean.shape, generator=generator), torch.tensor([0, 10, 500, 998, 999])


def test_add_noise_and_v_equal_diffusers(rows):
    clean, epsilon, timesteps = rows
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = noise.add_noise(clean, epsilon, scheduler.alphas_cumprod, timesteps)
    assert torch.allclose(ours, scheduler.add_noise(clean, epsilon, timesteps), atol=1e-6)
    v = noise.target("v_prediction", clean, epsilon, scheduler.alphas_cumprod, timesteps)
    assert torch.allclose(v, scheduler.get_velocity(clean, epsilon, timesteps), atol=1e-6)
    assert noise.target("epsilon", clean, epsilon, scheduler.alphas_cumprod, timesteps) is epsilon


def test_min_snr_is_its_formula_and_finite_at_zero_terminal_snr(rows):
    timesteps = rows[2]
    alphas = DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    weights = noise.min_snr_weights("epsilon", alphas, timesteps, 5.0)
    assert torch.allclose(weights[:4], snr[:4].clamp_max(5) / snr[:4])
    assert weights[4] == 1 and torch.isfinite(weights).all()
    weights = noise.min_snr_weights("v_prediction", alphas, timesteps, 5.0)
    assert torch.allclose(weights, snr.clamp_max(5) / (snr + 1)) and weights[4] == 0


def test_a_row_draws_the_same_whatever_its_neighbours():
    def draw(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return noise.draw_timesteps(1000, generators, None), noise.draw_noise((len(seeds), 4, 8, 8), generators, 0.1)

    together, alone = draw([1, 2, 3]), draw([2])
    assert together[0][1] == alone[0][0] and torch.equal(together[1][1], alone[1][0])


def test_a_quantile_fixes_the_timestep():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert noise.draw_timesteps(1000, generators, 0.5).tolist() == [500, 500]
    assert noise.draw_timesteps(1000, generators, 1.0).tolist() == [999, 999]
