"""PEFT's folder of a language model's LoRA: what peft, transformers, vLLM and others load.

    adapter_config.json         r and a whole lora_alpha, the same for every module
    adapter_model.safetensors   base_model.model.<path>.lora_A.weight   (r, i)
                                base_model.model.<path>.lora_B.weight   (o, r)

Without the prefix peft would load nothing and say nothing; a fraction as alpha stops Ollama; a rank or an alpha of a
module's own is passed over by llama.cpp. So there are none: what differs is inside lora_B.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lora_scripts.adapters import base_folder
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.compare import check_finite
from lora_scripts.adapters.files import LANGUAGE_FAMILY, PEFT_CONFIG, PEFT_FILE
from lora_scripts.adapters.layouts import PEFT_PREFIX
from lora_scripts.adapters.names import LANGUAGE_MODEL, some
from lora_scripts.adapters.safetensors_file import save
from lora_scripts.adapters.uniform import settings, uniform
from lora_scripts.contracts import Report
from lora_scripts.data.record import Note
from lora_scripts.errors import NumericsError
from lora_scripts.files import write_bytes

FAMILIES = (LANGUAGE_FAMILY,)

# What vLLM takes for --max-lora-rank; the first that it takes without being told is 16.
VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
# Bases whose PEFT folders Ollama converts, and the layers it has names for.
OLLAMA_BASES = ("llama", "mistral", "gemma2")
OLLAMA_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def file_name(meta: AdapterMeta) -> str:
    """Return the name that peft looks for."""
    return PEFT_FILE


def refuses(meta: AdapterMeta) -> Note | None:
    """Refuse other families."""
    if meta.family not in FAMILIES:
        return Note("adapter.no_format", {"format": "peft", "family": meta.family})
    return None


# Written beside the file; --restart removes it too.
BESIDE = (PEFT_CONFIG,)


def warnings(meta: AdapterMeta, rank: int, module_names: Collection[str]) -> list[Note]:
    """Return what programs that serve language models will refuse of such an adapter.

    Args:
        module_names: paths of the modules that get a pair.
    """
    notes = []
    if rank > VLLM_RANKS[0]:
        fitting = next((most for most in VLLM_RANKS if most >= rank), None)
        code = "export.vllm_rank" if fitting else "export.vllm_never"
        notes.append(Note(code, {"rank": rank, "least": fitting or VLLM_RANKS[-1]}))
    last = {path.rpartition(".")[2] for path in module_names}
    if meta.variant and meta.variant not in OLLAMA_BASES:
        notes.append(Note("export.ollama_base", {"variant": meta.variant, "known": ", ".join(OLLAMA_BASES)}))
    elif last - OLLAMA_LAYERS:
        notes.append(Note("export.ollama_layers", {"names": some(last - OLLAMA_LAYERS)}))
    if "lm_head" in last:
        notes.append(Note("export.llamacpp_head"))
    return notes


def export(adapter: Adapter, path: Path) -> Report:
    """Write adapter_config.json and then the tensors beside it; the same adapter gives the same bytes.

    Raises:
        NumericsError: a value is not finite.
        MachineError: no space, or not writable.
    """
    check_finite(adapter)
    made = uniform(adapter)
    tensors = {}
    for module, pair in made.pairs[LANGUAGE_MODEL].items():
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = pair.down
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = pair.up
    meta = adapter.meta
    said = {"base_hash": meta.base_hash, "family": meta.family, "name": meta.name}
    config = json.dumps(_config(made), indent=2, sort_keys=True, ensure_ascii=False)
    write_bytes(path.with_name(PEFT_CONFIG), f"{config}\n".encode())
    save(path, tensors, {"format": "pt"} | {key: value for key, value in said.items() if value})
    return Report(path, len(tensors))


def _config(made: Adapter) -> dict[str, Any]:
    folder = base_folder.find(made.meta.base_reference)
    rank, alpha = settings(made)
    every = base_folder.module_names(folder) if folder else ()
    return {
        "base_model_name_or_path": made.meta.base_reference,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": target_modules(made.pairs[LANGUAGE_MODEL], every),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }


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
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(str(path.parent))
        model = get_peft_model(_layers(adapter, config.base_model_name_or_path), config)
        found = set_peft_model_state_dict(model, load_peft_weights(str(path.parent), device="cpu"))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise NumericsError("export.not_read", path=path, reader="peft", reason=reason) from error
    if found.unexpected_keys:
        names = some(found.unexpected_keys)
        raise NumericsError("export.left_over", path=path, reader="peft", count=len(found.unexpected_keys), names=names)
    pairs = {}
    for module, layer in model.base_model.model.named_modules():
        if getattr(layer, "lora_A", None):
            down, up = (half["default"].weight.detach() for half in (layer.lora_A, layer.lora_B))
            pairs[module] = LoraPair(down, up, layer.scaling["default"] * down.shape[0])
    return Adapter({LANGUAGE_MODEL: pairs}, adapter.meta)


def _layers(adapter: Adapter, name: str | None) -> Any:
    """Return linear layers at the adapter's paths; their weights are one zero each, so a large model costs nothing."""
    import torch
    from torch import nn

    root = nn.Module()
    # Asked for by peft's class for causal language models, and compared with the config's; of no use here.
    root.prepare_inputs_for_generation, root.name_or_path = None, name  # type: ignore[assignment]
    for path, pair in adapter.pairs[LANGUAGE_MODEL].items():
        *parents, last = path.split(".")
        place: Any = root
        for name in parents:
            children = dict(place.named_children())
            if name not in children:
                children[name] = nn.Module()
                place.add_module(name, children[name])
            place = children[name]
        sizes = (pair.up.shape[0], pair.down.shape[1])
        with torch.device("meta"):
            layer = nn.Linear(sizes[1], sizes[0], bias=False)
        layer.weight = nn.Parameter(torch.zeros(1).expand(sizes), requires_grad=False)
        place.add_module(last, layer)
    return root
