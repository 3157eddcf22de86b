"""Predict the noise, or v, that was mixed into clean latents (arXiv:2006.11239, section 3.2).

A mask m of 0..1 says where a row's loss counts, m' = floor + (1 - floor) m:

    loss of the row = mean over C, H, W of m' * distance / mean over H, W of m'

so that a subject that fills a tenth of its picture moves the weights as much as one that fills it. sd-scripts leaves
the division out (`--masked_loss`); in OneTrainer it is an option ("normalize masked area loss").

With `prior: base`, rows of regularisation sets learn what the base predicts from the same noisy latents, rather than
the noise (self-distillation): their loss is 0 until the LoRA changes what the base makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from lora_scripts.contracts import Batch, Denoiser, Loss
from lora_scripts.diffusion import noise as diffusion

if TYPE_CHECKING:
    from torch import Tensor


LEARNS = frozenset({"picture"})


class Config(BaseModel):
    """The keys of the run config this objective reads, by their own names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_offset: float = 0.0
    min_snr_gamma: float | None = None
    loss: str = "mse"
    mask_floor: float = 0.0
    prior: str = "pictures"


class Denoise:
    """The objective; see `contracts.Objective`."""

    def __init__(self, config: Config):
        self.config = config

    def loss(self, family: Denoiser, batch: Batch, *, quantile: float | None = None) -> Loss:
        """Return the weighted sum over rows of each row's mean distance to its target.

        The noise of a row comes from its own generator: position, timestep, then noise, whatever the micro-batch.
        """
        clean = family.latents(batch)
        generators = batch.generators
        timesteps = diffusion.draw_timesteps(len(family.alphas_cumprod), generators, quantile).to(clean.device)
        noise = diffusion.draw_noise(clean.shape, generators, self.config.noise_offset).to(clean)
        noisy = diffusion.add_noise(clean, noise, family.alphas_cumprod, timesteps)
        wanted = diffusion.target(family.prediction_type, clean, noise, family.alphas_cumprod, timesteps)
        if self.config.prior == "base" and any(batch.regularisation):
            wanted = self._as_base(family, batch, noisy, timesteps, wanted)
        predicted = family.predict(noisy, timesteps, batch)
        rows = self._distance(predicted.to(wanted.dtype), wanted, batch.tensors.get("mask"))
        weights = batch.weights.to(rows)
        if self.config.min_snr_gamma is not None:
            gamma = self.config.min_snr_gamma
            weights = weights * diffusion.min_snr_weights(
                family.prediction_type, family.alphas_cumprod, timesteps, gamma
            ).to(rows)
        return Loss(total=(rows * weights).sum())

    def levels(self, wanted: int) -> Sequence[float | None]:
        """Fixed noise levels for a measurement: evenly spaced quantiles."""
        return tuple((level + 0.5) / wanted for level in range(wanted))

    def reading(self, loss: float) -> Mapping[str, float]:
        """Nothing: a denoising loss has no other name."""
        return {}

    def _as_base(self, family: Denoiser, batch: Batch, noisy: Tensor, timesteps: Tensor, wanted: Tensor) -> Tensor:
        """(B, C, H, W) the target, and in regularisation rows what the base alone predicts."""
        import torch

        with torch.no_grad(), family.without_pairs():
            base = family.predict(noisy, timesteps, batch).to(wanted.dtype)
        kept = torch.tensor(list(batch.regularisation), device=wanted.device)
        return torch.where(kept[:, None, None, None], base, wanted)

    def _distance(self, predicted: Tensor, wanted: Tensor, mask_B1HW: Tensor | None) -> Tensor:
        """(B,) mean distance over C, H, W, weighted by the mask."""
        from torch.nn import functional

        kinds = {"mse": functional.mse_loss, "huber": functional.smooth_l1_loss, "l1": functional.l1_loss}
        distance = kinds[self.config.loss](predicted, wanted, reduction="none")
        if mask_B1HW is None:
            return distance.mean(dim=(1, 2, 3))
        mask = mask_B1HW.to(distance)
        # Written so that 1 stays exactly 1.
        mask = mask + self.config.mask_floor * (1 - mask)
        return (distance * mask).mean(dim=(1, 2, 3)) / mask.mean(dim=(1, 2, 3))


def build(config: Config) -> Denoise:
    """Return the objective."""
    return Denoise(config)
