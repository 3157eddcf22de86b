"""Schedule-free AdamW (arXiv:2405.15682, algorithm 1), by pytorch-optimizer: an average in place of a schedule.

It trains at y, between the average x and the steps z. x is what is previewed, measured and exported (its `eval()`,
through `train.averaging`); checkpoints keep y and z. Its rate is constant; the run's `warmup` is the warm-up of the
paper, whose small rates count little in the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer

NEEDS = {"pytorch_optimizer": "optimizers"}
SCHEDULE = "constant"
AVERAGES = True
# One to ten times AdamW's rate under a schedule is its authors' advice.
RATE = 3e-4


class Config(BaseModel):
    """Options of `optimizer: {name: schedule_free, ...}`.

    A step counts in the average by its number to the power of `r`, times the largest rate so far to the power of
    `weight_lr_power`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float = Field(0.9, gt=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, le=10)
    r: float = Field(0.0, ge=0, le=10)
    weight_lr_power: float = Field(2.0, ge=0, le=10)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr")."""
    from pytorch_optimizer import ScheduleFreeAdamW

    return ScheduleFreeAdamW(
        list(groups),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        r=config.r,
        weight_lr_power=config.weight_lr_power,
    )
