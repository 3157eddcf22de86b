"""What each kind of plug-in must define: the only knowledge the layers above have of it.

    families/<name>.py     `plugin`: a class with the interface of `Family`
    objectives/<name>.py   `Config`, `LEARNS` (kinds of examples), `build(config) -> Objective`
    optimizers/<name>.py   `Config`, `build(groups, config) -> torch.optim.Optimizer`; what it asks of the rest of the
                           config is told by constants, see `optimization`
    adapters/kinds/<name>.py  see `adapters.adapter.Update`
    schedules/<name>.py    `Config`, `factor(step, total, warmup, config) -> float`
    exporters/<name>.py    the functions of `Exporter`
    data/readers/<name>.py what its families' `scan` calls
    captioners/<name>.py   `Config`, `NEEDS_MODEL`, `build(config, model, device) -> Captioner`

No plug-in imports torch, diffusers or transformers at its top level: `--help` and the config check load them all.
Tensor shapes: B = batch, C = channels, H = height, W = width, L = text positions, D = width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.keys import KeyMap
from lora_scripts.data.record import Dataset, Example, Note, Scan, Sizes
from lora_scripts.labelling import Captioner as Captioner
from lora_scripts.labelling import Embedder as Embedder
from lora_scripts.labelling import Label as Label
from lora_scripts.labelling import Tag as Tag

if TYPE_CHECKING:
    import random

    import torch
    from pydantic import BaseModel
    from torch import Tensor, nn

    from lora_scripts.data.cache import Cache


@dataclass(frozen=True)
class Base:
    """A base model as found on disk, known without loading it.

    Attributes:
        name: the file's stem or the folder's name.
        path: a folder of diffusers or transformers, or one .safetensors file.
        family: registry name of the family that recognised it.
        variant: the family's own word for the kind: "sd1", "sd2", ...
        prediction_type: "epsilon", "v_prediction", "next token", or "" where the files do not say.
        resolution: native size in pixels; 0 where the base makes no pictures.
        multiple: picture sizes must be multiples of this many pixels.
        max_tokens: positions of the text encoder or language model, specials included.
        parameters: {"unet": 859520964, ...} by component.
        webui: the Stable Diffusion WebUI can load this base.
        reference: what `base_model_name_or_path` of a PEFT folder says: a hub id, or the folder.
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
    reference: str = ""

    @property
    def kind(self) -> str:
        """What the base is, in a few words for the plan."""
        size = f"{self.resolution} px" if self.resolution else f"{sum(self.parameters.values()) / 1e6:,.0f} M"
        return f"{self.family} / {self.variant}, {self.prediction_type}, {size}"

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
        quantisation: "nf4" or "fp8" where the frozen network is held in 4 or 8 bits, else "".
        offload_blocks: how many of its blocks wait in main memory, and are fetched ahead of their use.
    """

    device: torch.device
    base_dtype: torch.dtype
    encoder_dtype: torch.dtype
    attention: str = "auto"
    gradient_checkpointing: bool = False
    quantisation: str = ""
    offload_blocks: int = 0


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
        weights: (B,) float32, each example's own weight.
        tensors: what the family collated.
        generators: one a row, seeded by (seed, epoch, repeat, example): all noise of that row comes from it.
        ids: example ids, to name the guilty when a loss is not finite.
        regularisation: of each row, whether it only keeps the base from forgetting; empty where none does.
    """

    weight: float
    weights: Tensor
    tensors: Mapping[str, Any]
    generators: Sequence[torch.Generator]
    ids: Sequence[str]
    regularisation: Sequence[bool] = ()


@dataclass(frozen=True)
class Loss:
    """A micro-batch's loss: `total` () is the weighted sum over its rows, with graph."""

    total: Tensor
    logs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pace:
    """What a family's steps cost besides arithmetic that can be counted: measured, see docs/benchmarks.md.

    Attributes:
        share: of the machine's matrix rate that its operations reach.
        seconds: a micro-batch costs besides.
        bytes_per_operation: activations kept for the backward pass, per forward operation, in float32.
    """

    share: float
    seconds: float
    bytes_per_operation: float


class Pairs(Protocol):
    """The live adapter, as far as a family needs to know it."""

    def disabled(self) -> AbstractContextManager[None]:
        """The base alone, for a while."""


class Rehearsal(Protocol):
    """A family's work on tensors without values, for an estimate: see `families/_cost.py`.

    What is made has its shapes only; `embody` is called where torch gives tensors no values, once pairs are in place.
    """

    family: Any

    def embody(self) -> None:
        """Put every tensor of the family on the device that it would be on."""

    def entry(self, example: Example) -> Mapping[str, Tensor]:
        """Return the tensors of all of an example's requests."""

    def encode(self, example: Example) -> None:
        """Do the frozen work of an example."""

    def draw(self, example: Example) -> None:
        """Do the heaviest work of a preview of an example's size."""

    def reading(self) -> int:
        """Most bytes that main memory holds while weights are read, besides the weights as they are held."""

    def waiting(self) -> Sequence[int]:
        """Bytes of each block that `offload_blocks` could let wait, the largest first."""


class Family(Protocol):
    """One base-model architecture: how to recognise, load, encode, predict and preview it."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What people call it."""
    reads: ClassVar[str]
    """The reader's name, such as "pictures" or "texts"."""
    Config: ClassVar[type[BaseModel]]
    """The keys of the run config that mean something to this family alone."""
    pace: ClassVar[Pace]
    quantises: ClassVar[tuple[str, ...]]
    """The formats of few bits that its base can be held in, of "fp8" and "nf4"."""
    keys: ClassVar[KeyMap | None]
    """What LoRA files call its modules; None where paths are written as they are."""
    objectives: ClassVar[tuple[str, ...]]
    """Which it serves; the first is its default."""
    target_presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]]
    """preset -> component -> regular expressions that must match a whole module path."""
    default_preset: ClassVar[str]
    base: Base
    placement: Placement

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is, or None where it is not of this family. Imports no torch; reads headers only.

        Args:
            said: the prediction type that the config states, for files that leave it open.

        Raises:
            BaseModelError: it is of this family but broken, unsafe or not supported.
        """

    @classmethod
    def load(cls, base: Base, placement: Placement, options: Any = None) -> Family:
        """Load the base; nothing is trainable yet. `options` is a `Config`; None stands for its defaults."""

    @classmethod
    def defaults(cls, base: Base, given: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
        """This family's values of run config keys that a config leaves out, where they are not the schema's.

        Args:
            given: what the config says.
            rows: examples found.
        """

    @classmethod
    def scan(
        cls, base: Base, datasets: Sequence[Dataset], options: Any, cache: Cache | None, *, held: Sequence[Dataset] = ()
    ) -> Scan:
        """Find the examples; `options` is a `Config`, `held` are data that are only measured.

        Raises:
            DataError: in words.
        """

    @classmethod
    def notes(cls, base: Base, examples: Sequence[Example]) -> Sequence[Note]:
        """What the plan should say about these examples on this base, such as captions whose tokens are cut."""

    @classmethod
    def explain(cls, base: Base, examples: Sequence[Example], count: int) -> Sequence[str]:
        """A few examples as the model sees them, for `check`; empty where there is nothing to show."""

    @classmethod
    def usage(cls, base: Base, files: Mapping[str, Path], facts: Mapping[str, Any], example: Any) -> Sequence[Note]:
        """What a person can do with the finished files; `facts` is the scan's."""

    @classmethod
    def skeleton(cls, base: Base) -> Mapping[str, nn.Module]:
        """Build what `trainable` would return on the meta device: shapes without weights."""

    @classmethod
    def operations(cls, base: Base, modules: Mapping[str, nn.Module], shape: Any) -> float:
        """Floating-point operations of one forward pass of one row of this shape, counted on `skeleton`'s modules."""

    @classmethod
    def rehearsal(cls, base: Base, placement: Placement, options: Any = None) -> Rehearsal | None:
        """The family as `load` would give it, without weights; None where its steps cannot be counted that way."""

    @classmethod
    def weights_hash(cls, base: Base) -> str:
        """sha256 over the base's weights, however they are stored."""

    def trainable(self) -> Mapping[str, nn.Module]:
        """{"unet": ..., "text_encoder": ...}: where low-rank pairs may go; first the network that predicts."""

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

    def injected(self, pairs: Pairs) -> None:
        """Learn that the pairs are in place."""

    def release_encoders(self) -> None:
        """Let go of frozen encoders once their outputs are cached; previews load them again."""

    def collate(self, examples: Sequence[Example], entries: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Any]:
        """Put rows of one group together; `entries[i]` holds the tensors of all of example i's requests."""

    @classmethod
    def preview_settings(cls, base: Base, section: Any, examples: Sequence[Example]) -> tuple[list[Any], dict]:
        """Return the prompts to preview, and the keyword arguments of `preview`, from config and data."""

    def preview(self, prompts: Sequence[Any], *, seed: int, **settings: Any) -> Sequence[Any]:
        """Return one picture or text a prompt, from the live weights; leaves no trace in the run."""

    @staticmethod
    def lay_out(before: Sequence[Any], after: Sequence[Any], prompts: Sequence[Any], stem: Path) -> Path:
        """Write base and LoRA side by side; return `stem` with the suffix of what was written."""

    def scores(self, examples: Sequence[Example], facts: Mapping[str, Any], answers: int) -> Mapping[str, Any]:
        """Measure the task on held-out examples: numbers under "logs", the rest under "details"; or nothing.

        Args:
            answers: how many examples may be answered in full, which takes longest.
        """

    @staticmethod
    def leave(folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> Sequence[Path]:
        """Write what using the result needs besides the LoRA files; return the files."""


class Denoiser(Protocol):
    """What the objective `denoise` asks of a family, beyond `Family`."""

    alphas_cumprod: Tensor
    """(T,) float32, the product of 1 - beta up to each timestep."""
    prediction_type: str

    def latents(self, batch: Batch) -> Tensor:
        """(B, C, H, W) float32 clean latents, scaled; the posterior is sampled from the rows' generators."""

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, batch: Batch) -> Tensor:
        """(B, C, H, W) the network's output at those timesteps.

        `batch.tensors` may hold "mask", (B, 1, H, W) in 0..1: where a row's loss counts; rows without one are 1.
        """

    def without_pairs(self) -> AbstractContextManager[None]:
        """Predict as the base alone would, for a while."""


class Speaker(Protocol):
    """What the objectives over text ask of a family, beyond `Family`.

    The tensors of a batch hold, for N target tokens of S sequences of B examples: `sequences` (N,) in 0..S, `owners`
    (S,) in 0..B, `weights` (N,); `reference` (S,) and `liked` (B,) where an objective needs them.
    """

    def token_logprobs(self, batch: Mapping[str, Any]) -> Tensor:
        """(N,) float32 log p of every target token, with graph."""


class Objective(Protocol):
    """What is minimised."""

    def loss(self, family: Any, batch: Batch, *, quantile: float | None = None) -> Loss:
        """Weighted sum of the rows' losses; `quantile` in 0..1 fixes the noise level, for evaluation."""

    def levels(self, wanted: int) -> Sequence[float | None]:
        """The quantiles to measure at, where `wanted` noise levels are asked for."""

    def reading(self, loss: float) -> Mapping[str, float]:
        """Return what else a held-out loss means, by name."""


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
