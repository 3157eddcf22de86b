"""Pairs in PEFT's LoRA layers: plain ones, and those inside DoRA.

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.adapter import LoraPair
from lora_scripts.adapters.kinds._live import SLOT, copied, uniform
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def places(layer: Any) -> dict[str, tuple[Any, str]]:
    """Where the two halves lie."""
    return {"down": (layer.lora_A[SLOT], "weight"), "up": (layer.lora_B[SLOT], "weight")}


def start(layer: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Down uniform, up zero."""
    import torch

    down, up = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
    return {"down": uniform(down.shape, generator), "up": torch.zeros(up.shape)}


def plain_alpha(layer: Any) -> float:
    """Return the alpha whose plain scale alpha / r is the layer's: alpha * sqrt(r) where it is rank-stabilised.

    Files then need nothing of it (arXiv:2312.03732, equation 3).
    """
    alpha, rank = float(layer.lora_alpha[SLOT]), layer.r[SLOT]
    return alpha * math.sqrt(rank) if layer.use_rslora.get(SLOT) else alpha


def plain_scale(layer: Any) -> float:
    """Return the layer's scale as it trains, whatever it counts for the moment."""
    return plain_alpha(layer) / layer.r[SLOT]


def update(layer: Any) -> LoraPair:
    """Return the live pair."""
    down, up = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
    return LoraPair(copied(down), copied(up), plain_alpha(layer))


def values(layer: Any, pair: Any, **where: str) -> dict[str, Tensor]:
    """Return both halves, a different scale folded into `up`."""
    down, up = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
    pair = unpadded(pair, layer.r[SLOT])
    check(layer, pair, layer.r[SLOT], **where)
    factor = pair.scale / plain_scale(layer)
    return {"down": pair.down.reshape(down.shape), "up": (pair.up.float() * factor).reshape(up.shape)}


def unpadded(pair: Any, rank: int) -> Any:
    """Return a pair of this rank where the given one has nothing but zeros beyond it, else the given one.

    Formats that know one rank only fill smaller pairs up (`adapters.uniform`).
    """
    if pair.rank <= rank or pair.down[rank:].any() or pair.up[:, rank:].any():
        return pair
    return replace(pair, down=pair.down[:rank], up=pair.up[:, :rank], alpha=pair.scale * rank)


def check(layer: Any, pair: Any, rank: int, **where: str) -> None:
    """Refuse a pair of another rank or size.

    Raises:
        BaseModelError: it says which.
    """
    if pair.rank != rank:
        raise BaseModelError("adapter.other_rank", **where, found=pair.rank, rank=rank)
    found, wanted = _size(pair.up, pair.down), _size(layer.lora_B[SLOT].weight, layer.lora_A[SLOT].weight)
    if found != wanted:
        raise BaseModelError("adapter.other_sizes", **where, found=found, wanted=wanted)


def _size(up: Tensor, down: Tensor) -> str:
    """Write the size of a pair's update; a 1x1 convolution and a linear layer have the same."""
    kernel = [side for side in down.shape[2:] if side != 1]
    return " x ".join(map(str, (up.shape[0], down.shape[1], *kernel)))


def config(dropout: float, settings: Mapping[str, Any], **more: Any) -> Any:
    """Return PEFT's config of a LoRA; the first values are ours."""
    from peft import LoraConfig

    named = dict(settings)
    return LoraConfig(lora_alpha=named.pop("alpha"), lora_dropout=dropout, init_lora_weights=False, **named, **more)
