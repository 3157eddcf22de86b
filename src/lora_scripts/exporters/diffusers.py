"""Diffusers' format: what `pipeline.load_lora_weights(folder)` reads.

    unet.<path>.lora_A.weight                      (r, i) or (r, i, k, k)
    unet.<path>.lora_B.weight                      (o, r) or (o, r, 1, 1), times alpha / rank
    text_encoder.text_model.<path>.lora_A.weight   likewise

The scale is inside lora_B: a reader that knows nothing of alpha takes it as the rank and gets the same update.
"""

from __future__ import annotations

from pathlib import Path

from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.compare import check_finite
from lora_scripts.adapters.files import DIFFUSERS_FILE
from lora_scripts.adapters.safetensors_file import save
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.exporters import _diffusers_reader

FAMILIES = ("sd",)


def file_name(meta: AdapterMeta) -> str:
    """Return the name that diffusers looks for."""
    return DIFFUSERS_FILE


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse other families."""
    if meta.family not in FAMILIES:
        return Note("adapter.no_format", {"format": "diffusers", "family": meta.family})
    return None


def export(adapter: Adapter, path: Path) -> Report:
    """Write the file; the same adapter gives the same bytes.

    Raises:
        NumericsError: a value is not finite.
        MachineError: no space, or not writable.
    """
    check_finite(adapter)
    tensors = {}
    for component, pairs in adapter.pairs.items():
        for module, pair in pairs.items():
            tensors[f"{component}.{module}.lora_A.weight"] = pair.down.float()
            tensors[f"{component}.{module}.lora_B.weight"] = pair.up.float() * pair.scale
    save(path, tensors, {"format": "pt"})
    return Report(path, len(tensors))


def read_back(path: Path, adapter: Adapter) -> Adapter:
    """Read the file by diffusers' own loader."""
    return _diffusers_reader.read(path, adapter)
