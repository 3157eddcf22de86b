"""What is read of the settings in a diffusers folder, and whether its parts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_scripts.errors import BaseModelError
from lora_scripts.families._folder_files import read_json
from lora_scripts.families._shapes import SIZES


class Settings(BaseModel):
    """What is read of a part's settings; everything else is diffusers' business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Unet(Settings):
    """Of the UNet."""

    block_out_channels: list[int] = Field(min_length=1)
    cross_attention_dim: int
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int | tuple[int, int] | None = None
    # Sizes and the pooled text, where a family knows of them.
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    # What else a UNet may be told: none of it is known while training here.
    class_embed_type: str | None = None
    encoder_hid_dim_type: str | None = None
    num_class_embeds: int | None = None
    time_cond_proj_dim: int | None = None


class Vae(Settings):
    """Of the autoencoder."""

    block_out_channels: list[int] = Field(min_length=1)
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    # A scale by channel instead of one for all: the loss would be of another size in each.
    latents_mean: list[float] | None = None


class Text(Settings):
    """Of a text encoder; the defaults are those of transformers."""

    hidden_size: int
    vocab_size: int = 49408
    max_position_embeddings: int = Field(77, ge=3)
    num_hidden_layers: int = Field(12, ge=1)
    projection_dim: int = 512


class Scheduler(Settings):
    """Of the scheduler."""

    prediction_type: str = "epsilon"


_Part = TypeVar("_Part", bound=Settings)


def settings(folder: Path, name: str, kind: type[_Part]) -> _Part:
    """Read a part's settings, refusing values of another kind than they must have."""
    try:
        return kind.model_validate(read_json(folder / name))
    except ValidationError as error:
        key = ".".join(str(piece) for piece in error.errors()[0]["loc"])
        raise BaseModelError("base.bad_setting", path=folder / name, key=key) from error


def check_parts(path: Path, unet: Unet, vae: Vae, texts: Sequence[Text], addition: str | None) -> None:
    """Refuse parts of other kinds of models, and parts that do not belong together.

    Args:
        addition: what the family's UNets are told besides time and text.

    Raises:
        BaseModelError: says which.
    """
    if unet.in_channels != unet.out_channels:
        raise BaseModelError("base.inpainting", path=path, channels=unet.in_channels)
    for key in ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim"):
        if getattr(unet, key) is not None:
            raise BaseModelError("base.more_conditions", path=path, key=key)
    if unet.addition_embed_type != addition:
        if unet.addition_embed_type is not None:
            raise BaseModelError("base.more_conditions", path=path, key="addition_embed_type")
        raise BaseModelError("base.bad_setting", path=path / "unet/config.json", key="addition_embed_type")
    if vae.latents_mean is not None:
        raise BaseModelError("base.other_scale", path=path)
    widths = (unet.cross_attention_dim, unet.in_channels)
    is_one = widths == (sum(text.hidden_size for text in texts), vae.latent_channels)
    if addition is not None:
        sizes = SIZES * (unet.addition_time_embed_dim or 0)
        is_one = is_one and unet.projection_class_embeddings_input_dim == texts[-1].projection_dim + sizes
    if not is_one or len({text.max_position_embeddings for text in texts}) > 1:
        raise BaseModelError("base.parts_differ", path=path)
