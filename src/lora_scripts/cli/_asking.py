"""What `stop`, `save-now` and `preview-now` share: a folder, a request, an answer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lora_scripts import messages

WAIT = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder and --no-wait."""
    parser.add_argument("output", type=Path, metavar="OUTPUT", help=messages.text("cli.help.run_folder"))
    parser.add_argument("--no-wait", action="store_true", help=messages.text("cli.help.no_wait"))


def ask(arguments: argparse.Namespace, what: str) -> dict[str, Any]:
    """Ask, wait, return the event that answers."""
    from lora_scripts import run_states
    from lora_scripts.cli._console import Console

    answer = dict(run_states.ask(arguments.output, what, wait=0 if arguments.no_wait else WAIT))
    if not answer:
        Console().say("cli.runs.asked", path=arguments.output)
    return answer
