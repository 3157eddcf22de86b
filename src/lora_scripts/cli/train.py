"""`lora-scripts train --config FILE`: what `python train.py` runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lora_scripts import continuing, messages
from lora_scripts.cli import _config_arguments
from lora_scripts.cli._console import Console, quiet_libraries
from lora_scripts.data.order import is_regularisation

if TYPE_CHECKING:
    from lora_scripts.app import Outcome
    from lora_scripts.config.schema import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _config_arguments.add(parser)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--restart", action="store_true", help=messages.text("cli.help.restart"))
    add_continue(way)


def add_continue(parser: argparse._ActionsContainer) -> None:
    """Add --continue, with what becomes of the schedule."""
    parser.add_argument(
        "--continue",
        nargs="?",
        const=continuing.CHOICES[0],
        choices=continuing.CHOICES,
        metavar="|".join(filter(None, continuing.CHOICES)),
        dest="continued",
        help=messages.text("cli.help.continue"),
    )


def run(arguments: argparse.Namespace) -> int:
    """Train as the config and the command line say."""
    return start(_config_arguments.load(arguments), restart=arguments.restart, continued=arguments.continued)


def start(config: RunConfig, *, restart: bool = False, continued: str | None = None) -> int:
    """Print the plan, train, say where the results are."""
    from lora_scripts import app
    from lora_scripts.cli import _plan_table
    from lora_scripts.preparation import prepare
    from lora_scripts.runs import RunFolder

    console = Console()
    RunFolder(config.output_dir).check()
    prepared = prepare(config, app.processes())
    quiet_libraries()
    if not app.is_main():
        app.train(config, prepared=prepared, restart=restart, continued=continued)
        return 0
    for line in _plan_table.lines(prepared):
        console.line(line)
    from lora_scripts.train.listeners.console import Progress

    outcome = app.train(
        config,
        prepared=prepared,
        restart=restart,
        continued=continued,
        listeners=[Progress(console.rich)],
        tell=console.say,
    )
    if outcome.already:
        console.say("train.already", steps=outcome.steps, path=outcome.folder)
    _results(console, outcome)
    return 0


def _results(console: Console, outcome: Outcome) -> None:
    from lora_scripts.runs import RunFolder

    prepared = outcome.prepared
    console.line("")
    for path in sorted((outcome.folder / "previews").glob("before_after.*")):
        console.say("cli.result.preview", path=path)
    for path in outcome.files.values():
        console.say("cli.result.file", path=path)
    report = RunFolder(outcome.folder).report
    if report.exists():
        console.line(report.read_text(encoding="utf-8"))
        console.say("cli.result.report", path=report)
    console.say("cli.result.curves", path=outcome.folder / "logs")
    facts = prepared.scan.facts
    learned = next(example for example in prepared.examples if not is_regularisation(example))
    for note in prepared.family.usage(prepared.base, outcome.files, facts, learned):
        console.say(note.code, **note.params)
