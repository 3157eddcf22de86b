"""`lora merge`: several LoRAs as one, exactly by putting their factors side by side, or at a rank of one's choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_scripts.adapters import arithmetic
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.arithmetic import Factors
from lora_scripts.adapters.names import some
from lora_scripts.contracts import Base
from lora_scripts.errors import ConfigError
from lora_scripts.lora_tools import proof, sources, writing
from lora_scripts.lora_tools.sources import Named, Opened, Tell


@dataclass(frozen=True)
class Order:
    """What to merge.

    Attributes:
        rank: of every module, by singular value decomposition; None is exact, the ranks add up.
        to: the layout, or None.
        dtype: of the tensors, one of `writing.DTYPES`.
        base: the outputs are compared on it; "" is not at all.
    """

    named: Sequence[Named]
    output: Path
    rank: int | None = None
    to: str | None = None
    dtype: str | None = None
    base: str = ""
    overwrite: bool = False


def merge(order: Order, tell: Tell) -> Path:
    """Merge, write, read again, compare.

    Raises:
        ConfigError: the order makes no sense, or its place is taken.
        BaseModelError: a LoRA cannot be read, or they do not belong together.
        NumericsError, MachineError: see `writing.write`.
    """
    opened = sources.open_all(order.named)
    if len(opened) < 2:
        raise ConfigError("lora.merge_needs_two")
    sources.refuse_strangers(opened)
    for one in opened:
        sources.refuse_dependent(one)
    meta = describe(opened)
    inputs = [one.named.path for one in opened]
    target = writing.plan(order.output, order.to, meta, inputs, bases=[order.base], overwrite=order.overwrite)
    base = sources.find_base(order.base, meta.family, opened[0].named.path) if order.base else None
    _tell_bases(opened, tell)
    if order.rank is None:
        made = exact(opened, meta, base)
        tell("lora.merged_exactly", count=len(opened), modules=len(made), rank=_ranks(made))
    else:
        made, kept = truncated(opened, meta, order.rank, base)
        params = {"rank": _ranks(made), "kept": sources.percent(kept), "error": sources.percent(math.sqrt(1 - kept))}
        tell("lora.merged_to_rank", count=len(opened), modules=len(made), **params)
    read = writing.write(writing.cast(made, order.dtype), target, tell)
    if base is not None:
        before = [(one.adapter, one.named.weight) for one in opened]
        family = sources.load_base(base)
        if order.rank is None and order.dtype in (None, "float32"):
            proof.same(family, before, [(read, 1.0)], target.name, tell)
        else:
            proof.near(family, before, [(read, 1.0)], tell)
    return target.path


def exact(opened: Sequence[Opened], meta: AdapterMeta, base: Base | None = None) -> Adapter:
    """Return the weighted sum as pairs whose ranks are the sums of the ranks.

    Raises:
        ConfigError: an update is no pair.
    """
    for one in opened:
        kinds = {update.kind for update in sources.flat(one.adapter).values() if not isinstance(update, LoraPair)}
        if kinds:
            raise ConfigError("lora.exact_needs_pairs", path=one.named.path, kind=some(kinds))
    sums = {component: {m: arithmetic.added(p) for m, p in parts.items()} for component, parts in _parts(opened, base)}
    alpha = float(max(part.rank for parts in sums.values() for part in parts.values()))
    made = {c: {m: arithmetic.as_pair(part, alpha) for m, part in parts.items()} for c, parts in sums.items()}
    return Adapter(made, meta)


def truncated(
    opened: Sequence[Opened], meta: AdapterMeta, rank: int, base: Base | None = None
) -> tuple[Adapter, float]:
    """Return the weighted sum as pairs of at most this rank, and the share of its energy that they keep."""
    made: dict[str, dict[str, LoraPair]] = {}
    whole = kept = 0.0
    for component, parts in _parts(opened, base):
        made[component] = {}
        for module, summands in parts.items():
            found = arithmetic.spectrum(arithmetic.added(summands))
            own = min(rank, len(found.values))
            made[component][module] = arithmetic.pair(found, own, float(rank))
            whole += arithmetic.energy(found.values)
            kept += arithmetic.energy(found.values[:own])
    return Adapter(made, meta), min(1.0, kept / whole) if whole else 1.0


def _parts(opened: Sequence[Opened], base: Base | None) -> list[tuple[str, dict[str, list[tuple[Factors, float]]]]]:
    """Return, by component and module, every LoRA's factors and weight."""
    found: dict[str, dict[str, list[tuple[Factors, float]]]] = {}
    for one in opened:
        for component, parts in sources.factored(one, base).items():
            for module, part in parts.items():
                found.setdefault(component, {}).setdefault(module, []).append((part, one.named.weight))
    return [(component, dict(sorted(parts.items()))) for component, parts in sorted(found.items())]


def describe(opened: Sequence[Opened]) -> AdapterMeta:
    """Return what is true of all, and where it comes from."""
    metas = [one.adapter.meta for one in opened]
    recipe = ", ".join(f"{one.adapter.meta.name} x {one.named.weight:g}" for one in opened)
    triggers = dict.fromkeys(meta.trigger for meta in metas if meta.trigger)
    return replace(
        metas[0],
        base_name=_common(meta.base_name for meta in metas),
        base_hash=_common(meta.base_hash for meta in metas),
        base_reference=_common(meta.base_reference for meta in metas),
        kind=LoraPair.kind,
        variant=next((meta.variant for meta in metas if meta.variant), ""),
        steps=0,
        epochs=0,
        trigger=", ".join(triggers),
        training={"training_comment": f"merged: {recipe}", "merged_from": ", ".join(meta.name for meta in metas)},
    )


def _common(said: Iterable[str]) -> str:
    """Return what all say, or "" where they do not agree."""
    found = set(said)
    return found.pop() if len(found) == 1 else ""


def _tell_bases(opened: Sequence[Opened], tell: Tell) -> None:
    """Say it where two LoRAs tell of different weights of their base: the sum is right, the picture may not be."""
    told = {one.adapter.meta.base_hash: one.named.name for one in opened if one.adapter.meta.base_hash}
    if len(told) > 1:
        tell("lora.bases_differ", names=some(told.values()))


def _ranks(adapter: Adapter) -> str:
    """Return "8", or "4 to 16"."""
    ranks = {update.rank for update in sources.flat(adapter).values()}
    return str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)}-{max(ranks)}"
