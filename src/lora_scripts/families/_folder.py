"""A base as a diffusers folder (or a hub id): recognised from its JSON files, loaded by diffusers and transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError
from lora_scripts.families import _folder_files, _hub, _kinds
from lora_scripts.families._architecture import CUSTOM, Architecture, tokenizer_of
from lora_scripts.families._folder_files import read_json, weight_files
from lora_scripts.families._folder_settings import Scheduler, Text, Unet, Vae, check_parts, settings
from lora_scripts.families._stream import TensorFile, assign, check_finite

if TYPE_CHECKING:
    import torch
    from torch import nn

PREDICTIONS = ("epsilon", "v_prediction")


def recognise(path: Path, architecture: Architecture) -> Base | None:
    """Return what a folder is, or None where it holds no pipeline, or another registered family's.

    Raises:
        BaseModelError: a pipeline that no family loads, a part that is missing, or weights in a form that is not read.
        MachineError: a hub id that cannot be had.
    """
    folder = path if path.is_dir() else _hub.fetch(path.as_posix(), _hub.INDEX)
    if not (folder / "model_index.json").is_file():
        return None
    index = read_json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if kind not in architecture.pipelines:
        known = _kinds.pipelines()
        if kind in known:
            return None
        raise BaseModelError("base.other_pipeline", path=path, found=kind, known=", ".join(known))
    _refuse_fewer_encoders(path, index, architecture)
    if not path.is_dir():
        folder = _complete(path.as_posix(), architecture)
    unet, vae = settings(folder, "unet/config.json", Unet), settings(folder, "vae/config.json", Vae)
    texts = {component: settings(folder, f"{component}/config.json", Text) for component in architecture.encoders}
    prediction = settings(folder, "scheduler/scheduler_config.json", Scheduler).prediction_type
    check_parts(path, unet, vae, list(texts.values()), architecture.addition)
    if prediction not in PREDICTIONS:
        raise BaseModelError("base.prediction", path=path, found=prediction, known=", ".join(PREDICTIONS))
    for component, text in texts.items():
        _check_tokenizer(path, folder / tokenizer_of(component), text.vocab_size)
    scale = 2 ** (len(vae.block_out_channels) - 1)
    size = unet.sample_size or architecture.sample_size
    variant = architecture.variant(read_json(folder / "unet/config.json"), read_json(folder / "vae/config.json"))
    return Base(
        name=path.name,
        path=folder,
        family=architecture.family,
        variant=variant,
        prediction_type=prediction,
        resolution=(size if isinstance(size, int) else size[0]) * scale,
        multiple=scale * 2 ** (len(unet.block_out_channels) - 1),
        max_tokens=min(text.max_position_embeddings for text in texts.values()),
        parameters=_parameters(folder, architecture),
        webui=variant != CUSTOM,
    )


def _refuse_fewer_encoders(path: Path, index: Mapping[str, Any], architecture: Architecture) -> None:
    """Refuse a pipeline that says itself that it has not all text encoders: a refiner."""
    absent = [component for component in architecture.encoders if index.get(component) == [None, None]]
    if absent and len(architecture.encoders) > 1:
        raise BaseModelError("base.other_kind", path=path, found=_kinds.name_of("refiner"))


def _parameters(folder: Path, architecture: Architecture) -> dict[str, int]:
    weights = architecture.weights()
    return {
        part: sum(TensorFile(file).count() for file in weight_files(folder, part, stem))
        for part, stem in weights.items()
    }


def _complete(repository: str, architecture: Architecture) -> Path:
    """Fetch settings and weights of a hub id; half-precision files only where a part has no others."""
    weights = architecture.weights()
    patterns = [*_hub.SETTINGS]
    for part, stem in weights.items():
        patterns += _hub.weight_patterns(part, stem)
    folder = _hub.fetch(repository, patterns)
    lacking = [part for part, stem in weights.items() if not _folder_files.found_weights(folder, part, stem)]
    if lacking:
        halves = [pattern for part in lacking for pattern in _hub.weight_patterns(part, f"{weights[part]}.fp16")]
        folder = _hub.fetch(repository, halves)
    return folder


def _check_tokenizer(path: Path, folder: Path, rows: int) -> None:
    """Refuse a tokenizer without its vocabulary, which would load without an error and read nonsense; or a foreign one.

    Args:
        rows: how many tokens the text encoder knows.
    """
    if (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model")
        words = model.get("vocab") if isinstance(model, dict) else None
    elif all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        words = read_json(folder / "vocab.json")
    else:
        raise BaseModelError("base.part_missing", path=path, part=f"{folder.name}/vocab.json + merges.txt")
    ids = words.values() if isinstance(words, dict) else ()
    if not ids or not all(type(number) is int and 0 <= number < rows for number in ids):
        raise BaseModelError("base.tokenizer_differs", path=path, rows=rows)


def _cannot_load(folder: Path, error: Exception) -> BaseModelError:
    return BaseModelError("base.cannot_load", path=folder, reason=str(error).strip().split("\n")[0][:200])


class Folder:
    """See `_architecture.Stored`."""

    def __init__(self, base: Base, architecture: Architecture):
        self.base, self.path, self.architecture = base, base.path, architecture

    def vae_config(self) -> Mapping[str, Any]:
        """Return the autoencoder's settings, with the scale that diffusers assumes where none is given."""
        return {"scaling_factor": 0.18215} | read_json(self.path / "vae" / "config.json")

    def text_layers(self) -> int:
        """Return the layers of the text encoder that has fewest."""
        names = [f"{component}/config.json" for component in self.architecture.encoders]
        return min(settings(self.path, name, Text).num_hidden_layers for name in names)

    def tokenizer_folder(self, component: str) -> Path:
        """Return where a text encoder's tokenizer lies."""
        return self.path / tokenizer_of(component)

    def skeleton(self) -> Mapping[str, nn.Module]:
        """Build UNet and text encoders from their settings, on whatever device is current."""
        import transformers
        from diffusers import UNet2DConditionModel

        built: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(read_json(self.path / "unet" / "config.json"))
        }
        for component, kind in self.architecture.encoders.items():
            config = transformers.CLIPTextConfig.from_pretrained(self.path / component)
            built[component] = getattr(transformers, kind)(config)
        return built

    def _loaded(self, kind: Any, part: str, **wanted: Any) -> Any:
        """Load a part by its library, refusing weights that do not fill it: the rest would be random numbers.

        Raises:
            BaseModelError: tensors are missing, of another shape or not finite, or the settings are not usable.
        """
        folder = self.path / part
        stem = self.architecture.weights()[part]
        variant = "fp16" if ".fp16" in weight_files(self.path, part, stem)[0].name else None
        try:
            model, info = kind.from_pretrained(
                folder, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True, **wanted
            )
        except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
            raise _cannot_load(folder, error) from error
        lacking = sorted([*info["missing_keys"], *(row[0] for row in info["mismatched_keys"])])
        if lacking:
            raise BaseModelError("base.part_missing", path=folder, part=lacking[0])
        check_finite(model, folder)
        return model

    def unet(self, dtype: torch.dtype) -> Any:
        """Load the UNet, one tensor at a time: its library would hold it twice where the format is another."""
        import torch
        from diffusers import UNet2DConditionModel

        folder = self.path / "unet"
        try:
            with torch.device("meta"):
                model = UNet2DConditionModel.from_config(read_json(folder / "config.json"))
        except (ValueError, RuntimeError, LookupError, TypeError) as error:
            raise _cannot_load(folder, error) from error
        files = [TensorFile(path) for path in weight_files(self.path, "unet", self.architecture.weights()["unet"])]
        # All places first: tensors that are read and let go of in between would leave holes in memory.
        state = {name: torch.empty(shape, dtype=dtype) for file in files for name, shape in file.shapes.items()}
        for file in files:
            for name, tensor in file.read(file.shapes):
                state[name].copy_(tensor)
        assign(model, state, folder)
        return model.eval()

    def vae(self, dtype: torch.dtype) -> Any:
        """Load the autoencoder."""
        from diffusers import AutoencoderKL

        return self._loaded(AutoencoderKL, "vae", torch_dtype=dtype)

    def text_encoder(self, component: str, dtype: torch.dtype) -> Any:
        """Load a text encoder."""
        import transformers

        kind = getattr(transformers, self.architecture.encoders[component])
        return self._loaded(kind, component, dtype=dtype)

    def tokenizer(self, component: str) -> Any:
        """Load a text encoder's tokenizer."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.tokenizer_folder(component))

    def scheduler(self) -> Any:
        """Load the base's own scheduler."""
        import diffusers

        found = read_json(self.path / "scheduler" / "scheduler_config.json")
        kind = str(found.get("_class_name"))
        if not kind.endswith("Scheduler") or not hasattr(diffusers, kind):
            raise BaseModelError("base.unknown_scheduler", path=self.path, found=kind)
        scheduler = getattr(diffusers, kind).from_config({**found, "prediction_type": self.base.prediction_type})
        if not hasattr(scheduler, "alphas_cumprod"):
            raise BaseModelError("base.other_noise", path=self.path, found=kind)
        return scheduler

    def pipeline_settings(self) -> Mapping[str, Any]:
        """Return what model_index.json says besides its parts."""
        index = read_json(self.path / "model_index.json")
        return {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}

    def weights_hash(self) -> str:
        """sha256 over the weight files' bytes."""
        digest = hashlib.sha256()
        for part, stem in self.architecture.weights().items():
            for path in weight_files(self.path, part, stem):
                digest.update(f"{part}/{path.name}".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
