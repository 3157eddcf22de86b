"""Which tool wrote a LoRA file, told from the names in its header alone.

kohya       lora_unet_<flat>.lora_down.weight, .lora_up.weight, .alpha
diffusers   unet.<path>.lora_A.weight, and the older .lora.down.weight, .processor.to_q_lora.down.weight,
            .lora_linear_layer.down.weight; also without "unet." in front
peft        base_model.model.<path>.lora_A.weight, in a folder with adapter_config.json; the path alone tells a UNet's
            ("down_blocks..."), a CLIP text encoder's and a language model's ("model.layers.0...") apart

The ends of the names are what the kinds of update say (`SUFFIXES`); whose module it is, families say (`adapters.keys`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lora_scripts import registry
from lora_scripts.adapters.families import titles
from lora_scripts.adapters.keys import KeyMap
from lora_scripts.adapters.names import LANGUAGE_MODEL, canonical, some
from lora_scripts.adapters.safetensors_file import Header
from lora_scripts.errors import BaseModelError

KOHYA, DIFFUSERS, PEFT = "kohya", "diffusers", "peft"
ALPHA = "alpha"
# What gives a file away that holds more or other than what is read: pattern of a name -> what to call it.
_OTHER_KINDS = {
    r"\.lora_mid\.|\.hada_t\d|\.lokr_t\d": "Tucker",
    r"\.oft_|\.boft_": "OFT",
    r"\.vera_lambda": "VeRA",
    r"\.on_input$|ia3_l": "IA3",
    r"\.(a|b)1\.weight$": "GLoRA",
    r"\.diff(_b)?$": "full difference",
    r"lora_embedding_": "embedding LoRA",
}
# Architectures that no family here serves.
_OTHER_FAMILIES = {
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
_OLD = re.compile(r"(?P<stem>.+?)(?P<form>\.lora_linear_layer|_lora|\.lora)\.(?P<role>down|up)\.weight")
# Older diffusers files name a CLIP text encoder's projections as the UNet's.
_OLD_TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Piece:
    """One tensor's name, taken apart.

    Attributes:
        stem: what names the module: all that stands before the role.
        role: the tensor's part in the update, such as "down"; or "alpha".
        kinds: the kinds of update that have a tensor of this name; none where any kind may.
        is_old: the module is called as the oldest diffusers did: "...to_out", or "...to_q" in a text encoder.
    """

    stem: str
    role: str
    kinds: frozenset[str]
    is_old: bool = False


@dataclass(frozen=True)
class Place:
    """Whose module a stem names; in layout "kohya" with underscores for dots."""

    component: str
    module: str


def recognise(path: Path, header: Header) -> tuple[str, dict[str, Piece]]:
    """Return the layout and every tensor's name, taken apart.

    Raises:
        BaseModelError: no LoRA, one of a kind or family that is not read, or names that are not understood.
    """
    names = list(header.tensors)
    _refuse_foreign(path, names)
    layout = _layout(names[0])
    pieces = {name: _piece(layout, name) for name in names}
    unknown = [name for name, piece in pieces.items() if piece is None]
    _refuse_more_than_pairs(path, unknown)
    _refuse_displaced(path, layout, unknown)
    refuse_unknown(path, unknown)
    return layout, {name: piece for name, piece in pieces.items() if piece is not None}


def refuse_unknown(path: Path, names: Sequence[str]) -> None:
    """Name the tensors that nobody understands."""
    if names:
        raise BaseModelError("adapter.unknown_keys", path=path, count=len(names), names=some(names))


def place(layout: str, piece: Piece, keys: KeyMap, component: str | None = None) -> Place | None:
    """Return whose module a stem names by one family's table, or None where that family has none of that name.

    Args:
        component: whose the whole file is, where the folder tells.
    """
    if layout == KOHYA:
        found = keys.by_prefix(piece.stem)
        return Place(*found) if found else None
    module = piece.stem.removeprefix(PEFT_PREFIX) if layout == PEFT else piece.stem
    first, _, rest = module.partition(".")
    if component is None and layout == DIFFUSERS and first in keys.parts:
        component, module = first, rest
    module = module.replace(".processor.", ".")
    component = component or keys.component_of(module)
    if component is None or component not in keys.parts:
        return None
    module = _modern(component, module) if piece.is_old else module
    return Place(component, canonical(component, module))


def language_place(layout: str, piece: Piece) -> Place | None:
    """Return the module of a language model that a stem names, or None where it names no such layer."""
    module = piece.stem.removeprefix(PEFT_PREFIX)
    is_language = layout == PEFT and piece.role != ALPHA and _LANGUAGE.fullmatch(module)
    return Place(LANGUAGE_MODEL, module) if is_language else None


def kind_of(roles: Mapping[str, Piece]) -> str | None:
    """Return the kind of update that a module's tensors make up, or None where something is lacking or too much."""
    return next((kind for kind in sorted(_common(roles)) if _is_whole(kind, roles.keys() - {ALPHA})), None)


def is_mixture(roles: Mapping[str, Piece]) -> bool:
    """Say whether a module's tensors belong to no one kind of update."""
    return bool(roles.keys() - {ALPHA}) and not _common(roles)


def _common(roles: Mapping[str, Piece]) -> set[str]:
    candidates = [piece.kinds for role, piece in roles.items() if role != ALPHA]
    return set.intersection(*map(set, candidates)) if candidates else set()


def kinds_named(pieces: Iterable[Piece]) -> str:
    """Return the kinds that a module's tensors point to, for a sentence."""
    return " + ".join(sorted({"/".join(sorted(piece.kinds)) for piece in pieces if piece.kinds}))


def roles(kind: str) -> set[str]:
    """Return every role that a kind's tensors may have."""
    return {role for table in _tables(kind).values() for role in table}


def formats_of(kind: str) -> tuple[str, ...]:
    """Return the layouts that have a place for a kind of update."""
    return tuple(sorted(_tables(kind)))


@cache
def _tables(kind: str) -> Mapping[str, Mapping[str, str]]:
    return registry.load("adapters", kind).SUFFIXES


def _is_whole(kind: str, present: Iterable[str]) -> bool:
    """Say whether the roles present are all that a kind needs: "w1" may stand for itself or as "w1_a" and "w1_b"."""
    known, present = roles(kind), {*present}
    needed: dict[str, set[str]] = {}
    for role in known:
        whole = role.removesuffix("_a").removesuffix("_b")
        needed.setdefault(whole if whole in known else role, set()).add(role)
    if present - known:
        return False
    for slot, given in needed.items():
        halves = given - {slot}
        if present & given not in ({slot}, halves or {slot}):
            return False
    return True


@cache
def _suffixes(layout: str, kinds: tuple[str, ...]) -> dict[str, tuple[str, frozenset[str]]]:
    """Return role and kinds by the end of a tensor's name, without ".weight"."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for kind in kinds:
        for role, suffix in _tables(kind).get(layout, {}).items():
            word = suffix.removesuffix(".weight")
            _, others = found.get(word, (role, frozenset[str]()))
            found[word] = role, others | {kind}
    return found


def _piece(layout: str, name: str) -> Piece | None:
    known = _suffixes(layout, registry.names("adapters"))
    if layout == KOHYA:
        stem, _, end = name.partition(".")
    else:
        old = _OLD.fullmatch(name) if layout == DIFFUSERS else None
        if old is not None:
            return Piece(old["stem"], old["role"], frozenset({"lora"}), old["form"] == "_lora")
        stem, _, end = name.removesuffix(".weight").removesuffix(".default").rpartition(".")
    if end == ALPHA and stem:
        return Piece(stem, ALPHA, frozenset())
    found = known.get(end.removesuffix(".weight"))
    return Piece(stem, *found) if found and stem else None


def _layout(first: str) -> str:
    if first.startswith(PEFT_PREFIX):
        return PEFT
    return KOHYA if re.match(r"lora_(unet|te\d?)_", first) else DIFFUSERS


def _refuse_foreign(path: Path, names: Sequence[str]) -> None:
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
            raise BaseModelError("adapter.other_family", path=path, found=family, known=titles())


def _refuse_more_than_pairs(path: Path, unknown: Iterable[str]) -> None:
    """Say what PEFT has put beside the pairs: the names of whole layers and biases give them away."""
    for name in unknown:
        if name.startswith(PEFT_PREFIX) and "lora_" not in name:
            kind = "bias" if name.endswith(".bias") else "modules_to_save / save_embedding_layers"
            raise BaseModelError("adapter.other_kind", path=path, kind=f"LoRA + {kind} ({name})")
        if name.startswith(PEFT_PREFIX) and name.endswith(".bias"):
            raise BaseModelError("adapter.other_kind", path=path, kind=f"LoRA + lora_bias ({name})")


def _refuse_displaced(path: Path, layout: str, unknown: Iterable[str]) -> None:
    """Name a kind of update that is read in other layouts but has no place in this one."""
    for name in unknown:
        for other in (KOHYA, DIFFUSERS, PEFT):
            piece = _piece(other, name)
            if piece is not None and piece.kinds and all(layout not in _tables(kind) for kind in piece.kinds):
                kind = "/".join(sorted(piece.kinds))
                raise BaseModelError("adapter.other_kind", path=path, kind=f"{kind} ({layout})")


def _modern(component: str, module: str) -> str:
    """Return today's path of a module that an older diffusers called "...to_out" or, in a text encoder, "...to_q"."""
    parent, _, word = module.rpartition(".")
    if component.startswith("text_encoder"):
        word = _OLD_TEXT_WORDS.get(word, word)
    elif word == "to_out":
        word = "to_out.0"
    return f"{parent}.{word}"
