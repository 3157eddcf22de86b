"""Diffusers' format: what `pipeline.load_lora_weights(folder)` reads.

    unet.<path>.lora_A.weight                      (r, i) or (r, i, k, k)
    unet.<path>.lora_B.weight                      (o, r) or (o, r, 1, 1), times alpha / rank
    unet.<path>.lora_magnitude_vector.weight       (o,) or (1, o, 1, 1), of a DoRA
    text_encoder.text_model.<path>.lora_A.weight   likewise, and text_encoder_2

The scale is inside lora_B: a reader that knows nothing of alpha takes it as the rank and gets the same update. The
header tells family, name and base, which diffusers passes over and our own reader knows the file by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters import layouts
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.compare import check_finite
from lora_scripts.adapters.files import DIFFUSERS_FILE
from lora_scripts.adapters.names import TEXT_MODEL
from lora_scripts.adapters.peft_config import DIFFUSERS_CONFIG, patterns
from lora_scripts.adapters.safetensors_file import save
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.exporters import _diffusers_reader, _pictures

if TYPE_CHECKING:
    from torch import Tensor


def file_name(meta: AdapterMeta) -> str:
    """Return the name that diffusers looks for."""
    return DIFFUSERS_FILE


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse families that make no pictures, and kinds of update that diffusers does not load."""
    return _pictures.refused(layouts.DIFFUSERS, meta)


def export(adapter: Adapter, path: Path) -> Report:
    """Write the file; the same adapter gives the same bytes.

    Raises:
        NumericsError: a value is not finite.
        MachineError: no space, or not writable.
    """
    check_finite(adapter)
    tensors = _tensors(adapter, bake=True)
    save(path, tensors, _pictures.header(adapter.meta))
    return Report(path, len(tensors))


def export_exact(adapter: Adapter, path: Path) -> Report:
    """Write the file with lora_B as it is, and ranks and alphas in the header as diffusers itself writes them.

    Every bit of the adapter is kept, whatever its alphas, and what its training was; diffusers gives the same output as
    with `export`, but programs that know nothing of that header entry (older diffusers, other user interfaces) take
    alpha as the rank. So this is for conversion there and back, `export` for use.

    Raises:
        NumericsError, MachineError: as `export`.
    """
    check_finite(adapter)
    tensors = _tensors(adapter, bake=False)
    settings: dict[str, Any] = {}
    for component, pairs in adapter.pairs.items():
        settings |= {f"{component}.{key}": value for key, value in _settings(pairs, adapter.meta.kind).items()}
    told = {DIFFUSERS_CONFIG: json.dumps(settings, sort_keys=True)}
    save(path, tensors, _pictures.history(adapter.meta) | _pictures.header(adapter.meta) | told)
    return Report(path, len(tensors))


def _tensors(adapter: Adapter, *, bake: bool) -> dict[str, Tensor]:
    ends = registry.load("adapters", adapter.meta.kind).SUFFIXES[layouts.DIFFUSERS]
    tensors = {}
    for component, pairs in adapter.pairs.items():
        for module, update in pairs.items():
            for role, tensor in update.tensors(layouts.DIFFUSERS).items():
                factor = update.scale if bake and role == "up" else 1
                tensors[f"{component}.{module}.{ends[role]}"] = _pictures.times(tensor, factor)
    return tensors


def _settings(pairs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the arguments of peft's LoraConfig for one component; ends of paths fit a model however it is nested."""
    rank, alpha, ranks, alphas = patterns(pairs)
    ends = {path: path.removeprefix(TEXT_MODEL) for path in sorted(pairs)}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(ends[path]): value for path, value in ranks.items()},
        "alpha_pattern": {re.escape(ends[path]): value for path, value in alphas.items()},
        "target_modules": list(ends.values()),
        "use_dora": kind == "dora",
    }


def read_back(path: Path, adapter: Adapter) -> Adapter:
    """Read the file by diffusers' own loader."""
    return _diffusers_reader.read(path, adapter)
