"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752), and any model of its shape, such as the embedded one.

Shapes: B = batch, L = text positions, D = text width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_scripts.contracts import Base
from lora_scripts.families import _keys
from lora_scripts.families._architecture import CUSTOM, LATENT_CHANNELS, PLAIN, Architecture, Encoder, Layout
from lora_scripts.families._diffusion import Diffusion
from lora_scripts.families._targets import presets

if TYPE_CHECKING:
    from torch import Tensor

CROSS_WIDTHS = {768: "sd1", 1024: "sd2"}
LEVELS = 4
# 2.x was trained at 768 pixels where it predicts v.
LARGE = 768

_UNET = {"center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1, "sample_size": 64}
_SCHEDULER = ("PNDMScheduler", {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1})


def _variant(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> str:
    """Tell 1.x from 2.x by the width of the text states, in UNets that are otherwise of the public shape."""
    levels = (len(unet["block_out_channels"]), len(vae["block_out_channels"]))
    is_public = levels == (LEVELS, LEVELS) and unet.get("in_channels", LATENT_CHANNELS) == LATENT_CHANNELS
    return CROSS_WIDTHS.get(unet["cross_attention_dim"], CUSTOM) if is_public else CUSTOM


class StableDiffusion(Diffusion):
    """One CLIP text encoder, whose last states the UNet reads."""

    name: ClassVar[str] = "sd"
    title: ClassVar[str] = "Stable Diffusion 1.x / 2.x"
    keys: ClassVar = _keys.SD
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    architecture: ClassVar[Architecture] = Architecture(
        family="sd",
        pipelines=pipelines,
        encoders={"text_encoder": PLAIN},
        layouts=(
            Layout(
                {"text_encoder": Encoder("cond_stage_model.transformer.")},
                variant="sd1",
                heads=8,
                prediction="epsilon",
                unet=_UNET,
                scheduler=_SCHEDULER,
            ),
            # OpenCLIP ViT-H, whose last layer was never used.
            Layout(
                {"text_encoder": Encoder("cond_stage_model.model.", is_open=True, unused=1)},
                variant="sd2",
                unet=_UNET,
                scheduler=_SCHEDULER,
            ),
        ),
        variant=_variant,
    )
    target_presets: ClassVar = presets(("text_encoder",))
    spare_layers: ClassVar[int] = 0

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is: a diffusers folder, a hub id, or one file in the original layout."""
        base = super().recognise(path, said)
        if base is not None and path.is_file() and base.variant == "sd2":
            large = (base.prediction_type or said) == "v_prediction"
            base = replace(base, resolution=LARGE if large else base.resolution)
        return base

    def text(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return "states" (B, L, D): the last layer's, or an earlier one's through the same norm, as the WebUI does."""
        encoder = self.text_encoder
        if self.clip_skip == 1:
            return {"states": encoder(ids["text_encoder"]).last_hidden_state}
        states = encoder(ids["text_encoder"], output_hidden_states=True).hidden_states[-self.clip_skip]
        # transformers nests the model below "text_model" or not, by version.
        return {"states": getattr(encoder, "text_model", encoder).final_layer_norm(states)}

    def wording(self, prompt: str) -> dict[str, Any]:
        """The prompt, or its states where layers are skipped: diffusers looks for the norm in one place only."""
        if self.clip_skip == 1:
            return {"prompt": prompt}
        rows = {}
        for name, words in (("prompt_embeds", prompt), ("negative_prompt_embeds", "")):
            ids = {component: row[None].to(self.placement.device) for component, row in self.ids(words).items()}
            rows[name] = self.text(ids)["states"]
        return rows

    def pipeline(self) -> Any:
        """A diffusers pipeline over the live modules."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


plugin = StableDiffusion
