"""Linear warm-up, then half a cosine (arXiv:1608.03983, one cycle) down to a floor."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.schedules._course import between, progress, rise


class Config(BaseModel):
    """Options of `schedule: {name: cosine, ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float = Field(0.0, ge=0, le=1)


def factor(step: int, total: int, warmup: int, config: Config) -> float:
    """Return what the peak rate is multiplied by in the step after `step` done ones (0 <= step < total)."""
    if step < warmup:
        return rise(step, warmup)
    return between(config.floor, 0.5 * (1 + math.cos(math.pi * progress(step, total, warmup))))
