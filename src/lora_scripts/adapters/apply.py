"""Add LoRAs to live weights and take them away again: W' = W + sum of strength * delta W."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_scripts.adapters.adapter import Adapter
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_NAMED = 5


@contextmanager
def added(modules: Mapping[str, nn.Module], adapters: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """Add each adapter at its strength for a while; the sum is formed in float32, and the old weights come back.

    Args:
        modules: components, such as {"unet": ..., "text_encoder": ...}.

    Raises:
        BaseModelError: a module or shape that this base does not have.
    """
    import torch

    weights = [_find(modules, adapter) for adapter, _ in adapters]
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        for (adapter, strength), found in zip(adapters, weights, strict=True):
            for key, weight in found.items():
                kept.setdefault(id(weight), (weight, weight.clone()))
                delta = adapter.pairs[key[0]][key[1]].delta().to(weight.device)
                weight.copy_(weight.float() + strength * delta.view_as(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in kept.values():
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
            size = pair.up.shape[0] * pair.down[0].numel()
            if weight is None or weight.numel() != size:
                missing.append(f"{component}.{path}")
            else:
                found[component, path] = weight
    if missing:
        names = ", ".join(missing[:MAX_NAMED])
        raise BaseModelError("adapter.does_not_fit", name=adapter.meta.name, count=len(missing), names=names)
    return found
