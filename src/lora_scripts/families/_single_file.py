"""A base as one .safetensors file in the original layout: recognised by names and shapes, loaded without a network.

    model.diffusion_model.*                  UNet
    first_stage_model.*                      autoencoder
    cond_stage_model.transformer.*           text encoder of 1.x (CLIP ViT-L, transformers' names)
    cond_stage_model.model.*                 text encoder of 2.x (OpenCLIP ViT-H)

The settings are read off the tensors' shapes, so a smaller model of the same layout works; for a file of Stable
Diffusion 1.5's shape they equal the public ones key for key. Names are translated by diffusers' own functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError
from lora_scripts.families import _kinds
from lora_scripts.families._stream import TensorFile, check_finite
from lora_scripts.files import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import nn

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT1, TEXT2 = "cond_stage_model.transformer.", "cond_stage_model.model."
PREFIXES = {"unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model."}
# Width of the text states that 2.x was trained on; files of 1.x with such states do not exist.
WIDTH_OF_SD2 = 1024
HEAD_WIDTH = 64
HEADS_OF_SD1 = 8


def recognise(path: Path, said: str = "") -> Base | None:
    """Return what a file is, or None where it is nothing this family knows of.

    Args:
        said: the prediction type the config states, for files that do not.

    Raises:
        BaseModelError: a pickle, a broken file, or a base of another or unsupported kind.
    """
    _kinds.refuse_pickle(path)
    file = _open(path)
    has_unet = _has(file, f"{UNET}input_blocks.")
    _kinds.refuse_others(path, file.shapes, has_unet=has_unet)
    if not has_unet:
        return None
    unet, vae, text, variant = _settings(file)
    prediction = _prediction_type(file, variant)
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    large = variant == "sd2" and (prediction or said) == "v_prediction"
    return Base(
        name=path.stem,
        path=path,
        family="sd",
        variant=variant,
        prediction_type=prediction,
        resolution=768 if large else 512,
        multiple=scale * 2 ** (len(unet["block_out_channels"]) - 1),
        max_tokens=text["max_position_embeddings"],
        parameters={part: file.count(prefix) for part, prefix in PREFIXES.items()},
        webui=True,
    )


def _settings(file: TensorFile) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]:
    """Return the settings of UNet, VAE and text encoder, and the variant.

    Raises:
        BaseModelError: a part is missing, or the parts do not belong together.
    """
    path = file.path
    try:
        unet = unet_config(file)
        variant = "sd1" if _has(file, TEXT1) and unet["cross_attention_dim"] != WIDTH_OF_SD2 else "sd2"
        for prefix, part in ((VAE, "VAE"), (TEXT1 if variant == "sd1" else TEXT2, "text encoder")):
            if not _has(file, prefix):
                raise BaseModelError("base.part_missing", path=path, part=f"{part} ({prefix}*)")
        vae, text = vae_config_of(file), text_config(file)
    except KeyError as error:
        raise BaseModelError("base.part_missing", path=path, part=error.args[0]) from error
    except (IndexError, ValueError) as error:
        raise BaseModelError("base.part_missing", path=path, part=f"{UNET}*") from error
    if not unet["block_out_channels"]:
        raise BaseModelError("base.part_missing", path=path, part=f"{UNET}input_blocks.*")
    if unet["in_channels"] != unet["out_channels"]:
        raise BaseModelError("base.inpainting", path=path, channels=unet["in_channels"])
    sizes = (unet["cross_attention_dim"], unet["in_channels"])
    if sizes != (text["hidden_size"], vae["latent_channels"]):
        raise BaseModelError("base.parts_differ", path=path)
    return unet, vae, text, variant


@lru_cache(maxsize=2)
def _cached(path: Path, size: int, modified: int) -> TensorFile:
    return TensorFile(path)


def _open(path: Path) -> TensorFile:
    status = path.stat()
    return _cached(path, status.st_size, status.st_mtime_ns)


def _has(file: TensorFile, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in file.shapes)


def _prediction_type(file: TensorFile, variant: str) -> str:
    """Return what the file says of itself; 1.x files that say nothing predict epsilon, 2.x ones leave it open."""
    if "v_pred" in file.shapes:
        return "v_prediction"
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    return "epsilon" if said in ("epsilon", "eps") or variant == "sd1" else ""


def _numbers(file: TensorFile, pattern: str) -> list[int]:
    """Return the sorted numbers that a pattern's group takes."""
    compiled = re.compile(pattern)
    return sorted({int(match.group(1)) for name in file.shapes if (match := compiled.match(name))})


def unet_config(file: TensorFile) -> dict[str, Any]:
    """Return UNet2DConditionModel's settings, read off the shapes."""
    shapes = file.shapes
    prefix = f"{UNET}input_blocks."
    channels: list[int] = []
    attends: list[bool] = []
    resnets = [0]
    fresh = True
    for number in _numbers(file, re.escape(prefix) + r"(\d+)\.")[1:]:
        if f"{prefix}{number}.0.op.weight" in shapes:
            fresh = True
            resnets.append(0)
            continue
        width = shapes[f"{prefix}{number}.0.out_layers.3.weight"][0]
        attention = f"{prefix}{number}.1.norm.weight" in shapes
        if fresh:
            channels.append(width)
            attends.append(attention)
        fresh = False
        resnets[-1] += 1
    crosses = [name for name in shapes if name.startswith(UNET) and name.endswith("attn2.to_k.weight")]
    linear = any(len(shapes[n]) == 2 for n in shapes if n.startswith(UNET) and n.endswith(".proj_in.weight"))
    first = _has(file, TEXT1)
    down = tuple("CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends)
    up = tuple("CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends))
    config: dict[str, Any] = {
        "act_fn": "silu",
        "attention_head_dim": HEADS_OF_SD1 if first else [max(1, width // HEAD_WIDTH) for width in channels],
        "block_out_channels": channels,
        "center_input_sample": False,
        "cross_attention_dim": shapes[crosses[0]][1],
        "down_block_types": list(down),
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": shapes[f"{prefix}0.0.weight"][1],
        "layers_per_block": resnets[0],
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "sample_size": 64,
        "up_block_types": list(up),
    }
    return config | ({"use_linear_projection": True} if linear else {})


def vae_config_of(file: TensorFile) -> dict[str, Any]:
    """Return AutoencoderKL's settings, read off the shapes."""
    levels = _numbers(file, re.escape(VAE) + r"encoder\.down\.(\d+)\.")
    channels = [file.shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in levels]
    blocks = _numbers(file, re.escape(VAE) + r"encoder\.down\.0\.block\.(\d+)\.")
    return {
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "in_channels": 3,
        "latent_channels": file.shapes[f"{VAE}post_quant_conv.weight"][1],
        "layers_per_block": len(blocks),
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
    }


def text_config(file: TensorFile) -> dict[str, Any]:
    """Return CLIPTextConfig's settings, read off the shapes; 2.x leaves the last layer out, as it was trained."""
    shapes = file.shapes
    if _has(file, TEXT1):
        # Some old converters left "text_model." out.
        prefix = f"{TEXT1}text_model." if _has(file, f"{TEXT1}text_model.") else TEXT1
        words, places = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
        layers = len(_numbers(file, re.escape(prefix) + r"encoder\.layers\.(\d+)\."))
        inner = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
        activation, padding = "quick_gelu", 1
    else:
        prefix = TEXT2
        words, places = "token_embedding.weight", "positional_embedding"
        layers = len(_numbers(file, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")) - 1
        inner = shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0]
        activation, padding = "gelu", 1
    count, width = shapes[prefix + words]
    return {
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": shapes[prefix + places][0],
        "hidden_act": activation,
        "layer_norm_eps": 1e-05,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": padding,
    }


def vae_config(base: Base) -> Mapping[str, Any]:
    """Return the autoencoder's settings."""
    return vae_config_of(_open(base.path))


def tokenizer_folder(base: Base) -> Path:
    """Return where the tokenizer lies: CLIP's own, which comes with the package."""
    return Path(__file__).parent / "clip_tokenizer"


def skeleton(base: Base) -> Mapping[str, nn.Module]:
    """Build UNet and text encoder from their settings, on whatever device is current."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    file = _open(base.path)
    text = CLIPTextModel(CLIPTextConfig(**text_config(file)))
    return {"unet": UNet2DConditionModel.from_config(unet_config(file)), "text_encoder": text}


def unet(base: Base, dtype: torch.dtype) -> Any:
    """Load the UNet, one tensor at a time: diffusers translates names of placeholders, then each is read and cast."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    file = _open(base.path)
    config = unet_config(file)
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    names = [name for name in file.shapes if name.startswith(UNET)]
    placeholders = {name: torch.empty(file.shapes[name], device="meta") for name in names}
    source = {id(tensor): name for name, tensor in placeholders.items()}
    translated = _translated(base.path, convert_ldm_unet_checkpoint, dict(placeholders), dict(model.config))
    wanted: dict[str, list[str]] = {}
    for target, tensor in translated.items():
        if id(tensor) not in source:
            raise BaseModelError("base.untranslated", path=base.path, name=target)
        wanted.setdefault(source[id(tensor)], []).append(target)
    # What the settings have no place for was misread: an attention that lacks its first tensor looks like none.
    unplaced = sorted(translated.keys() - model.state_dict().keys())
    if unplaced:
        raise BaseModelError("base.untranslated", path=base.path, name=unplaced[0])
    state = {}
    for name, tensor in file.read(wanted):
        for target in wanted[name]:
            state[target] = tensor.to(dtype)
    _assign(model, state, base.path)
    return model.eval()


def vae(base: Base, dtype: torch.dtype) -> Any:
    """Load the autoencoder."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    file = _open(base.path)
    with torch.device("meta"):
        model = AutoencoderKL.from_config(vae_config_of(file))
    tensors = dict(file.read(name for name in file.shapes if name.startswith(VAE)))
    state = _translated(base.path, convert_ldm_vae_checkpoint, tensors, dict(model.config))
    _assign(model, {name: tensor.to(dtype) for name, tensor in state.items()}, base.path)
    return model.eval()


def text_encoder(base: Base, dtype: torch.dtype) -> Any:
    """Load the text encoder."""
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel

    file = _open(base.path)
    config = text_config(file)
    # Buffers, which no file holds, are made at once; nothing draws random numbers.
    with init_empty_weights(include_buffers=False):
        model = CLIPTextModel(CLIPTextConfig(**config))
    if base.variant == "sd1":
        tensors = dict(file.read(name for name in file.shapes if name.startswith(TEXT1)))
        state = convert_ldm_clip_checkpoint(tensors)
    else:
        last = f"{TEXT2}transformer.resblocks.{config['num_hidden_layers']}."
        unused = (last, f"{TEXT2}text_projection", f"{TEXT2}logit_scale")
        names = [n for n in file.shapes if n.startswith(TEXT2) and not n.startswith(unused)]
        state = _translated(base.path, convert_open_clip_checkpoint, model, dict(file.read(names)))
    # transformers nests the model below "text_model." or not, by version.
    front = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    state = {front + name.removeprefix("text_model."): tensor.to(dtype) for name, tensor in state.items()}
    _assign(model, state, base.path)
    return model.eval()


def _translated(path: Path, convert: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Let diffusers translate names, which it looks up without asking whether they are there, or takes None for."""
    try:
        return {name: tensor for name, tensor in convert(*arguments).items() if tensor is not None}
    except KeyError as error:
        raise BaseModelError("base.part_missing", path=path, part=error.args[0]) from error


def _assign(model: Any, state: Mapping[str, Any], path: Path) -> None:
    """Give a model its tensors without copying, refusing anything missing or of another shape."""
    known = model.state_dict()
    missing = sorted(known.keys() - state.keys())
    wrong = sorted(n for n in known.keys() & state.keys() if known[n].shape != state[n].shape)
    if missing or wrong:
        raise BaseModelError("base.part_missing", path=path, part=(missing + wrong)[0])
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in known}, assign=True)
    check_finite(model, path)


def tokenizer(base: Base) -> Any:
    """Load CLIP's tokenizer; 2.x pads with "!" (id 0)."""
    from transformers import CLIPTokenizer

    padding = {"pad_token": "!"} if base.variant == "sd2" else {}
    return CLIPTokenizer.from_pretrained(tokenizer_folder(base), **padding)


def scheduler(base: Base) -> Any:
    """The scheduler that the public 1.x and 2.x folders name."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=base.prediction_type,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def weights_hash(base: Base) -> str:
    """sha256 over the file's bytes."""
    return sha256_of(base.path)
