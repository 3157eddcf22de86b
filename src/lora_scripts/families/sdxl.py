"""Stable Diffusion XL (arXiv:2307.01952), and models of its layout; not its refiner.

Shapes: B = batch, L = text positions, D = text width, P = pooled width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_scripts.contracts import Base
from lora_scripts.data import decode
from lora_scripts.data.record import PictureExample
from lora_scripts.families import _keys
from lora_scripts.families._architecture import CUSTOM, PLAIN, PROJECTED, Architecture, Encoder, Layout
from lora_scripts.families._diffusion import Diffusion
from lora_scripts.families._shapes import SIZES
from lora_scripts.families._targets import presets

if TYPE_CHECKING:
    from torch import Tensor

FIRST, SECOND = "text_encoder", "text_encoder_2"
PUBLIC_SHAPE = {
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "in_channels": 4,
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
}


def _variant(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> str:
    """Tell UNets of the public shape, which all tools load, from others of the layout."""
    given = {"in_channels": 4, "layers_per_block": 2} | dict(unet)
    return "sdxl" if all(given.get(key) == value for key, value in PUBLIC_SHAPE.items()) else CUSTOM


class StableDiffusionXL(Diffusion):
    """Two CLIP text encoders side by side; the UNet is told the pooled text, and sizes and cut of the picture too."""

    name: ClassVar[str] = "sdxl"
    title: ClassVar[str] = "Stable Diffusion XL"
    keys: ClassVar = _keys.SDXL
    # The second is what some tools save the same parts as.
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    architecture: ClassVar[Architecture] = Architecture(
        family="sdxl",
        pipelines=pipelines,
        encoders={FIRST: PLAIN, SECOND: PROJECTED},
        layouts=(
            Layout(
                {
                    FIRST: Encoder("conditioner.embedders.0.transformer."),
                    SECOND: Encoder("conditioner.embedders.1.model.", is_open=True),
                },
                resolution=1024,
                scaling=0.13025,
                unet={"sample_size": 128},
                scheduler=("EulerDiscreteScheduler", {"steps_offset": 1, "timestep_spacing": "leading"}),
            ),
        ),
        variant=_variant,
        addition="text_time",
        sample_size=128,
    )
    target_presets: ClassVar = presets((FIRST, SECOND))
    # Trained on the states before the last layer.
    spare_layers: ClassVar[int] = 1
    said: ClassVar[tuple[str, ...]] = ("states", "pooled")

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is: a diffusers folder, a hub id, or one file in the original layout.

        Many files that predict v do not say so; where the config does, it is believed.
        """
        base = super().recognise(path, said)
        return base and replace(base, prediction_type=base.prediction_type or said or "epsilon")

    @property
    def text_encoder_2(self) -> Any:
        """The second text encoder."""
        return self.encoder(SECOND)

    def text(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "states" (B, L, D), both encoders' side by side, and "pooled" (B, P), the second's projected one.

        The states are those before the last layer, without its norm; each further skip is one layer earlier.
        """
        import torch

        outputs = [self.encoder(component)(ids[component], output_hidden_states=True) for component in (FIRST, SECOND)]
        states = [output.hidden_states[-1 - self.clip_skip] for output in outputs]
        return {"states": torch.cat(states, dim=-1), "pooled": outputs[1].text_embeds}

    def conditions(self, examples: Sequence[PictureExample]) -> dict[str, Tensor]:
        """Return "sizes" (B, 6), as `sizes` says."""
        import torch

        return {"sizes": torch.tensor([sizes(example) for example in examples], dtype=torch.float32)}

    def added(self, said: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return pooled text and sizes as the UNet wants them."""
        told = tensors["sizes"].to(self.placement.device, self.dtype)
        return {"added_cond_kwargs": {"text_embeds": said["pooled"], "time_ids": told}}

    @classmethod
    def blank(cls, unet: Any) -> dict[str, Any]:
        """Return pooled text and sizes for one row, without values."""
        import torch

        config = unet.config
        pooled = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
        return {"added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, SIZES)}}

    def wording(self, prompt: str) -> dict[str, Any]:
        """The prompt, and how many layers of the text encoders are skipped."""
        return {"prompt": prompt, "clip_skip": self.clip_skip - 1}

    def pipeline(self) -> Any:
        """A diffusers pipeline over the live modules."""
        from diffusers import StableDiffusionXLPipeline

        said = self._stored.pipeline_settings()
        pipeline = StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_of(SECOND),
            unet=self.unet,
            scheduler=copy.deepcopy(self.scheduler),
            force_zeros_for_empty_prompt=bool(said.get("force_zeros_for_empty_prompt", True)),
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def sizes(example: PictureExample) -> tuple[int, ...]:
    """Return (height, width) of the picture, (top, left) of the cut in the scaled picture, (height, width) of the cut.

    As diffusers' training script for this model has them (arXiv:2307.01952, section 2.2). The cut is in the middle, so
    a mirrored picture's is at the same place.
    """
    left, top, _, bottom = decode.crop_box(example.size, example.bucket)
    (width, height), (columns, rows) = example.size, example.bucket
    factor = rows / (bottom - top)
    return height, width, round(top * factor), round(left * factor), rows, columns


plugin = StableDiffusionXL
