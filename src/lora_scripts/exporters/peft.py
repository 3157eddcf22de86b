"""PEFT's folder: what peft, transformers, vLLM and others load.

Of a language model's LoRA the folder is the run's own:

    adapter_config.json         r and a whole lora_alpha, the same for every module
    adapter_model.safetensors   base_model.model.<path>.lora_A.weight   (r, i)
                                base_model.model.<path>.lora_B.weight   (o, r)

Without the prefix peft would load nothing and say nothing; a fraction as alpha stops Ollama; a rank or an alpha of a
module's own is passed over by llama.cpp. So there are none: what differs is inside lora_B.

Of a picture model's it is <name>-peft/ with one such folder for each network, unet/, text_encoder/, ..., each for
`peft.PeftModel.from_pretrained(pipeline.unet, folder)`. Only peft reads those: ranks and alphas are each module's own,
and every bit is kept. Modules are called as the installed transformers calls them.

Every kind of update is read back by peft itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters import base_folder, layouts
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.compare import check_finite
from lora_scripts.adapters.families import LANGUAGE_FAMILY
from lora_scripts.adapters.layouts import PEFT_PREFIX
from lora_scripts.adapters.names import LANGUAGE_MODEL, some
from lora_scripts.adapters.peft_config import PEFT_CONFIG, PEFT_FILE
from lora_scripts.adapters.safetensors_file import save
from lora_scripts.adapters.uniform import settings, uniform
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.exporters import _peft_layers, _pictures
from lora_scripts.files import STAGED_PREFIX, cannot_write, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

# What vLLM takes for --max-lora-rank; the first that it takes without being told is 16.
VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
# Bases whose PEFT folders Ollama converts, and the layers it has names for.
OLLAMA_BASES = ("llama", "mistral", "gemma2")
OLLAMA_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FOLDER_END = "-peft"
# Files written beside one of this name; --restart removes them too.
BESIDE = {PEFT_FILE: (PEFT_CONFIG,)}


def file_name(meta: AdapterMeta) -> str:
    """Return the name that peft looks for; of a picture model's LoRA, a folder's name."""
    return PEFT_FILE if meta.family == LANGUAGE_FAMILY else f"{meta.name}{FOLDER_END}"


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse families that have no place here, kinds that PEFT has not, and names that are no folder's."""
    found = _pictures.refused(layouts.PEFT, meta, LANGUAGE_FAMILY)
    if found is None and meta.family != LANGUAGE_FAMILY and not _pictures.is_file_name(meta.name):
        return Note("export.bad_name", {"name": meta.name})
    return found


def warnings(meta: AdapterMeta, rank: int, module_names: Collection[str]) -> list[Note]:
    """Return what programs that serve language models will refuse of such an adapter.

    Args:
        module_names: paths of the modules that get an update.
    """
    notes: list[Note] = []
    if meta.family != LANGUAGE_FAMILY:
        return notes
    if rank > VLLM_RANKS[0]:
        fitting = next((most for most in VLLM_RANKS if most >= rank), None)
        code = "export.vllm_rank" if fitting else "export.vllm_never"
        notes.append(Note(code, {"rank": rank, "least": fitting or VLLM_RANKS[-1]}))
    if meta.kind != "lora":
        notes.append(Note("export.pairs_only", {"kind": meta.kind}))
    last = {path.rpartition(".")[2] for path in module_names}
    if meta.variant and meta.variant not in OLLAMA_BASES:
        notes.append(Note("export.ollama_base", {"variant": meta.variant, "known": ", ".join(OLLAMA_BASES)}))
    elif last - OLLAMA_LAYERS:
        notes.append(Note("export.ollama_layers", {"names": some(last - OLLAMA_LAYERS)}))
    if "lm_head" in last:
        notes.append(Note("export.llamacpp_head"))
    return notes


def export(adapter: Adapter, path: Path) -> Report:
    """Write each network's adapter_config.json and then the tensors beside it; the same adapter gives the same bytes.

    Raises:
        NumericsError: a value is not finite.
        MachineError: no space, or not writable.
    """
    check_finite(adapter)
    meta = adapter.meta
    if meta.family == LANGUAGE_FAMILY:
        made = uniform(adapter) if meta.kind == "lora" else adapter
        count = _write(path, made.pairs[LANGUAGE_MODEL], meta, LANGUAGE_MODEL)
        return Report(path, count)
    count = 0
    _clear(path)
    for component, updates in adapter.pairs.items():
        folder = path / component
        try:
            path.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        count += _write(folder / PEFT_FILE, updates, meta, component)
    return Report(path, count)


# `export` keeps every bit of a picture model's LoRA already.
export_exact = export


def _clear(path: Path) -> None:
    """Remove what an earlier export, whole or cut short, has left in the folders of networks."""
    for pattern in (PEFT_FILE, PEFT_CONFIG, f"{STAGED_PREFIX}*"):
        for old in path.glob(f"*/{pattern}"):
            old.unlink(missing_ok=True)


def _write(path: Path, updates: Mapping[str, Any], meta: AdapterMeta, component: str) -> int:
    """Write one network's config and tensors; return how many these are."""
    ends = registry.load("adapters", meta.kind).SUFFIXES[layouts.PEFT]
    is_language = component == LANGUAGE_MODEL
    live = {module: module if is_language else _peft_layers.live(component, module, meta) for module in updates}
    tensors: dict[str, Tensor] = {}
    for module, update in updates.items():
        for role, tensor in _pictures.tensors(update, layouts.PEFT).items():
            tensors[f"{PEFT_PREFIX}{live[module]}.{ends[role]}"] = _pictures.stored(tensor)
    named = {live[module]: update for module, update in updates.items()}
    config = _language_config(named, meta) if is_language else _peft_layers.config(named, meta)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    write_bytes(path.with_name(PEFT_CONFIG), f"{text}\n".encode())
    told = {} if is_language else _pictures.history(meta)
    save(path, tensors, told | _pictures.header(meta))
    return len(tensors)


def _language_config(updates: Mapping[str, Any], meta: AdapterMeta) -> dict[str, Any]:
    folder = base_folder.find(meta.base_reference)
    every = base_folder.module_names(folder) if folder else ()
    config = _peft_layers.config(updates, meta)
    if meta.kind == "lora":
        rank, alpha = settings(Adapter({LANGUAGE_MODEL: updates}, meta))
        config |= {"r": rank, "lora_alpha": alpha}
    return config | {"target_modules": target_modules(updates, every), "task_type": "CAUSAL_LM"}


def target_modules(chosen: Collection[str], every: Collection[str]) -> Sequence[str]:
    """Return the last names of the chosen modules where these choose no other module of the base, else the whole paths.

    Args:
        every: the base's modules; empty where they are not known.
    """
    last = {path.rpartition(".")[2] for path in chosen}
    selected = {path for path in every if path.rpartition(".")[2] in last}
    return sorted(last if selected == set(chosen) else chosen)


def read_back(path: Path, adapter: Adapter) -> Adapter:
    """Load the folder with peft into layers of the adapter's sizes: what peft does not find there stays zero.

    Raises:
        NumericsError: peft refuses the folder, or finds tensors that belong to no module.
    """
    if adapter.meta.family == LANGUAGE_FAMILY:
        found = _peft_layers.read(path.parent, adapter.pairs[LANGUAGE_MODEL], adapter.meta, LANGUAGE_MODEL)
        return Adapter({LANGUAGE_MODEL: found}, adapter.meta)
    read = {
        component: _peft_layers.read(path / component, updates, adapter.meta, component)
        for component, updates in adapter.pairs.items()
        if (path / component).is_dir()
    }
    return Adapter(read, adapter.meta)
