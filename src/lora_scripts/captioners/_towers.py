"""Two towers that put pictures and texts into one space: a CLIP or SigLIP of transformers, or the embedded labeller.

Weights are read from safetensors only, and no code that lies beside them is run. Shapes: N = rows, D = the space's
dimensions, H = W = the side of the pictures the model sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.captioners import _folders
from lora_scripts.errors import BaseModelError, MachineError
from lora_scripts.files import sha256_of

if TYPE_CHECKING:
    import numpy
    from PIL import Image
    from torch import Tensor

OWN = "towers.json"
KINDS = ("clip", "siglip", "siglip2", "chinese_clip", "altclip")
PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
# Of pictures that are asked for when nobody named one; looked for on this machine only, the best first.
WELL_KNOWN = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-base-patch32",
)
LOCAL = Path("models/clip")
TEXTS_AT_ONCE = 256
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Look:
    """How a picture is made ready: side in pixels, "crop" (the middle), "squash" or "pad", mean and deviation."""

    side: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Towers:
    """A loaded model.

    Attributes:
        name: for people.
        weights_hash: sha256 over the files that decide what it says.
        scale: what cosines are multiplied by before a softmax.
        names: the only words it knows, where it knows words one by one; else empty.
        temperature: what calibrates a softmax over `names`.
    """

    name: str
    weights_hash: str
    look: Look
    scale: float
    device: Any
    see: Callable[[Tensor], Tensor]
    read: Callable[[Sequence[str]], Tensor]
    names: tuple[str, ...] = ()
    temperature: float = 1.0

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> numpy.ndarray:
        """(N, D) float32 of norm 1."""
        import torch

        ready = torch.stack([_ready(picture, self.look) for picture in pictures]).to(self.device)
        with torch.inference_mode():
            return torch.nn.functional.normalize(self.see(ready).float(), dim=-1).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> numpy.ndarray:
        """(N, D) float32 of norm 1; texts beyond the model's length are cut."""
        import torch

        parts = [texts[i : i + TEXTS_AT_ONCE] for i in range(0, len(texts), TEXTS_AT_ONCE)]
        with torch.inference_mode():
            made = torch.cat([self.read(part).float().cpu() for part in parts])
        return torch.nn.functional.normalize(made, dim=-1).numpy()


def load(model: str | None, device: str) -> Towers:
    """Load the named model; None takes one that is on this machine, and else the embedded labeller.

    Args:
        model: a folder, or a hub id, which may be downloaded because it was named.

    Raises:
        BaseModelError: it is no such model, or has no safetensors.
        MachineError: a hub id that is neither here nor to be had.
    """
    if model is None:
        folder = at_hand()
        name = folder.name if folder.parent == LOCAL else folder.as_posix()
        return _load(folder, _hub_name(folder) or name, device)
    return _load(_folders.find(model, PATTERNS), model, device)


def at_hand() -> Path:
    """Return the folder of a CLIP on this machine, without any network, else that of the embedded labeller."""
    for folder in sorted(LOCAL.glob("*/config.json")) if LOCAL.is_dir() else ():
        return folder.parent
    for name in WELL_KNOWN:
        try:
            found = _folders.find(name, PATTERNS, local=True)
        except MachineError:
            continue
        if list(found.glob("*.safetensors")):
            return found
    return embedded()


def embedded() -> Path:
    """Return the folder of the embedded labeller."""
    import lora_scripts.embedded

    return Path(lora_scripts.embedded.__file__).parent / "labeller"


def _hub_name(folder: Path) -> str:
    """Return "owner/name" of a snapshot in the hub's cache, else ""."""
    if folder == embedded():
        return "embedded/labeller"
    stem = next((part for part in folder.parts if part.startswith("models--")), "")
    return stem.removeprefix("models--").replace("--", "/")


def _load(folder: Path, name: str, device: str) -> Towers:
    import torch
    from safetensors import SafetensorError

    try:
        own = folder / OWN
        made = _own(folder, device) if own.exists() else _transformers(folder, device)
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt", ".safetensors")):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    except (*_BROKEN, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise BaseModelError("captioner.broken", model=name, reason=reason) from error
    return Towers(name, digest.hexdigest(), **made)


def _own(folder: Path, device: str) -> dict[str, Any]:
    """The embedded labeller's files; see `embedded/training/labeller.py`."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, ResNetForImageClassification

    settings = json.loads((folder / OWN).read_text(encoding="utf-8"))
    image: Any = ResNetForImageClassification.from_pretrained(folder / "image_tower", **_SAFE).to(device).eval()
    text: Any = CLIPTextModelWithProjection.from_pretrained(folder / "text_tower", **_SAFE).to(device).eval()
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)

    def read(texts: Sequence[str]) -> Tensor:
        ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text(ids.to(device)).text_embeds

    return {
        "look": Look(int(settings["image_size"]), "pad", tuple(settings["mean"]), tuple(settings["std"])),
        "scale": float(settings["logit_scale"]),
        "device": device,
        "see": lambda ready: image(ready).logits,
        "read": read,
        "names": tuple((folder / "names.txt").read_text(encoding="utf-8").splitlines()),
        "temperature": float(settings.get("temperature", 1.0)),
    }


_SAFE: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}


def _transformers(folder: Path, device: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in KINDS:
        raise ValueError(f"{config.model_type} ({', '.join(KINDS)})")
    if not list(folder.glob("*.safetensors")):
        raise ValueError("*.safetensors")
    model: Any = AutoModel.from_pretrained(folder, trust_remote_code=False, dtype="float32", **_SAFE).to(device).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    length = config.text_config.max_position_embeddings

    def read(texts: Sequence[str]) -> Tensor:
        # SigLIP was trained with texts padded to its length; CLIP does not look behind the end.
        padding = "max_length" if config.model_type.startswith("siglip") else True
        ids = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        known = {key: value.to(device) for key, value in ids.items() if key in ("input_ids", "attention_mask")}
        return _pooled(model.get_text_features(**known))

    return {
        "look": _look(folder, config),
        "scale": float(model.logit_scale.detach().exp().cpu().reshape(-1)[0]),
        "device": device,
        "see": lambda ready: _pooled(model.get_image_features(pixel_values=ready)),
        "read": read,
    }


def _pooled(said: Any) -> Tensor:
    """Return the projected embedding, which newer transformers wrap."""
    return said if hasattr(said, "float") else said.pooler_output


def _look(folder: Path, config: Any) -> Look:
    """Read preprocessor_config.json; the model's own size and CLIP's colours where it says nothing."""
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    size = settings.get("crop_size") or settings.get("size") or config.vision_config.image_size
    side = size if isinstance(size, int) else int(size.get("height") or size["shortest_edge"])
    mean = settings.get("image_mean", (0.48145466, 0.4578275, 0.40821073))
    std = settings.get("image_std", (0.26862954, 0.26130258, 0.27577711))
    crops = settings.get("do_center_crop", not str(config.model_type).startswith("siglip"))
    return Look(side, "crop" if crops else "squash", mean, std)


def _ready(picture: Image.Image, look: Look) -> Tensor:
    """(3, H, W) float32: scaled to the model's side."""
    import numpy
    import torch
    from PIL import Image

    width, height = picture.size
    side = look.side
    if look.fit == "crop":
        scale = side / min(width, height)
        # A sliver is cut first, so that nothing huge is made of it.
        if max(width, height) > 4 * min(width, height):
            half = 2 * min(width, height)
            box = (max(0, width // 2 - half), max(0, height // 2 - half))
            picture = picture.crop((*box, min(width, box[0] + 2 * half), min(height, box[1] + 2 * half)))
            width, height = picture.size
        scaled = (max(side, round(width * scale)), max(side, round(height * scale)))
        picture = picture.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    elif look.fit == "pad" and width != height:
        scale = side / max(width, height)
        small = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
        picture = Image.new("RGB", (side, side), small.getpixel((0, 0)))
        picture.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    else:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    values = torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255)
    return ((values - torch.tensor(look.mean)) / torch.tensor(look.std)).permute(2, 0, 1)
