"""The Kronecker product of a small matrix and a larger one, each whole or of low rank: LoKr (arXiv:2309.14859).

Shapes: o = p * q = out, i = u * v = in, r = rank, k = kernel side, n = v times kernel positions.
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

_ROLES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
_NAMES = {role: f"lokr_{role}" for role in _ROLES}
SUFFIXES = {"kohya": _NAMES, "peft": _NAMES}
DROPS_INPUTS = False
READS_SHAPE = True

buffers, keeps_start = no_buffers, starts_anywhere


class Config(BaseModel):
    """Options of `adapter: {name: lokr, ...}`.

    Attributes:
        factor: the side of the small matrix, where it divides the layer's sizes; -1, or 0, takes one near the square
            root. PEFT calls it decompose_factor.
        decompose_both: let the small matrix be of low rank too, where that is smaller.
        rank_dropout: share of the weight's rows that a training step leaves unchanged.
        rank_dropout_scale: let the other rows count for them.
        module_dropout: share of steps in which a layer leaves its update out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: int = Field(-1, ge=-1, le=4096)
    decompose_both: bool = False
    rank_dropout: float = Field(0.0, ge=0, le=0.5)
    rank_dropout_scale: bool = False
    module_dropout: float = Field(0.0, ge=0, lt=1)


@dataclass(frozen=True)
class LokrUpdate:
    """delta W = scale * w1 (x) w2 (arXiv:2309.14859, equation 5).

    Attributes:
        w1: (p, u), or None where it is w1_a @ w1_b.
        w1_a, w1_b: (p, r) and (r, u).
        w2: (q, v) or (q, v, k, k), or None where it is w2_a @ w2_b.
        w2_a, w2_b: (q, r) and (r, n).
        alpha: the numerator of the scale; kohya's files have no place for it where both matrices are whole, and all
            who read them take 1.
    """

    kind: ClassVar[str] = "lokr"
    needs_weight: ClassVar[bool] = False

    alpha: float
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None

    @property
    def is_whole(self) -> bool:
        """Both matrices are."""
        return self.w1 is not None and self.w2 is not None

    @property
    def rank(self) -> int:
        """r; 1 where both matrices are whole."""
        low = self.w1_b if self.w1_b is not None else self.w2_b
        return low.shape[0] if low is not None else 1

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        small, large = self._factors()
        return small.shape[0] * large.shape[0], small.shape[1] * large.shape[1]

    def tensors(self, layout: str = "") -> Mapping[str, Tensor]:
        """Return the factors that there are."""
        named = {role: getattr(self, role) for role in _ROLES}
        return {role: tensor for role, tensor in named.items() if tensor is not None}

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return delta W in float32: in the weight's shape, or with its kernels flattened."""
        import torch

        # The kernel positions are the last index of the large matrix's columns, as they are of the weight's.
        product = torch.kron(*self._factors()) * self.scale
        return product if weight is None else product.reshape(weight.shape)

    def compared(self) -> Mapping[str, Tensor]:
        """Return the delta."""
        return {"delta": self.delta()}

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return w1 (p, u) and w2 (q, n) in float32, contiguous."""
        given = {role: tensor.float() for role, tensor in self.tensors().items()}
        small = given["w1"] if "w1" in given else given["w1_a"] @ given["w1_b"]
        large = given["w2"] if "w2" in given else given["w2_a"] @ given["w2_b"]
        return small.flatten(1).contiguous(), large.flatten(1).contiguous()


def build(tensors: Mapping[str, Tensor], alpha: float) -> LokrUpdate:
    """Return the update that a file's tensors say."""
    return LokrUpdate(alpha, **{role: tensor for role, tensor in tensors.items() if role in _ROLES})


def peft_config(options: Config, *, dropout: float, **settings: Any) -> Any:
    """Return PEFT's config; the first values are ours."""
    from peft import LoKrConfig

    own = options.model_dump(exclude={"factor"})
    return LoKrConfig(init_weights=False, decompose_factor=options.factor or -1, **own, **settings)


def places(layer: Any) -> Mapping[str, tuple[Any, str]]:
    """Where the factors lie."""
    return _products.places(layer, "lokr_", _ROLES)


def start(layer: Any, options: Config, given: Start) -> Mapping[str, Tensor]:
    """Return factors of which one, of the large matrix, is zero: the start that is usual for LoKr."""
    import torch

    first = {}
    for role, (holder, name) in places(layer).items():
        shape = getattr(holder, name).shape
        first[role] = torch.zeros(shape) if role in ("w2", "w2_b") else uniform(shape, given.generator)
    return first


def ready(layer: Any, options: Config) -> None:
    """Nothing more to do."""


def update(layer: Any) -> LokrUpdate:
    """Return the live update; where both matrices are whole, the scale goes into w2."""
    found = LokrUpdate(float(layer.alpha[SLOT]), **_products.live(places(layer)))
    if found.w1 is None or found.w2 is None:
        return found
    return LokrUpdate(1.0, w1=found.w1, w2=found.w2 * _products.scale(layer))


def values(layer: Any, update: LokrUpdate, **where: str) -> Mapping[str, Tensor]:
    """Return what the factors must be, a different scale folded into the large matrix."""
    if not update.is_whole and update.rank != layer.r[SLOT]:
        raise BaseModelError("adapter.other_rank", **where, found=update.rank, rank=layer.r[SLOT])
    last = "w2" if update.w2 is not None else "w2_b"
    return _products.values(places(layer), update, update.scale / _products.scale(layer), last, **where)
