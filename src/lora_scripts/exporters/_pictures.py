"""What the exporters of pictures' LoRAs share: whom they refuse, number formats, and what headers tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters import kohya_metadata, layouts
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.adapters.families import key_maps
from lora_scripts.data.record import Note

if TYPE_CHECKING:
    from torch import Tensor

# What file systems do not take in a name.
FORBIDDEN = re.compile(r'[:<>/\\|?*"\x00-\x1f]')
# File systems take 255 bytes; checkpoints add "-step-<number>" and the ending, unfinished files a prefix.
MAX_NAME_BYTES = 190


def refused(layout: str, meta: AdapterMeta, *others: str) -> Note | None:
    """Refuse families without a key map, besides `others`, and kinds of update that the layout has no place for."""
    if meta.family not in (*key_maps(), *others):
        return Note("adapter.no_format", {"format": layout, "family": meta.family})
    if layout not in layouts.formats_of(meta.kind):
        formats = ", ".join(layouts.formats_of(meta.kind))
        return Note("adapter.no_kind", {"format": layout, "kind": meta.kind, "formats": formats})
    return None


def is_file_name(name: str) -> bool:
    """Say whether every file system takes a name, with room for what is put before and behind it."""
    is_clean = bool(name) and name.strip(" .") == name and not FORBIDDEN.search(name)
    return is_clean and len(name.encode()) <= MAX_NAME_BYTES


def stored(tensor: Tensor) -> Tensor:
    """Return the tensor as files hold it: half precision as it is, all else in float32."""
    import torch

    kept = (torch.float16, torch.bfloat16)
    return tensor if tensor.dtype in kept else tensor.float()


def times(tensor: Tensor, factor: float) -> Tensor:
    """Return the tensor times a number, in the format files hold it in; times 1 keeps every bit."""
    return stored(tensor) if factor == 1 else (tensor.float() * factor).to(stored(tensor).dtype)


def tensors(update: Any, layout: str) -> Mapping[str, Tensor]:
    """Return an update's tensors by role as a layout has them; a scale that it has no place for is in the last one."""
    given = dict(update.tensors(layout))
    if getattr(update, "is_whole", False):
        last = max(given)
        given[last] = times(given[last], update.scale)
    return given


def header(meta: AdapterMeta) -> dict[str, str]:
    """Return the few entries by which our own files are known again, beside what other programs read."""
    said = {"family": meta.family, "name": meta.name, "base_hash": meta.base_hash}
    return {"format": "pt"} | {key: value for key, value in said.items() if value}


def history(meta: AdapterMeta) -> dict[str, str]:
    """Return what a kohya file would tell of the training, so that one can be written again from this file."""
    keys = key_maps()[meta.family]
    told = kohya_metadata.specify(meta, "", keys)
    kept = ("modelspec.prediction_type", "modelspec.trigger_phrase")
    nothing = kohya_metadata.Network(dim="", alpha="", module="")
    return kohya_metadata.describe(meta, nothing, keys) | {key: told[key] for key in kept if key in told}
