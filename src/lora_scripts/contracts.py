"""What each kind of plug-in must define: the only knowledge the layers above have of it.

    families/<name>.py     `plugin`: a class with the interface of `Family`
    objectives/<name>.py   `Config`, `build(config) -> Objective`
    optimizers/<name>.py   `Config`, `build(groups, config) -> torch.optim.Optimizer`
    schedules/<name>.py    `Config`, `factor(step, total, warmup, config) -> float`
    exporters/<name>.py    the functions of `Exporter`
    data/readers/<name>.py `read(datasets, sizes) -> Scan`

No plug-in imports torch, diffusers or transformers at its top level: `--help` and the config check load them all.
Tensor shapes: B = batch, C = channels, H = height, W = width, L = text positions, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.data.record import Example, Note, Sizes

if TYPE_CHECKING:
    import random

    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Base:
    """A base model as found on disk, known without loading it.

    Attributes:
        name: the file's stem or the folder's name.
        path: a diffusers folder or one .safetensors file.
        family: registry name of the family that recognised it.
        variant: the family's own word for the kind: "sd1", "sd2", ...
        prediction_type: "epsilon", "v_prediction", or "" where the files do not say.
        resolution: native size in pixels.
        multiple: picture sizes must be multiples of this many pixels.
        max_tokens: positions of the text encoder, specials included.
        parameters: {"unet": 859520964, ...} by component.
        webui: the Stable Diffusion WebUI can load this base.
    """

    name: str
    path: Path
    family: str
    variant: str
    prediction_type: str
    resolution: int
    multiple: int
    max_tokens: int
    parameters: Mapping[str, int]
    webui: bool = True

    def sizes(self, resolutions: Sequence[int]) -> Sizes:
        """What the reader needs to choose buckets; an empty list means the native size."""
        return Sizes(tuple(resolutions) or (self.resolution,), self.multiple)


@dataclass(frozen=True)
class Placement:
    """Where and how a family holds its parts.

    Attributes:
        device: of everything that runs.
        base_dtype: how the frozen network that is trained on is held.
        encoder_dtype: how frozen encoders (VAE, text) are held while they fill the cache.
        attention: "math", "flash" or "auto": see `families/_attention.py`.
    """

    device: torch.device
    base_dtype: torch.dtype
    encoder_dtype: torch.dtype
    attention: str = "auto"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Request:
    """A cacheable piece of frozen work.

    Attributes:
        part: the encoder's name, such as "latents" or "text".
        content: sha256 over everything besides the encoder that decides the result; the cache key is the hash of
            part, content and the family's `encoder_key(part)`.
        payload: what `encode` needs to do the work.
    """

    part: str
    content: str
    payload: Any


@dataclass(frozen=True)
class Draw:
    """What one visit of an example was dealt: same seed, epoch, repeat and example give the same draw."""

    caption: str = ""
    flip: bool = False


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        weight: what it counts, known before any forward pass: sum of example weights, or of target tokens.
        weights: (B,) float32, each example's own weight; they sum to `weight`.
        tensors: what the family collated, first dimension B.
        generators: one a row, seeded by (seed, epoch, repeat, example): all noise of that row comes from it.
        ids: example ids, to name the guilty when a loss is not finite.
    """

    weight: float
    weights: Tensor
    tensors: Mapping[str, Tensor]
    generators: Sequence[torch.Generator]
    ids: Sequence[str]


@dataclass(frozen=True)
class Loss:
    """A micro-batch's loss: `total` () is the weighted sum over its rows, with graph."""

    total: Tensor
    logs: Mapping[str, float] = field(default_factory=dict)


class Family(Protocol):
    """One base-model architecture: how to recognise, load, encode, predict and preview it."""

    name: ClassVar[str]
    reads: ClassVar[str]
    """The reader's name, such as "pictures"."""
    objectives: ClassVar[tuple[str, ...]]
    """Which it serves; the first is its default."""
    target_presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]]
    """preset -> component -> regular expressions that must match a whole module path."""
    default_preset: ClassVar[str]
    base: Base

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is, or None where it is not of this family. Imports no torch; reads headers only.

        Args:
            said: the prediction type that the config states, for files that leave it open.

        Raises:
            BaseModelError: it is of this family but broken, unsafe or not supported.
        """

    @classmethod
    def load(cls, base: Base, placement: Placement) -> Family:
        """Load the base; nothing is trainable yet."""

    @classmethod
    def notes(cls, base: Base, examples: Sequence[Example]) -> Sequence[Note]:
        """What the plan should say about these examples on this base, such as captions whose tokens are cut."""

    @classmethod
    def skeleton(cls, base: Base) -> Mapping[str, nn.Module]:
        """Build what `trainable` would return on the meta device: shapes without weights."""

    @classmethod
    def operations(cls, base: Base, modules: Mapping[str, nn.Module], group: Any) -> float:
        """Floating-point operations of one forward pass of one row of this group, counted on `skeleton`'s modules."""

    @classmethod
    def weights_hash(cls, base: Base) -> str:
        """sha256 over the base's weights, however they are stored."""

    def trainable(self) -> Mapping[str, nn.Module]:
        """{"unet": ..., "text_encoder": ...}: where low-rank pairs may go."""

    def encoder_key(self, part: str) -> str:
        """sha256 over the weights and settings of the frozen encoder of `part`."""

    def draw(self, example: Example, random: random.Random) -> Draw:
        """Deal one visit of the example: caption, flip."""

    def requests(self, example: Example, draw: Draw) -> Sequence[Request]:
        """The frozen work this visit needs."""

    def encode(self, requests: Sequence[Request]) -> Sequence[Mapping[str, Tensor]]:
        """Do the frozen work of requests of one part: tensors on the CPU, without a batch dimension."""

    def train_components(self, components: Sequence[str]) -> None:
        """Learn which components carry pairs, before anything is encoded."""

    def release_encoders(self) -> None:
        """Let go of frozen encoders once their outputs are cached; previews load them again."""

    def collate(self, examples: Sequence[Example], entries: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Stack rows of one group; `entries[i]` holds the tensors of all of example i's requests."""

    def preview(self, prompts: Sequence[str], *, size: tuple[int, int], seed: int, steps: int, guidance: float) -> Any:
        """Return one PIL picture (or text) a prompt, from the live weights."""


class Denoiser(Protocol):
    """What the objective `denoise` asks of a family, beyond `Family`."""

    alphas_cumprod: Tensor
    """(T,) float32, the product of 1 - beta up to each timestep."""
    prediction_type: str

    def latents(self, batch: Batch) -> Tensor:
        """(B, C, H, W) float32 clean latents, scaled; the posterior is sampled from the rows' generators."""

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, batch: Batch) -> Tensor:
        """(B, C, H, W) the network's output at those timesteps."""


class Objective(Protocol):
    """What is minimised."""

    def loss(self, family: Any, batch: Batch, *, quantile: float | None = None) -> Loss:
        """Weighted sum of the rows' losses; `quantile` in 0..1 fixes the noise level, for evaluation."""


@dataclass(frozen=True)
class Report:
    """What an exporter wrote."""

    path: Path
    tensors: int
    notes: Sequence[Note] = ()


class Exporter(Protocol):
    """One target format; reads an `Adapter`, never a live trainer."""

    def file_name(self, meta: AdapterMeta) -> str:
        """Name of the file inside the output folder."""

    def refuses(self, meta: AdapterMeta) -> Note | None:
        """The reason why this adapter cannot be written in this format, or None."""

    def export(self, adapter: Adapter, path: Path) -> Report:
        """Write the file atomically; the same adapter gives the same bytes."""

    def read_back(self, path: Path, adapter: Adapter) -> Adapter:
        """Read the file by another library's code, for `adapters.compare`."""
