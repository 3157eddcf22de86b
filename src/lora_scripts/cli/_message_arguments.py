"""What `classify` and `draft` share: adapters, a file of messages in, the same file with more in it out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import messages
from lora_scripts.cli._console import Console, quiet_libraries
from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    from lora_scripts.answering import Named, Speaker


def add(parser: argparse.ArgumentParser) -> None:
    """Add --adapter, --base, --labels, --input and --output."""
    text = messages.text
    parser.add_argument(
        "--adapter", action="append", required=True, metavar="[NAME=]DIR", help=text("cli.help.adapter")
    )
    parser.add_argument("--base", metavar="BASE", help=text("cli.help.adapter_base"))
    parser.add_argument("--labels", metavar="A,B,C", help=text("cli.help.labels"))
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help=text("cli.help.input"))
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=text("cli.help.output"))


def open_all(arguments: argparse.Namespace, *, classifies: bool) -> tuple[Console, Speaker, list[dict[str, Any]]]:
    """Check adapters and rows, and only then load the base.

    Args:
        classifies: rows that say a label are classified too.
    """
    from lora_scripts import answering

    if arguments.output.resolve() == arguments.input.resolve():
        raise ConfigError("llm.same_file", path=arguments.input)
    if arguments.output.is_dir() or not arguments.output.parent.is_dir():
        raise ConfigError("llm.no_output", path=arguments.output)
    labels = [label.strip() for label in (arguments.labels or "").split(",") if label.strip()]
    adapters = answering.parse_adapters(arguments.adapter, labels)
    rows = answering.read_rows(arguments.input, adapters, classifies=classifies)
    quiet_libraries()
    console = Console()
    return console, answering.open_speaker(adapters, arguments.base), rows


def adapter_of(row: Mapping[str, Any], adapters: Mapping[str, Named]) -> Named:
    """Return the adapter that a row was answered by."""
    return adapters[""] if set(adapters) == {""} else adapters[str(row["adapter"])]
