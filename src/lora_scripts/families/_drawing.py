"""Previews from the live weights: they leave no trace in the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lora_scripts.data.record import PictureExample

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn


def wishes(section: Any, examples: Sequence[PictureExample]) -> tuple[list[Any], dict[str, Any]]:
    """The config's prompts, else captions spread evenly over the data; drawn at the commonest size."""
    prompts = list(section.prompts)
    if not prompts:
        # What only keeps the base from forgetting has nothing to show.
        shown = [example for example in examples if not example.regularisation] or examples
        titles = list(dict.fromkeys(example.title for example in shown))
        prompts = titles[:: max(1, len(titles) // section.count)][: section.count]
    size = Counter(example.bucket for example in examples).most_common(1)[0][0]
    return prompts, {"size": size, "steps": section.steps, "guidance": section.guidance}


@contextmanager
def measured(parts: Sequence[nn.Module]) -> Iterator[None]:
    """All modules in evaluation mode, for a while."""
    modes = {child: child.training for part in parts for child in part.modules()}
    for child in modes:
        child.training = False
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def draw(pipeline: Any, decode: Any, dtype: torch.dtype, seed: int, wish: Mapping[str, Any]) -> Image:
    """Sample in the network's precision, and decode in the VAE's own: many overflow or band in 16 bits.

    Args:
        decode: turns latents into pixels.
        dtype: how the network is held.
        wish: the pipeline's arguments, the prompt among them.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        with torch.autocast(pipeline.device.type, dtype, enabled=dtype.itemsize == 2):
            latents = pipeline(generator=generator, output_type="latent", **wish).images
        pixels = decode(latents)
    return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
