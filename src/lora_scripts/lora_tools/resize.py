"""`lora resize`: every module at the smallest rank that keeps what one asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.adapters import arithmetic
from lora_scripts.adapters.adapter import Adapter, AdapterMeta, LoraPair
from lora_scripts.adapters.arithmetic import Spectrum
from lora_scripts.errors import ConfigError
from lora_scripts.lora_tools import proof, sources, writing
from lora_scripts.lora_tools.sources import Named, Tell

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Wish:
    """How much of every module is kept; each that is given is a limit, and the smallest rank counts.

    Attributes:
        rank: at most.
        energy: the share of the squared singular values to keep.
        ratio: singular values below the largest divided by this go.
    """

    rank: int | None = None
    energy: float | None = None
    ratio: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return self == Wish()

    def rank_of(self, values: Tensor) -> int:
        """Return the rank of a module with these singular values."""
        ranks = [len(values)]
        if self.rank is not None:
            ranks.append(self.rank)
        if self.energy is not None:
            ranks.append(arithmetic.rank_for_energy(values, self.energy))
        if self.ratio is not None:
            ranks.append(arithmetic.rank_for_ratio(values, self.ratio))
        return min(ranks)


@dataclass(frozen=True)
class Kept:
    """What is left after a truncation.

    Attributes:
        adapter: plain pairs, all with one alpha.
        share: of the energy of all modules.
        least: the smallest share of one module.
        module: that module.
    """

    adapter: Adapter
    share: float
    least: float
    module: str


@dataclass(frozen=True)
class Order:
    """What to resize; see `merge.Order`."""

    named: Named
    output: Path
    wish: Wish
    to: str | None = None
    dtype: str | None = None
    base: str = ""
    overwrite: bool = False


def resize(order: Order, tell: Tell) -> Path:
    """Resize, write, read again, compare.

    Raises:
        ConfigError: nothing is asked for, a rank above the stored one, or the place is taken.
        BaseModelError: the LoRA cannot be read, or has no ranks.
        NumericsError, MachineError: see `writing.write`.
    """
    if order.wish.is_empty:
        raise ConfigError("lora.resize_how")
    (one,) = sources.open_all([order.named], dtype=None)
    sources.refuse_dependent(one)
    meta, path = one.adapter.meta, order.named.path
    target = writing.plan(order.output, order.to, meta, [path], bases=[order.base], overwrite=order.overwrite)
    base = sources.find_base(order.base, meta.family, path) if order.base else None
    stored = max(update.rank for update in sources.flat(one.adapter).values())
    # Kinds without a rank of their own have as many singular values as their matrices have rows or columns.
    if order.wish.rank is not None and order.wish.rank > stored and meta.kind == LoraPair.kind:
        raise ConfigError("lora.rank_above", path=path, rank=order.wish.rank, stored=stored)
    spectra = {
        component: {module: arithmetic.spectrum(part) for module, part in parts.items()}
        for component, parts in sources.factored(one, base).items()
    }
    comment = f"resized from {meta.name}, rank {stored}"
    told = replace(meta, kind=LoraPair.kind, training={**meta.training, "training_comment": comment})
    kept = truncate(spectra, order.wish, told)
    tell_ranks(one.adapter, kept, tell)
    read = writing.write(writing.cast(kept.adapter, order.dtype or _dtype(one.adapter)), target, tell)
    if base is not None:
        proof.near(sources.load_base(base), [(one.adapter, 1.0)], [(read, 1.0)], tell)
    return target.path


def truncate(spectra: Mapping[str, Mapping[str, Spectrum]], wish: Wish, meta: AdapterMeta) -> Kept:
    """Return the best pairs of the wished ranks, all with one alpha: what every reader reads right."""
    ranks = {c: {m: wish.rank_of(found.values) for m, found in part.items()} for c, part in spectra.items()}
    alpha = float(max(rank for part in ranks.values() for rank in part.values()))
    made: dict[str, dict[str, LoraPair]] = {}
    shares: dict[str, float] = {}
    whole = kept = 0.0
    for component, part in spectra.items():
        made[component] = {}
        for module, found in part.items():
            rank = ranks[component][module]
            made[component][module] = arithmetic.pair(found, rank, alpha)
            own, left = arithmetic.energy(found.values), arithmetic.energy(found.values[:rank])
            whole, kept = whole + own, kept + left
            shares[f"{component}.{module}"] = left / own if own else 1.0
    worst = min(shares, key=lambda module: (shares[module], module))
    share = min(1.0, kept / whole) if whole else 1.0
    return Kept(Adapter(made, meta), share, min(1.0, shares[worst]), worst)


def tell_ranks(before: Adapter, kept: Kept, tell: Tell) -> None:
    """Say ranks, numbers and what is kept, and the module that lost most."""
    old, new = _ranks(before), _ranks(kept.adapter)
    tell("lora.resized", before=old, after=new, old=f"{_numbers(before):,}", new=f"{_numbers(kept.adapter):,}")
    tell_kept(kept, tell)


def tell_kept(kept: Kept, tell: Tell) -> None:
    """Say what is kept, and the module that lost most."""
    tell(
        "lora.kept",
        share=sources.percent(kept.share),
        error=sources.percent(math.sqrt(1 - kept.share)),
        module=kept.module,
        least=sources.percent(kept.least),
    )


def _dtype(adapter: Adapter) -> str | None:
    """Return the number format that all pairs share: a resized file keeps it."""
    found = {str(pair.down.dtype) for pair in sources.flat(adapter).values() if isinstance(pair, LoraPair)}
    name = found.pop().removeprefix("torch.") if len(found) == 1 else ""
    return name if name in writing.DTYPES else None


def _ranks(adapter: Adapter) -> str:
    ranks = sorted(update.rank for update in sources.flat(adapter).values())
    middle = ranks[len(ranks) // 2]
    return str(middle) if ranks[0] == ranks[-1] else f"{ranks[0]}-{ranks[-1]} ({middle})"


def _numbers(adapter: Adapter) -> int:
    return sum(tensor.numel() for update in sources.flat(adapter).values() for tensor in update.tensors().values())
