"""Does a file say what the adapter says: every module, every update, in float32."""

from __future__ import annotations

from lora_scripts.adapters.adapter import Adapter
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
    for component in live.pairs.keys() | written.pairs.keys():
        ours, theirs = live.pairs.get(component, {}), written.pairs.get(component, {})
        names = ours.keys() ^ theirs.keys()
        if names:
            raise NumericsError("adapter.modules_differ", name=live.meta.name, count=len(names), names=some(names))
        for path, pair in ours.items():
            update = pair.delta()
            difference = float((theirs[path].delta() - update).norm())
            if not difference <= tolerance * float(update.norm()):
                relative = difference / max(float(update.norm()), 1e-30)
                raise NumericsError(
                    "adapter.update_differs", name=live.meta.name, module=f"{component}.{path}", by=f"{relative:.1e}"
                )
