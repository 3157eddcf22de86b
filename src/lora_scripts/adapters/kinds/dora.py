"""Pairs with a magnitude of their own for each row of the weight: DoRA (arXiv:2402.09353).

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lora_scripts.adapters.adapter import LoraPair, Start
from lora_scripts.adapters.kinds import _pairs
from lora_scripts.adapters.kinds._live import SLOT, copied, frozen_weight, no_buffers, starts_anywhere
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {
    "kohya": {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"},
    # Peft adds the end where it lacks; transformers, which diffusers leaves text encoders to, would not find it.
    "diffusers": {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector.weight"},
    "peft": {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
}
DROPS_INPUTS = True
READS_SHAPE = False

buffers, keeps_start = no_buffers, starts_anywhere


class Config(BaseModel):
    """Options of `adapter: {name: dora, ...}`.

    Attributes:
        rank_stabilised: scale by alpha / sqrt(rank) instead of alpha / rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank_stabilised: bool = False


@dataclass(frozen=True)
class DoraPair:
    """W + delta W = m * (W + V) / ||W + V||, row by row, with V = alpha / rank * up @ down (equation 5).

    Attributes:
        down: (r, i) or (r, i, k, k).
        up: (o, r) or (o, r, 1, 1).
        magnitude: (o,), m.
        alpha: the numerator of the scale of V.
    """

    kind: ClassVar[str] = "dora"
    needs_weight: ClassVar[bool] = True

    down: Tensor
    up: Tensor
    magnitude: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def pair(self) -> LoraPair:
        """V alone."""
        return LoraPair(self.down, self.up, self.alpha)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pair.size

    def tensors(self, layout: str = "") -> Mapping[str, Tensor]:
        """Return "down", "up" and "magnitude", whose shape is a layout's own: (o, 1...) or, for PEFT, (1, o, 1, 1)."""
        magnitude, kernel = self.magnitude, (1,) * (self.down.ndim - 2)
        if layout == "kohya":
            magnitude = magnitude.reshape(-1, 1, *kernel)
        elif layout and kernel:
            magnitude = magnitude.reshape(1, -1, *kernel)
        return {"down": self.down, "up": self.up, "magnitude": magnitude}

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return delta W for this weight, in float32."""
        if weight is None:
            raise ValueError("the update of a DoRA is known together with the weight only")
        wide = weight.detach().float()
        turned = wide + self.pair.delta(wide).to(wide.device)
        factor = self.magnitude.to(wide.device).float() / turned.flatten(1).norm(dim=1)
        return factor.reshape(-1, *(1,) * (wide.ndim - 1)) * turned - wide

    def compared(self) -> Mapping[str, Tensor]:
        """Return V and the magnitude."""
        return {"delta": self.pair.delta(), "magnitude": self.magnitude.float()}


def build(tensors: Mapping[str, Tensor], alpha: float) -> DoraPair:
    """Return the update that a file's tensors say; the magnitude may have any layout's shape."""
    return DoraPair(tensors["down"], tensors["up"], tensors["magnitude"].flatten(), alpha)


def peft_config(options: Config, *, dropout: float, **settings: Any) -> Any:
    """Return PEFT's config."""
    return _pairs.config(dropout, settings, use_rslora=options.rank_stabilised, use_dora=True)


def places(layer: Any) -> Mapping[str, tuple[Any, str]]:
    """Where the two halves and the magnitude lie."""
    return {**_pairs.places(layer), "magnitude": (layer.lora_magnitude_vector[SLOT], "weight")}


def start(layer: Any, options: Config, given: Start) -> Mapping[str, Tensor]:
    """Return a pair that is zero, and the magnitude that the weight has: PEFT's own norm, for the same last bit.

    Raises:
        BaseModelError: a row of the weight is zero, so that the formula divides by zero.
    """
    weight = frozen_weight(layer, given.dtype)
    norm = layer.lora_magnitude_vector[SLOT].get_weight_norm(weight, weight.new_zeros(()), 1.0)
    if not bool((norm > 0).all()):
        raise BaseModelError("adapter.zero_rows", module=given.module, count=int((norm <= 0).sum()))
    return {**_pairs.start(layer, given.generator), "magnitude": norm}


def ready(layer: Any, options: Config) -> None:
    """Let the whole update have a strength."""
    layer.lora_variant[SLOT] = _variant()(layer.lora_variant[SLOT])


def update(layer: Any) -> DoraPair:
    """Return the live update."""
    pair, magnitude = _pairs.update(layer), layer.lora_magnitude_vector[SLOT].weight
    return DoraPair(pair.down, pair.up, copied(magnitude).flatten(), pair.alpha)


def values(layer: Any, update: DoraPair, **where: str) -> Mapping[str, Tensor]:
    """Return what the tensors must be, a different scale folded into `up`."""
    shape = layer.lora_magnitude_vector[SLOT].weight.shape
    return {**_pairs.values(layer, update, **where), "magnitude": update.magnitude.reshape(shape)}


def strength(layer: Any) -> float:
    """How strongly delta W counts: 1 is as trained."""
    return layer.lora_variant[SLOT].strength


def set_strength(layer: Any, value: float) -> None:
    """Set it: W + value * delta W, as programs that draw pictures take a strength, not a longer V."""
    layer.lora_variant[SLOT].strength = value


@cache
def _variant() -> Any:
    """Return what PEFT's layer asks. Made here: PEFT is not imported at the top."""
    from peft.tuners.lora.layer import LoraVariant

    class Weighted(LoraVariant):
        def __init__(self, inner: Any):
            self.inner, self.strength = inner, 1.0

        def supports_lora_conversion(self) -> bool:
            return False

        def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
            made = self.inner.forward(module, active_adapter=active_adapter, x=x, result=result, **kwargs)
            return made if self.strength == 1 else result + self.strength * (made - result)

    return Weighted
