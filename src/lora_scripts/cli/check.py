"""`lora-scripts check --config FILE`: the plan, without training."""

from __future__ import annotations

import argparse

from lora_scripts.cli import _config_arguments

SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _config_arguments.add(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan with trained tensors, memory and time."""
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
    from lora_scripts.forecast import forecast

    for code, params in forecast(prepared):
        console.say(code, **params)
    return 0
