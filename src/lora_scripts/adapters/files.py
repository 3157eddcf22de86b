"""Reads LoRA files: ours, kohya's, diffusers' old and new ones, PEFT's folders; refuses all others in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters import kohya_metadata, layouts, peft_config, recognition, shapes
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.families import LANGUAGE_FAMILY, key_maps
from lora_scripts.adapters.keys import KeyMap
from lora_scripts.adapters.names import LANGUAGE_MODEL, some
from lora_scripts.adapters.peft_config import PEFT_CONFIG, PEFT_FILE, Settings
from lora_scripts.adapters.safetensors_file import PICKLE_SUFFIXES, Header, read_header
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DIFFUSERS_FILE",
    "LANGUAGE_FAMILY",
    "PEFT_CONFIG",
    "PEFT_FILE",
    "base_of",
    "check",
    "describe",
    "inspect",
    "load",
]

# What resuming needs, beside the LoRA in a checkpoint's folder.
STATE_FILE = "state.safetensors"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
# How a file's header calls the number format of its alphas, where it is not that of the other tensors.
ALPHA_DTYPE = "alpha_dtype"


@dataclass(frozen=True)
class Found:
    """One file of a LoRA, known from its header alone.

    Attributes:
        layout: "kohya", "diffusers" or "peft".
        family: registry name of the family it is for.
        kind: of its updates: a name of `adapters/kinds/`.
        modules: (component, module) -> role -> the tensor's name; in layout "kohya" a module has underscores for dots.
        ranks: (component, module) -> rank, or 0 where the shapes do not tell it.
        settings: by component; a component without has alpha = rank unless the file holds alpha tensors.
        base_reference: what a PEFT config says of the base: a hub id, a folder, or "".
    """

    path: Path
    layout: str
    family: str
    kind: str
    header: Header
    modules: Mapping[tuple[str, str], Mapping[str, str]]
    ranks: Mapping[tuple[str, str], int]
    settings: Mapping[str, Settings]
    base_reference: str = ""

    @property
    def components(self) -> set[str]:
        """The components it has updates for."""
        return {component for component, _ in self.modules}


def load(
    path: Path,
    *,
    known_modules: Mapping[str, Sequence[str]] | None = None,
    family: str = "",
    dtype: str | None = "float32",
) -> Adapter:
    """Read a LoRA.

    Args:
        path: a .safetensors file, a folder with one, or a PEFT folder (or its parent with unet/, text_encoder/, ...).
        known_modules: module paths of the live model by component; kohya's names are resolved against them. A
            component that is not listed is resolved by the words its names are made of.
        family: the base's; another family's LoRA is refused, and what a file leaves open this decides.
        dtype: of the tensors; None leaves every tensor as it is stored, bit by bit.

    Returns:
        Updates on the CPU, canonical module paths.

    Raises:
        BaseModelError: absent, unsafe, broken, another kind or family, or modules that the model does not have.
    """
    found = inspect(path, family)
    if known_modules:
        _check_kind_of_base(path, found, known_modules)
    updates: dict[str, dict[str, Any]] = {}
    for part in found:
        names = _resolve(part, known_modules or {})
        tensors = _read_tensors(part, dtype)
        build = registry.load("adapters", part.kind).build
        for (component, module), roles in part.modules.items():
            full = names[component, module]
            given = {role: tensors[name] for role, name in roles.items()}
            rank = part.ranks[component, module]
            alpha = _alpha(part, component, full, given, rank)
            updates.setdefault(component, {})[full] = build(given, alpha)
    ordered = {c: dict(sorted(p.items())) for c, p in sorted(updates.items())}
    meta = _meta(found, path)
    training = {key: value for key, value in meta.training.items() if key != ALPHA_DTYPE}
    if dtype is None:
        training |= _alpha_dtype(found) or {k: v for k, v in meta.training.items() if k == ALPHA_DTYPE}
    return Adapter(ordered, replace(meta, training=training))


def inspect(path: Path, family: str = "") -> list[Found]:
    """Recognise a LoRA from headers and configs alone, without torch; one entry a file.

    Args:
        family: as for `load`.

    Raises:
        BaseModelError: as `load`, except for module names, which need the model, and values.
    """
    configs: list[Path | None] = []
    sources = []
    try:
        opened = [(file, config, component, read_header(file)) for file, config, component in _sources(path)]
    except OSError as error:
        raise BaseModelError("adapter.unreadable", path=path, reason=error.strerror or error) from error
    for file, config, component, header in opened:
        layout, pieces = layouts.recognise(file, header)
        if layout == layouts.PEFT and config is None:
            raise BaseModelError("adapter.no_peft_config", path=file)
        sources.append(recognition.Source(file, layout, header, pieces, component))
        configs.append(config)
    decided = recognition.decide(path, sources, family)
    return [_inspect(source, config, decided) for source, config in zip(sources, configs, strict=True)]


def check(
    path: Path, *, rank: int | None, components: Collection[str], family: str = "", kind: str | None = None
) -> None:
    """Refuse a LoRA that cannot be continued with these settings, before any model is loaded.

    Args:
        rank: that every module must have; None leaves it to the modules.
        kind: of update; None leaves it open.

    Raises:
        BaseModelError: as `inspect`, or another kind, rank or other components.
    """
    found = inspect(path, family)
    _check_kind_of_base(path, found, components)
    kinds = {part.kind for part in found}
    if kind is not None and kinds != {kind}:
        raise BaseModelError("adapter.wrong_kind", name=path, found=", ".join(sorted(kinds)), wanted=kind)
    ranks = {r for part in found for r in part.ranks.values() if r}
    if rank is not None and ranks - {rank}:
        raise BaseModelError("adapter.wrong_rank", name=path, found=", ".join(map(str, sorted(ranks))), rank=rank)
    has = set().union(*(part.components for part in found))
    if has != set(components):
        raise BaseModelError("adapter.wrong_components", name=path, found=some(has), wanted=some(components))


def base_of(path: Path) -> tuple[str, str]:
    """Return where a LoRA's base is found again and the sha256 of its weights; "" where the LoRA does not tell.

    Raises:
        BaseModelError: as `inspect`.
    """
    meta = describe(path)
    return meta.base_reference, meta.base_hash


def describe(path: Path) -> AdapterMeta:
    """Return what a LoRA's headers and configs tell about it; `load` tells the same and reads the tensors too.

    Raises:
        BaseModelError: as `inspect`.
    """
    return _meta(inspect(path), path)


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
    components = dict.fromkeys(part for keys in key_maps().values() for part in keys.parts)
    parts = [component for component in components if (path / component / PEFT_CONFIG).is_file()]
    if parts:
        return [_peft_source(path / component, component) for component in parts]
    files = sorted(file for file in path.glob("*.safetensors") if file.name != STATE_FILE)
    if len(files) == 1:
        return [(files[0], None, None)]
    raise BaseModelError("adapter.folder", path=path, names=some(file.name for file in files) or "-")


def _peft_source(folder: Path, component: str | None) -> tuple[Path, Path, str | None]:
    pickles = [file for file in sorted(folder.glob("adapter_model.*")) if file.suffix in PICKLE_SUFFIXES]
    if pickles and not (folder / PEFT_FILE).is_file():
        raise BaseModelError("adapter.pickle", path=pickles[0])
    return folder / PEFT_FILE, folder / PEFT_CONFIG, component


def _inspect(source: recognition.Source, config: Path | None, family: str) -> Found:
    modules = _modules(source, key_maps().get(family))
    kind = _kind(source, modules)
    named = {place: {role: name for role, (name, _) in roles.items()} for place, roles in modules.items()}
    ranks = {place: shapes.rank(source.path, source.header, place[1], roles) for place, roles in named.items()}
    values = peft_config.read(source.path, source.header, config)
    components = {component for component, _ in modules}
    settings = peft_config.settings(config or source.path, values, components, kind, is_whole=config is not None)
    reference = str(values.get("base_model_name_or_path") or "") if config else ""
    return Found(source.path, source.layout, family, kind, source.header, named, ranks, settings, reference)


def _modules(
    source: recognition.Source, keys: KeyMap | None
) -> dict[tuple[str, str], dict[str, tuple[str, layouts.Piece]]]:
    """Return each module's tensors by role, refusing names that are nobody's."""
    modules: dict[tuple[str, str], dict[str, tuple[str, layouts.Piece]]] = {}
    unknown = []
    for name, piece in source.pieces.items():
        if keys is None:
            place = layouts.language_place(source.layout, piece)
        else:
            place = layouts.place(source.layout, piece, keys, source.component)
        if place is None:
            unknown.append(name)
        else:
            modules.setdefault((place.component, place.module), {})[piece.role] = (name, piece)
    layouts.refuse_unknown(source.path, unknown)
    return modules


def _kind(
    source: recognition.Source, modules: Mapping[tuple[str, str], Mapping[str, tuple[str, layouts.Piece]]]
) -> str:
    """Return the kind of update that all modules have."""
    kinds: dict[str, list[str]] = {}
    halves, mixed = [], set()
    for (_, module), roles in modules.items():
        pieces = {role: piece for role, (_, piece) in roles.items()}
        kind = layouts.kind_of(pieces)
        if kind is not None:
            kinds.setdefault(kind, []).append(module)
        elif layouts.is_mixture(pieces):
            mixed.add(layouts.kinds_named(pieces.values()))
        else:
            halves.append(module)
    if mixed or len(kinds) > 1:
        named = ", ".join(sorted(mixed | kinds.keys()))
        raise BaseModelError("adapter.other_kind", path=source.path, kind=named)
    if halves:
        raise BaseModelError("adapter.incomplete", path=source.path, count=len(halves), names=some(halves))
    return next(iter(kinds))


def _resolve(found: Found, known_modules: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], str]:
    """Return the canonical path of every module of the file."""
    keys = key_maps().get(found.family)
    parts = keys.parts if keys else {}
    paths = {c: parts[c].paths(c, known) for c, known in known_modules.items() if c in parts}
    layers = {*known_modules.get(LANGUAGE_MODEL, ())}
    resolved: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str]] = set()
    unknown, taken = [], []
    for component, module in found.modules:
        if component == LANGUAGE_MODEL:
            path = module if module in layers or not layers else ""
        elif component in paths:
            path = paths[component].get(module.replace(".", "_"), "")
        else:
            path = parts[component].from_words(module) if found.layout == layouts.KOHYA else module
        if not path:
            unknown.append(module if component == LANGUAGE_MODEL else f"{component}: {module}")
        elif (component, path) in seen:
            taken.append(f"{component}: {module}")
        seen.add((component, path))
        resolved[component, module] = path
    if unknown:
        raise BaseModelError("adapter.unknown_modules", path=found.path, count=len(unknown), names=some(unknown))
    if taken:
        raise BaseModelError("adapter.named_twice", path=found.path, count=len(taken), names=some(taken))
    return resolved


def _read_tensors(found: Found, dtype: str | None) -> dict[str, Tensor]:
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
    if dtype is None:
        return tensors
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}


def _alpha(found: Found, component: str, module: str, tensors: dict[str, Tensor], rank: int) -> float:
    """Return the numerator of a module's scale, and leave its other tensors alone in `tensors`.

    Args:
        rank: what the shapes tell. Where nothing is factored it is 0, and kohya's files tell no scale; PEFT's, which
            does, goes into the last factor.
    """
    stored = tensors.pop(layouts.ALPHA, None)
    if stored is not None and stored.numel() != 1:
        raise BaseModelError("adapter.bad_alpha", path=found.path, name=module, shape=list(stored.shape))
    if component not in found.settings:
        # Kohya's tools take an alpha of 0 as "equal to the rank".
        return (float(stored) if stored is not None and rank else 0) or float(rank or 1)
    alpha, divisor = found.settings[component].scale_of(module, rank)
    if rank:
        return alpha
    if alpha != divisor:
        last = max(tensors)
        tensors[last] = (tensors[last].float() * (alpha / divisor)).to(tensors[last].dtype)
    return 1.0


def _alpha_dtype(found: Sequence[Found]) -> dict[str, str]:
    """Return what a copy of the file must know to keep every bit of its alphas: many have another number format."""
    formats: dict[bool, set[str]] = {True: set(), False: set()}
    for part in found:
        for roles in part.modules.values():
            for role, name in roles.items():
                formats[role == layouts.ALPHA].add(part.header.tensors[name].dtype)
    alphas, others = formats[True], formats[False]
    return {ALPHA_DTYPE: alphas.pop()} if len(alphas) == 1 and alphas != others else {}


def _meta(found: Sequence[Found], path: Path) -> AdapterMeta:
    """Return what the file tells of itself; files of others are called by their name or folder."""
    first = found[0]
    said = first.header.metadata if first.header.metadata.get("family") == first.family else {}
    if first.family == LANGUAGE_FAMILY:
        stem = first.path.parent.resolve().name
        meta = AdapterMeta(family=LANGUAGE_FAMILY, name=stem)
    else:
        stem = path.stem if path.is_file() else path.resolve().name
        keys = key_maps()[first.family]
        meta = kohya_metadata.read(first.header.metadata, stem, first.family, keys)
    return replace(
        meta,
        kind=first.kind,
        name=said.get("name") or meta.name,
        base_hash=said.get("base_hash") or meta.base_hash,
        base_reference=first.base_reference,
    )
