"""`lora-scripts train --config FILE`: what `python train.py` runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from lora_scripts import messages
from lora_scripts.cli import _config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    _config_arguments.add(parser)
    parser.add_argument("--restart", action="store_true", help=messages.text("cli.help.restart"))


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, train, say where the results are."""
    config = _config_arguments.load(arguments)
    from lora_scripts.cli._console import Console
    from lora_scripts.preparation import prepare

    console = Console()
    from lora_scripts import app

    app.RunFolder(config.output_dir).check()
    from lora_scripts.cli import _plan_table

    prepared = prepare(config, app.processes())
    for line in _plan_table.lines(prepared):
        console.line(line)
    from lora_scripts.train.listeners.console import Progress

    outcome = app.train(
        config, prepared=prepared, restart=arguments.restart, listeners=[Progress(console.rich)], tell=console.say
    )
    if outcome.already:
        console.say("train.already", steps=outcome.steps, path=outcome.folder)
    _results(console, outcome)
    return 0


def _results(console: object, outcome: object) -> None:
    config, base = outcome.prepared.config, outcome.prepared.base
    name = config.resolved_name
    console.line("")
    picture = outcome.folder / "previews" / "before_after.png"
    if picture.exists():
        console.say("cli.result.picture", path=picture)
    for path in outcome.files.values():
        console.say("cli.result.file", path=path)
    console.say("cli.result.curves", path=outcome.folder / "logs")
    file = _webui_file(outcome.files)
    if base.webui and file is not None:
        console.say("cli.result.webui", path=file, line=f"<lora:{name}:0.8>")
    else:
        console.say("cli.result.no_webui", base=config.base_model)
        prompt = f"{outcome.prepared.examples[0].captions[0]}, <lora:{name}:0.8>"
        command = f'lora-scripts sample --base {config.base_model} --lora {file or outcome.folder}:0.8 --prompt "{prompt}"'
        console.line(f"  {command.replace(', <lora:' + name + ':0.8>', '')} --out samples")


def _webui_file(files: Mapping[str, Path]) -> Path | None:
    return files.get("kohya") or next(iter(files.values()), None)
