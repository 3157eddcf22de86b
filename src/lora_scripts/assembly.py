"""Builds a run out of its parts: accelerator, adapter, loader, optimizer, trainer, listeners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from lora_scripts import continuing, identity, registry, units
from lora_scripts.adapters import files as adapter_files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.inject import Injected, inject
from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Family, Objective, Placement
from lora_scripts.data.cache import Cache
from lora_scripts.errors import ConfigError, MachineError
from lora_scripts.preparation import Prepared, describe, options_of
from lora_scripts.runs import RunFolder
from lora_scripts.train import averaging, checkpoint, memory, ranks, sharding, state
from lora_scripts.train.averaging import Average
from lora_scripts.train.disk import CacheWatch
from lora_scripts.train.estimate import frugal
from lora_scripts.train.hub import Hub
from lora_scripts.train.listeners.advice import Advice
from lora_scripts.train.listeners.best import Best
from lora_scripts.train.listeners.control import Control
from lora_scripts.train.listeners.evaluate import Evaluate
from lora_scripts.train.listeners.jsonl import JsonLines
from lora_scripts.train.listeners.preview import Preview, Wish
from lora_scripts.train.listeners.report import Report
from lora_scripts.train.listeners.save import Save, Stay
from lora_scripts.train.listeners.signals import Signals
from lora_scripts.train.listeners.tensorboard import TensorBoard
from lora_scripts.train.loader import Loader
from lora_scripts.train.loop import Course, Trainer
from lora_scripts.train.precision import Precision, choose
from lora_scripts.train.recovery import Recovery

# Frozen encoders run in float32 at least: their work is done once, and half precision breaks some VAEs.
ENCODER_DTYPE = torch.float32


@dataclass(frozen=True)
class Machine:
    """Accelerate's view of this process, and the number formats chosen for it."""

    accelerator: Any
    precision: Precision


@dataclass
class Run:
    """A run's live parts."""

    prepared: Prepared
    family: Family
    injected: Injected
    loader: Loader
    held: Loader | None
    trainer: Trainer
    objective: Objective
    hub: Hub
    evaluate: Evaluate | None
    advice: Advice
    recovery: Recovery
    best: Best
    signals: Signals
    base_hash: str
    control: Control | None = None

    def adapter(self, step: int, name: str = "") -> Adapter:
        """Return the adapter as it would be exported now: averaged where averages are on."""
        meta = describe(self.prepared, step, self.base_hash, name)
        with self.averaged():
            return self.injected.adapter(meta)

    def remembered(self) -> dict[str, Any]:
        """Return what keeps counts that a resumed run needs, by its name in a checkpoint."""
        return {"advice": self.advice, "best": self.best, "recovery": self.recovery}

    def averaged(self) -> AbstractContextManager[None]:
        """Put the averaged weights in place for a while, where there are any: ours or the optimizer's."""
        if self.trainer.average is not None:
            return self.trainer.average.applied()
        if averaging.averages(self.trainer.optimizer):
            return averaging.applied(self.trainer.optimizer)
        return nullcontext()


def machine(config: RunConfig, processes: int = 1) -> Machine:
    """Find the device and the other processes, and choose the number formats.

    Raises:
        MachineError: several processes were started which do not find each other.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import parse_flag_from_env

    # On a CPU Accelerate looks for other processes only where it is told that a CPU is meant.
    cpu = not torch.accelerator.is_available() or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))
    waits = {"timeout": timedelta(seconds=config.process_timeout)} if processes > 1 else {}
    precision = choose(config.base_precision, config.mixed_precision, PartialState(cpu=cpu, **waits).device)
    if config.shard_base and processes < 2:
        raise ConfigError("train.shard_alone")
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision.mixed)
    if accelerator.num_processes != processes:
        raise MachineError("train.processes_apart", wanted=processes, found=accelerator.num_processes)
    ranks.agree(accelerator, identity.flat(identity.config_facts(config)))
    return Machine(accelerator, precision)


def build(prepared: Prepared, machine: Machine, cache: Cache, base_hash: str) -> Run:
    """Load the base and put the parts together; nothing has been trained or resumed yet."""
    config, plan = prepared.config, prepared.plan
    placement = Placement(
        device=machine.accelerator.device,
        base_dtype=machine.precision.base,
        encoder_dtype=torch.promote_types(ENCODER_DTYPE, machine.precision.base),
        attention=config.attention,
        gradient_checkpointing=config.gradient_checkpointing,
        quantisation=machine.precision.quantisation,
        offload_blocks=config.offload_blocks,
    )
    if placement.device.type == "cpu" and frugal(config):
        memory.give_back_at_once()
    # A base that is shared out is loaded into main memory: no device need have room for all of it.
    loading = replace(placement, device=torch.device("cpu")) if config.shard_base else placement
    family = prepared.family.load(prepared.base, loading, options_of(config, prepared.family))
    torch.manual_seed(config.seed)
    family.train_components(tuple(prepared.targets))
    modules = {name: module for name, module in family.trainable().items() if name in prepared.targets}
    injected = _inject(prepared, modules, machine.precision)
    family.injected(injected)
    if config.shard_base:
        sharding.shard_first(family.trainable().values(), placement.device)
        family.placement = placement
    hub = Hub()
    objective = _objective(prepared)
    parameters = injected.groups()
    rates = _rates(config, parameters)
    groups = [{"params": list(group.values()), "lr": rates[c], "component": c} for c, group in parameters.items()]
    optimizer_module = registry.load("optimizers", config.optimizer.name)
    optimizer = optimizer_module.build(groups, optimizer_module.Config(**config.optimizer.options))
    loader = _loader(prepared, family, prepared.examples, cache, machine)
    tensors = [p for group in parameters.values() for p in group.values()]
    recovery = Recovery(config.not_finite, config.not_finite_limit, hub.emit)
    trainer = Trainer(
        family,
        objective,
        parameters,
        optimizer=machine.accelerator.prepare(optimizer),
        rates=rates,
        factor=continuing.scheduled(config, plan.steps),
        batches=loader,
        accelerator=machine.accelerator,
        course=Course(plan.steps, plan.steps_per_epoch, config.max_grad_norm, config.seed),
        emit=hub.emit,
        average=Average(tensors, config.ema) if config.ema is not None else None,
        buffers=injected.buffers(),
        recover=recovery,
        in_step=config.shard_base,
    )
    held = _loader(prepared, family, prepared.held, cache, machine) if prepared.held else None
    if held is not None and config.shard_base:
        held.rank, held.world = 0, 1
    run = Run(
        prepared,
        family,
        injected,
        loader,
        held,
        trainer,
        objective,
        hub,
        None,
        Advice(hub.emit),
        recovery,
        Best(),
        Signals(),
        base_hash,
    )
    run.evaluate = _evaluate(run, held) if held is not None else None
    return run


def _shares(run: Run) -> dict[str, object]:
    """Return how much of the base each process holds, where it is shared out."""
    network = next(iter(run.family.trainable().values()))
    held, whole = sharding.local_bytes(network), sum(parameter.nbytes for parameter in network.parameters())
    processes = run.trainer.accelerator.num_processes
    return {"processes": processes, "held": units.format_bytes(held), "whole": units.format_bytes(whole)}


def fill(run: Run, say: Any) -> None:
    """Fill the cache for all epochs and let go of the encoders."""
    if run.prepared.config.shard_base:
        say("train.sharded", **_shares(run))
    watch = CacheWatch(run.loader.cache.folder, lambda: run.loader.cache.written)

    def progress(part: str, done: int, total: int) -> None:
        say("train.encoding", part=part, done=done, total=total)
        watch(part, done, total)

    for loader in filter(None, (run.loader, run.held)):
        loader.waiting = lambda error, seconds: say("train.waiting", reason=str(error), seconds=f"{seconds:g}")
    filled = run.loader.fill(run.prepared.plan.epochs, tell=progress)
    reused, made = filled.reused, filled.made
    if run.held is not None:
        more = run.held.fill(1, held_out=True, tell=progress)
        reused, made = reused + more.reused, made + more.made
    say("train.cache", reused=reused, made=made)
    # Each process made its share of the pieces and will read those of all.
    run.trainer.accelerator.wait_for_everyone()
    run.family.release_encoders()
    memory.trim()


def resume(run: Run, folder: RunFolder, say: Any, changes: Sequence[Mapping[str, Any]] = ()) -> None:
    """Continue from the newest whole checkpoint, where there is one.

    Args:
        changes: what the run was changed in, with the steps; see `continuing`.
    """

    def newest() -> checkpoint.State | None:
        found = checkpoint.load_newest(folder.checkpoints, lambda code, params: say(code, **params))
        return found and continuing.renewed(found, changes)

    run.recovery.newest = newest
    found = run.recovery.newest()
    if found is not None:
        state.restore(run.trainer, found)
        for name, part in run.remembered().items():
            part.load_state_dict(found.facts.get(name))
        say("train.resuming", step=found.step, total=run.prepared.plan.steps)


def listen(run: Run, folder: RunFolder, more: Sequence[Any], say: Any) -> Hub:
    """Connect the listeners in the order they hear: those who write down, those who measure, those who save."""
    step = run.trainer.done
    writes = run.trainer.accelerator.is_main_process
    sharded = run.prepared.config.shard_base
    listeners: list[Any] = [run.signals, ranks.Beats(run.trainer.accelerator)]
    if sharded and not writes:
        run.control = Control(None, run.hub.emit, run.trainer.together.any)
    if writes:
        run.control = Control(folder.control, run.hub.emit, run.trainer.together.any if sharded else bool)
        warn = lambda sentence: say("train.note", note=sentence)  # noqa: E731
        listeners += [
            JsonLines(folder.events_path, step, warn),
            TensorBoard(folder.curves, step, warn),
            *more,
            run.advice,
        ]
        listeners.append(Report(folder.events_path, folder.report, run.prepared.config.resolved_name))
    if run.evaluate is not None:
        listeners += [run.evaluate, run.best]
    if writes:
        listeners.append(_save(run, folder, say))
    if (writes or sharded) and run.prepared.config.preview.enabled:
        listeners.append(_preview(run, folder))
    run.hub.listeners += [*listeners, *([run.control] if run.control else []), run.signals.asked]
    return run.hub


def _evaluate(run: Run, held: Loader) -> Evaluate:
    config, prepared = run.prepared.config, run.prepared
    return Evaluate(
        run.family,
        run.objective,
        run.trainer.accelerator,
        held.held_out,
        every=config.validation.every or config.save_steps,
        levels=run.objective.levels(config.validation.levels),
        scores=lambda: run.family.scores(prepared.held, prepared.scan.facts, config.validation.answers),
        averaged=run.averaged,
        emit=run.hub.emit,
        everywhere=config.shard_base,
    )


def _save(run: Run, folder: RunFolder, say: Any) -> Save:
    config = run.prepared.config
    best = lambda: run.best.found.step if run.best.found is not None else None  # noqa: E731
    return Save(
        folder.checkpoints,
        run.prepared.plan.saves,
        Stay(config.keep_checkpoints, config.keep_every, best, run.evaluate is not None),
        lambda: state.capture(run.trainer, {name: part.state_dict() for name, part in run.remembered().items()}),
        lambda staged, step: _add_lora(run, staged, step),
        run.hub.emit,
        exporters=len(config.exporters),
        tell=say,
    )


def _preview(run: Run, folder: RunFolder) -> Preview:
    return Preview(
        folder.previews,
        run.family,
        _wish(run),
        at=run.prepared.plan.saves,
        off=run.injected.disabled,
        averaged=run.averaged,
        emit=run.hub.emit,
        together=run.prepared.config.shard_base,
        writes=run.trainer.accelerator.is_main_process,
    )


def _add_lora(run: Run, staged: Path, step: int) -> None:
    """Put one loadable LoRA of this step into a checkpoint, named so that WebUIs can tell them apart."""
    names = run.prepared.config.exporters
    exporter = registry.load("exporters", "kohya" if "kohya" in names else names[0])
    adapter = run.adapter(step, f"{run.prepared.config.resolved_name}-step-{step}")
    exporter.export(adapter, staged / exporter.file_name(adapter.meta))


def _objective(prepared: Prepared) -> Objective:
    """Build the objective from the config keys it reads."""
    module = registry.load("objectives", prepared.objective)
    values = {key: getattr(prepared.config, key) for key in module.Config.model_fields}
    return module.build(module.Config(**values))


def _inject(prepared: Prepared, modules: Mapping[str, torch.nn.Module], precision: Precision) -> Injected:
    """Put the adapter in place, with the values of the LoRA that training starts from, where there is one."""
    config = prepared.config
    injected = inject(
        modules,
        targets=prepared.targets,
        rank=config.lora_rank,
        alpha=config.resolved_alpha,
        dropout=config.lora_dropout,
        seed=config.seed,
        kind=config.adapter.name,
        options=config.adapter.options,
        rules=config.lora_layers,
        dtype=torch.promote_types(torch.float32, precision.base),
    )
    if config.init_lora is not None:
        known = injected.module_names()
        injected.load(adapter_files.load(config.init_lora, known_modules=known, family=prepared.base.family))
    return injected


def _rates(config: RunConfig, labels: Iterable[str]) -> dict[str, float]:
    """Peak rate by group: its section's own; else the text encoder's is its own, or half of the rest's."""
    text = config.train_text_encoder.learning_rate or config.learning_rate / 2
    rates = {}
    for label in labels:
        component, _, number = label.partition("/")
        rate = text if component.startswith("text_encoder") else config.learning_rate
        own = config.lora_layers[int(number) - 1].learning_rate if number else None
        rates[label] = rate if own is None else own
    return rates


def _loader(prepared: Prepared, family: Family, examples: Sequence[Any], cache: Cache, machine: Machine) -> Loader:
    config, plan = prepared.config, prepared.plan
    loader = Loader(
        family,
        examples,
        cache,
        seed=config.seed,
        step_size=plan.step_size,
        batch_size=config.batch_size,
        budget=config.batch_tokens,
    )
    loader.rank, loader.world = machine.accelerator.process_index, machine.accelerator.num_processes
    return loader


def _wish(run: Run) -> Wish:
    """What previews show: the family decides, from the config's section and the examples."""
    section = run.prepared.config.preview
    prompts, settings = run.family.preview_settings(run.prepared.base, section, run.prepared.examples)
    return Wish(prompts, section.seed, settings)
