"""Which tool wrote a LoRA file, told from the names in its header alone.

kohya       lora_unet_<flat>.lora_down.weight, .lora_up.weight, .alpha
diffusers   unet.<path>.lora_A.weight, and the older .lora.down.weight, .processor.to_q_lora.down.weight,
            .lora_linear_layer.down.weight; also without "unet." in front
peft        base_model.model.<path>.lora_A.weight, in a folder with adapter_config.json; the path alone tells a UNet's
            ("down_blocks..."), a CLIP text encoder's and a language model's ("model.layers.0...") apart
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.adapters.names import LANGUAGE_MODEL, canonical, component_of, some
from lora_scripts.adapters.safetensors_file import Header
from lora_scripts.errors import BaseModelError

# What gives a file away that is no plain LoRA, or not for this family: pattern of a key -> the name to tell the user.
_OTHER_KINDS = {
    r"\.dora_scale$|lora_magnitude_vector": "DoRA",
    r"\.hada_w\d": "LoHa",
    r"\.lokr_w\d|\.lokr_": "LoKr",
    r"\.lora_mid\.": "LoCon (Tucker)",
    r"\.oft_|\.boft_": "OFT",
    r"\.vera_lambda": "VeRA",
    r"\.on_input$|ia3_l": "IA3",
    r"\.(a|b)1\.weight$": "GLoRA",
    r"\.diff(_b)?$": "full difference",
    r"lora_embedding_": "embedding LoRA",
}
_OTHER_FAMILIES = {
    r"^lora_te2_|^text_encoder_2\.|^lora_unet_(input_blocks|middle_block|output_blocks)_": "SDXL",
    r"(double_blocks|single_blocks|single_transformer_blocks)[._]\d": "FLUX",
    r"joint_blocks[._]\d|^lora_te3_": "Stable Diffusion 3",
    r"^transformer\.|^base_model\.model\.transformer_blocks\.": "diffusion transformer",
    r"^diffusion_model\.": "diffusion_model",
}
PEFT_PREFIX = "base_model.model."
# A language model's layer, however the class nests them: model.layers.0, transformer.h.0, gpt_neox.layers.0.
_LANGUAGE = re.compile(r"lm_head|embed_out|(\w+\.)+(layers|h|blocks)\.\d+\..+")
# The same without PEFT's prefix: PEFT itself would load nothing of it and say nothing.
_LANGUAGE_BARE = re.compile(r"(base_model\.)?((model|transformer|gpt_neox|backbone)\.(layers|h)|layers|h)\.\d+\.")
_LORA_MARK = re.compile(r"lora_|\.lora\.|_lora\.|hada_|lokr_|\.oft_")

_KOHYA = re.compile(
    r"lora_(?P<component>unet|te1?)_(?P<module>[^.]+)\.(?P<role>lora_down\.weight|lora_up\.weight|alpha)"
)
_PATH = re.compile(
    r"(?P<prefix>unet\.|text_encoder\.|base_model\.model\.)?(?P<module>.+?)"
    r"(\.(?P<now>lora_A|lora_B)(\.default)?\.weight"
    r"|(?P<form>\.lora_linear_layer|_lora|\.lora)\.(?P<then>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_ROLES = {"lora_down": "down", "lora_A": "down", "down": "down", "lora_up": "up", "lora_B": "up", "up": "up"}
# Older diffusers files name a CLIP text encoder's projections as the UNet's.
_OLD_TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Key:
    """One tensor's name, understood.

    Attributes:
        module: the path; in layout "kohya" with underscores for dots.
        role: "down", "up" or "alpha".
    """

    component: str
    module: str
    role: str


def recognise(path: Path, header: Header) -> tuple[str, dict[str, Key]]:
    """Return the layout and every tensor's meaning.

    Raises:
        BaseModelError: no LoRA, no plain LoRA, one for another family, or names that are not understood.
    """
    names = list(header.tensors)
    _refuse_foreign(path, header)
    layout = _layout(names)
    keys = {name: _kohya_key(name) if layout == "kohya" else _path_key(name) for name in names}
    unknown = [name for name, key in keys.items() if key is None]
    _refuse_more_than_pairs(path, unknown)
    if unknown:
        raise BaseModelError("adapter.unknown_keys", path=path, count=len(unknown), names=some(unknown))
    understood = {name: key for name, key in keys.items() if key is not None}
    _refuse_wide(path, header, understood)
    return layout, understood


def _layout(names: Iterable[str]) -> str:
    first = next(iter(names))
    if first.startswith(PEFT_PREFIX):
        return "peft"
    return "kohya" if first.startswith(("lora_unet_", "lora_te")) else "diffusers"


def _refuse_foreign(path: Path, header: Header) -> None:
    names = list(header.tensors)
    if not any(_LORA_MARK.search(name) for name in names):
        raise BaseModelError("adapter.not_a_lora", path=path, names=some(names) or "-")
    for pattern, kind in _OTHER_KINDS.items():
        if any(re.search(pattern, name) for name in names):
            raise BaseModelError("adapter.other_kind", path=path, kind=kind)
    bare = [name for name in names if _LANGUAGE_BARE.match(name)]
    if bare:
        raise BaseModelError("adapter.no_prefix", path=path, names=some(bare))
    for pattern, family in _OTHER_FAMILIES.items():
        if any(re.search(pattern, name) for name in names):
            raise BaseModelError("adapter.other_family", path=path, found=family)
    said = header.metadata.get("ss_base_model_version", "")
    if said and said != "None" and not said.startswith("sd_"):
        raise BaseModelError("adapter.other_family", path=path, found=said)


def _refuse_more_than_pairs(path: Path, unknown: Iterable[str]) -> None:
    """Say what PEFT has put beside the pairs: the names of whole layers and biases give them away."""
    for name in unknown:
        if name.startswith(PEFT_PREFIX) and "lora_" not in name:
            kind = "bias" if name.endswith(".bias") else "modules_to_save / save_embedding_layers"
            raise BaseModelError("adapter.other_kind", path=path, kind=f"LoRA + {kind} ({name})")
        if name.startswith(PEFT_PREFIX) and name.endswith(".bias"):
            raise BaseModelError("adapter.other_kind", path=path, kind=f"LoRA + lora_bias ({name})")


def _refuse_wide(path: Path, header: Header, keys: Mapping[str, Key]) -> None:
    """SDXL also comes with Stable Diffusion's module names; the width its cross-attention reads gives it away."""
    for name, key in keys.items():
        is_cross = key.role == "down" and re.search(r"attn2[._]to_[kv]$", key.module)
        if is_cross and header.tensors[name].shape[1:] == (2048,):
            raise BaseModelError("adapter.other_family", path=path, found="SDXL")


def _kohya_key(name: str) -> Key | None:
    match = _KOHYA.fullmatch(name)
    if match is None:
        return None
    component = "unet" if match["component"] == "unet" else "text_encoder"
    return Key(component, match["module"], _ROLES.get(match["role"].split(".")[0], "alpha"))


def _path_key(name: str) -> Key | None:
    match = _PATH.fullmatch(name)
    if match is None:
        return None
    is_language = match["prefix"] == PEFT_PREFIX and component_of(match["module"]) is None
    if is_language and match["now"] and _LANGUAGE.fullmatch(match["module"]):
        return Key(LANGUAGE_MODEL, match["module"], _ROLES[match["now"]])
    module = match["module"].replace(".processor.", ".")
    prefix = (match["prefix"] or "").rstrip(".")
    component = prefix if prefix in ("unet", "text_encoder") else component_of(module)
    if component is None:
        return None
    if match["form"] == "_lora":
        module = _modern(component, module)
    word = match["now"] or match["then"] or ""
    return Key(component, canonical(component, module), _ROLES.get(word, "alpha"))


def _modern(component: str, module: str) -> str:
    """Return today's path of a module that an older diffusers called "...to_out" or, in a text encoder, "...to_q"."""
    parent, _, word = module.rpartition(".")
    if component == "text_encoder":
        word = _OLD_TEXT_WORDS.get(word, word)
    elif word == "to_out":
        word = "to_out.0"
    return f"{parent}.{word}"
