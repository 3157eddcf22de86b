"""Adafactor (arXiv:1804.04235) with a given rate, by transformers: row and column means instead of second moments.

The paper's relative step (its section 8) multiplies the rate by each tensor's size; a low-rank pair starts with zeros,
which would hardly leave zero. So the rate is the config's, as for every other optimizer, and schedules mean what they
say. torch's own Adafactor knows the relative step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Config(BaseModel):
    """Options of `optimizer: {name: adafactor, ...}`.

    `beta1` adds momentum, at a second moment's memory; `decay_rate` is the power of the step's number by which the
    second moments forget; `clip_threshold` the largest root mean square of an update before the rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta1: float | None = Field(None, ge=0, lt=1)
    decay_rate: float = Field(-0.8, ge=-1, lt=0)
    clip_threshold: float = Field(1.0, gt=0, le=1000)
    epsilon: float = Field(1e-30, gt=0, le=1)
    weight_decay: float = Field(0.0, ge=0, le=10)


def build(groups: Sequence[dict[str, Any]], config: Config) -> Optimizer:
    """Return the optimizer over `groups` (each with "params" and "lr")."""
    from transformers.optimization import Adafactor

    return Adafactor(
        list(groups),
        eps=(config.epsilon, 1e-3),
        clip_threshold=config.clip_threshold,
        decay_rate=config.decay_rate,
        beta1=config.beta1,
        weight_decay=config.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
