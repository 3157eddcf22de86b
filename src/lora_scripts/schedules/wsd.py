"""Warm-up, stable, decay: the peak rate for most of the run, and a short fall at its end (arXiv:2404.06395, section 4).

The fall is linear, a half cosine, or 1 - sqrt(progress), which arXiv:2405.18392 (section 4) found best.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.schedules._course import between, progress, rise


class Config(BaseModel):
    """Options of `schedule: {name: wsd, ...}`: `decay` is the share of the steps after the warm-up that fall."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decay: float = Field(0.2, gt=0, le=1)
    shape: Literal["sqrt", "linear", "cosine"] = "sqrt"
    floor: float = Field(0.0, ge=0, le=1)


def factor(step: int, total: int, warmup: int, config: Config) -> float:
    """Return what the peak rate is multiplied by in the step after `step` done ones (0 <= step < total)."""
    if step < warmup:
        return rise(step, warmup)
    fallen = max(0.0, (progress(step, total, warmup) - (1 - config.decay)) / config.decay)
    shares = {"linear": 1 - fallen, "sqrt": 1 - math.sqrt(fallen), "cosine": 0.5 * (1 + math.cos(math.pi * fallen))}
    return between(config.floor, shares[config.shape])
