"""The arguments every verb that takes a config shares."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import messages

if TYPE_CHECKING:
    from lora_scripts.config.schema import RunConfig


def add(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --config and --set."""
    parser.add_argument("--config", type=Path, required=required, metavar="FILE", help=messages.text("cli.help.config"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=messages.text("cli.help.set")
    )


def load(arguments: argparse.Namespace) -> RunConfig:
    """Return the validated config."""
    from lora_scripts.config.load import load as load_config

    return load_config(arguments.config, arguments.overrides)
