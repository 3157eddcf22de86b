"""Which number formats a run uses on this machine: a fixed rule, so that two fresh runs choose alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"float64": "float64", "float32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Precision:
    """How the frozen base is held, and Accelerate's word for how sums are computed ("no", "bf16", "fp16").

    Attributes:
        quantisation: "nf4" or "fp8" where the base's weights are held in 4 or 8 bits (`base` is what they are computed
            in), else "".
    """

    base: torch.dtype
    mixed: str
    quantisation: str = ""


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Say whether bf16 products have hardware: a GPU that says so, or a CPU with AVX512-BF16 or AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


def choose(base: str, mixed: str, device: torch.device) -> Precision:
    """Resolve `base_precision` and `mixed_precision`, either of which may be "auto"."""
    import torch

    quantisation = ""
    if base in ("fp8", "nf4"):
        base, quantisation = "bf16" if mixed in ("auto", "float32") else mixed, base
    if base == "auto":
        base = "bf16" if multiplies_bf16_fast(device) else "float32"
    if mixed == "auto":
        mixed = "float32" if base in ("float32", "float64") else base
    return Precision(getattr(torch, DTYPES[base]), "no" if mixed == "float32" else mixed, quantisation)
