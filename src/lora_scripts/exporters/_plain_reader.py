"""Reads kohya files that diffusers reads wrongly or not at all, by other libraries' code where there is any.

Tensors come by the safetensors library; whose they are, by diffusers' own conversion of names; what LoHa's and LoKr's
factors give, by peft's formulas. A DoRA's sum of V is one product, and nobody's code is needed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.errors import NumericsError
from lora_scripts.exporters import _diffusers_reader

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6


def read(path: Path, adapter: Adapter) -> Adapter:
    """Return the file's updates by component and canonical path.

    Raises:
        NumericsError: peft's formula gives another update of the same factors.
    """
    from safetensors.torch import load_file

    tensors = load_file(path)
    by_stem: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, end = name.partition(".")
        by_stem.setdefault(stem, {})[end] = tensor.float()
    kind = registry.load("adapters", adapter.meta.kind)
    roles = {end: role for role, end in kind.SUFFIXES["kohya"].items()}
    pairs: dict[str, dict[str, Any]] = {component: {} for component in adapter.pairs}
    for stem, (component, module) in _diffusers_reader.modules(by_stem, adapter.pairs).items():
        given = by_stem[stem]
        update = kind.build({roles[end]: t for end, t in given.items() if end in roles}, float(given["alpha"]))
        other = _by_peft(given)
        if other is not None:
            own = update.delta()
            if not float((other - own).norm()) <= TOLERANCE * float(own.norm()):
                raise NumericsError("adapter.update_differs", name=adapter.meta.name, module=module, by="peft")
        pairs[component][module] = update
    return Adapter(pairs, adapter.meta)


def _by_peft(given: Mapping[str, Tensor]) -> Tensor | None:
    """Return delta W of LoHa's or LoKr's factors as peft multiplies them, kernels flattened; None for pairs."""
    import torch

    names = {end.partition("_")[2]: tensor for end, tensor in given.items() if end != "alpha"}
    if "hada_w1_a" in given:
        from peft.tuners.loha.layer import make_weight

        scale = given["alpha"] / len(given["hada_w1_b"])
        factors = [names[role] for role in ("w1_a", "w1_b", "w2_a", "w2_b")]
        return make_weight(*factors, scale)
    if not any(end.startswith("lokr_") for end in given):
        return None
    from peft.tuners.lokr.layer import make_kron

    low = names.get("w2_b", names.get("w1_b"))
    share = float(given["alpha"] / len(low)) if low is not None else 1.0
    small = names["w1"] if "w1" in names else names["w1_a"] @ names["w1_b"]
    large = names["w2"] if "w2" in names else names["w2_a"] @ names["w2_b"]
    return make_kron(small, large, torch.tensor(share)).flatten(1)
