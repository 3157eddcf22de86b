"""PiSSA (arXiv:2404.02948): the pair starts as the principal part of the weight, and what it moves is learned.

The paper takes the principal part out of W: y = (W - s B0 A0) x + s B A x. Here W stays as it is, and the start pair is
kept beside the trained one:

    y = W x + s ((B - B0) A + B0 (A - A0)) x,

which is the same product with its terms put together. Nothing is lost where W is held in 16 bits; the start is W itself
to the last bit; without the pair, the base is the base; and small changes are not the difference of two large numbers,
which 16-bit sums would round away. The update of the original base is a pair of rank 2r: [B - B0, B0] [A; A - A0].

Shapes: r = rank, o = out, n = inputs times kernel positions, k = min(r, o, n).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.adapter import LoraPair
from lora_scripts.adapters.kinds import _pairs
from lora_scripts.adapters.kinds._live import SLOT, copied, frozen_weight
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DOWN, UP = "start_down", "start_up"
# How near a file's copy of the start pair must be to the live one, relative to its largest value.
SAME = 1e-4


def start(layer: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """A = sqrt(S / s) V^T and B = U sqrt(S / s) of the r largest singular values (equations 2 and 3).

    They come from the eigenvectors of the smaller Gram matrix, in float64: many times quicker than the whole
    decomposition, and as good for the large ones. A rank above the weight's own is filled up as a plain start would.
    """
    import torch

    first = _pairs.start(layer, generator)
    down, up = first["down"], first["up"]
    weight = frozen_weight(layer, torch.float64).flatten(1)
    rank = min(down.shape[0], *weight.shape)
    wide = weight.shape[0] > weight.shape[1]
    matrix = weight.T if wide else weight
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    left = vectors[:, -rank:].flip(1)
    # Vectors are known up to their sign; the largest entry is made positive.
    left = left * torch.take_along_dim(left, left.abs().argmax(0, keepdim=True), 0).sign()
    rows = left.T @ matrix
    size = rows.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    root = (size / _pairs.plain_scale(layer)).sqrt()
    columns, rows = left * root, rows / size[:, None] * root[:, None]
    if wide:
        columns, rows = rows.T, columns.T
    down, up = down.double(), up.double()
    down[:rank] = rows.reshape(rank, *down.shape[1:]).cpu()
    up[:, :rank] = columns.reshape(up.shape[0], rank, *up.shape[2:]).cpu()
    return {"down": down, "up": up}


def ready(layer: Any) -> None:
    """Keep the start pair, and let the layer compute with it."""
    layer.register_buffer(DOWN, layer.lora_A[SLOT].weight.detach().clone(), persistent=False)
    layer.register_buffer(UP, layer.lora_B[SLOT].weight.detach().clone(), persistent=False)
    layer.lora_variant[SLOT] = _variant()


def is_here(layer: Any) -> bool:
    """Say whether a layer is of this form."""
    return hasattr(layer, DOWN)


def buffers(layer: Any) -> dict[str, Tensor]:
    """Return the start pair, which another machine would not find again to the last bit."""
    return {DOWN: getattr(layer, DOWN), UP: getattr(layer, UP)}


def update(layer: Any) -> LoraPair:
    """Return the update of the original base, as a pair of rank 2r."""
    import torch

    down, up = layer.lora_A[SLOT].weight.detach(), layer.lora_B[SLOT].weight.detach()
    both_down = torch.cat([down, down - getattr(layer, DOWN)])
    both_up = torch.cat([up - getattr(layer, UP), getattr(layer, UP)], dim=1)
    return LoraPair(copied(both_down), copied(both_up), 2 * _pairs.plain_alpha(layer))


def values(layer: Any, pair: Any, **where: str) -> dict[str, Tensor]:
    """Return the trained pair out of one of rank 2r that was made by this run's own start.

    Raises:
        BaseModelError: any other pair: this start leaves no room for it.
    """
    rank, down = layer.r[SLOT], layer.lora_A[SLOT].weight
    pair = _pairs.unpadded(pair, 2 * rank)
    if pair.rank != 2 * rank:
        raise BaseModelError("adapter.other_start", **where)
    _pairs.check(layer, pair, 2 * rank, **where)
    first_down, first_up = copied(getattr(layer, DOWN)), copied(getattr(layer, UP))
    given = pair.down.float().reshape(2 * rank, *down.shape[1:])
    up = (pair.up.float() * (pair.scale / _pairs.plain_scale(layer))).reshape(
        first_up.shape[0], 2 * rank, *first_up.shape[2:]
    )
    moved, kept = up[:, :rank], up[:, rank:]
    apart = max(_apart(kept, first_up), _apart(given[:rank] - given[rank:], first_down))
    if not apart <= SAME:
        raise BaseModelError("adapter.other_start", **where)
    return {"down": given[:rank], "up": first_up + moved}


def _apart(found: Tensor, wanted: Tensor) -> float:
    largest = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) / largest


@cache
def _variant() -> Any:
    """Return what PEFT's layer asks instead of its plain pair. Made here: PEFT is not imported at the top."""
    from peft.tuners.lora.layer import LoraVariant

    class Principal(LoraVariant):
        def supports_lora_conversion(self) -> bool:
            return False

        @staticmethod
        def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
            down, up = module.lora_A[active_adapter], module.lora_B[active_adapter]
            x = module.lora_dropout[active_adapter](x)
            moved = _through(up, up.weight - module.start_up, _through(down, down.weight, x))
            moved = moved + _through(up, module.start_up, _through(down, down.weight - module.start_down, x))
            return result + moved * module.scaling[active_adapter]

    return Principal()


def _through(half: Any, weight: Tensor, x: Tensor) -> Tensor:
    """Apply a half of the pair with another weight in its place."""
    from torch.nn import functional

    if weight.ndim == 2:
        return functional.linear(x, weight)
    return functional.conv2d(x, weight, stride=half.stride, padding=half.padding)
