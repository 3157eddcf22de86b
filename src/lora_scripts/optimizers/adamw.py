"""AdamW (arXiv:1711.05101), torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Config(BaseModel):
    """Options of `optimizer: {name: adamw, ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, le=10)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr")."""
    import torch

    return torch.optim.AdamW(
        list(groups), betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=config.weight_decay
    )
