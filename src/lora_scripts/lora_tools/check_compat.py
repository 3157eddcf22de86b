"""`lora check-compat`: may these be used together, and do they change the same things?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_scripts.adapters import arithmetic
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.adapters.families import title
from lora_scripts.lora_tools import sources, verify
from lora_scripts.lora_tools.info import programs_of
from lora_scripts.lora_tools.sources import Named, Opened
from lora_scripts.lora_tools.verify import Check

# Cosines between the updates of two LoRAs, and what they mean; from the largest down.
PULLS = (
    (0.5, "lora.pull_same"),
    (0.1, "lora.pull_similar"),
    (-0.1, "lora.pull_apart"),
    (-math.inf, "lora.pull_against"),
)


@dataclass(frozen=True)
class Overlap:
    """How much the updates of two LoRAs have in common.

    Attributes:
        both, first, second: modules that both change, that only one does.
        cosine: of the angle between the two changes of the whole network, -1 to 1.
        shared: share of the weaker-covered change's energy that lies where the other reads and writes.
    """

    both: int
    first: int
    second: int
    cosine: float
    shared: float


def check(named: Sequence[Named], base: str = "") -> Iterator[Check]:
    """Yield what is found on every file, then on every two.

    Raises:
        ConfigError: there is none.
        BaseModelError: one cannot be read.
    """
    opened = sources.open_all(named)
    for one in opened:
        meta = one.adapter.meta
        origin = meta.base_name or meta.base_reference or "?"
        params = {"name": one.named.name, "family": title(meta.family), "base": origin, "modules": len(one.adapter)}
        yield Check("lora.compat_file", params)
        found = programs_of(one.named.path, one.adapter)
        yield Check("lora.loads", {"programs": ", ".join(found) or "-"})
        if base:
            yield from _on_base(one, base)
    for first, second in itertools.combinations(opened, 2):
        yield from _pair(first, second)


def _on_base(one: Opened, base: str) -> Iterator[Check]:
    """Say whether one fits the base."""
    meta = one.adapter.meta
    found = sources.base_for(base)
    if found.family != meta.family:
        params = {"path": one.named.path, "family": title(meta.family), "base": base, "found": title(found.family)}
        yield Check("lora.other_base_family", params, is_good=False)
        return
    yield from verify.against(one.named.path, one.adapter, found)


def _pair(first: Opened, second: Opened) -> Iterator[Check]:
    names = {"first": first.named.name, "second": second.named.name}
    ours, theirs = first.adapter.meta, second.adapter.meta
    if ours.family != theirs.family:
        yield Check(
            "lora.compat_families", {**names, "one": title(ours.family), "other": title(theirs.family)}, is_good=False
        )
        return
    updates, others = sources.flat(first.adapter), sources.flat(second.adapter)
    clash = [module for module in updates.keys() & others.keys() if updates[module].size != others[module].size]
    if clash:
        yield Check("lora.compat_sizes", {**names, "count": len(clash), "module": min(clash)}, is_good=False)
        return
    yield Check(_bases(ours, theirs), names)
    found = overlap(first, second)
    counts = {"both": found.both, "first_only": found.first, "second_only": found.second}
    yield Check("lora.compat_modules", {**names, **counts})
    if found.both and not math.isnan(found.cosine):
        numbers = {"cosine": f"{found.cosine:.2f}", "shared": sources.percent(found.shared)}
        yield Check(next(code for least, code in PULLS if found.cosine >= least), {**names, **numbers})


def _bases(ours: AdapterMeta, theirs: AdapterMeta) -> str:
    """Return what to say of the two bases."""
    if not ours.base_hash or not theirs.base_hash:
        return "lora.compat_base_unknown"
    return "lora.compat_base_same" if ours.base_hash == theirs.base_hash else "lora.compat_base_other"


def overlap(first: Opened, second: Opened) -> Overlap:
    """Compare two LoRAs module by module; updates that depend on the base's weights are left out of the angle."""
    updates, others = sources.flat(first.adapter), sources.flat(second.adapter)
    both = updates.keys() & others.keys()
    product = ours = theirs = in_second = in_first = 0.0
    for name in sorted(updates.keys() | others.keys()):
        a, b = (
            None if made is None or sources.depends(made) else arithmetic.factors(made)
            for made in (updates.get(name), others.get(name))
        )
        ours += arithmetic.product(a, a) if a else 0.0
        theirs += arithmetic.product(b, b) if b else 0.0
        if a and b:
            product += arithmetic.product(a, b)
            in_second += arithmetic.inside(a, b)
            in_first += arithmetic.inside(b, a)
    cosine = product / math.sqrt(ours * theirs) if ours > 0 and theirs > 0 else math.nan
    shared = max(in_second / ours, in_first / theirs) if ours > 0 and theirs > 0 else math.nan
    return Overlap(len(both), len(updates.keys() - both), len(others.keys() - both), cosine, min(1.0, shared))
