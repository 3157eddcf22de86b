"""`lora verify`: is a file whole, does it hold what its header promises, does it fit a base?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.files import Found
from lora_scripts.adapters.names import some
from lora_scripts.adapters.safetensors_file import LENGTH_BYTES
from lora_scripts.contracts import Base
from lora_scripts.errors import BaseModelError
from lora_scripts.lora_tools import sources

# Header key -> what stands in front of the digits.
HASHES = {"sshs_model_hash": "", "modelspec.hash_sha256": "0x"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        code, params: the sentence.
        is_good: False where the file should not be used.
    """

    code: str
    params: Mapping[str, Any]
    is_good: bool = True


def verify(path: Path, base_name: str = "") -> Iterator[Check]:
    """Yield what was found, good and bad; headers first, then values, then the base.

    Raises:
        BaseModelError: the base cannot be read.
    """
    try:
        found = files.inspect(path)
    except BaseModelError as error:
        yield Check(error.code, error.params, is_good=False)
        return
    modules = sum(len(part.modules) for part in found)
    tensors = sum(len(part.header.tensors) for part in found)
    yield Check("lora.whole", {"modules": modules, "tensors": tensors})
    for part in found:
        yield from _hashes(part)
    try:
        adapter = files.load(path)
    except BaseModelError as error:
        yield Check(error.code, error.params, is_good=False)
        return
    yield Check("lora.finite", {"count": tensors})
    idle = [name for name, update in sources.flat(adapter).items() if _is_zero(update)]
    if idle:
        yield Check("lora.idle", {"count": len(idle), "total": len(adapter), "names": some(idle)})
    if base_name:
        yield from against(path, adapter, sources.find_base(base_name, adapter.meta.family, path))


def _hashes(part: Found) -> Iterator[Check]:
    """Compare what the header says of the bytes behind it with those bytes."""
    said = {key: part.header.metadata[key] for key in HASHES if part.header.metadata.get(key)}
    if not said:
        yield Check("lora.no_hash", {"path": part.path})
        return
    real = hash_of_body(part.path)
    for key, value in said.items():
        if value.lower().removeprefix(HASHES[key]) == real:
            yield Check("lora.hash_right", {"key": key, "value": real[:12]})
        else:
            yield Check("lora.hash_wrong", {"key": key, "said": value[:14], "found": real[:12]}, is_good=False)


def hash_of_body(path: Path) -> str:
    """Return the sha256 of everything behind the header."""
    with path.open("rb") as file:
        file.seek(LENGTH_BYTES + int.from_bytes(file.read(LENGTH_BYTES), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_zero(update: Any) -> bool:
    """Say whether a pair has a half of zeros; other kinds are not looked at."""
    tensors = update.tensors()
    return update.kind == "lora" and any(not bool(tensors[role].any()) for role in ("down", "up"))


def against(path: Path, adapter: Adapter, base: Base) -> Iterator[Check]:
    """Look every module up in the base, without its weights."""
    plugin = registry.load("families", base.family).plugin
    modules = plugin.skeleton(base)
    try:
        adapter = files.load(path, known_modules=sources.module_names(modules))
    except BaseModelError as error:
        yield Check(error.code, error.params, is_good=False)
        return
    wrong = unfit(adapter, modules)
    if wrong:
        params = {"name": path, "count": len(wrong), "names": some(wrong)}
        yield Check("adapter.not_in_base", params, is_good=False)
        return
    yield Check("lora.fits", {"count": len(adapter), "base": base.name})
    if adapter.meta.base_hash:
        is_same = adapter.meta.base_hash == plugin.weights_hash(base)
        yield Check("lora.base_same" if is_same else "lora.base_other", {"base": base.name})


def unfit(adapter: Adapter, modules: Mapping[str, Any]) -> list[str]:
    """Return the updates that have no module, or one of other sizes; a 1x1 convolution is a linear layer too."""
    wrong = []
    for component, updates in adapter.pairs.items():
        named = dict(modules[component].named_modules()) if component in modules else {}
        for path, update in updates.items():
            module = named.get(path, named.get(path.removeprefix("text_model.")))
            weight = getattr(module, "weight", None)
            if weight is None or (weight.shape[0], weight[0].numel()) != update.size:
                wrong.append(f"{component}.{path}")
    return wrong
