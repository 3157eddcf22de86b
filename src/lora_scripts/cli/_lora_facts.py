"""What `lora info` found, as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lora_scripts import messages
from lora_scripts.adapters.families import title
from lora_scripts.lora_tools.info import MOST_BLOCKS, Component, Facts
from lora_scripts.units import format_bytes


def lines(facts: Facts) -> Iterator[str]:
    """Yield what the file is, line by line."""
    text = messages.text
    meta = facts.meta
    yield text("lora.fact_file", path=facts.path, kind=facts.kind, family=title(meta.family), layout=facts.layout)
    base = meta.base_name or meta.base_reference
    if base or meta.base_hash:
        yield text("lora.fact_base", base=base or "?", variant=meta.variant or "?", hash=meta.base_hash[:12] or "-")
    else:
        yield text("lora.fact_no_base")
    for name, part in facts.components.items():
        yield _component(name, part)
    dtypes = ", ".join(facts.dtypes)
    size = format_bytes(facts.size)
    yield text("lora.fact_size", size=size, parameters=f"{facts.parameters:,}", dtypes=dtypes)
    if meta.trigger:
        yield text("lora.fact_trigger", trigger=meta.trigger)
    if meta.steps:
        yield text("lora.fact_steps", steps=f"{meta.steps:,}", epochs=meta.epochs)
    for key, value in facts.training.items():
        yield text(f"lora.fact.{key}", value=value)
    if facts.tags:
        yield text("lora.fact_tags", tags=", ".join(f"{tag} ({count})" for tag, count in facts.tags.items()))
    yield text("lora.loads", programs=", ".join(facts.programs) or "-")
    if facts.unread:
        yield facts.unread
    yield from _strongest(facts)


def _component(name: str, part: Component) -> str:
    alphas = _counts({f"{alpha:g}": count for alpha, count in part.alphas.items()}) or "?"
    ranks = _counts({str(rank): count for rank, count in part.ranks.items()})
    return messages.text("lora.fact_component", name=name, modules=part.modules, ranks=ranks, alphas=alphas)


def _counts(found: Mapping[str, int]) -> str:
    """Return "8", or "4 (12 modules), 8 (3)" as "4 x 12, 8 x 3"; a long list is a range."""
    if len(found) <= 1:
        return next(iter(found), "")
    if len(found) > 4:
        names = list(found)
        return f"{names[0]}-{names[-1]}"
    return ", ".join(f"{name} (x{count})" for name, count in found.items())


def _strongest(facts: Facts) -> Iterator[str]:
    """Yield a table of the blocks that are changed most."""
    if not facts.blocks:
        return
    text = messages.text
    shown = sorted(facts.blocks, key=lambda block: -block.norm)[:MOST_BLOCKS]
    yield text("lora.fact_blocks", shown=len(shown), total=len(facts.blocks))
    titles = [text(f"lora.column.{name}") for name in ("block", "modules", "norm", "share", "strongest")]
    rows = [
        [
            f"{block.component} {block.name}",
            str(block.modules),
            f"{block.norm:.3g}",
            f"{100 * block.share:.1f} %",
            block.strongest,
        ]
        for block in shown
    ]
    yield from table([titles, *rows])


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with their columns one below the other, whatever the width of the letters."""
    from rich.cells import cell_len

    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(padded)}".rstrip()
