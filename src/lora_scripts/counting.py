"""What a config takes of a machine's memory: counted on a run whose tensors have shapes and no values."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_scripts import registry
from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Batch, Placement, Rehearsal
from lora_scripts.data.order import visits
from lora_scripts.preparation import Prepared, options_of
from lora_scripts.train import memory
from lora_scripts.train.estimate import Counted, Habits, Memory, estimate_memory, frugal, habits, kept_by_rule
from lora_scripts.train.precision import Precision, choose

# A CUDA context with its kernels, which no tensor accounts for.
CONTEXT_BYTES = 600 << 20
# A weight, and its share of the numbers that scale it.
BITS = {"fp8": 8.0, "nf4": 4.5}


@dataclass(frozen=True)
class Machine:
    """Where a run would train.

    Attributes:
        runtime: bytes that are taken before anything is loaded.
        free: bytes that a run could have, those of `runtime` included.
    """

    device: Any
    runtime: int
    free: int


@dataclass(frozen=True)
class Found:
    """Bytes that the ledger saw.

    Attributes:
        base: what stays: frozen network and pairs.
        encoders, encoding: frozen encoders, and most that they need besides.
        step, preview: most that is there besides `base`.
        width: of one trained number.
    """

    base: int
    encoders: int
    encoding: int
    step: int
    preview: int
    width: int


@dataclass(frozen=True)
class Count:
    """What was counted of one config.

    Attributes:
        trained: (modules, tensors, parameters) by component.
        waiting: bytes of each block that could wait in main memory, the largest first.
    """

    memory: Memory
    trained: Mapping[str, tuple[int, int, int]]
    counted: Counted
    habits: Habits
    found: Found
    waiting: Sequence[int]

    def base_with(self, blocks: int) -> int:
        """Return the base's bytes on the device while its `blocks` largest blocks wait: one is in use, one comes."""
        away = self.waiting[:blocks]
        return self.counted.base - max(0, sum(away) - sum(away[:2]))


def machine() -> Machine:
    """Import what a run imports, and look at the memory: to be done once, before anything is counted."""
    from accelerate import PartialState

    device = PartialState().device
    runtime = _runtime() if device.type == "cpu" else CONTEXT_BYTES
    free = memory.free_bytes(device)
    return Machine(device, runtime, free + memory.used_bytes(device) if device.type == "cpu" else free)


def _runtime() -> int:
    """Bytes of a process that has imported what a run imports."""
    import diffusers
    import torch
    import transformers

    from lora_scripts import assembly

    # Libraries import their parts when they are asked for.
    parts = (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, transformers.CLIPTextModel, assembly.build)
    return memory.used_bytes(torch.device("cpu")) if parts else 0


def precision_of(config: RunConfig, where: Machine) -> Precision:
    return choose(config.base_precision, config.mixed_precision, where.device)


def count(prepared: Prepared, where: Machine, config: RunConfig | None = None, known: Count | None = None) -> Count:
    """Count what a run of this config would take on this machine.

    Args:
        config: in place of the prepared one; it differs in what changes memory, not in what is learned.
        known: a count of another such config, which encodes and draws alike.
    """
    config = config or prepared.config
    collected = prepared.plan.accumulation * prepared.config.batch_size > config.batch_size
    prepared = replace(prepared, config=config.model_copy(update={"init_lora": None}))
    precision = precision_of(config, where)
    rehearsal = prepared.family.rehearsal(
        prepared.base, _placement(config, precision, where.device), options_of(config, prepared.family)
    )
    if rehearsal is None:
        modules = prepared.family.skeleton(prepared.base)
        injected, trained = _injected(prepared, modules, precision)
        found = _by_rule(prepared, precision, modules, sum(parameters for _, _, parameters in trained.values()))
    else:
        rehearsal.family.train_components(tuple(prepared.targets))
        injected, trained = _injected(prepared, rehearsal.family.trainable(), precision)
        rehearsal.family.injected(injected)
        with memory.without_values(where.device) as ledger:
            found = _rehearse(prepared, rehearsal, ledger, precision, known.found if known else None)
    pairs = sum(parameters for _, _, parameters in trained.values()) * found.width
    reading = rehearsal.reading() if rehearsal is not None and where.device.type == "cpu" else 0
    counted = Counted(
        runtime=where.runtime,
        base=found.base - pairs,
        reading=reading,
        encoders=found.encoders,
        pairs=pairs,
        states=known.counted.states if known else optimizer_bytes(config, injected.groups()),
        average=pairs if config.ema is not None else 0,
        encoding=found.encoding,
        step=found.step,
        preview=found.preview if config.preview.enabled else 0,
        collected=collected,
    )
    measured = habits(where.device.type, precision.base.itemsize, is_frugal=frugal(config))
    waiting = tuple(rehearsal.waiting()) if rehearsal is not None else ()
    made = Count(estimate_memory(counted, measured), trained, counted, measured, found, waiting)
    if not config.offload_blocks:
        return made
    offloaded = replace(counted, base=made.base_with(config.offload_blocks))
    return replace(made, memory=estimate_memory(offloaded, measured))


def _placement(config: RunConfig, precision: Precision, device: Any) -> Placement:
    import torch

    from lora_scripts.assembly import ENCODER_DTYPE

    return Placement(
        device=device,
        base_dtype=precision.base,
        encoder_dtype=torch.promote_types(ENCODER_DTYPE, precision.base),
        attention=config.attention,
        gradient_checkpointing=config.gradient_checkpointing,
        quantisation=precision.quantisation,
        offload_blocks=config.offload_blocks,
    )


def _injected(prepared: Prepared, modules: Mapping[str, Any], precision: Precision) -> tuple[Any, dict[str, Any]]:
    """Put pairs beside shapes; also return (modules, tensors, parameters) by component."""
    from lora_scripts.assembly import _inject

    injected = _inject(prepared, {name: modules[name] for name in prepared.targets}, precision)
    trained = {}
    for component in prepared.targets:
        tensors = injected.parameters(component).values()
        trained[component] = (
            len(injected.layers[component]),
            len(tensors),
            sum(tensor.numel() for tensor in tensors),
        )
    return injected, trained


def _rehearse(
    prepared: Prepared, rehearsal: Rehearsal, ledger: memory.Ledger, precision: Precision, known: Found | None
) -> Found:
    """Encode, take a step and draw, without values."""
    family = rehearsal.family
    examples = _heaviest(prepared)
    rehearsal.embody()
    loaded = ledger.reset()
    entry = rehearsal.entry(examples[0])
    if known is None:
        rehearsal.encode(examples[0])
    most, held = ledger.peak, ledger.live
    family.release_encoders()
    gc.collect()
    base = ledger.reset()
    width = _step(prepared, family, examples, entry, precision)
    step = ledger.peak - base
    if known is not None:
        return replace(known, base=base, step=step)
    gc.collect()
    before = ledger.reset()
    rehearsal.draw(examples[0])
    encoders = max(loaded, held) - base
    return Found(base, encoders, most - base - encoders, step, ledger.peak - before, width)


def _heaviest(prepared: Prepared) -> list[Any]:
    """Return the examples of the micro-batch that is largest: those of one shape are put together."""
    counts = Counter(prepared.examples[visit.example].shape for visit in visits(prepared.examples, 0))
    rows = {shape: min(times, prepared.config.batch_size) for shape, times in counts.items()}
    shape = max(rows, key=lambda shape: _area(shape) * rows[shape])
    alike = [example for example in prepared.examples if example.shape == shape]
    return [alike[row % len(alike)] for row in range(rows[shape])]


def _step(prepared: Prepared, family: Any, examples: Sequence[Any], entry: Mapping[str, Any], how: Precision) -> int:
    """Run one micro-batch forward and backward; return the bytes of one trained number."""
    import torch

    from lora_scripts.assembly import _objective

    rows = len(examples)
    batch = Batch(
        weight=float(rows),
        weights=torch.ones(rows),
        tensors=family.collate(examples, [entry] * rows),
        generators=[torch.Generator() for _ in examples],
        ids=[example.id for example in examples],
        regularisation=[example.regularisation for example in examples],
    )
    device = family.placement.device
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(how.mixed)
    with torch.autocast(device.type, mixed or torch.bfloat16, enabled=mixed is not None):
        loss = _objective(prepared).loss(family, batch).total
    loss.backward()
    widths = {
        p.element_size() for module in family.trainable().values() for p in module.parameters() if p.requires_grad
    }
    for module in family.trainable().values():
        module.zero_grad(set_to_none=True)
    return max(widths)


def optimizer_bytes(config: RunConfig, groups: Mapping[str, Mapping[str, Any]]) -> int:
    """Return what the optimizer keeps for these tensors: it takes a step on one real tensor of each shape."""
    import torch

    module = registry.load("optimizers", config.optimizer.name)
    shapes = Counter((tuple(t.shape), t.dtype) for group in groups.values() for t in group.values())
    total = 0
    for (shape, dtype), times in shapes.items():
        tensor = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        tensor.grad = torch.full_like(tensor, 1e-3)
        optimizer = module.build(
            [{"params": [tensor], "lr": 1e-4, "component": "unet"}], module.Config(**config.optimizer.options)
        )
        optimizer.step()
        kept = [value for value in optimizer.state[tensor].values() if isinstance(value, torch.Tensor)]
        total += times * sum(value.nbytes for value in kept)
    return total


def _by_rule(prepared: Prepared, precision: Precision, modules: Mapping[str, Any], trained: int) -> Found:
    """Return what stands still by arithmetic, and what a step keeps by what was measured once."""
    config, base = prepared.config, prepared.base
    width = BITS.get(precision.quantisation, 0) / 8 or precision.base.itemsize
    frozen = sum(base.parameters[name] for name in prepared.targets)
    operations = {e.shape: prepared.family.operations(base, modules, e.shape) for e in prepared.examples}
    most = _largest(prepared, operations)
    kept = kept_by_rule(prepared.family.pace, most, width, is_checkpointed=config.gradient_checkpointing)
    encoders = (sum(base.parameters.values()) - frozen) * 4
    return Found(int(frozen * width) + trained * 4, encoders, 0, kept, 0, 4)


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


def _area(shape: Any) -> float:
    if isinstance(shape, tuple):
        area = 1.0
        for side in shape:
            area *= side
        return area
    return float(shape)
