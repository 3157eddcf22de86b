"""Which attention kernel runs: a fixed rule, so that two fresh runs of one command give equal bytes.

On the CPU, PyTorch's flash attention has a slow backward pass for few positions and small heads; plain matrix products
are faster below about a thousand positions. Forward and backward of one self-attention, 8 heads, batch 8, float32,
one thread, milliseconds (`python -m bench.attention`):

    positions x head width   math    flash
    64 x 32                  MEASURED
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FEW_POSITIONS = 1024


def chosen(wish: str, device: torch.device, positions: int, head_width: int) -> AbstractContextManager[None]:
    """Return the context in which the network runs.

    Args:
        wish: "math", "flash" or "auto".
        positions: of the longest self-attention.
        head_width: channels of one head.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if wish == "auto":
        wish = "math" if device.type == "cpu" and positions < FEW_POSITIONS and head_width <= 64 else "free"
    if wish == "math":
        return sdpa_kernel(SDPBackend.MATH)
    if wish == "flash":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return nullcontext()
