"""What a run will do, as pure arithmetic on config and data: told before anything is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from lora_scripts.config.schema import RunConfig, warmup_steps
from lora_scripts.contracts import Pace
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
    total = per_epoch * config.epochs
    saves = [step for step in range(config.save_steps, total, config.save_steps)]
    return Plan(
        accumulation=accumulation,
        step_size=step_size,
        visits=count,
        steps_per_epoch=per_epoch,
        steps=total,
        warmup=min(total, warmup_steps(config.warmup, total)),
        saves=(*saves, total),
    )


# The backward pass through a frozen network forms input gradients: about as many operations as the forward pass, and
# the low-rank pairs and what is kept for them cost about as much again.
PASSES = 3.0
CHECKPOINTED_SHARE = 0.3
RUNTIME_BYTES = 800 << 20


@dataclass(frozen=True)
class Work:
    """What an estimate starts from.

    Attributes:
        parameters: of the frozen network that runs in every step.
        encoder_parameters: of the frozen encoders, which are gone once their outputs are cached.
        lora: trained parameters.
        operations: forward operations by group of examples.
        counts: visits an epoch by group.
        base_bytes: bytes a frozen parameter takes.
        most_operations: forward operations of the largest micro-batch.
        pace: of the family.
    """

    parameters: int
    encoder_parameters: int
    lora: int
    operations: Mapping[Hashable, float]
    counts: Mapping[Hashable, int]
    base_bytes: float
    most_operations: float
    pace: Pace


def estimate_memory(config: RunConfig, work: Work) -> int:
    """Estimate the peak bytes: either while the encoders run, or in a step of the largest group."""
    kept = work.pace.bytes_per_operation * work.most_operations * max(work.base_bytes, 2) / 4
    kept *= CHECKPOINTED_SHARE if config.gradient_checkpointing else 1.0
    # A trained parameter has a gradient and two moments beside it.
    standing = RUNTIME_BYTES + work.parameters * work.base_bytes + work.lora * 4 * 4
    return int(standing + max(kept, work.encoder_parameters * 4))


def estimate_seconds(plan: Plan, work: Work, rate: float) -> float:
    """Estimate the run's seconds on a machine that does `rate` operations a second in a matrix product."""
    visits_an_epoch = sum(work.counts.values())
    mean = sum(work.operations[group] * count for group, count in work.counts.items()) / visits_an_epoch
    arithmetic = PASSES * mean * plan.step_size / (rate * work.pace.share)
    return plan.steps * (arithmetic + work.pace.seconds * plan.accumulation)
