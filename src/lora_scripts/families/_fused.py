"""The parts of a transformer that keep more for the backward pass than they need, written so that they keep little.

A low-rank linear layer y = x W^T + s (x A^T) B^T with W frozen keeps x alone; x A^T is formed again, and W gets no
gradient (arXiv:2106.09685, section 4.1). A frozen RMS norm keeps its input and one number a row, a gate its two inputs.
Values are those of PEFT and transformers up to rounding; `docs/benchmarks.md` says what they pay.

Shapes: T = rows, i = in, o = out, r = rank.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from types import MethodType
from typing import TYPE_CHECKING, Any

from lora_scripts.adapters.inject import SLOT

if TYPE_CHECKING:
    from torch import Tensor


def install(model: Any) -> None:
    """Replace the forward pass of PEFT layers, frozen norms and gated networks, where they are of the plain kind."""
    for module in model.modules():
        if _is_plain_pair(module):
            module.forward = MethodType(_pair_forward, module)
        elif type(module).__name__.endswith("RMSNorm") and _norm_agrees(module):
            module.forward = MethodType(_norm_forward, module)
    for module in model.modules():
        if _is_gated(module) and _gated_agrees(module):
            module.forward = MethodType(_gated_forward, module)


def _is_plain_pair(module: Any) -> bool:
    """A linear layer held in floating point, with one plain pair and no dropout."""
    from torch import nn

    if not hasattr(module, "lora_A") or not isinstance(getattr(module, "base_layer", None), nn.Linear):
        return False
    plain = module.base_layer.weight.is_floating_point() and type(module.base_layer) is nn.Linear
    dropout = getattr(module.lora_dropout[SLOT], "p", 0.0) if SLOT in module.lora_A else 1.0
    return plain and not module.lora_variant and not dropout


def _pair_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base, scale = self.base_layer, self.scaling[SLOT]
    return functions()[0].apply(x, base.weight, base.bias, self.lora_A[SLOT].weight, self.lora_B[SLOT].weight, scale)


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return functions()[1].apply(hidden_states, self.weight, self.variance_epsilon)


def _norm_agrees(module: Any) -> bool:
    """Try the norm on a few numbers: some add one to their weight, some round elsewhere."""
    import torch

    weight = getattr(module, "weight", None)
    if weight is None or weight.requires_grad or not hasattr(module, "variance_epsilon"):
        return False
    probe = torch.linspace(-2, 3, 3 * weight.shape[0], device=weight.device).view(3, -1).to(weight.dtype)
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        return bool(torch.equal(module(probe), _norm_forward(module, probe)))


def _is_gated(module: Any) -> bool:
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(hasattr(module, part) for part in parts) and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(functions()[2].apply(self.gate_proj(x), self.up_proj(x)))


def _gated_agrees(module: Any) -> bool:
    """Try the network on a few numbers: some have more in it than their parts' names say."""
    import torch

    weight = next(chain(module.parameters(), module.buffers()))
    width = getattr(module.gate_proj, "in_features", 0)
    probe = torch.linspace(-2, 3, 3 * width, device=weight.device).view(1, 3, -1)
    floating = [p.dtype for p in module.parameters() if p.is_floating_point() and not p.requires_grad]
    with torch.no_grad():
        probe = probe.to(floating[0] if floating else torch.float32)
        return bool(torch.equal(module(probe), _gated_forward(module, probe)))


@cache
def functions() -> tuple[Any, Any, Any]:
    """The autograd functions: linear with a pair, RMS norm, gate. Made here: torch is not imported at the top."""
    import torch
    from torch.nn import functional

    class PairLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight_oi: Tensor, bias: Any, down_ri: Tensor, up_or: Tensor, scale: float):
            with torch.autocast(x.device.type, enabled=False):
                x_Ti = x.to(weight_oi.dtype).reshape(-1, x.shape[-1])
                made = functional.linear(x_Ti, weight_oi, bias)
                inner = x_Ti @ down_ri.to(x_Ti.dtype).T
                made.addmm_(inner, up_or.to(x_Ti.dtype).T, alpha=scale)
            ctx.save_for_backward(x_Ti, weight_oi, down_ri, up_or)
            ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
            return made.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor):
            x_Ti, weight_oi, down_ri, up_or = ctx.saved_tensors
            with torch.autocast(x_Ti.device.type, enabled=False):
                up_To = upstream.reshape(-1, upstream.shape[-1]).to(x_Ti.dtype)
                inner = (up_To @ up_or.to(x_Ti.dtype)).mul_(ctx.scale)
                for_down = (inner.T @ x_Ti).to(down_ri.dtype)
                for_up = (up_To.T @ (x_Ti @ down_ri.to(x_Ti.dtype).T)).mul_(ctx.scale).to(up_or.dtype)
                for_x = None
                if ctx.needs_input_grad[0]:
                    for_x = (up_To @ weight_oi).addmm_(inner, down_ri.to(x_Ti.dtype)).view(ctx.shape).to(ctx.dtype)
            return for_x, None, None, for_down, for_up, None

    class RmsNorm(torch.autograd.Function):
        """y = w * x / sqrt(mean(x^2) + epsilon) (arXiv:1910.07467, equation 4), formed in float32."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float):
            kept = torch.promote_types(x.dtype, torch.float32)
            wide = x.to(kept)
            inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
            ctx.save_for_backward(x, weight, inverse)
            return weight * (wide * inverse).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor):
            x, weight, inverse = ctx.saved_tensors
            normed = x.to(inverse.dtype) * inverse
            weighted = (upstream * weight).to(inverse.dtype)
            for_x = (weighted - normed * (weighted * normed).mean(-1, keepdim=True)) * inverse
            return for_x.to(x.dtype), None, None

    class Gate(torch.autograd.Function):
        """y = silu(gate) * up (arXiv:2002.05202, equation 6); silu(gate) is formed again."""

        @staticmethod
        def forward(ctx: Any, gate: Tensor, up: Tensor):
            ctx.save_for_backward(gate, up)
            return functional.silu(gate).mul_(up)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor):
            gate, up = ctx.saved_tensors
            share = torch.sigmoid(gate)
            for_up = upstream * gate * share
            for_gate = share.mul_(1 + gate * (1 - share)).mul_(upstream).mul_(up)
            return for_gate, for_up

    return PairLinear, RmsNorm, Gate
