"""Which architecture a LoRA is for: every family's key map is asked, and what the file itself says.

Names decide before what a header claims, since tools copy headers along when they rename or merge; where both leave it
open (a UNet under names that several architectures share) the caller's base does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts.adapters import layouts
from lora_scripts.adapters.families import LANGUAGE_FAMILY, key_maps, title, titles
from lora_scripts.adapters.keys import KeyMap
from lora_scripts.adapters.safetensors_file import Header
from lora_scripts.errors import BaseModelError

SAID = "ss_base_model_version"
_CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv]$")


@dataclass(frozen=True)
class Source:
    """One file of a LoRA, taken apart.

    Attributes:
        component: whose it is, where the folder tells.
    """

    path: Path
    layout: str
    header: Header
    pieces: Mapping[str, layouts.Piece]
    component: str | None = None


def decide(path: Path, sources: Sequence[Source], asked: str) -> str:
    """Return the family that a LoRA is for.

    Args:
        asked: the base's family, or "" where there is no base: it decides what the file leaves open.

    Raises:
        BaseModelError: an architecture that no family serves, or another than the base's.
    """
    maps = key_maps()
    language = any(_is_language(source, piece, maps) for source in sources for piece in source.pieces.values())
    if language:
        if asked in maps:
            raise BaseModelError("adapter.for_language", path=path)
        return LANGUAGE_FAMILY
    if asked and asked not in maps:
        raise BaseModelError("adapter.for_pictures", path=path)
    for source in sources:
        said = source.header.metadata.get(SAID, "")
        if said and said != "None" and not any(said.startswith(keys.said) for keys in maps.values()):
            raise BaseModelError("adapter.other_family", path=path, found=said, known=titles())
    found = _claimed(sources, maps) or _open(sources, maps, asked)
    if asked and found != asked:
        raise BaseModelError("adapter.wrong_family", path=path, found=title(found), wanted=title(asked))
    return found


def _claimed(sources: Sequence[Source], maps: Mapping[str, KeyMap]) -> str | None:
    """Return the family that the best evidence speaks for, or None where none speaks for one alone."""
    evidence: tuple[Callable[[str, Source, KeyMap], bool], ...] = (_is_marked, _is_named, _is_as_wide, _is_said)
    for speaks in evidence:
        families = {name for name, keys in maps.items() if any(speaks(name, source, keys) for source in sources)}
        if len(families) == 1:
            return families.pop()
    return None


def _open(sources: Sequence[Source], maps: Mapping[str, KeyMap], asked: str) -> str:
    able = [name for name, keys in maps.items() if all(_names_all(source, keys) for source in sources)]
    if asked in able or (asked and not able):
        return asked
    return (able or list(maps))[0]


def _names_all(source: Source, keys: KeyMap) -> bool:
    return all(layouts.place(source.layout, piece, keys, source.component) for piece in source.pieces.values())


def _is_language(source: Source, piece: layouts.Piece, maps: Mapping[str, KeyMap]) -> bool:
    if source.component is not None or layouts.language_place(source.layout, piece) is None:
        return False
    return not any(layouts.place(source.layout, piece, keys) for keys in maps.values())


def _is_marked(name: str, source: Source, keys: KeyMap) -> bool:
    return any(re.search(mark, tensor) for mark in keys.marks for tensor in source.header.tensors)


def _is_named(name: str, source: Source, keys: KeyMap) -> bool:
    """Our own files say it themselves."""
    return source.header.metadata.get("family") == name


def _is_as_wide(name: str, source: Source, keys: KeyMap) -> bool:
    """The cross-attention reads text states of a width that an architecture has and others have not."""
    return any(
        piece.role == "down"
        and _CROSS_ATTENTION.search(piece.stem.replace(".processor.", "."))
        and source.header.tensors[tensor].shape[1:2] in {(width,) for width in keys.widths}
        for tensor, piece in source.pieces.items()
    )


def _is_said(name: str, source: Source, keys: KeyMap) -> bool:
    return bool(keys.said) and source.header.metadata.get(SAID, "").startswith(keys.said)
