"""Kohya's format: the one file that every picture tool loads (WebUI, Forge, ComfyUI, InvokeAI, diffusers, kohya).

    lora_unet_<path with underscores>.lora_down.weight   (r, i) or (r, i, k, k)
    lora_unet_<path with underscores>.lora_up.weight     (o, r) or (o, r, 1, 1)
    lora_unet_<path with underscores>.alpha              ()

One alpha for all modules of a component: diffusers reads mixed ones wrongly. A module whose scale differs has the
difference folded into `up`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.adapters import kohya_metadata
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.files import DIFFUSERS_FILE
from lora_scripts.adapters.names import kohya_name
from lora_scripts.adapters.safetensors_file import body, body_hash, encode_header, save
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.exporters import _diffusers_reader

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = ("sd",)
# What a prompt's <lora:name:0.8> and the WebUI's lists cannot hold.
FORBIDDEN = re.compile(r'[:<>=,/\\|?*"\x00-\x1f]')
# The WebUI's words for "no LoRA", and the name of diffusers' own file in the same folder.
TAKEN = ("None", "none", "Addams", Path(DIFFUSERS_FILE).stem)
# File systems take 255 bytes; checkpoints add "-step-<number>" and the ending, unfinished files a prefix.
MAX_NAME_BYTES = 190
LEGACY_START, LEGACY_END = 0x100000, 0x110000


def file_name(meta: AdapterMeta) -> str:
    """Return "<name>.safetensors"."""
    return f"{meta.name}.safetensors"


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse other families, and names that prompts cannot hold."""
    if meta.family not in FAMILIES:
        return Note("adapter.no_format", {"format": "kohya", "family": meta.family})
    spare = meta.name.strip(" .") != meta.name or not meta.name
    if FORBIDDEN.search(meta.name) or spare or meta.name in TAKEN or len(meta.name.encode()) > MAX_NAME_BYTES:
        return Note("adapter.bad_name", {"name": meta.name})
    return None


def export(adapter: Adapter, path: Path) -> Report:
    """Write the file; the same adapter gives the same bytes.

    Raises:
        NumericsError: a value is not finite.
        MachineError: no space, or not writable.
    """
    _diffusers_reader.check_finite(adapter)
    tensors: dict[str, Tensor] = {}
    dims: set[int] = set()
    alphas: set[float] = set()
    for component, pairs in adapter.pairs.items():
        alpha = next(iter(pairs.values())).alpha
        for module, pair in pairs.items():
            name = kohya_name(component, module)
            fold = pair.scale / (alpha / pair.rank)
            tensors[f"{name}.lora_down.weight"] = pair.down.float()
            tensors[f"{name}.lora_up.weight"] = pair.up.float() * fold if fold != 1 else pair.up.float()
            tensors[f"{name}.alpha"] = pair.down.new_tensor(alpha).float()
            dims.add(pair.rank)
        alphas.add(alpha)
    network = kohya_metadata.Network(
        dim=str(dims.pop()) if len(dims) == 1 else "Dynamic",
        alpha=str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    )
    described = kohya_metadata.describe(adapter.meta, network)
    whole = body_hash(tensors)
    hashes = {"sshs_model_hash": whole, "sshs_legacy_hash": _legacy_hash(tensors, described)}
    save(path, tensors, described | hashes | kohya_metadata.specify(adapter.meta, whole))
    return Report(path, len(tensors))


def _legacy_hash(tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> str:
    """First 8 digits of sha256 over 64 KiB from the first MiB on, of the file with "ss_*" metadata only."""
    data = bytearray()
    for piece in itertools.chain([encode_header(tensors, described)], body(tensors)):
        data += piece
        if len(data) >= LEGACY_END:
            break
    return hashlib.sha256(data[LEGACY_START:LEGACY_END]).hexdigest()[:8]


def read_back(path: Path, adapter: Adapter) -> Adapter:
    """Read the file by diffusers' own loader."""
    return _diffusers_reader.read(path, adapter)
