"""Prodigy (arXiv:2306.06101, the Adam version), by pytorch-optimizer: AdamW that finds its rate, a distance d, itself.

`learning_rate` multiplies d, so it is 1 unless something is wrong; `d_coef` is the knob its authors recommend. There
is one d for all tensors, so all of them learn at one rate: the text encoder's too. The defaults are the authors'
for diffusion models: decay, bias correction, and an estimate that a warm-up does not disturb. The decay is always
decoupled from the gradient: the library's other form has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer

NEEDS = {"pytorch_optimizer": "optimizers"}
RATE = 1.0
ONE_RATE = True


class Config(BaseModel):
    """Options of `optimizer: {name: prodigy, ...}`.

    `beta3` forgets old distances (left out, the root of beta2); `d0` is the first distance; `growth_rate` the most
    that d may grow by in a step, such as 1.02 (left out, any); `safeguard_warmup` keeps a warm-up out of the estimate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, gt=0, lt=1)
    beta3: float | None = Field(None, gt=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, le=10)
    use_bias_correction: bool = True
    safeguard_warmup: bool = True
    d0: float = Field(1e-6, gt=0, le=1)
    d_coef: float = Field(1.0, gt=0, le=100)
    growth_rate: float | None = Field(None, gt=1)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr", all of one rate)."""
    from pytorch_optimizer import Prodigy

    return Prodigy(
        list(groups),
        betas=(config.beta1, config.beta2),
        beta3=config.beta3,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        weight_decouple=True,
        bias_correction=config.use_bias_correction,
        safeguard_warmup=config.safeguard_warmup,
        d0=config.d0,
        d_coef=config.d_coef,
        growth_rate=math.inf if config.growth_rate is None else config.growth_rate,
    )
