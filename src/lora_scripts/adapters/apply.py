"""Add LoRAs to live weights and take them away again: W' = W + sum of strength * delta W."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_scripts.adapters.adapter import Adapter, Update
from lora_scripts.adapters.names import some
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def added(modules: Mapping[str, nn.Module], adapters: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """Add each adapter at its strength for a while; the sum is formed in float32, and the old weights come back.

    Every delta is the one beside the weight as it is here; so the order of several does not count.

    Args:
        modules: components, such as {"unet": ..., "text_encoder": ...}.

    Raises:
        BaseModelError: a module or shape that this base does not have.
    """
    import torch

    sums: dict[int, tuple[Tensor, list[tuple[Update, float]]]] = {}
    for adapter, strength in adapters:
        for (component, path), weight in _find(modules, adapter).items():
            pair = adapter.pairs[component][path]
            sums.setdefault(id(weight), (weight, []))[1].append((pair, strength))
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for weight, updates in sums.values():
                kept.append((weight, weight.clone()))
                own = weight.float()
                total = own
                for update, strength in updates:
                    total = total + strength * update.delta(own).to(weight.device)
                weight.copy_(total)
        yield
    finally:
        with torch.no_grad():
            for weight, old in kept:
                weight.copy_(old)


def _find(modules: Mapping[str, nn.Module], adapter: Adapter) -> dict[tuple[str, str], Tensor]:
    """Return the live weight of every pair."""
    found: dict[tuple[str, str], Tensor] = {}
    missing: list[str] = []
    for component, pairs in adapter.pairs.items():
        module = modules.get(component)
        named = dict(module.named_modules()) if module is not None else {}
        for path, pair in pairs.items():
            target = named.get(path, named.get(path.removeprefix("text_model.")))
            weight = getattr(target, "weight", None)
            if weight is None or not _fits(weight, pair):
                missing.append(f"{component}.{path}")
            else:
                found[component, path] = weight
    if missing:
        raise BaseModelError("adapter.not_in_base", name=adapter.meta.name, count=len(missing), names=some(missing))
    return found


def _fits(weight: Tensor, update: Update) -> bool:
    """Compare sizes; a 1x1 convolution and a linear layer of the same sizes are the same map."""
    return update.size == (weight.shape[0], weight[0].numel())
