"""What a run will do, as pure arithmetic on config and data: told before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.config.schema import RunConfig, warmup_steps
from lora_scripts.data.order import visits
from lora_scripts.data.record import Example

EFFECTIVE_BATCH = 4


@dataclass(frozen=True)
class Plan:
    """Numbers of a run.

    Attributes:
        accumulation: micro-batches a step.
        step_size: visits a step over all processes: batch_size x accumulation x processes.
        visits: visits an epoch.
        steps_per_epoch, steps: optimizer steps.
        epochs: begun ones; where the config gives steps, the last may be cut short.
        warmup: steps of the linear rise.
        saves: steps after which a checkpoint is written, the last one included.
    """

    accumulation: int
    step_size: int
    visits: int
    steps_per_epoch: int
    steps: int
    warmup: int
    saves: tuple[int, ...]
    epochs: int


def accumulation_for(config: RunConfig, processes: int) -> int:
    """Return `gradient_accumulation`, or what reaches an effective batch of at least 4."""
    if config.gradient_accumulation is not None:
        return config.gradient_accumulation
    return max(1, -(-EFFECTIVE_BATCH // (config.batch_size * processes)))


def make(config: RunConfig, examples: Sequence[Example], processes: int = 1) -> Plan:
    """Return the plan for these examples on this many processes."""
    accumulation = accumulation_for(config, processes)
    step_size = config.batch_size * accumulation * processes
    count = len(visits(examples, 0))
    per_epoch = -(-count // step_size)
    total = config.steps if config.steps is not None else per_epoch * config.epochs
    saves = [step for step in range(config.save_steps, total, config.save_steps)]
    return Plan(
        accumulation=accumulation,
        step_size=step_size,
        visits=count,
        steps_per_epoch=per_epoch,
        steps=total,
        warmup=min(total, warmup_steps(config.warmup, total)),
        saves=(*saves, total),
        epochs=-(-total // per_epoch),
    )
