"""The product, entry by entry, of two low-rank matrices: LoHa (arXiv:2108.06098, arXiv:2309.14859).

Shapes: r = rank, o = out, n = inputs times kernel positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.adapters.adapter import Start
from lora_scripts.adapters.kinds import _products
from lora_scripts.adapters.kinds._live import SLOT, no_buffers, set_strength, starts_anywhere, strength, uniform
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["set_strength", "strength"]

_ROLES = ("w1_a", "w1_b", "w2_a", "w2_b")
_NAMES = {role: f"hada_{role}" for role in _ROLES}
SUFFIXES = {"kohya": _NAMES, "peft": _NAMES}
DROPS_INPUTS = False
READS_SHAPE = True

buffers, keeps_start = no_buffers, starts_anywhere


class Config(BaseModel):
    """Options of `adapter: {name: loha, ...}`.

    Attributes:
        rank_dropout: share of the weight's rows that a training step leaves unchanged; the others count for them.
        module_dropout: share of steps in which a layer leaves its update out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank_dropout: float = Field(0.0, ge=0, le=0.5)
    module_dropout: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True)
class LohaUpdate:
    """delta W = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b) (arXiv:2309.14859, equation 4).

    Attributes:
        w1_a, w2_a: (o, r).
        w1_b, w2_b: (r, n).
        alpha: the numerator of the scale.
    """

    kind: ClassVar[str] = "loha"
    needs_weight: ClassVar[bool] = False

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.w1_b.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.w1_a.shape[0], self.w1_b.shape[1]

    def tensors(self, layout: str = "") -> Mapping[str, Tensor]:
        """Return the four factors."""
        return {role: getattr(self, role) for role in _ROLES}

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return delta W in float32: in the weight's shape, or (o, n)."""
        product = (self.w1_a.float() @ self.w1_b.float()) * (self.w2_a.float() @ self.w2_b.float()) * self.scale
        return product if weight is None else product.reshape(weight.shape)

    def compared(self) -> Mapping[str, Tensor]:
        """Return the delta."""
        return {"delta": self.delta()}


def build(tensors: Mapping[str, Tensor], alpha: float) -> LohaUpdate:
    """Return the update that a file's tensors say."""
    return LohaUpdate(alpha=alpha, **{role: tensor for role, tensor in tensors.items() if role in _ROLES})


def peft_config(options: Config, *, dropout: float, **settings: Any) -> Any:
    """Return PEFT's config; the first values are ours."""
    from peft import LoHaConfig

    return LoHaConfig(init_weights=False, **options.model_dump(), **settings)


def places(layer: Any) -> Mapping[str, tuple[Any, str]]:
    """Where the factors lie."""
    return _products.places(layer, "hada_", _ROLES)


def start(layer: Any, options: Config, given: Start) -> Mapping[str, Tensor]:
    """Return factors of which one, w2_b, is zero, as PEFT starts them."""
    import torch

    first = {}
    for role, (holder, name) in places(layer).items():
        shape = getattr(holder, name).shape
        first[role] = torch.zeros(shape) if role == "w2_b" else uniform(shape, given.generator)
    return first


def ready(layer: Any, options: Config) -> None:
    """Nothing more to do."""


def update(layer: Any) -> LohaUpdate:
    """Return the live update."""
    return LohaUpdate(alpha=float(layer.alpha[SLOT]), **_products.live(places(layer)))


def values(layer: Any, update: LohaUpdate, **where: str) -> Mapping[str, Tensor]:
    """Return what the factors must be, a different scale folded into w2_b."""
    if update.rank != layer.r[SLOT]:
        raise BaseModelError("adapter.other_rank", **where, found=update.rank, rank=layer.r[SLOT])
    return _products.values(places(layer), update, update.scale / _products.scale(layer), "w2_b", **where)
