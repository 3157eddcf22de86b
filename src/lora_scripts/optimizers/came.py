"""CAME (arXiv:2307.02047, algorithm 2), by pytorch-optimizer: Adafactor's memory, with a say for how sure a step is.

Rows and columns are a tensor's last two dimensions; the vectors of an adapter keep whole second moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer

NEEDS = {"pytorch_optimizer": "optimizers"}


class Config(BaseModel):
    """Options of `optimizer: {name: came, ...}`.

    `beta3` is for the squared differences between update and momentum; `epsilon` is added to squared gradients,
    `epsilon2` to those differences; `clip_threshold` is the largest root mean square of an update before the rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    beta3: float = Field(0.9999, ge=0, lt=1)
    epsilon: float = Field(1e-30, gt=0, le=1)
    epsilon2: float = Field(1e-16, gt=0, le=1)
    clip_threshold: float = Field(1.0, gt=0, le=1000)
    weight_decay: float = Field(0.01, ge=0, le=10)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr")."""
    from pytorch_optimizer import CAME

    return CAME(
        list(groups),
        betas=(config.beta1, config.beta2, config.beta3),
        eps1=config.epsilon,
        eps2=config.epsilon2,
        clip_threshold=config.clip_threshold,
        weight_decay=config.weight_decay,
    )
