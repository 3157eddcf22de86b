"""Low-rank pairs (arXiv:2106.09685), rank-stabilised where wanted (arXiv:2312.03732), from either of two starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_scripts.adapters.adapter import LoraPair, Start
from lora_scripts.adapters.kinds import _pairs, _principal
from lora_scripts.adapters.kinds._live import set_strength, strength

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["set_strength", "strength"]

SUFFIXES = {
    "kohya": {"down": "lora_down.weight", "up": "lora_up.weight"},
    "diffusers": {"down": "lora_A.weight", "up": "lora_B.weight"},
    "peft": {"down": "lora_A.weight", "up": "lora_B.weight"},
}
DROPS_INPUTS = True
READS_SHAPE = False


class Config(BaseModel):
    """Options of `adapter: {name: lora, ...}`.

    Attributes:
        rank_stabilised: scale by alpha / sqrt(rank) instead of alpha / rank.
        start: "kaiming", where the pair is zero; or "pissa", where it is the weight's principal part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank_stabilised: bool = False
    start: Literal["kaiming", "pissa"] = "kaiming"


def build(tensors: Mapping[str, Tensor], alpha: float) -> LoraPair:
    """Return the update that a file's tensors say."""
    return LoraPair(tensors["down"], tensors["up"], alpha)


def peft_config(options: Config, *, dropout: float, **settings: Any) -> Any:
    """Return PEFT's config."""
    return _pairs.config(dropout, settings, use_rslora=options.rank_stabilised)


def places(layer: Any) -> Mapping[str, tuple[Any, str]]:
    """Where the two halves lie."""
    return _pairs.places(layer)


def start(layer: Any, options: Config, given: Start) -> Mapping[str, Tensor]:
    """Return both halves' first values."""
    return (_principal if keeps_start(options) else _pairs).start(layer, given.generator)


def keeps_start(options: Config) -> bool:
    """Say whether the base decides the start, which is then kept."""
    return options.start == "pissa"


def ready(layer: Any, options: Config) -> None:
    """Keep the start pair where it is not zero."""
    if keeps_start(options):
        _principal.ready(layer)


def update(layer: Any) -> LoraPair:
    """Return the live update of the original base."""
    return (_principal if _principal.is_here(layer) else _pairs).update(layer)


def values(layer: Any, update: LoraPair, **where: str) -> Mapping[str, Tensor]:
    """Return what both halves must be."""
    return (_principal if _principal.is_here(layer) else _pairs).values(layer, update, **where)


def buffers(layer: Any) -> Mapping[str, Tensor]:
    """Return the start pair, where there is one."""
    return _principal.buffers(layer) if _principal.is_here(layer) else {}
