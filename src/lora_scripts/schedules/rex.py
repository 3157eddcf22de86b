"""Linear warm-up, then REX (arXiv:2107.04197, section 3): (1 - z) / (1/2 + (1 - z) / 2), which stays high for long."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from lora_scripts.schedules._course import between, progress, rise


class Config(BaseModel):
    """Options of `schedule: {name: rex, ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float = Field(0.0, ge=0, le=1)


def factor(step: int, total: int, warmup: int, config: Config) -> float:
    """Return what the peak rate is multiplied by in the step after `step` done ones (0 <= step < total)."""
    if step < warmup:
        return rise(step, warmup)
    left = 1 - progress(step, total, warmup)
    return between(config.floor, left / (0.5 + 0.5 * left))
