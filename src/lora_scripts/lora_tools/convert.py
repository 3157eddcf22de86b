"""`lora convert`: another tool's names and places for the same tensors, and the way back to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.lora_tools import proof, sources, writing
from lora_scripts.lora_tools.sources import Named, Opened, Tell

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Order:
    """What to convert.

    Attributes:
        to: one of `writing.LAYOUTS`.
        output: None is beside the source, named after it and the layout.
        dtype: of the tensors; None keeps every bit.
    """

    named: Named
    to: str
    output: Path | None = None
    dtype: str | None = None
    base: str = ""
    overwrite: bool = False


def convert(order: Order, tell: Tell) -> Path:
    """Convert, read again by another library and by our own reader, compare.

    Raises:
        ConfigError: the layout has no place for this LoRA, or the file's place is taken.
        BaseModelError: the LoRA cannot be read.
        NumericsError, MachineError: see `writing.write`.
    """
    (one,) = sources.open_all([order.named], dtype=None)
    meta, path = one.adapter.meta, order.named.path
    output = order.output or beside(one, order.to)
    target = writing.plan(output, order.to, meta, [path], bases=[order.base], overwrite=order.overwrite)
    base = sources.find_base(order.base, meta.family, path) if order.base else None
    read = writing.write(writing.cast(one.adapter, order.dtype), target, tell, exact=True)
    changed = different(one.adapter, files.load(target.path, dtype=None))
    if changed:
        tell("lora.converted_rounded", path=target.path, count=changed, total=len(one.adapter))
    else:
        tell("lora.converted_exactly", path=target.path)
    if order.to == writing.DIFFUSERS and any(made.alpha != made.rank for made in sources.flat(one.adapter).values()):
        tell("lora.alpha_in_header", path=target.path)
    if base is not None:
        proof.same(sources.load_base(base), [(one.adapter, 1.0)], [(read, 1.0)], target.name, tell)
    return target.path


def beside(one: Opened, to: str) -> Path:
    """Return "style-diffusers/" or "style-kohya.safetensors" beside the source."""
    folder = one.named.path.resolve().parent
    stem = one.named.name
    for layout in writing.LAYOUTS:
        stem = stem.removesuffix(f"-{layout}")
    name = f"{stem}-{to}"
    return folder / (f"{name}{writing.ENDING}" if to == writing.KOHYA else name)


def different(first: Adapter, second: Adapter) -> int:
    """Return how many modules differ in a bit of a tensor, in its number format, or in alpha."""
    ours, theirs = sources.flat(first), sources.flat(second)
    same = [module for module in ours.keys() & theirs.keys() if _equal(ours[module], theirs[module])]
    return len(ours.keys() | theirs.keys()) - len(same)


def _equal(first: Any, second: Any) -> bool:
    import torch

    if first.kind != second.kind or first.alpha != second.alpha:
        return False
    one: Mapping[str, Tensor] = first.tensors()
    other: Mapping[str, Tensor] = second.tensors()
    return one.keys() == other.keys() and all(
        one[role].dtype == other[role].dtype and torch.equal(one[role], other[role]) for role in one
    )
