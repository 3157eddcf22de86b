"""A base as one .safetensors file in the original layout: recognised by names and shapes, loaded without a network.

    model.diffusion_model.*        UNet
    first_stage_model.*            autoencoder
    further prefixes               text encoders: each family states its own, see `_architecture.Layout`

Names are translated by diffusers' own functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError
from lora_scripts.families import _kinds, _shapes
from lora_scripts.families._architecture import CUSTOM, PLAIN, Architecture, Encoder, Layout
from lora_scripts.families._shapes import UNET, VAE, has
from lora_scripts.families._stream import TensorFile, assign
from lora_scripts.files import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import nn

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Marks that some files carry as empty tensors: what they predict, and betas scaled until the last step is pure noise.
PREDICTS_V, ENDS_IN_NOISE = "v_pred", "ztsnr"


def recognise(path: Path, architecture: Architecture) -> Base | None:
    """Return what a file is, or None where it is nothing this family knows of.

    Raises:
        BaseModelError: a pickle, a broken file, or a base of an unsupported kind.
    """
    _kinds.refuse_pickle(path)
    file = _open(path)
    if not _kinds.is_mine(path, file.shapes, architecture.family, has_unet=has(file, f"{UNET}input_blocks.")):
        return None
    layout = choose(file, architecture)
    unet, vae, texts = _settings(file, layout)
    if unet.get("addition_embed_type") != architecture.addition:
        raise BaseModelError("base.part_missing", path=path, part=_shapes.SIZE_EMBEDDING)
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    variant = layout.variant or architecture.variant(unet, vae)
    prefixes = {"unet": UNET, "vae": VAE} | {name: encoder.prefix for name, encoder in layout.encoders.items()}
    return Base(
        name=path.stem,
        path=path,
        family=architecture.family,
        variant=variant,
        prediction_type=_prediction_type(file) or layout.prediction,
        resolution=layout.resolution,
        multiple=scale * 2 ** (len(unet["block_out_channels"]) - 1),
        max_tokens=min(text["max_position_embeddings"] for text in texts),
        parameters={part: file.count(prefix) for part, prefix in prefixes.items()},
        webui=variant != CUSTOM,
    )


def choose(file: TensorFile, architecture: Architecture) -> Layout:
    """Return the first layout whose text encoders are all there, else the last."""
    for layout in architecture.layouts:
        if all(has(file, encoder.prefix) for encoder in layout.encoders.values()):
            return layout
    return architecture.layouts[-1]


def _settings(file: TensorFile, layout: Layout) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return the settings of UNet, VAE and text encoders.

    Raises:
        BaseModelError: a part is missing, or the parts do not belong together.
    """
    path = file.path
    parts = [(f"{UNET}input_blocks.", "UNet"), (VAE, "VAE")]
    for prefix, part in parts + [(encoder.prefix, "text encoder") for encoder in layout.encoders.values()]:
        if not has(file, prefix):
            raise BaseModelError("base.part_missing", path=path, part=f"{part} ({prefix}*)")
    try:
        unet, vae = _shapes.unet_config(file, layout), _shapes.vae_config(file, layout)
        texts = [_shapes.text_config(file, encoder) for encoder in layout.encoders.values()]
    except KeyError as error:
        raise BaseModelError("base.part_missing", path=path, part=error.args[0]) from error
    except (IndexError, ValueError) as error:
        raise BaseModelError("base.part_missing", path=path, part=f"{UNET}*") from error
    if not unet["block_out_channels"]:
        raise BaseModelError("base.part_missing", path=path, part=f"{UNET}input_blocks.*")
    if unet["in_channels"] != unet["out_channels"]:
        raise BaseModelError("base.inpainting", path=path, channels=unet["in_channels"])
    given = unet.get("projection_class_embeddings_input_dim")
    told = None if given is None else texts[-1]["projection_dim"] + _shapes.SIZES * unet["addition_time_embed_dim"]
    sizes = (unet["cross_attention_dim"], unet["in_channels"], given)
    if sizes != (sum(text["hidden_size"] for text in texts), vae["latent_channels"], told):
        raise BaseModelError("base.parts_differ", path=path)
    return unet, vae, texts


@lru_cache(maxsize=2)
def _cached(path: Path, size: int, modified: int) -> TensorFile:
    return TensorFile(path)


def _open(path: Path) -> TensorFile:
    status = path.stat()
    return _cached(path, status.st_size, status.st_mtime_ns)


def _prediction_type(file: TensorFile) -> str:
    """Return what the file says of itself, or ""."""
    if PREDICTS_V in file.shapes:
        return "v_prediction"
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    return "epsilon" if said in ("epsilon", "eps") else ""


class SingleFile:
    """See `_architecture.Stored`."""

    def __init__(self, base: Base, architecture: Architecture):
        self.base, self.file = base, _open(base.path)
        self.layout, self.architecture = choose(self.file, architecture), architecture

    def vae_config(self) -> Mapping[str, Any]:
        """Return the autoencoder's settings."""
        return _shapes.vae_config(self.file, self.layout)

    def text_layers(self) -> int:
        """Return the layers of the text encoder that has fewest."""
        encoders = self.layout.encoders.values()
        return min(_shapes.text_config(self.file, encoder)["num_hidden_layers"] for encoder in encoders)

    def tokenizer_folder(self, component: str) -> Path:
        """Return where a tokenizer lies: CLIP's own, which comes with the package, for all."""
        return Path(__file__).parent / "clip_tokenizer"

    def skeleton(self) -> Mapping[str, nn.Module]:
        """Build UNet and text encoders from their settings, on whatever device is current."""
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel.from_config(_shapes.unet_config(self.file, self.layout))
        return {"unet": unet} | {component: self._bare(component) for component in self.layout.encoders}

    def _bare(self, component: str) -> Any:
        import transformers

        config = transformers.CLIPTextConfig(**_shapes.text_config(self.file, self.layout.encoders[component]))
        return getattr(transformers, self.architecture.encoders[component])(config)

    def unet(self, dtype: torch.dtype) -> Any:
        """Load the UNet, one tensor at a time.

        diffusers translates names of placeholders, then each tensor is read and cast.
        """
        import torch
        from diffusers import UNet2DConditionModel
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        file, path = self.file, self.base.path
        with torch.device("meta"):
            model = UNet2DConditionModel.from_config(_shapes.unet_config(file, self.layout))
        names = [name for name in file.shapes if name.startswith(UNET)]
        placeholders = {name: torch.empty(file.shapes[name], device="meta") for name in names}
        source = {id(tensor): name for name, tensor in placeholders.items()}
        translated = _translated(path, convert_ldm_unet_checkpoint, dict(placeholders), dict(model.config))
        wanted: dict[str, list[str]] = {}
        for target, tensor in translated.items():
            if id(tensor) not in source:
                raise BaseModelError("base.untranslated", path=path, name=target)
            wanted.setdefault(source[id(tensor)], []).append(target)
        # What the settings have no place for was misread: an attention that lacks its first tensor looks like none.
        unplaced = sorted(translated.keys() - model.state_dict().keys())
        if unplaced:
            raise BaseModelError("base.untranslated", path=path, name=unplaced[0])
        state = {}
        for name, tensor in file.read(wanted):
            for target in wanted[name]:
                state[target] = tensor.to(dtype)
        assign(model, state, path)
        return model.eval()

    def vae(self, dtype: torch.dtype) -> Any:
        """Load the autoencoder."""
        import torch
        from diffusers import AutoencoderKL
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        with torch.device("meta"):
            model = AutoencoderKL.from_config(self.vae_config())
        tensors = dict(self.file.read(name for name in self.file.shapes if name.startswith(VAE)))
        state = _translated(self.base.path, convert_ldm_vae_checkpoint, tensors, dict(model.config))
        assign(model, {name: tensor.to(dtype) for name, tensor in state.items()}, self.base.path)
        return model.eval()

    def text_encoder(self, component: str, dtype: torch.dtype) -> Any:
        """Load a text encoder."""
        from accelerate import init_empty_weights

        # Buffers, which no file holds, are made at once; nothing draws random numbers.
        with init_empty_weights(include_buffers=False):
            model = self._bare(component)
        state = self._text_state(component, self.layout.encoders[component], model)
        # transformers nests the model below "text_model." or not, by class and version.
        front = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
        named = {
            name if name.startswith("text_projection.") else front + name.removeprefix("text_model."): tensor.to(dtype)
            for name, tensor in state.items()
        }
        assign(model, named, self.base.path)
        return model.eval()

    def _text_state(self, component: str, encoder: Encoder, model: Any) -> dict[str, Any]:
        """Return a text encoder's tensors by transformers' names, without those it was not trained with."""
        from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

        file = self.file
        names = [name for name in file.shapes if name.startswith(encoder.prefix)]
        if not encoder.is_open:
            return convert_ldm_clip_checkpoint(dict(file.read(names)))
        unused = [f"{encoder.prefix}logit_scale"]
        unused += [] if self.architecture.encoders[component] != PLAIN else [f"{encoder.prefix}text_projection"]
        layers = model.config.num_hidden_layers
        unused += [f"{encoder.prefix}transformer.resblocks.{layers + extra}." for extra in range(encoder.unused)]
        tensors = dict(file.read(name for name in names if not name.startswith(tuple(unused))))
        return _translated(self.base.path, convert_open_clip_checkpoint, model, tensors, encoder.prefix)

    def tokenizer(self, component: str) -> Any:
        """Load CLIP's tokenizer, padding as the encoder was trained."""
        from transformers import CLIPTokenizer

        padding = {"pad_token": "!"} if self.layout.encoders[component].is_open else {}
        return CLIPTokenizer.from_pretrained(self.tokenizer_folder(component), **padding)

    def scheduler(self) -> Any:
        """The scheduler that the public folders name; one that can end in pure noise where the file says it must."""
        import diffusers

        name, settings = self.layout.scheduler
        if ENDS_IN_NOISE in self.file.shapes:
            name = "EulerDiscreteScheduler"
            settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return getattr(diffusers, name)(**BETAS, prediction_type=self.base.prediction_type, **settings)

    def pipeline_settings(self) -> Mapping[str, Any]:
        """Nothing: a file holds no settings of the pipeline."""
        return {}

    def weights_hash(self) -> str:
        """sha256 over the file's bytes."""
        return sha256_of(self.base.path)


def _translated(path: Path, convert: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Let diffusers translate names, which it looks up without asking whether they are there, or takes None for."""
    try:
        return {name: tensor for name, tensor in convert(*arguments).items() if tensor is not None}
    except KeyError as error:
        raise BaseModelError("base.part_missing", path=path, part=error.args[0]) from error
