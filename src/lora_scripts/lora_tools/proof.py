"""Comparing what a base computes with one set of LoRAs and with another: real forward passes, real outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters import apply
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.data.record import Message
from lora_scripts.errors import NumericsError
from lora_scripts.lora_tools import sources
from lora_scripts.lora_tools.sources import Tell

if TYPE_CHECKING:
    from torch import Tensor

Worn = Sequence[tuple[Adapter, float]]

# Both sides add the same numbers in float32, in another order, and send them through a whole network.
TOLERANCE = 1e-5
PROMPT = "a picture of a small house"
SIDE = 64


@dataclass(frozen=True)
class Difference:
    """How far two outputs are apart.

    Attributes:
        relative: the norm of the difference, relative to the norm of the output.
        share: the same, relative to what the first set of LoRAs changes; NaN where it changes nothing.
    """

    relative: float
    share: float


def same(family: Any, before: Worn, after: Worn, name: str, tell: Tell) -> None:
    """Prove that two sets of LoRAs give the same outputs.

    Raises:
        NumericsError: they do not.
    """
    found = difference(family, before, after)
    if not found.relative <= TOLERANCE:
        raise NumericsError("lora.outputs_differ", name=name, by=f"{found.relative:.1e}")
    tell("lora.outputs_same", base=family.base.name, by=f"{found.relative:.0e}")


def near(family: Any, before: Worn, after: Worn, tell: Tell) -> None:
    """Say how much of what the LoRAs change in the outputs is changed otherwise by their successor."""
    found = difference(family, before, after)
    tell("lora.outputs_near", base=family.base.name, share=sources.percent(found.share))


def difference(family: Any, before: Worn, after: Worn) -> Difference:
    """Run the base with nothing, with the one and with the other."""
    bare, first, second = (outputs(family, worn) for worn in ((), before, after))
    by = distance(first, second)
    effect = distance(first, bare)
    return Difference(by / (distance(first) or 1.0), by / effect if effect else math.nan)


def outputs(family: Any, worn: Worn) -> list[Tensor]:
    """Return what the trainable networks put out while the family makes one small preview."""
    caught: list[Tensor] = []
    modules = family.trainable()
    with apply.added(modules, list(worn)), _listening(modules, caught):
        if family.base.resolution:
            side = -(-SIDE // family.base.multiple) * family.base.multiple
            family.preview([PROMPT], size=(side, side), seed=1, steps=1, guidance=1.0)
        else:
            family.preview([(Message("user", PROMPT),)], seed=1, new_tokens=1)
    # Nothing heard would be no difference.
    assert caught, "the preview ran past the networks"
    return caught


@contextmanager
def _listening(modules: Mapping[str, Any], caught: list[Tensor]) -> Iterator[None]:
    """Keep every output of the whole networks."""
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: caught.extend(_tensors(output)))
        for module in modules.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    import torch

    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output.detach().double().clone()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def distance(first: Sequence[Tensor], second: Sequence[Tensor] = ()) -> float:
    """Return the norm of outputs, or of their difference; infinite where their number or shapes differ."""
    if second and [one.shape for one in first] != [one.shape for one in second]:
        return math.inf
    others = second or [one * 0 for one in first]
    return math.sqrt(sum(float((one - other).square().sum()) for one, other in zip(first, others, strict=True)))
