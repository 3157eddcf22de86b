"""What families of diffusion models with a UNet, a VAE and CLIP text encoders share; each adds what is its own.

Shapes: B = batch, C = channels, H, W = latent height and width, L = text positions, D = text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_scripts.contracts import Base, Batch, Draw, Pace, Placement, Request
from lora_scripts.data import decode
from lora_scripts.data.record import Note, PictureExample
from lora_scripts.families import (
    _attention,
    _cost,
    _drawing,
    _hashes,
    _held,
    _latents,
    _masks,
    _offload,
    _tokens,
)
from lora_scripts.families._architecture import Architecture, Stored
from lora_scripts.families._folder import Folder
from lora_scripts.families._folder import recognise as recognise_folder
from lora_scripts.families._pictures import Pictures
from lora_scripts.families._single_file import SingleFile
from lora_scripts.families._single_file import recognise as recognise_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


class Diffusion(Pictures):
    """See `contracts.Family` and `contracts.Denoiser`.

    A family states what has no value here, and defines `text`, `pipeline` and, where its UNet is told more than time
    and text, `conditions`, `added` and `blank`.
    """

    name: ClassVar[str]
    keys: ClassVar[Any]
    architecture: ClassVar[Architecture]
    pipelines: ClassVar[tuple[str, ...]]
    """What model_index.json calls this family's bases: other families leave them to it."""
    target_presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]]
    spare_layers: ClassVar[int]
    """Last layers of a text encoder that are left out at `clip_skip: 1`."""

    said: ClassVar[tuple[str, ...]] = ("states",)
    """What `text` gives."""
    # Measured with SD 1.5's shape at 256 pixels (1.38 s, batch 1, about 1.5 GB kept for 180 GFLOP in float32) and with
    # the embedded model (0.19 s, batch 16).
    pace: ClassVar[Pace] = Pace(share=0.3, seconds=0.08, bytes_per_operation=0.0085)
    quantises: ClassVar[tuple[str, ...]] = ("fp8", "nf4")
    default_preset: ClassVar[str] = "kohya"

    def __init__(self, base: Base, placement: Placement, options: Any = None):
        import torch

        self.base, self.placement = base, placement
        self.clip_skip: int = options.clip_skip if options is not None else 1
        self.text_trains = False
        self._stored = self.stored(base)
        self.scheduler = self._stored.scheduler()
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod
        self.prediction_type = base.prediction_type
        self.dtype = placement.base_dtype
        # A base in float64 is for comparisons, which float32 encoders would blur.
        self._encoder_dtype = torch.promote_types(placement.encoder_dtype, placement.base_dtype)
        self._vae: Any = None
        self._encoders: dict[str, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self._pairs: Any = None
        config = self._stored.vae_config()
        self._scaling, self._shift = config["scaling_factor"], config.get("shift_factor") or 0.0
        self._latent_side = _latents.pixels_a_latent(config)
        self.unet = self._load_unet()

    # What is known without loading

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is: a diffusers folder, a hub id, or one file in the original layout."""
        read = recognise_file if path.is_file() else recognise_folder
        return read(path, cls.architecture)

    @classmethod
    def stored(cls, base: Base) -> Stored:
        """Return what knows how this base is stored."""
        return (SingleFile if base.path.is_file() else Folder)(base, cls.architecture)

    @classmethod
    def most_skips(cls, base: Base) -> int:
        """Return the largest `clip_skip`: the first layer's states are the last that can be read."""
        return max(1, cls.stored(base).text_layers() - cls.spare_layers)

    @classmethod
    def notes(cls, base: Base, examples: Sequence[PictureExample]) -> list[Note]:
        """Say how many captions are longer than the text encoders read, and which is the longest."""
        first = next(iter(cls.architecture.encoders))
        return _tokens.notes(cls.stored(base).tokenizer_folder(first), base.max_tokens, examples)

    @classmethod
    def skeleton(cls, base: Base) -> Mapping[str, nn.Module]:
        """Build UNet and text encoders without weights."""
        import torch

        with torch.device("meta"):
            return cls.stored(base).skeleton()

    @classmethod
    def operations(cls, base: Base, modules: Mapping[str, nn.Module], shape: tuple[int, int]) -> float:
        """Count the UNet's forward operations for one picture of (width, height), on the meta device."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        unet: Any = modules["unet"]
        side = _latents.pixels_a_latent(cls.stored(base).vae_config())
        width, height = shape[0] // side, shape[1] // side
        states = (1, base.max_tokens, unet.config.cross_attention_dim)
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            noisy = torch.empty(1, unet.config.in_channels, height, width)
            unet(noisy, torch.zeros(1, dtype=torch.long), torch.empty(states), **cls.blank(unet))
        return float(counter.get_total_flops())

    @classmethod
    def blank(cls, unet: Any) -> dict[str, Any]:
        """Return the further arguments of the UNet for one row, without values, on whatever device is current."""
        return {}

    @classmethod
    def rehearsal(cls, base: Base, placement: Placement, options: Any = None) -> Any:
        """The family without weights, for an estimate of memory."""
        return _cost.PictureRehearsal(cls, base, placement, options)

    @classmethod
    def weights_hash(cls, base: Base) -> str:
        """sha256 over the bytes of the base's weight files, in the order of their names."""
        return cls.stored(base).weights_hash()

    # The live model

    @classmethod
    def load(cls, base: Base, placement: Placement, options: Any = None) -> Any:
        """Load the UNet and the scheduler; encoders come when they are needed."""
        return cls(base, placement, options)

    def _load_unet(self) -> Any:
        placement = self.placement
        unet: Any = self._stored.unet(placement.base_dtype).requires_grad_(False)
        if placement.quantisation:
            device = None if placement.offload_blocks else placement.device
            _held.hold(unet, placement.quantisation, placement.base_dtype, device)
        unet = _offload.install(unet, placement)
        _attention.install(unet, placement.attention)
        if placement.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        return unet

    @property
    def vae(self) -> Any:
        """The autoencoder, loaded when first asked for."""
        if self._vae is None:
            vae = self._stored.vae(self._encoder_dtype)
            self._vae = vae.to(self.placement.device).requires_grad_(False).eval()
        return self._vae

    def encoder(self, component: str) -> Any:
        """A text encoder, loaded when first asked for."""
        if component not in self._encoders:
            encoder = self._stored.text_encoder(component, self._encoder_dtype)
            self._encoders[component] = encoder.to(self.placement.device).requires_grad_(False).eval()
        return self._encoders[component]

    @property
    def text_encoder(self) -> Any:
        """The first text encoder."""
        return self.encoder("text_encoder")

    def tokenizer_of(self, component: str) -> Any:
        """The tokenizer of a text encoder."""
        if component not in self._tokenizers:
            self._tokenizers[component] = self._stored.tokenizer(component)
        return self._tokenizers[component]

    @property
    def tokenizer(self) -> Any:
        """The first text encoder's tokenizer."""
        return self.tokenizer_of("text_encoder")

    def trainable(self) -> Mapping[str, nn.Module]:
        """The UNet and the text encoders."""
        return {"unet": self.unet} | {component: self.encoder(component) for component in self.architecture.encoders}

    def train_components(self, components: Sequence[str]) -> None:
        """Learn which components carry pairs: where a text encoder trains, all run in every step, uncached."""
        self.text_trains = any(component in self.architecture.encoders for component in components)

    def injected(self, pairs: Any) -> None:
        """Keep the pairs, to be able to ask the base alone."""
        self._pairs = pairs
        _offload.settle(self.unet, self.placement.device)

    def without_pairs(self) -> Any:
        """Predict as the base alone would, for a while."""
        return self._pairs.disabled()

    # Encoding

    def encoder_key(self, part: str) -> str:
        """sha256 over weights, number format and settings of the VAE's encoder or of the text encoders."""
        if part == _masks.PART:
            return _masks.encoder_key(self._latent_side)
        if part == "latents":
            modules = [self.vae.encoder] + ([self.vae.quant_conv] if self.vae.quant_conv is not None else [])
            return _hashes.modules(modules, _hashes.settings(self.vae))
        components = list(self.architecture.encoders)
        said = "".join(_tokens.folder_hash(self._stored.tokenizer_folder(component)) for component in components)
        if self.text_trains:
            return said
        encoders = [self.encoder(component) for component in components]
        return _hashes.modules(encoders, said + "".join(map(_hashes.settings, encoders)))

    def requests(self, example: PictureExample, draw: Draw) -> list[Request]:
        """The picture's latents and mask at this crop and mirror; the caption's states, or tokens if encoders train."""
        crop = decode.crop_box(example.size, example.bucket)
        content = _hashes.of(example.sha256, crop, example.bucket, draw.flip)
        caption = _hashes.of(draw.caption, self.base.max_tokens, self.text_trains, self.clip_skip)
        return [
            Request("latents", content, (example, draw.flip)),
            Request("text", caption, draw.caption),
            *_masks.requests(example, draw),
        ]

    def encode(self, requests: Sequence[Request]) -> list[Mapping[str, Tensor]]:
        """Run the VAE or the text encoders, one row at a time: a row's bits must not depend on its neighbours."""
        return [self._encode(request) for request in requests]

    def _encode(self, request: Request) -> Mapping[str, Tensor]:
        if request.part == _masks.PART:
            return _masks.encode(request.payload, self._latent_side)
        if request.part == "latents":
            return _latents.encode(self.vae, *request.payload)
        return self._encode_caption(request.payload)

    def _encode_caption(self, caption: str) -> Mapping[str, Tensor]:
        import torch

        ids = self.ids(caption)
        if self.text_trains:
            return ids
        with torch.no_grad():
            said = self.text({name: row[None].to(self.placement.device) for name, row in ids.items()})
        return {name: tensor[0].float().cpu() for name, tensor in said.items()}

    def ids(self, caption: str) -> dict[str, Tensor]:
        """Return each text encoder's tokens of a caption, (L,), by component."""
        return {
            component: _tokens.ids(self.tokenizer_of(component), caption, self.base.max_tokens)
            for component in self.architecture.encoders
        }

    def text(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the text encoders: (B, L) ids by component to "states" (B, L, D), and what else the UNet is told."""
        raise NotImplementedError

    def release_encoders(self) -> None:
        """Let go of the VAE, and of text encoders that do not train; previews load them again."""
        self._vae = None
        if not self.text_trains:
            self._encoders = {}

    # A step

    def collate(self, examples: Sequence[PictureExample], entries: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack mean and deviation (B, C, H, W), states (B, L, D) or ids (B, L), masks and further conditions."""
        import torch

        names = [name for name in entries[0] if name != _masks.PART]
        stacked = {name: torch.stack([entry[name] for entry in entries]) for name in names}
        return stacked | dict(_masks.stack(entries)) | self.conditions(examples)

    def conditions(self, examples: Sequence[PictureExample]) -> dict[str, Tensor]:
        """Return what the UNet is told of the pictures besides their captions, one row each."""
        return {}

    def latents(self, batch: Batch) -> Tensor:
        """(B, C, H, W) in float32 at least: the posterior sampled from each row's generator, scaled."""
        import torch

        mean, deviation = batch.tensors["mean"], batch.tensors["deviation"]
        noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in batch.generators])
        latents = (mean + deviation * noise - self._shift) * self._scaling
        return latents.to(self.placement.device, torch.promote_types(latents.dtype, self.dtype))

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, batch: Batch) -> Tensor:
        """(B, C, H, W): the UNet's output."""
        device, tensors = self.placement.device, batch.tensors
        if self.text_trains:
            ids = {component: tensors[component].to(device) for component in self.architecture.encoders}
            with _attention.chosen(self.placement.attention, device, self.base.max_tokens, self._encoder_dtype):
                said = self.text(ids)
        else:
            said = {name: tensors[name].to(device) for name in self.said}
        said = {name: tensor.to(self.dtype) for name, tensor in said.items()}
        added = self.added(said, tensors)
        return self.unet(noisy_BCHW.to(self.dtype), timesteps_B, said["states"], **added).sample

    def added(self, said: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the further arguments of the UNet, from the text's outputs and the batch's tensors."""
        return {}

    # Previews

    def preview(
        self, prompts: Sequence[str], *, size: tuple[int, int], seed: int, steps: int, guidance: float
    ) -> list[Image]:
        """One picture a prompt by the base's own scheduler; row i starts from seed + i. Leaves no trace in the run."""
        import torch

        wish = {"width": size[0], "height": size[1], "num_inference_steps": steps, "guidance_scale": guidance}
        # What was let go of is let go of again; what is live stays, since LoRAs may have been added to its weights.
        held = self._vae, dict(self._encoders)
        try:
            with torch.random.fork_rng(devices=[]), _drawing.measured([*self.trainable().values()]):
                pipeline = self.pipeline()
                return [
                    _drawing.draw(pipeline, self._decoded, self.dtype, seed + number, wish | self.wording(prompt))
                    for number, prompt in enumerate(prompts)
                ]
        finally:
            self._vae, self._encoders = held

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype) / self._scaling + self._shift).sample

    def wording(self, prompt: str) -> dict[str, Any]:
        """Return the pipeline's arguments that carry the prompt."""
        return {"prompt": prompt}

    def pipeline(self) -> Any:
        """A diffusers pipeline over the live modules."""
        raise NotImplementedError
