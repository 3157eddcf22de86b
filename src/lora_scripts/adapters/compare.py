"""Is an adapter fit to be written, and does a file say what it says: every module, every update, in float32."""

from __future__ import annotations

import math

from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.names import some
from lora_scripts.errors import NumericsError

TOLERANCE = 1e-6


def compare(written: Adapter, live: Adapter, tolerance: float = TOLERANCE) -> None:
    """Compare the two adapters' updates, module by module.

    Args:
        written: what another library read from the file.
        tolerance: largest allowed norm of the difference, relative to the norm of the live update.

    Raises:
        NumericsError: modules are missing or left over, or an update differs; the worst is named.
    """
    ours, theirs = _flat(live), _flat(written)
    alone = ours.keys() ^ theirs.keys()
    if alone:
        raise NumericsError("adapter.modules_differ", name=live.meta.name, count=len(alone), names=some(alone))
    differences = {module: _difference(theirs[module], pair) for module, pair in sorted(ours.items())}
    # Written so that a difference that is not a number fails too.
    wrong = [module for module, difference in differences.items() if not difference <= tolerance]
    if wrong:
        worst = max(wrong, key=lambda module: (math.isnan(differences[module]), differences[module]))
        raise NumericsError("adapter.update_differs", name=live.meta.name, module=worst, by=f"{differences[worst]:.1e}")


def check_finite(adapter: Adapter) -> None:
    """Refuse an adapter with a value that is not finite.

    Raises:
        NumericsError: names the module.
    """
    import torch

    for module, pair in _flat(adapter).items():
        if not bool(torch.isfinite(pair.down).all() and torch.isfinite(pair.up).all()):
            raise NumericsError("adapter.not_finite", name=module)


def _flat(adapter: Adapter) -> dict[str, LoraPair]:
    return {f"{component}.{path}": pair for component, pairs in adapter.pairs.items() for path, pair in pairs.items()}


def _difference(written: LoraPair, live: LoraPair) -> float:
    """Return the norm of the two updates' difference, relative to the live one's."""
    if written.up.shape[1] != written.rank:
        return math.inf
    update, other = live.delta(), written.delta()
    if update.shape != other.shape:
        return math.inf
    norm = float(update.norm())
    difference = float((other - update).norm())
    return difference / norm if norm else (math.inf if difference else 0.0)
