"""What a run will do, as pure arithmetic on config and data: told before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_scripts.config.schema import RunConfig, warmup_steps
from lora_scripts.contracts import Base
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


@dataclass(frozen=True)
class Cost:
    """A rough estimate: peak memory in bytes, and floating-point operations a step."""

    memory: int
    operations: float


# Forward operations of a network of this kind per parameter and latent position, relative to SD 1.5's: its UNet of
# 860 M parameters takes 0.68 TFLOP forward at 64 x 64 positions, that is 0.193 per parameter and position.
OPERATIONS_PER_PARAMETER_AND_POSITION = 0.193
# Backward through a frozen network forms input gradients only: about as much as the forward pass again.
BACKWARD_FACTOR = 2.0
# Bytes of activations kept for the backward pass, per row, per bucket pixel and per square root of parameters:
# fitted to SD 1.5's shape at 256 pixels (float32 activations, about 1.6 GB a row).
ACTIVATION_BYTES = 0.83
RUNTIME_BYTES = 700 << 20


def estimate(
    config: RunConfig, base: Base, examples: Sequence[Example], plan: Plan, *, base_bytes: int, lora: int
) -> Cost:
    """Estimate the peak memory and a step's operations; good to about a third.

    Args:
        base_bytes: bytes a frozen parameter takes (2 for bf16).
        lora: trained parameters.
    """
    trunk = base.parameters.get("unet", sum(base.parameters.values()))
    areas = [_area(example.group) for example in examples]
    mean_area, largest = sum(areas) / len(areas), max(areas)
    text = base.parameters.get("text_encoder", 0) if config.train_text_encoder.enabled else 0
    activations = ACTIVATION_BYTES * config.batch_size * largest * trunk**0.5 * (base_bytes / 4)
    if config.gradient_checkpointing:
        activations *= 0.3
    memory = RUNTIME_BYTES + (trunk + text) * base_bytes + lora * 4 * 4 + activations
    encoders = (base.parameters.get("vae", 0) + base.parameters.get("text_encoder", 0)) * 4
    forward = OPERATIONS_PER_PARAMETER_AND_POSITION * trunk * mean_area / 64
    return Cost(int(max(memory, memory - activations + encoders)), forward * BACKWARD_FACTOR * plan.step_size)


def _area(group: object) -> float:
    if isinstance(group, tuple) and len(group) == 2:
        return float(group[0] * group[1])
    return 1.0
