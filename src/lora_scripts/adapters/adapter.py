"""The Adapter: named updates and where they belong, independent of any file format or live model.

Shapes: r = rank, o = out, i = in, k = kernel side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from torch import Tensor


class Update(Protocol):
    """What one module's weight W becomes, W + delta, however the tensors that say so are factored.

    Attributes:
        kind: the file of `adapters/kinds/` that it belongs to.
        needs_weight: its delta is only known together with W.
    """

    kind: ClassVar[str]
    needs_weight: ClassVar[bool]

    @property
    def alpha(self) -> float:
        """The numerator of the scale."""

    @property
    def rank(self) -> int:
        """The denominator of the scale."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows of the weight, and columns: inputs times kernel positions."""

    def tensors(self, layout: str = "") -> Mapping[str, Tensor]:
        """By role; without the scale; in the shapes that files of a layout have, where those differ."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return delta W in float32 in the weight's shape; without the weight, some kinds have kernels flattened.

        Raises:
            ValueError: `needs_weight`, and there is none.
        """

    def compared(self) -> Mapping[str, Tensor]:
        """Return what two updates that do the same agree in, whatever the weight and however they are factored."""


@dataclass(frozen=True)
class Start:
    """What first values depend on besides the layer.

    Attributes:
        generator: seeded by the run's seed and the module's path only.
        dtype: of the trained tensors.
        module: for sentences.
    """

    generator: torch.Generator
    dtype: torch.dtype
    module: str


class Kind(Protocol):
    """A kind of update: one file of `adapters/kinds/`, seen as a module.

    Attributes:
        Config: the options of `adapter: {name: ...}`.
        SUFFIXES: layout ("kohya", "diffusers", "peft") -> role -> the end of a tensor's name in files of that layout; a
            layout that has no place for the kind is left out.
        DROPS_INPUTS: `lora_dropout` means something to it.
        READS_SHAPE: it takes its sizes from the frozen weight's shape, which a packed weight does not have.
    """

    Config: type[BaseModel]
    SUFFIXES: Mapping[str, Mapping[str, str]]
    DROPS_INPUTS: bool
    READS_SHAPE: bool

    def build(self, tensors: Mapping[str, Tensor], alpha: float) -> Update:
        """Return the update that a file's tensors say."""

    def peft_config(self, options: Any, *, dropout: float, **settings: Any) -> Any:
        """Return PEFT's config; `settings` are r, alpha, rank_pattern, alpha_pattern and target_modules."""

    def places(self, layer: Any) -> Mapping[str, tuple[Any, str]]:
        """Return where PEFT's layer keeps its trained tensors: role -> (module, attribute), in a fixed order."""

    def keeps_start(self, options: Any) -> bool:
        """Say whether the base alone decides the start, which is kept: files then have twice the rank."""

    def start(self, layer: Any, options: Any, given: Start) -> Mapping[str, Tensor]:
        """Return first values by role, such that the layer still gives what its base gives.

        Raises:
            BaseModelError: this layer's weight allows none.
        """

    def ready(self, layer: Any, options: Any) -> None:
        """Finish the layer once its first values are in place."""

    def update(self, layer: Any) -> Update:
        """Return the live update: float32 copies on the CPU."""

    def values(self, layer: Any, update: Any, **where: str) -> Mapping[str, Tensor]:
        """Return what the live tensors must be to give this update, by role.

        Args:
            where: the adapter's name and the module, for the sentence.

        Raises:
            BaseModelError: they cannot give it: another rank, size or factoring.
        """

    def strength(self, layer: Any) -> float:
        """Return how strongly the layer's update counts, in the layer's own terms."""

    def set_strength(self, layer: Any, value: float) -> None:
        """Set it."""

    def buffers(self, layer: Any) -> Mapping[str, Tensor]:
        """Return tensors that do not train, but that the layer cannot be restored without."""


@dataclass(frozen=True)
class LoraPair:
    """One module's update: delta W = alpha / rank * up @ down (arXiv:2106.09685, section 4.1).

    Attributes:
        down: (r, i) or, for a convolution, (r, i, k, k); "lora_A" elsewhere.
        up: (o, r) or (o, r, 1, 1); "lora_B" elsewhere.
        alpha: the numerator of the scale.
    """

    kind: ClassVar[str] = "lora"
    needs_weight: ClassVar[bool] = False

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

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.up.shape[0], self.down[0].numel()

    def tensors(self, layout: str = "") -> Mapping[str, Tensor]:
        """Return "down" and "up"."""
        return {"down": self.down, "up": self.up}

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return delta W in float32: (o, i) or (o, i, k, k); the weight only tells the shape."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        shape = (self.up.shape[0], *self.down.shape[1:]) if weight is None else weight.shape
        return (product * self.scale).reshape(shape)

    def compared(self) -> Mapping[str, Tensor]:
        """Return the delta."""
        return {"delta": self.delta()}


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
        kind: of all its updates, such as "lora": a name of `adapters/kinds/`.
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
    kind: str = "lora"


@dataclass(frozen=True)
class Adapter:
    """Updates by component and module path.

    Attributes:
        pairs: {"unet": {"down_blocks.0.attentions.0....to_q": LoraPair}, "text_encoder": {...}}; module paths are
            those of the diffusers or transformers class, with "text_model." in front for a CLIP text encoder
            whichever way the installed transformers nests it.
        meta: see `AdapterMeta`.
    """

    pairs: Mapping[str, Mapping[str, Any]]
    meta: AdapterMeta

    def __len__(self) -> int:
        return sum(len(pairs) for pairs in self.pairs.values())
