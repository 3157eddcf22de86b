"""A base as a diffusers folder (or a hub id): recognised from its JSON files, loaded by diffusers and transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError
from lora_scripts.families import _hub
from lora_scripts.families._stream import TensorFile, check_finite

if TYPE_CHECKING:
    import torch
    from torch import nn

PIPELINES = ("StableDiffusionPipeline",)
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CROSS_WIDTHS = {768: "sd1", 1024: "sd2"}
MAX_JSON_BYTES = 32 << 20
PREDICTIONS = ("epsilon", "v_prediction")
LATENT_CHANNELS, LEVELS = 4, 4


class _Settings(BaseModel):
    """What is read of a part's settings; everything else is diffusers' business."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Unet(_Settings):
    block_out_channels: list[int] = Field(min_length=1)
    cross_attention_dim: int
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int | tuple[int, int] | None = None
    # What else a UNet may be told besides time and text: none of it is known while training here.
    addition_embed_type: str | None = None
    class_embed_type: str | None = None
    encoder_hid_dim_type: str | None = None
    num_class_embeds: int | None = None
    time_cond_proj_dim: int | None = None


class _Vae(_Settings):
    block_out_channels: list[int] = Field(min_length=1)
    latent_channels: int = 4
    scaling_factor: float = 0.18215


class _Text(_Settings):
    hidden_size: int
    vocab_size: int = 49408
    max_position_embeddings: int = Field(77, ge=3)


class _Scheduler(_Settings):
    prediction_type: str = "epsilon"


_Part = TypeVar("_Part", bound=_Settings)


def recognise(path: Path) -> Base | None:
    """Return what a folder is, or None where it holds no pipeline of this family.

    Raises:
        BaseModelError: a pipeline of another family, a part that is missing, or weights in a form that is not read.
        MachineError: a hub id that cannot be had.
    """
    folder = path if path.is_dir() else _hub.fetch(path.as_posix(), _hub.INDEX)
    if not (folder / "model_index.json").is_file():
        return None
    kind = str(_json(folder / "model_index.json").get("_class_name"))
    if kind not in PIPELINES:
        raise BaseModelError("base.other_pipeline", path=path, found=kind, known=", ".join(PIPELINES))
    if not path.is_dir():
        folder = _complete(path.as_posix())
    unet, vae = _settings(folder, "unet/config.json", _Unet), _settings(folder, "vae/config.json", _Vae)
    text = _settings(folder, "text_encoder/config.json", _Text)
    prediction = _settings(folder, "scheduler/scheduler_config.json", _Scheduler).prediction_type
    _check_parts(path, unet, vae, text)
    if prediction not in PREDICTIONS:
        raise BaseModelError("base.prediction", path=path, found=prediction, known=", ".join(PREDICTIONS))
    _check_tokenizer(path, folder / "tokenizer", text.vocab_size)
    parameters = {part: sum(TensorFile(f).count() for f in _weight_files(folder, part)) for part in WEIGHTS}
    scale = 2 ** (len(vae.block_out_channels) - 1)
    levels = (len(unet.block_out_channels), len(vae.block_out_channels))
    is_public = levels == (LEVELS, LEVELS) and unet.in_channels == LATENT_CHANNELS
    variant = CROSS_WIDTHS.get(unet.cross_attention_dim, "custom") if is_public else "custom"
    size = unet.sample_size or 64
    return Base(
        name=path.name,
        path=folder,
        family="sd",
        variant=variant,
        prediction_type=prediction,
        resolution=(size if isinstance(size, int) else size[0]) * scale,
        multiple=scale * 2 ** (len(unet.block_out_channels) - 1),
        max_tokens=text.max_position_embeddings,
        parameters=parameters,
        webui=variant != "custom",
    )


def _complete(repository: str) -> Path:
    """Fetch settings and weights of a hub id; half-precision files only where a part has no others."""
    patterns = [*_hub.SETTINGS]
    for part, stem in WEIGHTS.items():
        patterns += _hub.weight_patterns(part, stem)
    folder = _hub.fetch(repository, patterns)
    lacking = [part for part in WEIGHTS if not _found_weights(folder, part)]
    if lacking:
        halves = [pattern for part in lacking for pattern in _hub.weight_patterns(part, f"{WEIGHTS[part]}.fp16")]
        folder = _hub.fetch(repository, halves)
    return folder


def _settings(folder: Path, name: str, kind: type[_Part]) -> _Part:
    """Read a part's settings, refusing values of another kind than they must have."""
    try:
        return kind.model_validate(_json(folder / name))
    except ValidationError as error:
        key = ".".join(str(piece) for piece in error.errors()[0]["loc"])
        raise BaseModelError("base.bad_setting", path=folder / name, key=key) from error


def _check_parts(path: Path, unet: _Unet, vae: _Vae, text: _Text) -> None:
    """Refuse parts of other kinds of models, and parts that do not belong together."""
    if unet.in_channels != unet.out_channels:
        raise BaseModelError("base.inpainting", path=path, channels=unet.in_channels)
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds"):
        if getattr(unet, key) is not None:
            raise BaseModelError("base.more_conditions", path=path, key=key)
    if unet.time_cond_proj_dim is not None:
        raise BaseModelError("base.more_conditions", path=path, key="time_cond_proj_dim")
    if (unet.cross_attention_dim, unet.in_channels) != (text.hidden_size, vae.latent_channels):
        raise BaseModelError("base.parts_differ", path=path)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BaseModelError("base.broken_json", path=path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseModelError(
            "base.part_missing", path=path.parent.parent, part=f"{path.parent.name}/{path.name}"
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise BaseModelError("base.broken_json", path=path) from error
    if not isinstance(value, dict):
        raise BaseModelError("base.broken_json", path=path)
    return value


def _weight_files(folder: Path, part: str) -> list[Path]:
    """Return a part's safetensors files: whole, sharded, or an fp16 variant.

    Raises:
        BaseModelError: there are none, only pickles, or a shard is missing.
    """
    found = _found_weights(folder, part)
    if not found:
        pickles = sorted(path for suffix in ("bin", "ckpt", "pt") for path in (folder / part).glob(f"*.{suffix}"))
        if pickles:
            raise BaseModelError("base.pickle", path=pickles[0])
        raise BaseModelError("base.part_missing", path=folder, part=f"{part}/{WEIGHTS[part]}.safetensors")
    shards = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", found[0].name)
    if shards:
        names = [f"{shards[1]}-{i + 1:05d}-of-{shards[2]}.safetensors" for i in range(int(shards[2]))]
        missing = sorted({*names, f"{shards[1]}.safetensors.index.json"} - _names(folder / part, found))
        if missing:
            raise BaseModelError("base.part_missing", path=folder, part=f"{part}/{missing[0]}")
    return found


def _names(folder: Path, found: list[Path]) -> set[str]:
    """Return the names of weight files and of their index, a half-precision one under the whole one's name."""
    indices = {path.name for path in folder.glob("*.index*.json")}
    halves = {name.replace(".safetensors.index.fp16.json", ".fp16.safetensors.index.json") for name in indices}
    return {path.name for path in found} | indices | halves


def _found_weights(folder: Path, part: str) -> list[Path]:
    for stem in (WEIGHTS[part], f"{WEIGHTS[part]}.fp16"):
        whole = folder / part / f"{stem}.safetensors"
        if whole.is_file():
            return [whole]
        shards = sorted((folder / part).glob(f"{stem}-?????-of-?????.safetensors"))
        if shards:
            return shards
    return []


def _check_tokenizer(path: Path, folder: Path, rows: int) -> None:
    """Refuse a tokenizer without its vocabulary, which would load without an error and read nonsense; or a foreign one.

    Args:
        rows: how many tokens the text encoder knows.
    """
    if (folder / "tokenizer.json").is_file():
        model = _json(folder / "tokenizer.json").get("model")
        words = model.get("vocab") if isinstance(model, dict) else None
    elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        words = _json(folder / "vocab.json")
    else:
        raise BaseModelError("base.part_missing", path=path, part="tokenizer/vocab.json + merges.txt")
    ids = words.values() if isinstance(words, dict) else ()
    if not ids or not all(type(number) is int and 0 <= number < rows for number in ids):
        raise BaseModelError("base.tokenizer_differs", path=path, rows=rows)


def vae_config(base: Base) -> Mapping[str, Any]:
    """Return the autoencoder's settings, with the scale that diffusers assumes where none is given."""
    return {"scaling_factor": 0.18215} | _json(base.path / "vae" / "config.json")


def tokenizer_folder(base: Base) -> Path:
    """Return where the tokenizer lies."""
    return base.path / "tokenizer"


def skeleton(base: Base) -> Mapping[str, nn.Module]:
    """Build UNet and text encoder from their settings, on whatever device is current."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel.from_config(_json(base.path / "unet" / "config.json"))
    text = CLIPTextModel(CLIPTextConfig.from_pretrained(base.path / "text_encoder"))
    return {"unet": unet, "text_encoder": text}


def _loaded(kind: Any, base: Base, part: str, **wanted: Any) -> Any:
    """Load a part by its library, refusing weights that do not fill it: the rest would be random numbers.

    Raises:
        BaseModelError: tensors are missing, of another shape or not finite, or the settings are not usable.
    """
    folder = base.path / part
    variant = "fp16" if ".fp16" in _weight_files(base.path, part)[0].name else None
    try:
        model, info = kind.from_pretrained(
            folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **wanted
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise BaseModelError("base.cannot_load", path=folder, reason=reason) from error
    lacking = sorted([*info["missing_keys"], *(row[0] for row in info["mismatched_keys"])])
    if lacking:
        raise BaseModelError("base.part_missing", path=folder, part=lacking[0])
    check_finite(model, folder)
    return model


def unet(base: Base, dtype: torch.dtype) -> Any:
    """Load the UNet."""
    from diffusers import UNet2DConditionModel

    return _loaded(UNet2DConditionModel, base, "unet", torch_dtype=dtype)


def vae(base: Base, dtype: torch.dtype) -> Any:
    """Load the autoencoder."""
    from diffusers import AutoencoderKL

    return _loaded(AutoencoderKL, base, "vae", torch_dtype=dtype)


def text_encoder(base: Base, dtype: torch.dtype) -> Any:
    """Load the text encoder."""
    from transformers import CLIPTextModel

    return _loaded(CLIPTextModel, base, "text_encoder", dtype=dtype)


def tokenizer(base: Base) -> Any:
    """Load the tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tokenizer_folder(base))


def scheduler(base: Base) -> Any:
    """Load the base's own scheduler."""
    import diffusers

    settings = _json(base.path / "scheduler" / "scheduler_config.json")
    kind = str(settings.get("_class_name"))
    if not kind.endswith("Scheduler") or not hasattr(diffusers, kind):
        raise BaseModelError("base.unknown_scheduler", path=base.path, found=kind)
    return getattr(diffusers, kind).from_config({**settings, "prediction_type": base.prediction_type})


def weights_hash(base: Base) -> str:
    """sha256 over the weight files' bytes."""
    digest = hashlib.sha256()
    for part in WEIGHTS:
        for path in _weight_files(base.path, part):
            digest.update(f"{part}/{path.name}".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
