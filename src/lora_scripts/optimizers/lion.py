"""Lion (arXiv:2302.06675, algorithm 2), by pytorch-optimizer: the sign of a momentum, half of AdamW's memory.

Every number moves by the whole rate in every step, so the rate is a third to a tenth of AdamW's (section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer

NEEDS = {"pytorch_optimizer": "optimizers"}
RATE = 3e-5


class Config(BaseModel):
    """Options of `optimizer: {name: lion, ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(0.03, ge=0, le=10)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr")."""
    from pytorch_optimizer import Lion

    return Lion(list(groups), betas=(config.beta1, config.beta2), weight_decay=config.weight_decay)
