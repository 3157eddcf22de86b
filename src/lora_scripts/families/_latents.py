"""From pictures to latents: the VAE's posterior, not a sample of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_scripts.data import decode
from lora_scripts.data.record import PictureExample
from lora_scripts.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def pixels_a_latent(vae_config: Mapping[str, Any]) -> int:
    """Return how many pixels a latent spans, across and down."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def encode(vae: Any, example: PictureExample, flip: bool) -> Mapping[str, Tensor]:
    """Return "mean" and "deviation", (C, H, W) float32, of one picture at its bucket.

    Raises:
        DataError: the picture has changed since it was read, or the VAE makes numbers of it that are not finite.
    """
    import numpy as np
    import torch

    picture = decode.fit(decode.decode(example.path, sha256=example.sha256), example.bucket)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
    pixels = pixels.flip(-1) if flip else pixels
    with torch.no_grad():
        posterior = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
    mean, deviation = posterior.mean[0].float().cpu(), posterior.std[0].float().cpu()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
        raise DataError("base.latents_not_finite", path=example.path)
    return {"mean": mean, "deviation": deviation}
