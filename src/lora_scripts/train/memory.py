"""How much memory is in use, on whichever device trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def used_bytes(device: torch.device) -> int:
    """Return bytes allocated on a CUDA device, or this process's resident bytes."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Return the largest resident size this process has had, or the present one where the system does not tell."""
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:
        import psutil

        return psutil.Process().memory_info().rss
