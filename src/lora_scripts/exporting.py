"""The use-case `export`: a language model's LoRA in another format, loaded again there and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.adapters import base_folder, files
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.base_hash import hash_of_folder
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.adapters.uniform import settings, uniform
from lora_scripts.errors import BaseModelError, ConfigError
from lora_scripts.files import cannot_write
from lora_scripts.preparation import resolve_base

# The kind of update that all targets have a place for.
PLAIN = "lora"
MERGED, PEFT, GGUF = "merged", "peft", "gguf"
TARGETS = (MERGED, GGUF, PEFT)
GGUF_ENDING = f".{GGUF}"
# peft multiplies its own scale out, so its last digit may differ; in a GGUF file every bit comes back.
TOLERANCES = {PEFT: 1e-6, GGUF: 0.0}


@dataclass(frozen=True)
class Order:
    """What to write.

    Attributes:
        adapter: a PEFT folder of a language model.
        to: one of `TARGETS`.
        output: where; None is beside the adapter.
        base: a folder or hub id; "" is the one that the adapter names.
        dtype: of a merged model: a key of `merging.DTYPE_NAMES`, or None for the base's own.
    """

    adapter: Path
    to: str
    output: Path | None = None
    base: str = ""
    dtype: str | None = None


def export(order: Order, tell: Callable[..., None]) -> Path:
    """Write, load again, compare.

    Args:
        tell: called with a message code and its parameters.

    Returns:
        The folder or file.

    Raises:
        ConfigError: the order makes no sense, or its place is taken.
        BaseModelError: the adapter or the base cannot be read, or do not belong together.
        NumericsError: what was written is not what it should be.
        MachineError: no space, or not writable.
    """
    if order.dtype and order.to != MERGED:
        raise ConfigError("export.dtype_unused", to=order.to)
    adapter = files.load(order.adapter)
    if adapter.meta.family != files.LANGUAGE_FAMILY:
        raise ConfigError("export.pictures", path=order.adapter)
    if adapter.meta.kind != PLAIN:
        raise ConfigError("export.other_kind", path=order.adapter, kind=adapter.meta.kind)
    base, reference = _base(order, adapter.meta)
    adapter = replace(adapter, meta=replace(adapter.meta, base_reference=reference))
    if base is not None:
        _check_base(base, adapter.meta, tell)
        variant = str(base_folder.config(base).get("model_type") or "")
        adapter = replace(adapter, meta=replace(adapter.meta, variant=variant))
    if order.to == MERGED:
        if base is None:
            raise BaseModelError("export.no_base", base=reference or "-")
        return _merge(order, adapter, base, tell)
    return _convert(order, adapter, tell)


def _base(order: Order, meta: AdapterMeta) -> tuple[Path | None, str]:
    """Return the base's folder, or None where it is not here, and what a PEFT config should call it."""
    if not order.base:
        return base_folder.find(meta.base_reference), meta.base_reference
    path = resolve_base(order.base)
    folder = base_folder.find(path.as_posix())
    if folder is None:
        raise BaseModelError("export.no_base", base=order.base)
    return folder, str(folder.resolve()) if path.exists() else order.base


def _check_base(base: Path, meta: AdapterMeta, tell: Callable[..., None]) -> None:
    """Refuse a base with other weights than the adapter was trained on, where the adapter tells."""
    if not meta.base_hash:
        tell("export.unchecked", base=base, name=meta.name)
        return
    found = hash_of_folder(base)
    if found != meta.base_hash:
        raise BaseModelError(
            "export.other_base", base=base, name=meta.name, found=found[:12], wanted=meta.base_hash[:12]
        )
    tell("export.checked", base=base, name=meta.name)


def _merge(order: Order, adapter: Adapter, base: Path, tell: Callable[..., None]) -> Path:
    from lora_scripts import merging

    target = order.output or _folder(order.adapter) / MERGED
    if target.resolve() == base.resolve():
        raise ConfigError("export.is_base", path=target)
    _check_free(target, merging.is_ours)
    made = merging.merge(adapter, order.adapter, base, target, tell, dtype=order.dtype)
    tell("export.merged", path=made.path, dtype=made.dtype, modules=made.modules, tensors=made.tensors)
    return made.path


def _convert(order: Order, adapter: Adapter, tell: Callable[..., None]) -> Path:
    """Write a PEFT folder or a GGUF file."""
    exporter = registry.load("exporters", order.to)
    reason = exporter.refuses(adapter.meta)
    if reason is not None:
        raise ConfigError(reason.code, **reason.params)
    made = uniform(adapter)
    compare(made, adapter)
    path = _place(order, exporter.file_name(adapter.meta))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    report = exporter.export(made, path)
    compare(exporter.read_back(path, made), made, TOLERANCES[order.to])
    shown = path if order.to == GGUF else path.parent
    tell("export.wrote", path=shown, tensors=report.tensors, modules=len(made), reader=order.to, adapter=order.adapter)
    if order.to == GGUF:
        tell("export.use_gguf", path=path, base=adapter.meta.base_reference or "-")
    else:
        for note in exporter.warnings(made.meta, settings(made)[0], [p for part in made.pairs.values() for p in part]):
            tell(note.code, **note.params)
    return shown


def _place(order: Order, name: str) -> Path:
    """Return the file to write, refusing what is not ours to replace."""
    if order.to == PEFT:
        folder = order.output or _folder(order.adapter) / PEFT
        _check_free(folder, lambda found: _is_our_adapter(found / name))
        return folder / name
    path = order.output or _folder(order.adapter)
    if path.is_dir():
        path = path / name
    elif path.suffix.lower() != GGUF_ENDING:
        raise ConfigError("export.bad_output", path=path)
    if path.exists() and not registry.load("exporters", GGUF).is_adapter(path):
        raise ConfigError("export.occupied", path=path)
    return path


def _folder(adapter: Path) -> Path:
    return adapter if adapter.is_dir() else adapter.parent


def _check_free(folder: Path, is_ours: Callable[[Path], Any]) -> None:
    """Refuse a place that holds anything which this verb has not written."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_ours(folder)):
        raise ConfigError("export.occupied", path=folder)


def _is_our_adapter(file: Path) -> bool:
    try:
        return read_header(file).metadata.get("family") == files.LANGUAGE_FAMILY
    except BaseModelError:
        return False
