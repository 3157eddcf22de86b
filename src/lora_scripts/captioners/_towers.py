"""Two towers that put pictures and texts into one space: a CLIP or SigLIP of transformers, or the embedded labeller.

Weights are read from safetensors only, and no code that lies beside them is run. Shapes: N = rows, D = the space's
dimensions, H = W = the side of the pictures the model sees.
"""

from __future__ import annotations

import hashlib
import json
import math
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
# Not "siglip2": that is the kind that takes pictures of any shape in pieces; SigLIP 2 of one size calls itself siglip.
KINDS = ("clip", "siglip", "chinese_clip", "altclip")
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
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MOST_PIXELS = 4096
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Look:
    """How a picture is made ready.

    Attributes:
        side: of what the model sees, in pixels.
        fit: "crop" (the middle), "squash" or "pad".
        mean, std: of the three colours.
        edge: the shorter side before the middle is cut out; 0 for `side`.
        resample: Pillow's number of the filter, as preprocessor_config.json has it.
    """

    side: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    edge: int = 0
    resample: int = 3


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
        # What another program left in the cache may be a part of it.
        if (found / "config.json").exists() and all(list(found.glob(one)) for one in ("*.safetensors", "*token*.json")):
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
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        own = folder / OWN
        made = (_own if own.exists() else _transformers)(folder, name, device)
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt", ".safetensors")):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
        towers = Towers(name, digest.hexdigest(), **made)
        _try(towers)
    except (*_BROKEN, SafetensorError, StrictDataclassError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise BaseModelError("captioner.broken", model=name, reason=reason) from error
    return towers


def _try(towers: Towers) -> None:
    """Show it a picture and two texts: what does not fit together fails here, and not in the midst of a folder."""
    import numpy
    from PIL import Image

    seen = towers.embed_pictures([Image.new("RGB", (3, 2), (200, 90, 20))])
    read = towers.embed_texts(["a red apple", "a house on a hill"])
    if not (numpy.isfinite(seen).all() and numpy.isfinite(read).all() and math.isfinite(towers.scale)):
        raise BaseModelError("captioner.not_finite", model=towers.name)
    if seen.shape[1] != read.shape[1]:
        raise ValueError(f"{seen.shape[1]} != {read.shape[1]}")
    # Without its files, a tokenizer takes every word for an unknown one.
    if (read[0] == read[1]).all():
        raise BaseModelError("captioner.one_text", model=towers.name)


def _whole(kind: Any, folder: Path, name: str, device: str) -> Any:
    """Load a network; what its file lacks would get random values, so it is refused."""
    model, told = kind.from_pretrained(
        folder,
        trust_remote_code=False,
        dtype="float32",
        use_safetensors=True,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    absent = sorted([*told["missing_keys"], *(row[0] for row in told["mismatched_keys"])])
    if absent:
        part = ", ".join(absent[:2]) + (", ..." if len(absent) > 2 else "")
        raise BaseModelError("captioner.weights_absent", model=name, count=len(absent), part=part)
    return model.to(device).eval()


def _own(folder: Path, name: str, device: str) -> dict[str, Any]:
    """The embedded labeller's files; see `embedded/training/labeller.py`."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, ResNetForImageClassification

    settings = json.loads((folder / OWN).read_text(encoding="utf-8"))
    image = _whole(ResNetForImageClassification, folder / "image_tower", name, device)
    text = _whole(CLIPTextModelWithProjection, folder / "text_tower", name, device)
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


def _transformers(folder: Path, name: str, device: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in KINDS:
        raise ValueError(f"{config.model_type} ({', '.join(KINDS)})")
    if not list(folder.glob("*.safetensors")):
        raise ValueError("*.safetensors")
    model = _whole(AutoModel, folder, name, device)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Some encoders count positions from 2 on: their tokenizers know.
    length = min(config.text_config.max_position_embeddings, tokenizer.model_max_length)

    def read(texts: Sequence[str]) -> Tensor:
        # SigLIP learned from texts padded to its length and looked at the padding: no mask, whatever its tokenizer
        # says.
        siglip = config.model_type == "siglip"
        padding = "max_length" if siglip else True
        ids = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        wanted = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        return _pooled(model.get_text_features(**{key: ids[key].to(device) for key in wanted if key in ids}))

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
    siglip = config.model_type == "siglip"
    edge = _side(settings.get("size") or config.vision_config.image_size)
    crops = settings.get("do_center_crop", not siglip)
    side = _side(settings.get("crop_size") or edge) if crops else edge
    mean, std = ((0.5,) * 3, (0.5,) * 3) if siglip else (CLIP_MEAN, CLIP_STD)
    mean, std = settings.get("image_mean", mean), settings.get("image_std", std)
    if not settings.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    resample = int(settings.get("resample", 3))
    if not (len(mean) == len(std) == 3 and 0 < side <= edge <= MOST_PIXELS and 0 <= resample <= 5):
        raise ValueError(f"preprocessor_config.json: {edge} px, {side} px, {mean}, {std}, {resample}")
    return Look(side, "crop" if crops else "squash", tuple(mean), tuple(std), edge, resample)


def _side(size: Any) -> int:
    return int(size.get("height") or size["shortest_edge"]) if isinstance(size, dict) else int(size)


def _ready(picture: Image.Image, look: Look) -> Tensor:
    """(3, H, W) float32: scaled to the model's side."""
    import numpy
    import torch
    from PIL import Image

    width, height = picture.size
    side, how = look.side, Image.Resampling(look.resample)
    if look.fit == "crop":
        edge = look.edge or side
        # A sliver is cut first, so that nothing huge is made of it.
        if max(width, height) > 4 * min(width, height):
            half = 2 * min(width, height)
            box = (max(0, width // 2 - half), max(0, height // 2 - half))
            picture = picture.crop((*box, min(width, box[0] + 2 * half), min(height, box[1] + 2 * half)))
            width, height = picture.size
        # Cut down to whole pixels, as transformers does it.
        short = min(width, height)
        scaled = (edge * width // short, edge * height // short)
        picture = picture.resize(scaled, how)
        left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    elif look.fit == "pad" and width != height:
        scale = side / max(width, height)
        small = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), how)
        picture = Image.new("RGB", (side, side), small.getpixel((0, 0)))
        picture.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    else:
        picture = picture.resize((side, side), how)
    values = torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255)
    return ((values - torch.tensor(look.mean)) / torch.tensor(look.std)).permute(2, 0, 1)
