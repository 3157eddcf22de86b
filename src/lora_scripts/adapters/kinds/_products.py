"""What LoHa and LoKr share: PEFT's layers form the whole delta at each forward pass and add its product.

Their dropouts are PEFT's: `rank_dropout` drops rows of the delta, `module_dropout` the whole layer, while training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.kinds._live import SLOT, copied
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor


def places(layer: Any, prefix: str, roles: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Return where those of the roles lie that this layer has."""
    holders = {role: getattr(layer, prefix + role) for role in roles}
    return {role: (holder, SLOT) for role, holder in holders.items() if SLOT in holder}


def live(places: Mapping[str, tuple[Any, str]]) -> dict[str, Tensor]:
    """Return copies of the live tensors by role."""
    return {role: copied(getattr(holder, name)) for role, (holder, name) in places.items()}


def scale(layer: Any) -> float:
    """Return the layer's scale as it trains, whatever it counts for the moment."""
    return float(layer.alpha[SLOT]) / layer.r[SLOT]


def values(wanted: Mapping[str, tuple[Any, str]], update: Any, factor: float, last: str, **where: str) -> dict:
    """Return the update's tensors in the live shapes, with `factor` folded into the tensor `last`.

    Raises:
        BaseModelError: it is factored otherwise, or of another size.
    """
    shapes = {role: tuple(getattr(holder, name).shape) for role, (holder, name) in wanted.items()}
    given = {role: tensor.float() for role, tensor in update.tensors().items()}
    if {role: _plain(tensor.shape) for role, tensor in given.items()} != {r: _plain(s) for r, s in shapes.items()}:
        raise BaseModelError(
            "adapter.other_factors",
            **where,
            found=_written({role: tuple(tensor.shape) for role, tensor in given.items()}),
            wanted=_written(shapes),
        )
    given[last] = given[last] * factor
    return {role: tensor.reshape(shapes[role]) for role, tensor in given.items()}


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without 1 x 1 kernels, which a linear layer does not have."""
    return tuple(shape[:2]) if all(side == 1 for side in shape[2:]) else tuple(shape)


def _written(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{role} {' x '.join(map(str, shape))}" for role, shape in shapes.items())
