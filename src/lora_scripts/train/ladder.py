"""Ways to need less memory, in the order of what they cost: each rung is one more change to the config.

Text encoders and the VAE leave the device as soon as their outputs are cached, always; that is not a rung.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_scripts.config.schema import RunConfig
from lora_scripts.train.estimate import frugal
from lora_scripts.train.plan import Plan

AS_IT_IS = "as_it_is"
OFFLOAD = "offload"
MOST_COLLECTED = 4096
# How many times as long a step takes. Bfloat16 on one thread of the machine of docs/benchmarks.md, a UNet of 143
# million weights, 256 pixels: 1.32 (batch 4) to 1.46 (batch 1) with checkpointing, 0.98 to 1.16 in fp8, 1.01 to 1.13 in
# nf4; dequantising costs the same for any number of rows. New pages for every block: 1.2 to 1.35.
CHECKPOINTED = 1.4
HELD = {"fp8": 1.15, "nf4": 1.13}
NEW_PAGES = 1.25


@dataclass(frozen=True)
class Facts:
    """What decides which rungs there are.

    Attributes:
        base: the format the base would be held in: "float32", "bf16", "fp8", ...
        quantises: formats of few bits that family and adapter allow.
        offloads: blocks that could wait in main memory; 0 where there is no other memory to wait in.
    """

    base: str
    quantises: Sequence[str]
    offloads: int


@dataclass(frozen=True)
class Rung:
    """One step down.

    Attributes:
        name: its message is `train.ladder.<name>`.
        changes: config keys with their values, those of the rungs before included.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A rung that was counted: peak bytes, and seconds of the whole run."""

    rung: Rung
    bytes: int
    seconds: float


def slowdown(config: RunConfig, device: str) -> float:
    """Return how many times as long a step takes as with plain weights and nothing computed twice."""
    factor = HELD.get(config.base_precision, 1.0)
    factor *= CHECKPOINTED if config.gradient_checkpointing else 1.0
    return factor * (NEW_PAGES if device == "cpu" and frugal(config) else 1.0)


def rungs(config: RunConfig, plan: Plan, facts: Facts) -> list[Rung]:
    """Return the rungs that this config has not taken yet, the config as it is first."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if facts.base in ("float32", "float64"):
        steps.append(("bf16", {"base_precision": "bf16"}))
    collected = config.batch_size * plan.accumulation
    if config.batch_size > 1 and collected <= MOST_COLLECTED:
        steps.append(("one_at_a_time", {"batch_size": 1, "gradient_accumulation": collected}))
    if not config.gradient_checkpointing:
        steps.append(("checkpointing", {"gradient_checkpointing": True}))
    lower = {"fp8": ("nf4",), "nf4": ()}.get(facts.base, ("fp8", "nf4"))
    steps += [(name, {"base_precision": name}) for name in lower if name in facts.quantises]
    if facts.offloads > config.offload_blocks:
        steps.append((OFFLOAD, {"offload_blocks": facts.offloads}))
    found = [Rung(AS_IT_IS)]
    changes: dict[str, Any] = {}
    for name, more in steps:
        changes = changes | more
        found.append(Rung(name, changes))
    return found


def climb(wanted: Sequence[Rung], limit: int, count: Callable[[Rung], Trial]) -> tuple[list[Trial], Trial | None]:
    """Count rung after rung until one fits; return all that were counted, and the one that fits."""
    tried: list[Trial] = []
    for rung in wanted:
        tried.append(count(rung))
        if tried[-1].bytes <= limit:
            return tried, tried[-1]
    return tried, None
