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
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.adapters import kohya_metadata
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.compare import check_finite
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
    check_finite(adapter)
    tensors: dict[str, Tensor] = {}
    dims: set[int] = set()
    alphas: set[float] = set()
    for component, pairs in adapter.pairs.items():
        alpha = _common_alpha(pairs)
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
        args=_network_args(adapter),
    )
    described = kohya_metadata.describe(adapter.meta, network)
    whole = body_hash(tensors)
    hashes = {"sshs_model_hash": whole, "sshs_legacy_hash": _legacy_hash(tensors, described)}
    save(path, tensors, described | hashes | kohya_metadata.specify(adapter.meta, whole))
    return Report(path, len(tensors))


def _common_alpha(pairs: Mapping[str, LoraPair]) -> float:
    """Return the alpha that most pairs have, the smallest of equally common ones: fewest values are rounded again."""
    counts = Counter(pair.alpha for pair in pairs.values())
    return min(counts, key=lambda alpha: (-counts[alpha], alpha))


def _network_args(adapter: Adapter) -> str:
    """Return what kohya's own settings for larger convolutions would have been, or nothing where there are none."""
    pairs = adapter.pairs.get("unet", {})
    ranks = {pair.rank for pair in pairs.values() if max(pair.down.shape[2:], default=1) > 1}
    if len(ranks) != 1:
        return ""
    return json.dumps({"conv_dim": str(ranks.pop()), "conv_alpha": str(_common_alpha(pairs))})


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
