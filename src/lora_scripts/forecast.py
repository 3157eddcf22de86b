"""What `check` adds to the plan: trained tensors by component, memory, time; measured on this machine, in seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_scripts import units
from lora_scripts.preparation import Prepared
from lora_scripts.train.plan import Work, estimate_memory, estimate_seconds
from lora_scripts.train.precision import choose

MATRIX = 1024


def forecast(prepared: Prepared) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield message codes with parameters; loads torch, but no weights."""
    import torch
    from accelerate import PartialState

    config, plan = prepared.config, prepared.plan
    device = PartialState().device
    precision = choose(config.base_precision, config.mixed_precision, device)
    modules = prepared.family.skeleton(prepared.base)
    trained = 0
    for component, patterns in prepared.targets.items():
        shapes = _target_shapes(component, modules[component], patterns)
        parameters = sum(config.lora_rank * (fan_in + fan_out) for fan_in, fan_out in shapes)
        trained += parameters
        yield (
            "cli.plan.tensors",
            {
                "component": component,
                "modules": len(shapes),
                "tensors": 2 * len(shapes),
                "parameters": f"{parameters:,}",
            },
        )
    counts: Counter[Any] = Counter()
    for example in prepared.examples:
        counts[example.shape] += example.repeats
    operations = {shape: prepared.family.operations(prepared.base, modules, shape) for shape in counts}
    frozen = {name: count for name, count in prepared.base.parameters.items() if name not in prepared.targets}
    work = Work(
        parameters=sum(prepared.base.parameters.values()) - sum(frozen.values()),
        encoder_parameters=sum(frozen.values()),
        lora=trained,
        operations=operations,
        counts=counts,
        base_bytes=0.55 if precision.quantisation else torch.empty((), dtype=precision.base).element_size(),
        most_operations=_largest(prepared, operations),
        pace=prepared.family.pace,
    )
    rate = matrix_rate(device, precision.base)
    yield (
        "cli.plan.cost",
        {
            "memory": units.format_bytes(estimate_memory(config, work)),
            "time": units.format_seconds(estimate_seconds(plan, work, rate)),
            "device": str(device),
            "rate": f"{rate / 1e9:.0f}",
        },
    )


def _largest(prepared: Prepared, operations: Mapping[Any, float]) -> float:
    """Return the forward operations of the heaviest micro-batch that can come: the costliest examples together."""
    config = prepared.config
    heavy = sorted(prepared.examples, key=lambda example: -operations[example.shape])[: config.batch_size]
    total, room = 0.0, config.batch_tokens
    for example in heavy:
        if total and example.length > room:
            break
        total += operations[example.shape]
        room -= example.length
    return total


def _target_shapes(component: str, module: Any, patterns: Sequence[str]) -> list[tuple[int, int]]:
    """Return (fan in, fan out) as the two low-rank matrices see them, for each matched module."""
    from lora_scripts.adapters.inject import matching

    named = dict(module.named_modules())
    weights = [named[path].weight for path in matching(component, module, patterns)]
    return [(weight[0].numel(), weight.shape[0]) for weight in weights]


def matrix_rate(device: Any, dtype: Any) -> float:
    """Return floating-point operations a second of a square matrix product, the best of a few."""
    import torch

    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        product = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    del product
    return 2 * MATRIX**3 / best
