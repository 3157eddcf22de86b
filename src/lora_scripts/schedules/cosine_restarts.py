"""Linear warm-up, then several half cosines of equal length, each back at the peak (arXiv:1608.03983, eq. 5)."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.schedules._course import between, progress, rise


class Config(BaseModel):
    """Options of `schedule: {name: cosine_restarts, ...}`: `cycles` is how many half cosines there are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cycles: int = Field(2, ge=1, le=1000)
    floor: float = Field(0.0, ge=0, le=1)


def factor(step: int, total: int, warmup: int, config: Config) -> float:
    """Return what the peak rate is multiplied by in the step after `step` done ones (0 <= step < total)."""
    if step < warmup:
        return rise(step, warmup)
    done = progress(step, total, warmup)
    inside = (done * config.cycles) % 1.0 if done < 1 else 1.0
    return between(config.floor, 0.5 * (1 + math.cos(math.pi * inside)))
