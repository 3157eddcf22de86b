"""Linear warm-up, then the peak rate to the end."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """`schedule: constant` has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def factor(step: int, total: int, warmup: int, config: Config) -> float:
    """Return what the peak rate is multiplied by in the step after `step` done ones."""
    return (step + 1) / (warmup + 1) if step < warmup else 1.0
