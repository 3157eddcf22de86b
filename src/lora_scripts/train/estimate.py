"""What a run will take, as arithmetic on what was counted and measured: memory phase by phase, and seconds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Pace
from lora_scripts.train.plan import Plan

# The backward pass through a frozen network forms input gradients: about as many operations as the forward pass, and
# the low-rank pairs and what is kept for them cost about as much again.
PASSES = 3.0
CHECKPOINTED_SHARE = 0.3


@dataclass(frozen=True)
class Work:
    """What an estimate of time starts from.

    Attributes:
        operations: forward operations by group of examples.
        counts: visits an epoch by group.
        pace: of the family.
        slower: how many times as long a step takes as with weights in the network's own format, nothing computed twice.
    """

    operations: Mapping[Hashable, float]
    counts: Mapping[Hashable, int]
    pace: Pace
    slower: float = 1.0


@dataclass(frozen=True)
class Counted:
    """Bytes on the device that trains.

    Attributes:
        runtime: of a process that has imported everything and loaded nothing.
        base: frozen weights that stay, in the format that they are held in.
        reading: most that is there besides while weights are read: files, and copies in another format.
        encoders: frozen encoders, which are there until the cache is filled.
        pairs: trained tensors.
        states: what the optimizer keeps.
        average: averaged weights.
        encoding: most that frozen encoders need besides, while they fill the cache.
        step: most in a step of the heaviest micro-batch: what is kept for the backward pass, what an operation needs
            besides, gradients.
        preview: most while a preview is drawn, encoders included.
        collected: a step collects several micro-batches, so gradients stand beside the forward pass.
    """

    runtime: int
    base: int
    reading: int
    encoders: int
    pairs: int
    states: int
    average: int
    encoding: int
    step: int
    preview: int
    collected: bool


@dataclass(frozen=True)
class Habits:
    """What a device takes besides tensors.

    Attributes:
        objects: modules, tokenizers, the caches of libraries.
        kernels: code and scratch memory of kernels, once they have run.
        kept: how many times the bytes that come and go in a step it takes from the system.
    """

    objects: int
    kernels: int
    kept: float


@dataclass(frozen=True)
class Memory:
    """Peak bytes by phase of a run."""

    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The largest."""
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """Which it is."""
        return max(self.phases, key=lambda name: self.phases[name])


def habits(device: str, itemsize: int, *, is_frugal: bool) -> Habits:
    """Return what was measured of a kind of device.

    Peaks of runs with UNets of 34 and 143 million weights, batch 1 to 8, with and without gradient checkpointing, on
    the machine of docs/benchmarks.md. oneDNN keeps more code for 16-bit formats.

    Args:
        itemsize: bytes of a number in the format that is computed in.
        is_frugal: see `frugal`.
    """
    if device != "cpu":
        return Habits(objects=0, kernels=0, kept=1.05)
    return Habits(objects=90 << 20, kernels=(90 if itemsize == 2 else 30) << 20, kept=1.1 if is_frugal else 1.5)


def frugal(config: RunConfig) -> bool:
    """Say whether a run asks for little memory: then freed memory is given back at once, where it can be."""
    return config.gradient_checkpointing or config.base_precision in ("fp8", "nf4")


def estimate_memory(counted: Counted, habits: Habits) -> Memory:
    """Estimate the peak of each phase."""
    loaded = counted.runtime + counted.base
    started = loaded + habits.objects + counted.pairs
    trained = started + counted.states + counted.average
    gradients = counted.pairs if counted.collected else 0
    return Memory(
        {
            "load": loaded + max(counted.reading, counted.encoders),
            "encode": started + counted.encoders + int(counted.encoding * habits.kept),
            "step": trained + habits.kernels + gradients + int(counted.step * habits.kept),
            # Gradients, what the tensors were, and what the optimizer computes on the way.
            "update": trained + habits.kernels + 3 * counted.pairs,
            "preview": trained + habits.kernels + int(counted.preview * habits.kept),
        }
    )


def kept_by_rule(pace: Pace, operations: float, base_bytes: float, *, is_checkpointed: bool) -> int:
    """Return the bytes that a step keeps where they cannot be counted: as many an operation as was measured once."""
    kept = pace.bytes_per_operation * operations * max(base_bytes, 2) / 4
    return int(kept * (CHECKPOINTED_SHARE if is_checkpointed else 1.0))


def estimate_seconds(plan: Plan, work: Work, rate: float) -> float:
    """Estimate the run's seconds on a machine that does `rate` operations a second in a matrix product."""
    visits_an_epoch = sum(work.counts.values())
    mean = sum(work.operations[group] * count for group, count in work.counts.items()) / visits_an_epoch
    arithmetic = PASSES * mean * plan.step_size / (rate * work.pace.share)
    return plan.steps * (arithmetic * work.slower + work.pace.seconds * plan.accumulation)
