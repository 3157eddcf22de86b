"""Linear warm-up, then the peak rate to the end."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from lora_scripts.schedules._course import rise


class Config(BaseModel):
    """`schedule: constant` has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def factor(step: int, total: int, warmup: int, config: Config) -> float:
    """Return what the peak rate is multiplied by in the step after `step` done ones."""
    return rise(step, warmup) if step < warmup else 1.0
