"""A base as a diffusers folder (or a hub id): recognised from its JSON files, loaded by diffusers and transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError, MachineError

if TYPE_CHECKING:
    import torch
    from torch import nn

PIPELINES = ("StableDiffusionPipeline",)
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CROSS_WIDTHS = {768: "sd1", 1024: "sd2"}


def recognise(path: Path) -> Base | None:
    """Return what a folder is, or None where it holds no pipeline of this family.

    Raises:
        BaseModelError: a pipeline of another family, a part that is missing, or weights in a form that is not read.
        MachineError: a hub id that cannot be had.
    """
    folder = path if path.is_dir() else _from_hub(path)
    if not (folder / "model_index.json").is_file():
        return None
    index = _json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if kind not in PIPELINES:
        raise BaseModelError("base.other_pipeline", path=path, found=kind, known=", ".join(PIPELINES))
    parameters = {part: _count(_weight_files(folder, part)) for part in WEIGHTS}
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    text, scheduler = (
        _json(folder / "text_encoder" / "config.json"),
        _json(folder / "scheduler" / "scheduler_config.json"),
    )
    check_tokenizer(folder / "tokenizer")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    variant = CROSS_WIDTHS.get(unet["cross_attention_dim"], "custom")
    if len(unet["block_out_channels"]) != 4 or unet["in_channels"] != 4:
        variant = "custom"
    if unet["in_channels"] != unet["out_channels"]:
        raise BaseModelError("base.inpainting", path=path, channels=unet["in_channels"])
    size = unet["sample_size"] or 64
    return Base(
        name=path.name,
        path=folder,
        family="sd",
        variant=variant,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        resolution=(size if isinstance(size, int) else size[0]) * scale,
        multiple=scale * 2 ** (len(unet["block_out_channels"]) - 1),
        max_tokens=text.get("max_position_embeddings", 77),
        parameters=parameters,
        webui=variant != "custom",
    )


def _from_hub(path: Path) -> Path:
    """Return the local snapshot of a hub id, downloading safetensors and JSON only; nothing remote is executed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*/*.json", "tokenizer/*.txt", *(f"{part}/*.safetensors" for part in WEIGHTS)]
    try:
        return Path(snapshot_download(path.as_posix(), allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).split("\n")[0][:160]
        raise MachineError("base.hub", name=path.as_posix(), reason=reason) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseModelError(
            "base.part_missing", path=path.parent.parent, part=f"{path.parent.name}/{path.name}"
        ) from error
    except (ValueError, OSError) as error:
        raise BaseModelError("base.broken_json", path=path) from error
    if not isinstance(value, dict):
        raise BaseModelError("base.broken_json", path=path)
    return value


def _weight_files(folder: Path, part: str) -> list[Path]:
    """Return a part's safetensors files: whole, sharded, or an fp16 variant."""
    for stem in (WEIGHTS[part], f"{WEIGHTS[part]}.fp16"):
        whole = folder / part / f"{stem}.safetensors"
        if whole.is_file():
            return [whole]
        shards = sorted((folder / part).glob(f"{stem}-*-of-*.safetensors"))
        if shards:
            return shards
    pickles = [*(folder / part).glob("*.bin"), *(folder / part).glob("*.ckpt")]
    if pickles:
        raise BaseModelError("base.pickle", path=pickles[0])
    raise BaseModelError("base.part_missing", path=folder, part=f"{part}/{WEIGHTS[part]}.safetensors")


def _count(files: list[Path]) -> int:
    """Return the parameters in files, from their headers."""
    total = 0
    for path in files:
        for info in read_header(path).tensors.values():
            size = 1
            for side in info.shape:
                size *= side
            total += size
    return total


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer folder without its vocabulary: it would load without an error and read nonsense."""
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise BaseModelError("base.part_missing", path=folder.parent, part="tokenizer/vocab.json + merges.txt")


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


def _variant(base: Base, part: str) -> str | None:
    return "fp16" if ".fp16" in _weight_files(base.path, part)[0].name else None


def unet(base: Base, dtype: torch.dtype) -> Any:
    """Load the UNet."""
    from diffusers import UNet2DConditionModel

    folder, variant = base.path / "unet", _variant(base, "unet")
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype, variant=variant, use_safetensors=True)


def vae(base: Base, dtype: torch.dtype) -> Any:
    """Load the autoencoder."""
    from diffusers import AutoencoderKL

    folder, variant = base.path / "vae", _variant(base, "vae")
    return AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, variant=variant, use_safetensors=True)


def text_encoder(base: Base, dtype: torch.dtype) -> Any:
    """Load the text encoder."""
    from transformers import CLIPTextModel

    folder, variant = base.path / "text_encoder", _variant(base, "text_encoder")
    return CLIPTextModel.from_pretrained(folder, dtype=dtype, variant=variant, use_safetensors=True)


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
