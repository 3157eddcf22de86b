"""What `check` says besides the plan: trained tensors, memory and time, and how a run fits into less memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from lora_scripts import adapting, units
from lora_scripts.config.schema import RunConfig
from lora_scripts.counting import Count, Machine, count, precision_of
from lora_scripts.data.order import visits
from lora_scripts.errors import ConfigError
from lora_scripts.files import room
from lora_scripts.preparation import Prepared
from lora_scripts.train import disk, ladder
from lora_scripts.train.estimate import Work, estimate_memory, estimate_seconds
from lora_scripts.train.ladder import OFFLOAD, Facts, Rung, Trial

MATRIX = 1024


def forecast(prepared: Prepared, found: Machine) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield message codes with parameters; loads torch, but no weights."""
    counted = count(prepared, found)
    for component, (modules, tensors, parameters) in counted.trained.items():
        yield (
            "cli.plan.tensors",
            {"component": component, "modules": modules, "tensors": tensors, "parameters": f"{parameters:,}"},
        )
    rate = matrix_rate(found.device, precision_of(prepared.config, found).base)
    yield (
        "cli.plan.cost",
        {
            "memory": units.format_bytes(counted.memory.peak),
            "time": units.format_seconds(_seconds(prepared, prepared.config, _work(prepared), found, rate)),
            "device": str(found.device),
            "rate": f"{rate / 1e9:.0f}",
        },
    )
    yield (
        "train.disk_need",
        _disk(prepared, counted).told(prepared.config.output_dir, room(prepared.config.output_dir)[0]),
    )
    if counted.memory.peak > found.free:
        yield ("cli.plan.does_not_fit", {"free": units.format_bytes(found.free).replace(" ", "")})


def _disk(prepared: Prepared, counted: Count) -> disk.Need:
    """Return what a run from the first step writes: a checkpoint holds the weights twice, once as a LoRA file."""
    config, bytes_of = prepared.config, counted.counted
    count = disk.to_come(prepared.plan.saves, (), config.keep_checkpoints, config.keep_every, config.validation.enabled)
    size = 2 * bytes_of.pairs + bytes_of.states + bytes_of.average
    return disk.Need(size, count, bytes_of.pairs * len(config.exporters))


def climb(prepared: Prepared, found: Machine, limit: int) -> tuple[list[Trial], Trial | None]:
    """Try rung after rung of the ladder until one fits into `limit` bytes; see `train.ladder`."""
    first = count(prepared, found)
    precision = precision_of(prepared.config, found)
    facts = Facts(
        base=precision.quantisation or str(precision.base).removeprefix("torch.").replace("bfloat16", "bf16"),
        quantises=[name for name in prepared.family.quantises if _allowed(prepared, name)],
        offloads=len(first.waiting) if found.device.type == "cuda" else 0,
    )
    work = _work(prepared)
    rates: dict[Any, float] = {}

    def tried(rung: Rung) -> Trial:
        config = prepared.config.model_copy(update=dict(rung.changes))
        counted = count(prepared, found, config, first) if rung.changes else first
        if rung.name == OFFLOAD:
            rung, counted = _fewest(prepared, found, first, rung, limit)
        base = precision_of(config, found).base
        if base not in rates:
            rates[base] = matrix_rate(found.device, base)
        return Trial(rung, counted.memory.peak, _seconds(prepared, config, work, found, rates[base]))

    return ladder.climb(ladder.rungs(prepared.config, prepared.plan, facts), limit, tried)


def _allowed(prepared: Prepared, quantisation: str) -> bool:
    """Say whether the adapter can stand beside weights in so few bits, and what reads them is installed."""
    if quantisation == "nf4" and find_spec("bitsandbytes") is None:
        return False
    config = prepared.config.model_copy(update={"base_precision": quantisation, "init_lora": None})
    try:
        adapting.check(config, prepared.base, prepared.family, prepared.targets)
    except ConfigError:
        return False
    return True


def _fewest(prepared: Prepared, where: Machine, first: Count, rung: Rung, limit: int) -> tuple[Rung, Count]:
    """Let as few blocks wait as fit, or all."""
    config = prepared.config.model_copy(update=dict(rung.changes))
    counted = count(prepared, where, config, first)
    for blocks in range(1, config.offload_blocks + 1):
        memory = estimate_memory(replace(counted.counted, base=counted.base_with(blocks)), counted.habits)
        if memory.peak <= limit or blocks == config.offload_blocks:
            return replace(rung, changes={**rung.changes, "offload_blocks": blocks}), replace(counted, memory=memory)
    return rung, counted


def _work(prepared: Prepared) -> Work:
    """Count operations by group of examples, and visits."""
    counts: Counter[Any] = Counter({example.shape: 0 for example in prepared.examples})
    counts.update(prepared.examples[visit.example].shape for visit in visits(prepared.examples, 0))
    modules = prepared.family.skeleton(prepared.base)
    operations = {shape: prepared.family.operations(prepared.base, modules, shape) for shape in counts}
    return Work(operations, counts, prepared.family.pace)


def _seconds(prepared: Prepared, config: RunConfig, work: Work, where: Machine, rate: float) -> float:
    """Estimate how long a run of this config takes, in as many steps as the prepared one."""
    accumulation = prepared.plan.accumulation * prepared.config.batch_size // config.batch_size
    plan = replace(prepared.plan, accumulation=accumulation)
    return estimate_seconds(plan, replace(work, slower=ladder.slowdown(config, where.device.type)), rate)


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
