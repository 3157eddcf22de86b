"""AdamW with moments in 8 bits, in blocks of 256 numbers (arXiv:2110.02861), by bitsandbytes; on GPUs and CPUs.

Tensors below `min_8bit_size` numbers keep float32 moments: they weigh little, and 8 bits would cost them precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    from torch.optim import Optimizer

NEEDS = {"bitsandbytes": "quantized"}


class Config(BaseModel):
    """Options of `optimizer: {name: adamw8bit, ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, le=10)
    min_8bit_size: int = Field(4096, ge=1)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr").

    Raises:
        ConfigError: the tensors are in float64, which moments of 8 bits would make a mockery of.
    """
    import torch

    if any(tensor.dtype == torch.float64 for group in groups for tensor in group["params"]):
        raise ConfigError("config.eight_bits_of_float64")
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(
        list(groups),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        min_8bit_size=config.min_8bit_size,
    )
