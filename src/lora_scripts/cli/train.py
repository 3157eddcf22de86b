"""`lora-scripts train --config FILE`: what `python train.py` runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import messages
from lora_scripts.cli import _config_arguments
from lora_scripts.cli._console import Console, quiet_libraries

if TYPE_CHECKING:
    from lora_scripts.app import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _config_arguments.add(parser)
    parser.add_argument("--restart", action="store_true", help=messages.text("cli.help.restart"))


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, train, say where the results are."""
    config = _config_arguments.load(arguments)
    from lora_scripts import app
    from lora_scripts.cli import _plan_table
    from lora_scripts.preparation import prepare
    from lora_scripts.runs import RunFolder

    console = Console()
    RunFolder(config.output_dir).check()
    prepared = prepare(config, app.processes())
    if not app.is_main():
        app.train(config, prepared=prepared, restart=arguments.restart)
        return 0
    for line in _plan_table.lines(prepared):
        console.line(line)
    from lora_scripts.train.listeners.console import Progress

    quiet_libraries()
    outcome = app.train(
        config, prepared=prepared, restart=arguments.restart, listeners=[Progress(console.rich)], tell=console.say
    )
    if outcome.already:
        console.say("train.already", steps=outcome.steps, path=outcome.folder)
    _results(console, outcome)
    return 0


def _results(console: Console, outcome: Outcome) -> None:
    config, base = outcome.prepared.config, outcome.prepared.base
    console.line("")
    picture = outcome.folder / "previews" / "before_after.png"
    if picture.exists():
        console.say("cli.result.picture", path=picture)
    for path in outcome.files.values():
        console.say("cli.result.file", path=path)
    console.say("cli.result.curves", path=outcome.folder / "logs")
    file = _webui_file(outcome.files)
    if base.webui and file is not None:
        console.say("cli.result.webui", path=file, line=f"<lora:{config.resolved_name}:0.8>")
    else:
        console.say("cli.result.no_webui", base=config.base_model)
        prompt = outcome.prepared.examples[0].title
        lora = file or outcome.folder
        console.line(
            f'  lora-scripts sample --base {config.base_model} --lora {lora}:0.8 --prompt "{prompt}" --out samples'
        )


def _webui_file(files: Mapping[str, Path]) -> Path | None:
    return files.get("kohya") or next(iter(files.values()), None)
