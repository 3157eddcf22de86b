"""Which attention kernel runs: a fixed rule, so that two fresh runs of one command give equal bytes.

On the CPU, PyTorch's flash kernel has a large fixed cost in 16-bit formats, which plain matrix products beat for few
query positions; in float32, and for more positions, it is as fast or faster. The width of a head changes the times but
not which kernel wins. One forward and backward pass, one thread, milliseconds (`python -m bench.attention`):

    queries x keys   heads x width   rows     float32: math    flash     bf16: math    flash
         16 x 16         7 x 32       16               1.00     0.45           0.81     6.03
         64 x 64         4 x 32       16               2.38     1.56           2.64     7.67
         64 x 64         8 x 160       4               3.74     2.95           4.54     5.24
         77 x 77        12 x 64        2               1.81     1.81           2.12     5.15
        256 x 256        8 x 32        4              13.02     7.50          13.79    11.66
        256 x 77         8 x 160       2               6.12     6.06           7.03     7.34
        256 x 256        8 x 160       2              17.59    16.64          20.13     9.94
        576 x 576        8 x 80        1              31.61    23.78          29.96    18.48
       1024 x 1024       8 x 80        1             162.49    63.65         178.74    36.49
       4096 x 4096       8 x 40        1            3597.98   584.81        2536.47   426.38
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FEW_POSITIONS = 128


def chosen(
    wish: str, device: torch.device, positions: int, dtype: torch.dtype | None = None
) -> AbstractContextManager[None]:
    """Return the context in which one attention runs.

    Args:
        wish: "math", "flash" or "auto".
        positions: of the queries.
        dtype: number format of what goes in; automatic mixed precision, where it is on, has the last word.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if wish == "auto":
        is_short = dtype is not None and dtype.itemsize == 2 and positions <= FEW_POSITIONS
        wish = "math" if device.type == "cpu" and is_short else "free"
    if wish == "math":
        return sdpa_kernel(SDPBackend.MATH)
    if wish == "flash":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    return nullcontext()


class Chosen:
    """A diffusers attention processor that runs another one under the rule.

    The choice is made at each call, not once around the network: gradient checkpointing calls again during the
    backward pass, and must find the kernel of the forward pass.
    """

    def __init__(self, inner: Any, wish: str):
        self.inner, self.wish = inner, wish

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend; (B, positions, C) or (B, C, H, W) in and out."""
        positions = hidden_states.shape[1] if hidden_states.ndim == 3 else hidden_states[0, 0].numel()
        with chosen(self.wish, hidden_states.device, positions, hidden_states.dtype):
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def install(network: Any, wish: str) -> None:
    """Put every attention of a diffusers network under the rule."""
    network.set_attn_processor({name: Chosen(inner, wish) for name, inner in network.attn_processors.items()})
