"""`lora-scripts check --config FILE`: the plan, without training; with `--memory`, how to fit into less."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lora_scripts import messages, units
from lora_scripts.cli import _config_arguments
from lora_scripts.errors import ConfigError, MachineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_scripts.cli._console import Console
    from lora_scripts.counting import Machine
    from lora_scripts.preparation import Prepared
    from lora_scripts.train.ladder import Trial

SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _config_arguments.add(parser)
    parser.add_argument("--memory", metavar="SIZE", help=messages.text("cli.help.memory"))


def run(arguments: argparse.Namespace) -> int:
    """Print the plan with trained tensors, memory and time, and the ladder where a size is given.

    Raises:
        MachineError: nothing fits into that size.
    """
    limit = _size(arguments.memory) if arguments.memory is not None else None
    config = _config_arguments.load(arguments)
    from lora_scripts.cli import _plan_table
    from lora_scripts.cli._console import Console
    from lora_scripts.preparation import file_names, prepare
    from lora_scripts.runs import RunFolder

    console = Console()
    RunFolder(config.output_dir).check()
    prepared = prepare(config)
    file_names(prepared)
    for line in _plan_table.lines(prepared):
        console.line(line)
    for shown in prepared.family.explain(prepared.base, prepared.examples, SHOWN):
        console.line("")
        console.line(shown)
    from lora_scripts import counting, forecast

    machine = counting.machine()
    for code, params in forecast.forecast(prepared, machine):
        console.say(code, **params)
    if limit is not None:
        _ladder(console, prepared, machine, limit)
    return 0


def _size(text: str) -> int:
    try:
        size = units.parse_bytes(text)
    except ValueError:
        size = 0
    if not size:
        raise ConfigError("cli.plan.bad_memory", value=text)
    return size


def _ladder(console: Console, prepared: Prepared, machine: Machine, limit: int) -> None:
    """Print what was tried, and the lines for the config that fit."""
    from lora_scripts import forecast

    tried, fits = forecast.climb(prepared, machine, limit)
    console.say("train.ladder.title", memory=units.format_bytes(limit))
    console.rich.print(_table(tried))
    console.say("train.ladder.always")
    if fits is None:
        least = min(trial.bytes for trial in tried)
        raise MachineError(
            "train.ladder.none",
            memory=units.format_bytes(limit),
            least=units.format_bytes(least),
            missing=units.format_bytes(least - limit),
        )
    if not fits.rung.changes:
        console.say("train.ladder.fits")
        return
    console.say("train.ladder.lowest", rung=messages.text(f"train.ladder.{fits.rung.name}"))
    for key, value in fits.rung.changes.items():
        console.line(f"{key}: {str(value).lower()}")


def _table(tried: Sequence[Trial]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("rung", "memory", "time", "cost"):
        table.add_column(messages.text(f"train.ladder.column.{name}"), no_wrap=name != "cost")
    for trial in tried:
        table.add_row(
            messages.text(f"train.ladder.{trial.rung.name}"),
            units.format_bytes(trial.bytes),
            f"{trial.seconds / tried[0].seconds:.2f}x",
            messages.text(f"train.ladder.{trial.rung.name}_cost"),
        )
    return table
