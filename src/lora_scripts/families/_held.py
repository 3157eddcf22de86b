"""Frozen weights held in 8 or 4 bits, and computed in 16: dequantised where they are used, and let go of again.

fp8 is E4M3 (arXiv:2209.05433, section 3) with one scale a row, a power of two, so that dequantising into 16 bits is
exact; nf4 is NormalFloat (arXiv:2305.14314, section 3) in blocks of 64 with a float32 maximum each. A frozen layer
needs its weight alone to pass a gradient on to its input, so the backward pass dequantises once more and keeps nothing.

Layers stay instances of their classes: PEFT puts its pairs beside them as beside any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from lora_scripts.errors import ConfigError, MachineError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BLOCK = 64
# A layer below this many weights saves next to nothing.
SMALLEST = 1 << 12
# What keeps its 16 bits: time and other embeddings, a language model's output, and where latents come in and go out,
# whose few weights every number passes through.
KEPT = re.compile(r"(.*\.)?(\w*emb\w*|lm_head|embed_out|output_layer|conv_in|conv_out)(\..*)?")
# The largest E4M3 number.
LARGEST = 448.0
# What an E4M3 number's bits become when they are moved to the top of another format's: (integers of that size, places
# to the left, mask of the bits that count, difference of the exponents' offsets).
_MOVES = {
    "bfloat16": ("int16", 4, -0x7810, 120),
    "float16": ("int16", 7, -0x4080, 8),
    "float32": ("int32", 20, -0x78100000, 120),
}


def hold(
    network: nn.Module, quantisation: str, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> None:
    """Hold a frozen network's large linear and convolution weights in few bits, layer by layer.

    Args:
        quantisation: "fp8" or "nf4".
        dtype: what the layers compute in; as they are held now where it is left out.
        device: where each weight is moved to first, so that the whole is never there in 16 bits.

    Raises:
        ConfigError: no layer is large enough to be held.
        MachineError: nf4 without bitsandbytes.
    """
    layers = list(holdable(network))
    if not layers:
        raise ConfigError("config.nothing_held", value=quantisation, least=SMALLEST)
    for _, layer in layers:
        hold_layer(layer, quantisation, dtype, device)
    for parameter in network.parameters():
        # What stays as it was may be a view of a mapped file, all of which would stay in memory with it.
        if not parameter.is_meta:
            parameter.data = parameter.data.clone()


def holdable(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that `hold` changes, with their paths."""
    from torch import nn

    for path, layer in network.named_modules():
        is_kind = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros")
        if is_kind and layer.weight.numel() >= SMALLEST and not KEPT.fullmatch(path):
            yield path, layer


def hold_layer(
    layer: Any, quantisation: str, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> None:
    """Hold one layer's weight in few bits; on the meta device only its shape."""
    import torch

    weight = layer.weight.detach().to(device if device is not None else layer.weight.device)
    made = _fp8(weight) if quantisation == "fp8" else _nf4(weight)
    bias = layer.bias
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().to(weight.device, dtype or bias.dtype), requires_grad=False)
    layer.held_dtype = dtype or weight.dtype
    layer.held_shape = tuple(weight.shape)
    del layer._parameters["weight"]
    layer.register_buffer("held_codes", made[0])
    layer.register_buffer("held_scales", made[1])
    linear, convolution = _classes()
    layer.__class__ = linear if isinstance(layer, torch.nn.Linear) else convolution


def is_held(layer: Any) -> bool:
    """Say whether a layer's weight is held in few bits."""
    return "held_codes" in getattr(layer, "_buffers", {})


def dequantised(layer: Any) -> Tensor:
    """Return a held layer's weight in the format it computes in."""
    codes, scales, dtype = layer.held_codes, layer.held_scales, layer.held_dtype
    if scales.ndim == 2:
        return _from_fp8(codes, scales, dtype).view(layer.held_shape)
    return _from_nf4(codes, scales, dtype, layer.held_shape)


def _fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(o, n) E4M3 bits as bytes, which no change of the network's format touches, and (o, 1) scales."""
    import torch

    if weight.is_meta:
        codes = torch.empty(weight.shape[0], weight[0].numel(), dtype=torch.uint8, device="meta")
        return codes, torch.empty(weight.shape[0], 1, device="meta")
    rows = weight.float().flatten(1)
    most = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    # A row of nothing but tiny numbers may not make a scale that 16 bits cannot hold.
    scales = torch.exp2(torch.ceil(torch.log2(most / LARGEST)).clamp_min(-20.0))
    return (rows / scales).to(torch.float8_e4m3fn).view(torch.uint8), scales


def _from_fp8(codes_on: Tensor, scales_o1: Tensor, dtype: torch.dtype) -> Tensor:
    """(o, n) in `dtype`.

    On a CPU, where torch converts one number at a time, the bits are moved into place instead, nine times as fast
    (14.7 million weights to bfloat16, one thread: 57 ms and 6 ms).
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if codes_on.device.type != "cpu" or name not in _MOVES:
        return codes_on.view(torch.float8_e4m3fn).to(dtype).mul_(scales_o1.to(dtype))
    integers, places, mask, offset = _MOVES[name]
    moved = codes_on.view(torch.int8).to(getattr(torch, integers))
    moved.bitwise_left_shift_(places).bitwise_and_(mask)
    return moved.view(dtype).mul_((scales_o1 * 2.0**offset).to(dtype))


def _library() -> Any:
    """bitsandbytes' functions."""
    try:
        import bitsandbytes.functional as functional
    except ImportError as error:
        raise MachineError("llm.no_extra", what="base_precision: nf4", extra="quantized") from error
    return functional


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights a byte, and (blocks,) float32 maxima."""
    import torch

    count = weight.numel()
    if weight.is_meta:
        blocks = -(-count // BLOCK)
        return (
            torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device="meta"),
            torch.empty(blocks, device="meta"),
        )
    made, state = _library().quantize_4bit(
        weight.contiguous().flatten(), blocksize=BLOCK, compress_statistics=False, quant_type="nf4"
    )
    return made, state.absmax


def _from_nf4(codes: Tensor, scales: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    import torch

    if type(codes) is not torch.Tensor:
        # Shapes without values, for an estimate: the library need not be there.
        return torch.empty(shape, dtype=dtype, device=codes.device)
    library = _library()
    # The form that writes into a tensor has no kernel for the CPU, and rows of odd length have only a slow one.
    flat = torch.Size([math.prod(shape)])
    state = library.QuantState(absmax=scales, shape=flat, code=None, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
    return library.dequantize_4bit(codes, state).view(shape)


@cache
def _classes() -> tuple[type[nn.Linear], type[nn.Conv2d]]:
    """Linear and convolution layers over held weights. Made here: torch is not imported at the top."""
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.grad import conv2d_input

    class LinearInput(torch.autograd.Function):
        """y = x W^T + b with W frozen; keeps nothing."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
            ctx.layer, ctx.dtype = layer, x.dtype
            with torch.autocast(x.device.type, enabled=False):
                weight_oi = dequantised(layer)
                return functional.linear(x.to(weight_oi.dtype), weight_oi, layer.bias)

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
            with torch.autocast(upstream.device.type, enabled=False):
                weight_oi = dequantised(ctx.layer)
                return (upstream.to(weight_oi.dtype) @ weight_oi).to(ctx.dtype), None

    class ConvolutionInput(torch.autograd.Function):
        """y = x * W + b with W frozen; keeps nothing but the shape of x."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
            ctx.layer, ctx.dtype, ctx.shape = layer, x.dtype, x.shape
            with torch.autocast(x.device.type, enabled=False):
                weight_oikk = dequantised(layer)
                x = x.to(weight_oikk.dtype)
                return functional.conv2d(x, weight_oikk, layer.bias, *_geometry(layer))

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
            with torch.autocast(upstream.device.type, enabled=False):
                weight_oikk = dequantised(ctx.layer)
                upstream = upstream.to(weight_oikk.dtype)
                made = conv2d_input(ctx.shape, weight_oikk, upstream, *_geometry(ctx.layer))
                return made.to(ctx.dtype), None

    # PEFT makes the pair of a convolution as another of the layer's class: that has to be a plain one. A copy of a held
    # layer is asked for without arguments.
    class HeldLinear(nn.Linear):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return nn.Linear(*args, **kwargs) if args or kwargs else super().__new__(cls)

        def forward(self, x: Tensor) -> Tensor:
            return LinearInput.apply(x, self)

    class HeldConv2d(nn.Conv2d):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return nn.Conv2d(*args, **kwargs) if args or kwargs else super().__new__(cls)

        def forward(self, x: Tensor) -> Tensor:
            return ConvolutionInput.apply(x, self)

    # Read where a kind of pair looks at the weight beside it; a held weight cannot be written.
    for kind in (HeldLinear, HeldConv2d):
        kind.weight = property(dequantised)  # type: ignore[assignment]
    return HeldLinear, HeldConv2d


def _geometry(layer: Any) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups
