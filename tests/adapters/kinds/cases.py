"""Every kind of update, with each option that makes another of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.adapters.networks import EVERYWHERE

CASES: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "rslora": {"kind": "lora", "options": {"rank_stabilised": True}},
    "pissa": {"kind": "lora", "options": {"start": "pissa"}},
    "dora": {"kind": "dora"},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr-low": {"kind": "lokr", "options": {"factor": 8, "decompose_both": True}},
}
# Linear layers, a 1x1 and a 3x3 convolution, one with a stride, and the text encoder.
MIXED = {
    "unet": (r"mid_block\..*(attn1\.to_q|ff\.net\.2|proj_in|resnets\.0\.conv1)", r"down_blocks\.0\.down.*conv"),
    "text_encoder": (r".*layers\.1\.(self_attn\.v_proj|mlp\.fc1)",),
}
MODULES = 7
__all__ = ["CASES", "EVERYWHERE", "MIXED", "MODULES", "Section"]


@dataclass(frozen=True)
class Section:
    """What a section of `lora_layers` says."""

    match: str
    rank: int | None = None
    alpha: float | None = None
    learning_rate: float | None = None
