"""`lora-scripts preview-now OUTPUT`: base and LoRA beside each other after the step that is going on."""

from __future__ import annotations

import argparse

from lora_scripts.cli import _asking
from lora_scripts.cli._console import Console
from lora_scripts.train.listeners.control import PREVIEW

add_arguments = _asking.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Ask for it, and say where it lies."""
    if answer := _asking.ask(arguments, PREVIEW):
        Console().say("cli.result.preview", path=answer["path"])
    return 0
