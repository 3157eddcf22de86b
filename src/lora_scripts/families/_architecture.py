"""What the files of one family's bases hold, stated by the family and read by `_folder` and `_single_file`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

# transformers' classes; the second kind has a projection of the pooled state behind it.
PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
LATENT_CHANNELS = 4
CUSTOM = "custom"


@dataclass(frozen=True)
class Encoder:
    """One text encoder as a file in the original layout names it.

    Attributes:
        prefix: of its tensors.
        is_open: the names are OpenCLIP's, which also pads with "!" (id 0); else they are transformers' own.
        unused: layers at the end that the base was not trained with.
    """

    prefix: str
    is_open: bool = False
    unused: int = 0


@dataclass(frozen=True)
class Layout:
    """One kind of file in the original layout.

    Attributes:
        encoders: by component.
        variant: what such a base is called; "" where its shape decides.
        heads: attention heads of the UNet where they are the same in all blocks; 0 where a head is 64 wide.
        resolution: native size in pixels.
        scaling: of the latents.
        prediction: of files that do not say it; "" where that leaves it open.
        unet: settings of the UNet that no tensor's shape tells.
        scheduler: diffusers' class, and its settings besides the betas.
    """

    encoders: Mapping[str, Encoder]
    variant: str = ""
    heads: int = 0
    resolution: int = 512
    scaling: float = 0.18215
    prediction: str = ""
    unet: Mapping[str, Any] = field(default_factory=dict)
    scheduler: tuple[str, Mapping[str, Any]] = ("PNDMScheduler", {})


@dataclass(frozen=True)
class Architecture:
    """One family's bases.

    Attributes:
        family: registry name.
        pipelines: what a folder's model_index.json may call them.
        encoders: transformers' class of each text encoder, by component; the UNet reads their states side by side.
        layouts: kinds of single files; the first whose encoders are all there is taken, else the last.
        addition: diffusers' `addition_embed_type`: what the UNet is told besides time and text.
        sample_size: side of the latents where a folder does not say it.
        variant: the family's word for the shape of (UNet, VAE) settings, or `CUSTOM`.
    """

    family: str
    pipelines: tuple[str, ...]
    encoders: Mapping[str, str]
    layouts: tuple[Layout, ...]
    variant: Callable[[Mapping[str, Any], Mapping[str, Any]], str]
    addition: str | None = None
    sample_size: int = 64

    def weights(self) -> dict[str, str]:
        """Return the stem of each part's weight files in a folder."""
        parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
        return parts | dict.fromkeys(self.encoders, "model")


def tokenizer_of(component: str) -> str:
    """Return the folder of a text encoder's tokenizer: "tokenizer_2" for "text_encoder_2"."""
    return component.replace("text_encoder", "tokenizer")


class Stored(Protocol):
    """A base's files: what they say, and its parts loaded from them.

    `_folder.Folder` is one for diffusers folders, `_single_file.SingleFile` one for the original layout.
    """

    def vae_config(self) -> Mapping[str, Any]: ...
    def text_layers(self) -> int: ...
    def tokenizer_folder(self, component: str) -> Path: ...
    def skeleton(self) -> Mapping[str, nn.Module]: ...
    def unet(self, dtype: torch.dtype) -> Any: ...
    def vae(self, dtype: torch.dtype) -> Any: ...
    def text_encoder(self, component: str, dtype: torch.dtype) -> Any: ...
    def tokenizer(self, component: str) -> Any: ...
    def scheduler(self) -> Any: ...
    def pipeline_settings(self) -> Mapping[str, Any]: ...
    def weights_hash(self) -> str: ...
