"""Kohya's format: the one file that every picture tool loads (WebUI, Forge, ComfyUI, InvokeAI, diffusers, kohya).

    lora_unet_<path with underscores>.lora_down.weight   (r, i) or (r, i, k, k)
    lora_unet_<path with underscores>.lora_up.weight     (o, r) or (o, r, 1, 1)
    lora_unet_<path with underscores>.alpha              ()

The prefix and the names of blocks are the family's own (`Family.keys`). Other kinds of update have LyCORIS' names:
dora_scale (o, 1) or (o, 1, 1, 1), the norm of each output of W + V (`wd_on_output` in LyCORIS; ComfyUI divides by
the norm of W alone); hada_w1_a, ..., lokr_w1, ...

One alpha for all pairs of a component: diffusers reads mixed ones wrongly. A module whose scale differs has the
difference folded into `up`. Other kinds of update, which diffusers does not read, keep each module's own alpha.

Pairs are read back by diffusers; the others by `_plain_reader`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters import kohya_metadata, layouts
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.compare import check_finite
from lora_scripts.adapters.families import key_maps
from lora_scripts.adapters.files import ALPHA_DTYPE, DIFFUSERS_FILE
from lora_scripts.adapters.safetensors_file import DTYPES, body, body_hash, encode_header, save
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.exporters import _diffusers_reader, _pictures, _plain_reader

if TYPE_CHECKING:
    from torch import Tensor

# What a prompt's <lora:name:0.8> and the WebUI's lists cannot hold.
FORBIDDEN = re.compile(r'[:<>=,/\\|?*"\x00-\x1f\ud800-\udfff]')
# The WebUI's words for "no LoRA", and the name of diffusers' own file in the same folder.
TAKEN = ("None", "none", "Addams", Path(DIFFUSERS_FILE).stem)
# File systems take 255 bytes; checkpoints add "-step-<number>" and the ending, unfinished files a prefix.
MAX_NAME_BYTES = 190
PLAIN, DORA = "lora", "dora"
# What kohya's header calls the module that trained anything but plain pairs.
LYCORIS = "lycoris.kohya"
LEGACY_START, LEGACY_END = 0x100000, 0x110000


def file_name(meta: AdapterMeta) -> str:
    """Return "<name>.safetensors"."""
    return f"{meta.name}.safetensors"


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse families that make no pictures, kinds without a place here, and names that prompts cannot hold."""
    found = _pictures.refused(layouts.KOHYA, meta)
    if found is not None:
        return found
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
    alphas = {component: _common_alpha(pairs) for component, pairs in adapter.pairs.items() if _are_pairs(pairs)}
    return _write(adapter, path, alphas)


def export_exact(adapter: Adapter, path: Path) -> Report:
    """Write the file with each module's own alpha, so that every bit of the tensors is kept.

    For copies of files that other tools read already. Where alphas differ within a component, a note says that
    diffusers reads the file wrongly.

    Raises:
        NumericsError, MachineError: as `export`.
    """
    return _write(adapter, path, {})


def _write(adapter: Adapter, path: Path, alphas: Mapping[str, float]) -> Report:
    """Write the file, the pairs of each component with the alpha given for it."""
    check_finite(adapter)
    keys = key_maps()[adapter.meta.family]
    ends = registry.load("adapters", adapter.meta.kind).SUFFIXES[layouts.KOHYA]
    tensors: dict[str, Tensor] = {}
    dims: set[int] = set()
    written: dict[str, set[float]] = {}
    for component, pairs in adapter.pairs.items():
        for module, update in pairs.items():
            name = keys.parts[component].kohya_name(module)
            # Kohya's tools take an alpha of 0 as "equal to the rank".
            alpha = alphas.get(component, update.alpha) or float(update.rank)
            if getattr(update, "is_whole", False):
                alpha = 1.0
            for role, tensor in _pictures.tensors(update, layouts.KOHYA).items():
                # (alpha / rank) / (new alpha / rank)
                fold = update.alpha / alpha if role == "up" and update.alpha != alpha else 1
                tensors[f"{name}.{ends[role]}"] = _pictures.times(tensor, fold)
            tensors[f"{name}.alpha"] = _alpha(alpha, update, adapter.meta)
            dims.add(update.rank)
            written.setdefault(component, set()).add(alpha)
    described = kohya_metadata.describe(_without_format(adapter.meta), _network(adapter, dims, written), keys)
    whole = body_hash(tensors)
    hashes = {"sshs_model_hash": whole, "sshs_legacy_hash": _legacy_hash(tensors, described)}
    save(path, tensors, described | hashes | kohya_metadata.specify(adapter.meta, whole, keys))
    return Report(path, len(tensors), _notes(adapter, path, written))


def _alpha(alpha: float, update: Any, meta: AdapterMeta) -> Tensor:
    """Return the alpha in the format of the pairs, or in that which the file had that they come from."""
    import torch

    formats = {code: name for name, code in DTYPES.items()}
    name = formats.get(meta.training.get(ALPHA_DTYPE, ""))
    like = _pictures.stored(next(iter(update.tensors().values())))
    return torch.tensor(alpha, dtype=getattr(torch, name) if name else like.dtype)


def _without_format(meta: AdapterMeta) -> AdapterMeta:
    return replace(meta, training={key: value for key, value in meta.training.items() if key != ALPHA_DTYPE})


def _network(adapter: Adapter, dims: set[int], written: Mapping[str, set[float]]) -> kohya_metadata.Network:
    """Return what kohya's settings would have been."""
    kind, alphas = adapter.meta.kind, set().union(*written.values())
    args: dict[str, str] = _conv_args(adapter)
    if kind != PLAIN:
        # Everything but plain pairs is LyCORIS' with kohya's tools; a DoRA is its pairs with another switch.
        args = {"algo": kind, **args} if kind != DORA else {"algo": "locon", "dora_wd": "True", **args}
    return kohya_metadata.Network(
        dim=str(next(iter(dims))) if len(dims) == 1 else "Dynamic",
        alpha=str(next(iter(alphas))) if len(alphas) == 1 else "Dynamic",
        args=json.dumps(args) if args else "",
        module=kohya_metadata.MODULE if kind == PLAIN else LYCORIS,
    )


def _notes(adapter: Adapter, path: Path, written: Mapping[str, set[float]]) -> list[Note]:
    notes = []
    if adapter.meta.kind == DORA:
        notes.append(Note("adapter.dora_readers", {"path": path}))
    if adapter.meta.kind == PLAIN and any(len(alphas) > 1 for alphas in written.values()):
        notes.append(Note("adapter.mixed_alphas", {"path": path}))
    return notes


def _are_pairs(pairs: Mapping[str, Any]) -> bool:
    return all("up" in update.tensors() for update in pairs.values())


def _common_alpha(pairs: Mapping[str, Any]) -> float:
    """Return the alpha that most pairs have, the smallest of equally common ones: fewest values are rounded again."""
    counts = Counter(pair.alpha or float(pair.rank) for pair in pairs.values())
    return min(counts, key=lambda alpha: (-counts[alpha], alpha))


def _conv_args(adapter: Adapter) -> dict[str, str]:
    """Return what kohya's own settings for larger convolutions would have been, or nothing where there are none."""
    pairs = adapter.pairs.get("unet", {})
    downs = [(pair.rank, pair.tensors()["down"]) for pair in pairs.values() if "down" in pair.tensors()]
    ranks = {rank for rank, down in downs if max(down.shape[2:], default=1) > 1}
    if len(ranks) != 1:
        return {}
    return {"conv_dim": str(ranks.pop()), "conv_alpha": str(_common_alpha(pairs))}


def _legacy_hash(tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> str:
    """First 8 digits of sha256 over 64 KiB from the first MiB on, of the file with "ss_*" metadata only."""
    data = bytearray()
    for piece in itertools.chain([encode_header(tensors, described)], body(tensors)):
        data += piece
        if len(data) >= LEGACY_END:
            break
    return hashlib.sha256(data[LEGACY_START:LEGACY_END]).hexdigest()[:8]


def read_back(path: Path, adapter: Adapter) -> Adapter:
    """Read the file by diffusers' own loader, where it reads such files rightly; else by `_plain_reader`."""
    if adapter.meta.kind != PLAIN or _has_mixed_alphas(path):
        return _plain_reader.read(path, adapter)
    return _diffusers_reader.read(path, adapter)


def _has_mixed_alphas(path: Path) -> bool:
    from safetensors import safe_open

    alphas: dict[str, set[float]] = {}
    with safe_open(str(path), "pt") as file:
        for name in file.keys():
            if name.endswith(".alpha"):
                alphas.setdefault("_".join(name.split("_")[:2]), set()).add(float(file.get_tensor(name)))
    return any(len(found) > 1 for found in alphas.values())
