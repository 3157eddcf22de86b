"""What a run will do, as lines for a person: printed by `check` and before the first step of `train`."""

from __future__ import annotations

from collections.abc import Iterator

from lora_scripts import messages
from lora_scripts.config.schema import RunConfig
from lora_scripts.preparation import Prepared

MAX_DROPPED = 10


def lines(prepared: Prepared) -> Iterator[str]:
    """Yield the plan, line by line."""
    text = messages.text
    config, base, plan, scan = prepared.config, prepared.base, prepared.plan, prepared.scan
    yield text("cli.plan.base", base=base.name, kind=base.kind)
    for note in prepared.notes:
        yield text(note.code, **note.params)
    for dropped in scan.dropped[:MAX_DROPPED]:
        yield text("cli.plan.dropped", reason=text(dropped.code, **dropped.params))
    if len(scan.dropped) > MAX_DROPPED:
        yield text("cli.plan.more_dropped", count=len(scan.dropped) - MAX_DROPPED)
    if prepared.chosen:
        chosen = ", ".join(f"{key} {value}" for key, value in prepared.chosen.items())
        yield text("cli.plan.chosen", family=base.family, chosen=chosen)
    if prepared.held:
        yield text("cli.plan.held", count=len(prepared.held), train=len(prepared.examples))
    yield text(
        "cli.plan.batch",
        size=plan.step_size,
        batch=config.batch_size,
        accumulation=plan.accumulation,
        processes=plan.step_size // (config.batch_size * plan.accumulation),
    )
    yield text(
        "cli.plan.steps" if config.steps is None else "cli.plan.steps_given",
        visits=plan.visits,
        per_epoch=plan.steps_per_epoch,
        epochs=plan.epochs,
        steps=plan.steps,
    )
    yield text(
        "cli.plan.rate",
        optimizer=config.optimizer.name,
        rate=f"{config.learning_rate:g}",
        warmup=plan.warmup,
        schedule=config.schedule.name,
    )
    shown = ", ".join(map(str, plan.saves[:6])) + (", ..." if len(plan.saves) > 6 else "")
    yield text("cli.plan.saves", count=len(plan.saves), steps=shown)
    yield from _adapter(config)
    yield text("cli.plan.output", path=config.output_dir)


def _adapter(config: RunConfig) -> Iterator[str]:
    """Yield the kind of adapter with its options, and what single layers get instead."""
    text = messages.text
    options = ", ".join(f"{key} {value}" for key, value in config.adapter.options.items())
    kind = f"{config.adapter.name} ({options})" if options else config.adapter.name
    rank, alpha = config.lora_rank, config.resolved_alpha
    yield text("cli.plan.lora", name=config.resolved_name, adapter=kind, rank=rank, alpha=f"{alpha:g}")
    for layer in config.lora_layers:
        own = rank if layer.rank is None else layer.rank
        rate = "-" if layer.learning_rate is None else f"{layer.learning_rate:g}"
        share = alpha * own / rank if layer.alpha is None else layer.alpha
        if own:
            yield text("cli.plan.layers", match=layer.match, rank=own, alpha=f"{share:g}", rate=rate)
        else:
            yield text("cli.plan.layers_out", match=layer.match)
