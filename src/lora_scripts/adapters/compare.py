"""Is an adapter fit to be written, and does a file say what it says: every module, every update, in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_scripts.adapters.adapter import Adapter, Update
from lora_scripts.adapters.names import some
from lora_scripts.errors import NumericsError

if TYPE_CHECKING:
    from torch import Tensor

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
        if not all(bool(torch.isfinite(tensor).all()) for tensor in pair.tensors().values()):
            raise NumericsError("adapter.not_finite", name=module)


def _flat(adapter: Adapter) -> dict[str, Update]:
    return {f"{component}.{path}": pair for component, pairs in adapter.pairs.items() for path, pair in pairs.items()}


def _difference(written: Update, live: Update) -> float:
    """Return the norm of the two updates' difference, relative to the live one's; the largest of several."""
    if written.kind != live.kind:
        return math.inf
    try:
        ours, theirs = live.compared(), written.compared()
    except RuntimeError:
        # Factors that cannot be multiplied.
        return math.inf
    if {name: tensor.shape for name, tensor in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        return math.inf
    found = [_apart(theirs[name], tensor) for name, tensor in ours.items()]
    return math.nan if any(map(math.isnan, found)) else max(found)


def _apart(written: Tensor, live: Tensor) -> float:
    norm = float(live.norm())
    difference = float((written - live).norm())
    return difference / norm if norm else (math.inf if difference else 0.0)
