"""The Adapter: named low-rank pairs and where they belong, independent of any file format or live model.

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoraPair:
    """One module's update: delta W = alpha / rank * up @ down (arXiv:2106.09685, section 4.1).

    Attributes:
        down: (r, i) or, for a convolution, (r, i, k, k); "lora_A" elsewhere.
        up: (o, r) or (o, r, 1, 1); "lora_B" elsewhere.
        alpha: the numerator of the scale.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """Return delta W in float32: (o, i) or (o, i, k, k)."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        shape = (self.up.shape[0], *self.down.shape[1:])
        return (product * self.scale).reshape(shape)


@dataclass(frozen=True)
class AdapterMeta:
    """What an adapter's file must tell besides tensors; no time, path or run id.

    Attributes:
        family: registry name, such as "sd".
        base_name: base model's file or folder name without its path.
        base_hash: sha256 of the base's weights, or "".
        base_reference: where the base is found again: a hub id, or a folder; "" where nothing needs to know.
        variant: the family's own word for the kind of base, such as "sd1" or "sd2-v".
        resolution: training size in pixels, (width, height).
        steps, epochs: how long it was trained.
        training: further facts as strings, by the exporters' names ("ss_..." without the prefix).
    """

    family: str
    name: str
    base_name: str = ""
    base_hash: str = ""
    base_reference: str = ""
    variant: str = ""
    prediction_type: str = "epsilon"
    resolution: tuple[int, int] = (512, 512)
    steps: int = 0
    epochs: int = 0
    trigger: str = ""
    training: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """Low-rank pairs by component and module path.

    Attributes:
        pairs: {"unet": {"down_blocks.0.attentions.0....to_q": LoraPair}, "text_encoder": {...}}; module paths are
            those of the diffusers or transformers class, with "text_model." in front for a CLIP text encoder
            whichever way the installed transformers nests it.
        meta: see `AdapterMeta`.
    """

    pairs: Mapping[str, Mapping[str, LoraPair]]
    meta: AdapterMeta

    def __len__(self) -> int:
        return sum(len(pairs) for pairs in self.pairs.values())
