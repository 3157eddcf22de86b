"""PEFT's config of one network's updates, and peft itself at work on layers of their sizes.

Shapes: o = p * q = out, i = u * v = in, n = in times kernel positions, k = kernel side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_scripts import registry
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.adapters.families import key_maps
from lora_scripts.adapters.names import LANGUAGE_MODEL, TEXT_MODEL, canonical, some
from lora_scripts.adapters.peft_config import patterns, peft_type
from lora_scripts.errors import BaseModelError, NumericsError

# Kernel sides, the likeliest first, for factors that do not tell theirs.
_SIDES = (1, 3, 2, 5, 7)


def live(component: str, module: str, meta: AdapterMeta) -> str:
    """Return what the installed transformers or diffusers calls a module."""
    part = key_maps()[meta.family].parts[component]
    return module.removeprefix(TEXT_MODEL) if part.loses_prefix and _is_flat() else module


@cache
def _is_flat() -> bool:
    """Say whether the installed transformers leaves "text_model." out (versions from 5.6 on do)."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        return not hasattr(CLIPTextModel(CLIPTextConfig(vocab_size=4, **sizes)), "text_model")


def config(updates: Mapping[str, Any], meta: AdapterMeta) -> dict[str, Any]:
    """Return adapter_config.json; entries that would say nothing are left out.

    Args:
        updates: by the live modules' paths.

    Raises:
        BaseModelError: peft would form LoKr's factors otherwise than they are.
    """
    kind, is_dora = peft_type(meta.kind)
    own: dict[str, Any] = {"bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0, "use_rslora": False}
    scaled: Mapping[str, Any] = updates
    if kind != "LORA":
        own = {}
    if kind == "LOKR":
        own, scaled = _lokr(updates)
    rank, alpha, ranks, alphas = patterns(scaled)
    number = int(alpha) if alpha.is_integer() else alpha
    own |= {"r": rank, "lora_alpha" if kind == "LORA" else "alpha": number}
    if ranks:
        own["rank_pattern"] = {re.escape(path): value for path, value in ranks.items()}
    if alphas:
        own["alpha_pattern"] = {re.escape(path): value for path, value in alphas.items()}
    if is_dora:
        own["use_dora"] = True
    return own | {
        "base_model_name_or_path": meta.base_reference,
        "inference_mode": True,
        "peft_type": kind,
        "target_modules": sorted(updates),
    }


def read(folder: Path, updates: Mapping[str, Any], meta: AdapterMeta, component: str) -> dict[str, Any]:
    """Load a folder with peft into layers of the updates' sizes: what peft does not find there stays zero.

    Returns:
        What peft has then, by canonical path.

    Raises:
        NumericsError: peft refuses the folder, or finds tensors that belong to no module.
    """
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    is_language = component == LANGUAGE_MODEL
    sized = {path if is_language else live(component, path, meta): update for path, update in updates.items()}
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        root = _layers(sized, settings)
        model = get_peft_model(root, settings)
        found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise NumericsError("export.not_read", path=folder, reader="peft", reason=reason) from error
    if found.unexpected_keys:
        names, count = some(found.unexpected_keys), len(found.unexpected_keys)
        raise NumericsError("export.left_over", path=folder, reader="peft", count=count, names=names)
    kind = registry.load("adapters", meta.kind)
    layers = {path: layer for path, layer in model.base_model.model.named_modules() if hasattr(layer, "base_layer")}
    return {path if is_language else canonical(component, path): kind.update(layer) for path, layer in layers.items()}


def _layers(updates: Mapping[str, Any], settings: Any) -> Any:
    """Return layers at the updates' paths; their weights are one zero each, so a large model costs nothing."""
    import torch
    from torch import nn

    root = nn.Module()
    # Asked for by peft's class for causal language models, and compared with the config's; of no use here.
    name = settings.base_model_name_or_path
    root.prepare_inputs_for_generation, root.name_or_path = None, name  # type: ignore[assignment]
    for path, update in updates.items():
        *parents, last = path.split(".")
        place: Any = root
        for name in parents:
            children = dict(place.named_children())
            if name not in children:
                children[name] = nn.Module()
                place.add_module(name, children[name])
            place = children[name]
        rows, columns, sides = _shape(update, getattr(settings, "decompose_factor", -1))
        with torch.device("meta"):
            layer: Any = nn.Linear(columns, rows, bias=False)
            if sides:
                layer = nn.Conv2d(columns, rows, (sides[0], sides[1]), bias=False)
        layer.weight = nn.Parameter(torch.zeros(1).expand(layer.weight.shape), requires_grad=False)
        place.add_module(last, layer)
    return root


def _shape(update: Any, factor: int) -> tuple[int, int, tuple[int, ...]]:
    """Return rows, columns and kernel of a layer to which peft would give such factors."""
    given, (rows, columns) = update.tensors(), update.size
    sides: tuple[int, ...] = ()
    if "down" in given:
        sides = tuple(given["down"].shape[2:])
    elif "w2" in given:
        sides = tuple(given["w2"].shape[2:])
    elif "w2_b" in given and update.kind == "lokr":
        side = _side(update, factor) or 1
        sides = (side, side) if side > 1 else ()
    positions = 1
    for side in sides:
        positions *= side
    return rows, columns // positions, sides


def _lokr(updates: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return peft's options under which it forms the very factors, and by path the rank and alpha it needs for that.

    Peft factors a layer's sizes by `decompose_factor`, and makes a matrix whole where the rank is large beside it.
    """
    first = {_small(update)[0] for update in updates.values()}
    for factor in (-1, *sorted(first)):
        wrong = [path for path, update in updates.items() if _side(update, factor) is None]
        if not wrong:
            break
    else:
        raise BaseModelError("export.lokr_factors", count=len(wrong), names=some(wrong))
    both = any("w1_a" in update.tensors() for update in updates.values())
    scaled = {}
    for path, update in updates.items():
        rank, alpha = update.rank, float(update.alpha)
        if update.is_whole:
            (p, u), (rows, columns) = _small(update), update.size
            side = _side(update, factor) or 1
            widest = max(rows // p, columns // side**2 // u, *((p, u) if both else ()))
            # What `_pictures.tensors` has put into the factors is no scale any more.
            rank = -(-widest // 2)
            alpha = float(rank)
        scaled[path] = SimpleNamespace(rank=rank, alpha=alpha)
    return {"decompose_factor": factor, "decompose_both": both}, scaled


def _small(update: Any) -> tuple[int, int]:
    """Return (p, u), the sides of the small matrix."""
    given = update.tensors()
    if "w1" in given:
        return given["w1"].shape[0], given["w1"].shape[1]
    return given["w1_a"].shape[0], given["w1_b"].shape[1]


def _side(update: Any, factor: int) -> int | None:
    """Return the kernel side with which peft's factors of the layer's sizes are these; None where none does."""
    from peft.tuners.lokr.layer import factorization

    (p, u), (rows, columns) = _small(update), update.size
    if factorization(rows, factor)[0] != p:
        return None
    given = update.tensors()
    sides = _SIDES if "w2" not in given else (tuple(given["w2"].shape[2:3]) or (1,))
    fitting = (s for s in sides if columns % s**2 == 0 and factorization(columns // s**2, factor)[0] == u)
    return next(fitting, None)
