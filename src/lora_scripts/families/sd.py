"""Stable Diffusion 1.x and 2.x (arXiv:2112.10752), and any model of its shape, such as the embedded one.

Shapes: B = batch, C = channels, H, W = latent height and width, L = text positions, D = text width.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from lora_scripts import registry
from lora_scripts.contracts import Base, Batch, Draw, Pace, Placement, Request
from lora_scripts.data import captions, decode
from lora_scripts.data.record import Dataset, Note, PictureExample, Scan
from lora_scripts.errors import ConfigError, DataError
from lora_scripts.families import _attention, _folder, _sheet, _single_file, _tokens

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from lora_scripts.data.cache import Cache

_TRANSFORMER = r".*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
_RESNETS = (
    r".*\.resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)",
    r".*\.(downsamplers|upsamplers)\.0\.conv",
)
_TEXT_ATTENTION = r"(text_model\.)?encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
_TEXT_MLP = r"(text_model\.)?encoder\.layers\.\d+\.mlp\.(fc1|fc2)"
_UNET_ATTENTION = r".*\.transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_UNET_KOHYA = _TRANSFORMER + r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"


class Config(BaseModel):
    """The keys of the run config that mean something to this family alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction_type: str = "auto"
    resolution: tuple[int, ...] = ()
    metadata_path: Path | None = None
    missing_pictures: str = "error"
    max_bad_fraction: float = 0.1
    caption: Any = None
    flip: bool = False
    attention: str = "auto"
    train_text_encoder: Any = None


class StableDiffusion:
    """See `contracts.Family` and `contracts.Denoiser`."""

    name: ClassVar[str] = "sd"
    reads: ClassVar[str] = "pictures"
    Config: ClassVar[type[BaseModel]] = Config
    # Measured with SD 1.5's shape at 256 pixels (1.38 s, batch 1, about 1.5 GB kept for 180 GFLOP in float32) and with
    # the embedded model (0.19 s, batch 16).
    pace: ClassVar[Pace] = Pace(share=0.3, seconds=0.08, bytes_per_operation=0.0085)
    quantises: ClassVar[bool] = False
    objectives: ClassVar[tuple[str, ...]] = ("denoise",)
    default_preset: ClassVar[str] = "kohya"
    target_presets: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "attention": {"unet": (_UNET_ATTENTION,), "text_encoder": (_TEXT_ATTENTION,)},
        "kohya": {"unet": (_UNET_KOHYA,), "text_encoder": (_TEXT_ATTENTION, _TEXT_MLP)},
        "kohya+conv": {"unet": (_UNET_KOHYA, *_RESNETS), "text_encoder": (_TEXT_ATTENTION, _TEXT_MLP)},
    }

    def __init__(self, base: Base, placement: Placement, unet: Any, scheduler: Any):
        self.base, self.placement = base, placement
        self.unet, self.scheduler = unet, scheduler
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        self.prediction_type = base.prediction_type
        self.text_trains = False
        self._vae: Any = None
        self._text_encoder: Any = None
        self._tokenizer: Any = None
        config = _parts(base).vae_config(base)
        self._scaling, self._shift = config["scaling_factor"], config.get("shift_factor") or 0.0

    @classmethod
    def recognise(cls, path: Path, said: str = "") -> Base | None:
        """Return what `path` is: a diffusers folder, a hub id, or one file in the original layout."""
        if path.is_file():
            return _single_file.recognise(path, said)
        return _folder.recognise(path)

    @classmethod
    def defaults(cls, base: Base, given: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
        """The schema's defaults are this family's."""
        return {}

    @classmethod
    def scan(
        cls, base: Base, datasets: Sequence[Dataset], options: Any, cache: Cache | None, *, held: Sequence[Dataset] = ()
    ) -> Scan:
        """Find pictures and captions, with a bucket for each."""
        if held:
            raise ConfigError("config.no_held_files", family=cls.name)
        reader = registry.load("readers", cls.reads)
        return reader.read(datasets, base.sizes(options.resolution), max_bad_fraction=options.max_bad_fraction)

    @classmethod
    def explain(cls, base: Base, examples: Sequence[PictureExample], count: int) -> list[str]:
        """Nothing: a picture is seen in its folder."""
        return []

    @classmethod
    def usage(cls, base: Base, files: Mapping[str, Path], facts: Mapping[str, Any], example: PictureExample) -> list:
        """Say where the WebUI wants the file, or how to draw here."""
        file = files.get("kohya") or next(iter(files.values()))
        if base.webui and "kohya" in files:
            return [Note("cli.result.webui", {"path": file, "line": f"<lora:{file.stem}:0.8>"})]
        draw = {"base": base.reference or base.path, "path": file, "prompt": example.title}
        return [Note("cli.result.no_webui", draw)]

    @classmethod
    def notes(cls, base: Base, examples: Sequence[PictureExample]) -> list[Note]:
        """Say how many captions are longer than the text encoder reads, and which is the longest."""
        return _tokens.notes(_parts(base).tokenizer_folder(base), base.max_tokens, examples)

    @classmethod
    def skeleton(cls, base: Base) -> Mapping[str, nn.Module]:
        """Build UNet and text encoder without weights."""
        import torch

        with torch.device("meta"):
            return _parts(base).skeleton(base)

    @classmethod
    def operations(cls, base: Base, modules: Mapping[str, nn.Module], shape: tuple[int, int]) -> float:
        """Count the UNet's forward operations for one picture of (width, height), on the meta device."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        unet: Any = modules["unet"]
        scale = 2 ** (len(_parts(base).vae_config(base)["block_out_channels"]) - 1)
        width, height = shape[0] // scale, shape[1] // scale
        states = (1, base.max_tokens, unet.config.cross_attention_dim)
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            noisy = torch.empty(1, unet.config.in_channels, height, width)
            unet(noisy, torch.zeros(1, dtype=torch.long), torch.empty(states))
        return float(counter.get_total_flops())

    @classmethod
    def load(cls, base: Base, placement: Placement) -> StableDiffusion:
        """Load the UNet and the scheduler; encoders come when they are needed."""
        parts = _parts(base)
        scheduler = parts.scheduler(base)
        unet = parts.unet(base, placement.base_dtype).to(placement.device).requires_grad_(False)
        _attention.install(unet, placement.attention)
        if placement.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        return cls(base, placement, unet, scheduler)

    @property
    def vae(self) -> Any:
        """The autoencoder, loaded when first asked for."""
        if self._vae is None:
            vae = _parts(self.base).vae(self.base, self.placement.encoder_dtype)
            self._vae = vae.to(self.placement.device).requires_grad_(False).eval()
        return self._vae

    @property
    def text_encoder(self) -> Any:
        """The text encoder, loaded when first asked for."""
        if self._text_encoder is None:
            encoder = _parts(self.base).text_encoder(self.base, self.placement.encoder_dtype)
            self._text_encoder = encoder.to(self.placement.device).requires_grad_(False).eval()
        return self._text_encoder

    @property
    def tokenizer(self) -> Any:
        """The CLIP tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = _parts(self.base).tokenizer(self.base)
        return self._tokenizer

    @classmethod
    def weights_hash(cls, base: Base) -> str:
        """sha256 over the bytes of the base's weight files, in the order of their names."""
        return _parts(base).weights_hash(base)

    def trainable(self) -> Mapping[str, nn.Module]:
        """The UNet and the text encoder."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def train_components(self, components: Sequence[str]) -> None:
        """Learn which components carry pairs: a text encoder that trains runs in every step, uncached."""
        self.text_trains = "text_encoder" in components

    def injected(self) -> None:
        """Nothing: the layers stay as PEFT has them."""

    def encoder_key(self, part: str) -> str:
        """sha256 over weights, number format and settings of the VAE's encoder or of the text encoder."""
        if part == "latents":
            modules = [self.vae.encoder] + ([self.vae.quant_conv] if self.vae.quant_conv is not None else [])
            return _module_hash(modules, _settings(self.vae))
        if self.text_trains:
            return _tokens.folder_hash(_parts(self.base).tokenizer_folder(self.base))
        files = _tokens.folder_hash(_parts(self.base).tokenizer_folder(self.base))
        return _module_hash([self.text_encoder], files + _settings(self.text_encoder))

    def draw(self, example: PictureExample, random: Random) -> Draw:
        """Deal caption and mirror by the example's rules."""
        caption, flip = captions.draw(example.captions, example.caption_rules, random, example.flip)
        return Draw(caption, flip)

    def requests(self, example: PictureExample, draw: Draw) -> list[Request]:
        """The picture's latents at this crop and mirror, and the caption's states (or tokens, if those train)."""
        crop = decode.crop_box(example.size, example.bucket)
        content = _sha(example.sha256, crop, example.bucket, draw.flip)
        caption = _sha(draw.caption, self.base.max_tokens, self.text_trains)
        return [
            Request("latents", content, (example, draw.flip)),
            Request("text", caption, draw.caption),
        ]

    def encode(self, requests: Sequence[Request]) -> list[Mapping[str, Tensor]]:
        """Run the VAE or the text encoder, one row at a time: a row's bits must not depend on its neighbours."""
        return [
            self._encode_picture(*request.payload)
            if request.part == "latents"
            else self._encode_caption(request.payload)
            for request in requests
        ]

    def _encode_picture(self, example: PictureExample, flip: bool) -> Mapping[str, Tensor]:
        import numpy as np
        import torch

        picture = decode.fit(decode.decode(example.path, sha256=example.sha256), example.bucket)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        pixels = pixels.flip(-1) if flip else pixels
        with torch.no_grad():
            posterior = self.vae.encode(pixels[None].to(self.vae.device, self.vae.dtype)).latent_dist
        mean, deviation = posterior.mean[0].float().cpu(), posterior.std[0].float().cpu()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
            raise DataError("base.latents_not_finite", path=example.path)
        return {"mean": mean, "deviation": deviation}

    def _encode_caption(self, caption: str) -> Mapping[str, Tensor]:
        import torch

        ids = _tokens.ids(self.tokenizer, caption, self.base.max_tokens)
        if self.text_trains:
            return {"ids": ids}
        with torch.no_grad():
            states = self.text_encoder(ids[None].to(self.text_encoder.device)).last_hidden_state
        return {"states": states[0].float().cpu()}

    def release_encoders(self) -> None:
        """Let go of the VAE, and of a text encoder that does not train; previews load them again."""
        self._vae = None
        if not self.text_trains:
            self._text_encoder = None

    def collate(self, examples: Sequence[PictureExample], entries: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stack mean and deviation (B, C, H, W) and states (B, L, D) or ids (B, L)."""
        import torch

        return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}

    def latents(self, batch: Batch) -> Tensor:
        """(B, C, H, W) in float32 at least: the posterior sampled from each row's generator, scaled."""
        import torch

        mean, deviation = batch.tensors["mean"], batch.tensors["deviation"]
        noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in batch.generators])
        latents = (mean + deviation * noise - self._shift) * self._scaling
        return latents.to(self.placement.device, torch.promote_types(latents.dtype, self.unet.dtype))

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, batch: Batch) -> Tensor:
        """(B, C, H, W): the UNet's output."""
        if self.text_trains:
            ids = batch.tensors["ids"].to(self.placement.device)
            encoder = self.text_encoder
            with _attention.chosen(self.placement.attention, ids.device, ids.shape[1], encoder.dtype):
                states = encoder(ids).last_hidden_state
        else:
            states = batch.tensors["states"].to(self.placement.device)
        dtype = self.unet.dtype
        return self.unet(noisy_BCHW.to(dtype), timesteps_B, states.to(dtype)).sample

    @classmethod
    def preview_settings(
        cls, base: Base, section: Any, examples: Sequence[PictureExample]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The config's prompts, else captions spread evenly over the data; drawn at the commonest size."""
        prompts = list(section.prompts)
        if not prompts:
            titles = list(dict.fromkeys(example.title for example in examples))
            prompts = titles[:: max(1, len(titles) // section.count)][: section.count]
            trigger = examples[0].caption_rules.trigger
            prompts = [prompt if trigger in prompt else f"{trigger}, {prompt}" for prompt in prompts]
        size = Counter(example.bucket for example in examples).most_common(1)[0][0]
        return prompts, {"size": size, "steps": section.steps, "guidance": section.guidance}

    @staticmethod
    def lay_out(before: Sequence[Image], after: Sequence[Image], prompts: Sequence[str], stem: Path) -> Path:
        """Write two rows of pictures, and the prompts as text beside them."""
        path = stem.with_name(f"{stem.name}.png")
        _sheet.before_after(before, after, prompts).save(path)
        path.with_name("prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
        return path

    def scores(self, examples: Sequence[PictureExample], facts: Mapping[str, Any], answers: int) -> Mapping[str, Any]:
        """Nothing: pictures are judged by their held-out loss and by eye."""
        return {}

    @staticmethod
    def leave(folder: Path, facts: Mapping[str, Any], scores: Mapping[str, Any]) -> list[Path]:
        """Nothing: the LoRA files are all."""
        return []

    def preview(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int],
        seed: int,
        steps: int,
        guidance: float,
    ) -> list[Image]:
        """One picture a prompt by the base's own scheduler; row i starts from seed + i. Leaves no trace in the run."""
        import torch

        # What was let go of is let go of again; what is live stays, since LoRAs may have been added to its weights.
        held = self._vae, self._text_encoder
        with torch.random.fork_rng(devices=[]):
            modes = {child: child.training for part in (self.unet, self.text_encoder) for child in part.modules()}
            for child in modes:
                child.training = False
            try:
                pipeline = self.pipeline()
                made = [
                    self._draw_picture(
                        pipeline,
                        prompt,
                        seed + number,
                        width=size[0],
                        height=size[1],
                        num_inference_steps=steps,
                        guidance_scale=guidance,
                    )
                    for number, prompt in enumerate(prompts)
                ]
            finally:
                for child, mode in modes.items():
                    child.training = mode
                self._vae, self._text_encoder = held
        return made

    def _draw_picture(self, pipeline: Any, prompt: str, seed: int, **wish: Any) -> Image:
        """Sample in the network's precision, and decode in the VAE's own: many overflow or band in 16 bits."""
        import torch

        dtype = self.unet.dtype
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            with torch.autocast(self.placement.device.type, dtype, enabled=dtype != torch.float32):
                latents = pipeline(prompt, generator=generator, output_type="latent", **wish).images
            pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

    def pipeline(self) -> Any:
        """A diffusers pipeline over the live modules."""
        import copy

        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=copy.deepcopy(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _parts(base: Base) -> Any:
    """The module that knows how this base is stored."""
    return _single_file if base.path.is_file() else _folder


def _sha(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _settings(network: Any) -> str:
    """A network's settings as text, without names and versions of what wrote them."""
    settings = network.config if isinstance(network.config, Mapping) else network.config.to_dict()
    hidden = {"architectures", "dtype", "transformers_version"}
    known = {key: value for key, value in settings.items() if not key.startswith("_") and key not in hidden}
    return json.dumps(known, sort_keys=True, default=str)


def _module_hash(modules: Sequence[nn.Module], settings: str) -> str:
    """sha256 over the bytes of all weights, by name, and what else decides the result."""
    import torch

    digest = hashlib.sha256(settings.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


plugin = StableDiffusion
