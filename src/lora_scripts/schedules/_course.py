"""What all schedules share: the linear rise, and how much of the rest is done."""

from __future__ import annotations


def rise(step: int, warmup: int) -> float:
    """Return the factor of a warm-up step (0 <= step < warmup): the peak comes in the first step after it."""
    return (step + 1) / (warmup + 1)


def progress(step: int, total: int, warmup: int) -> float:
    """Return how much of the course after the warm-up is done before this step, 0 to 1."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


def between(floor: float, share: float) -> float:
    """Return `share` (1 to 0) moved into the range from 1 to `floor`."""
    return floor + (1 - floor) * share
