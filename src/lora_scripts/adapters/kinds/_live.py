"""What the kinds of update share about PEFT's layers and first values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLOT = "default"


def copied(tensor: Tensor) -> Tensor:
    """Return a float32 copy on the CPU."""
    return tensor.detach().float().cpu().clone()


def tensors(places: Mapping[str, tuple[Any, str]]) -> dict[str, Tensor]:
    """Return the live tensors by role."""
    return {role: getattr(holder, name) for role, (holder, name) in places.items()}


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from +-1 / sqrt(fan in), as PEFT's Kaiming start with a = sqrt(5)."""
    import torch

    empty = torch.empty(tuple(shape))
    bound = empty[0].numel() ** -0.5
    return empty.uniform_(-bound, bound, generator=generator)


def frozen_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the base layer's weight in this format, out of whatever few bits it is held in."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer.get_base_layer()).detach().to(dtype)


def strength(layer: Any) -> float:
    """PEFT's scale of a layer."""
    return float(layer.scaling[SLOT])


def set_strength(layer: Any, value: float) -> None:
    """Set it."""
    layer.scaling[SLOT] = value


def starts_anywhere(options: Any) -> bool:
    """The start is not the weight's own."""
    return False


def no_buffers(layer: Any) -> Mapping[str, Tensor]:
    """Nothing but what trains."""
    return {}
