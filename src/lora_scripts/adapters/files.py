"""Reads LoRA files: ours, kohya's, diffusers' old and new ones, PEFT's folders; refuses all others in words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters import kohya_metadata
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.layouts import recognise
from lora_scripts.adapters.names import LANGUAGE_MODEL, kohya_paths, some, split_words
from lora_scripts.adapters.safetensors_file import PICKLE_SUFFIXES, Header, read_header
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"

# The kinds of initialisation that leave the base as it was, so that the pairs alone are the whole update.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")

LANGUAGE_FAMILY = "causal_lm"
# What a language model's PEFT config may ask for beyond pairs, each absent, false, empty or "none" in a plain LoRA.
_MORE_THAN_PAIRS = (
    "modules_to_save",
    "bias",
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)


@dataclass(frozen=True)
class Settings:
    """How PEFT scales the pairs of one component, as its config says."""

    alpha: float
    rank_stabilised: bool = False
    patterns: Mapping[str, float] = field(default_factory=dict)

    def alpha_of(self, module: str, rank: int) -> float:
        """Return the plain alpha of a module: the scale is alpha / rank, or alpha / sqrt(rank) where stabilised."""
        found = (value for key, value in self.patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(found, self.alpha)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


@dataclass(frozen=True)
class Found:
    """One LoRA file, known from its header alone.

    Attributes:
        layout: "kohya", "diffusers" or "peft".
        modules: (component, module) -> role -> the tensor's name.
        ranks: (component, module) -> rank.
        settings: by component; a component without has alpha = rank unless the file holds alpha tensors.
        base_reference: what a PEFT config says of the base: a hub id, a folder, or "".
    """

    path: Path
    layout: str
    header: Header
    modules: Mapping[tuple[str, str], Mapping[str, str]]
    ranks: Mapping[tuple[str, str], int]
    settings: Mapping[str, Settings]
    base_reference: str = ""

    @property
    def components(self) -> set[str]:
        """The components it has pairs for."""
        return {component for component, _ in self.modules}


def load(path: Path, *, known_modules: Mapping[str, Sequence[str]] | None = None) -> Adapter:
    """Read a LoRA.

    Args:
        path: a .safetensors file, a folder with one, or a PEFT folder (or its parent with unet/ and text_encoder/).
        known_modules: module paths of the live model by component; kohya's names are resolved against them. A
            component that is not listed is resolved by the words its names are made of.

    Returns:
        Float32 pairs on the CPU, canonical module paths.

    Raises:
        BaseModelError: absent, unsafe, broken, another kind or family, or modules that the model does not have.
    """
    pairs: dict[str, dict[str, LoraPair]] = {}
    found = inspect(path)
    if known_modules:
        _check_kind_of_base(path, found, known_modules)
    for part in found:
        names = _resolve(part, known_modules or {})
        tensors = _read_tensors(part)
        for (component, module), roles in part.modules.items():
            pair = _pair(part, component, names[component, module], {r: tensors[n] for r, n in roles.items()})
            pairs.setdefault(component, {})[names[component, module]] = pair
    return Adapter({c: dict(sorted(p.items())) for c, p in sorted(pairs.items())}, _meta(found[0], path))


def inspect(path: Path) -> list[Found]:
    """Recognise a LoRA from headers and configs alone, without torch; one entry a file.

    Raises:
        BaseModelError: as `load`, except for module names, which need the model, and values.
    """
    return [_inspect_file(file, config, component) for file, config, component in _sources(path)]


def check(path: Path, *, rank: int, components: Collection[str]) -> None:
    """Refuse a LoRA that cannot be continued with this rank and these components, before any model is loaded.

    Raises:
        BaseModelError: as `inspect`, or another rank, or other components.
    """
    found = inspect(path)
    _check_kind_of_base(path, found, components)
    ranks = {r for part in found for r in part.ranks.values()}
    if ranks != {rank}:
        raise BaseModelError("adapter.wrong_rank", name=path, found=", ".join(map(str, sorted(ranks))), rank=rank)
    has = set().union(*(part.components for part in found))
    if has != set(components):
        raise BaseModelError("adapter.wrong_components", name=path, found=some(has), wanted=some(components))


def base_of(path: Path) -> tuple[str, str]:
    """Return where a LoRA's base is found again and the sha256 of its weights; "" where the LoRA does not tell.

    Raises:
        BaseModelError: as `inspect`.
    """
    meta = _meta(inspect(path)[0], path)
    return meta.base_reference, meta.base_hash


def _check_kind_of_base(path: Path, found: Sequence[Found], components: Collection[str]) -> None:
    """Refuse a language model's LoRA for a base that makes pictures, and the other way round."""
    is_language = any(LANGUAGE_MODEL in part.components for part in found)
    if is_language != (LANGUAGE_MODEL in components):
        raise BaseModelError("adapter.for_language" if is_language else "adapter.for_pictures", path=path)


def _sources(path: Path) -> list[tuple[Path, Path | None, str | None]]:
    """Return (file, PEFT config or None, component or None where the names tell)."""
    if path.is_file():
        beside = path.with_name(PEFT_CONFIG)
        return [(path, beside if path.name == PEFT_FILE and beside.is_file() else None, None)]
    if not path.is_dir():
        raise BaseModelError("adapter.no_file", path=path)
    if (path / PEFT_CONFIG).is_file():
        return [_peft_source(path, None)]
    if (path / DIFFUSERS_FILE).is_file():
        return [(path / DIFFUSERS_FILE, None, None)]
    parts = [c for c in ("unet", "text_encoder") if (path / c / PEFT_CONFIG).is_file()]
    if parts:
        return [_peft_source(path / component, component) for component in parts]
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return [(files[0], None, None)]
    raise BaseModelError("adapter.folder", path=path, names=some(file.name for file in files) or "-")


def _peft_source(folder: Path, component: str | None) -> tuple[Path, Path, str | None]:
    pickles = [file for file in sorted(folder.glob("adapter_model.*")) if file.suffix in PICKLE_SUFFIXES]
    if pickles and not (folder / PEFT_FILE).is_file():
        raise BaseModelError("adapter.pickle", path=pickles[0])
    return folder / PEFT_FILE, folder / PEFT_CONFIG, component


def _inspect_file(path: Path, config: Path | None, component: str | None) -> Found:
    header = read_header(path)
    layout, keys = recognise(path, header)
    if layout == "peft" and config is None:
        raise BaseModelError("adapter.no_peft_config", path=path)
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name, key in keys.items():
        modules.setdefault((component or key.component, key.module), {})[key.role] = name
    halves = [module for (_, module), roles in modules.items() if not {"down", "up"} <= roles.keys()]
    if halves:
        raise BaseModelError("adapter.incomplete", path=path, count=len(halves), names=some(halves))
    ranks = {place: _rank(path, header, place[1], roles) for place, roles in modules.items()}
    values = _read_config(path, header, config)
    settings = _settings(config or path, values, {place[0] for place in modules}, is_whole=config is not None)
    reference = str(values.get("base_model_name_or_path") or "") if config else ""
    return Found(path, layout, header, modules, ranks, settings, reference)


def _rank(path: Path, header: Header, module: str, roles: Mapping[str, str]) -> int:
    down, up = header.tensors[roles["down"]].shape, header.tensors[roles["up"]].shape
    is_linear = len(down) == 2 and len(up) == 2
    is_convolution = len(down) == 4 and len(up) == 4 and up[2:] == (1, 1)
    if not (is_linear or is_convolution) or down[0] != up[1] or not down[0]:
        raise BaseModelError("adapter.bad_shapes", path=path, name=module, down=list(down), up=list(up))
    return down[0]


def _read_config(path: Path, header: Header, config: Path | None) -> dict[str, Any]:
    """Read PEFT's config, or what diffusers keeps of it in the header under "unet.r", "unet.lora_alpha", ..."""
    try:
        text = config.read_text(encoding="utf-8") if config else header.metadata.get(DIFFUSERS_CONFIG, "")
        return dict(json.loads(text).items()) if text else {}
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise BaseModelError("adapter.bad_config", path=config or path, reason=error) from error


def _settings(
    source: Path, values: Mapping[str, Any], components: Iterable[str], *, is_whole: bool
) -> dict[str, Settings]:
    try:
        own = {c: _for_component(values, c, is_whole) for c in components}
        _refuse_more_than_pairs(source, own.get(LANGUAGE_MODEL, {}))
        return {component: _parse_settings(source, part) for component, part in own.items() if part}
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise BaseModelError("adapter.bad_config", path=source, reason=error) from error


def _for_component(values: Mapping[str, Any], component: str, is_whole: bool) -> dict[str, Any]:
    if is_whole:
        return dict(values)
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def _parse_settings(path: Path, values: Mapping[str, Any]) -> Settings:
    kind = str(values.get("peft_type") or "LORA").rpartition(".")[2]
    if kind != "LORA" or values.get("use_dora"):
        raise BaseModelError("adapter.other_kind", path=path, kind="DoRA" if kind == "LORA" else kind)
    start = values.get("init_lora_weights")
    if start not in _PLAIN_INITIALISATIONS:
        raise BaseModelError("adapter.other_kind", path=path, kind=start)
    patterns = {str(re.compile(k).pattern): float(v) for k, v in (values.get("alpha_pattern") or {}).items()}
    # Eight is what PEFT takes where the key is absent.
    alpha = float(values.get("lora_alpha", 8))
    if not all(math.isfinite(number) for number in (alpha, *patterns.values())):
        raise ValueError(f"lora_alpha {alpha}, alpha_pattern {patterns}")
    return Settings(alpha, bool(values.get("use_rslora")), patterns)


def _refuse_more_than_pairs(path: Path, values: Mapping[str, Any]) -> None:
    for key in _MORE_THAN_PAIRS:
        if values.get(key) not in (None, False, "none", [], {}):
            raise BaseModelError("adapter.other_kind", path=path, kind=f"LoRA + {key}")


def _resolve(found: Found, known_modules: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], str]:
    """Return the canonical path of every module of the file."""
    paths = {c: kohya_paths(c, known) for c, known in known_modules.items() if c != LANGUAGE_MODEL}
    layers = {*known_modules.get(LANGUAGE_MODEL, ())}
    resolved: dict[tuple[str, str], str] = {}
    unknown = []
    for component, module in found.modules:
        flat = module.replace(".", "_")
        if component == LANGUAGE_MODEL:
            resolved[component, module] = module
            if layers and module not in layers:
                unknown.append(module)
            continue
        path = split_words(module) if found.layout == "kohya" else module
        if component in paths:
            path = paths[component].get(flat, "")
        if not path:
            unknown.append(f"{component}: {module}")
        resolved[component, module] = path
    if unknown:
        raise BaseModelError("adapter.unknown_modules", path=found.path, count=len(unknown), names=some(unknown))
    return resolved


def _read_tensors(found: Found) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(found.path))
    except SafetensorError as error:
        raise BaseModelError("adapter.not_safetensors", path=found.path) from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise BaseModelError("adapter.not_finite_file", path=found.path, names=some(broken))
    return tensors


def _pair(found: Found, component: str, module: str, tensors: Mapping[str, Tensor]) -> LoraPair:
    down, up = tensors["down"].float(), tensors["up"].float()
    rank = down.shape[0]
    alpha = float(rank)
    if component in found.settings:
        alpha = found.settings[component].alpha_of(module, rank)
    elif "alpha" in tensors:
        # Kohya's tools take an alpha of 0 as "equal to the rank".
        alpha = float(tensors["alpha"]) or float(rank)
    return LoraPair(down, up, alpha)


def _meta(found: Found, path: Path) -> AdapterMeta:
    if found.layout == "kohya":
        return kohya_metadata.read(found.header.metadata, path.stem)
    if LANGUAGE_MODEL in found.components:
        said = found.header.metadata if found.header.metadata.get("family") == LANGUAGE_FAMILY else {}
        folder = found.path.parent.resolve().name
        return AdapterMeta(
            family=LANGUAGE_FAMILY,
            name=said.get("name") or folder,
            base_hash=said.get("base_hash", ""),
            base_reference=found.base_reference,
        )
    return AdapterMeta(family="sd", name=path.stem if path.is_file() else path.name)
