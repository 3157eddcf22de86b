"""`lora-scripts save-now OUTPUT`: a checkpoint after the step that is going on."""

from __future__ import annotations

import argparse

from lora_scripts.cli import _asking
from lora_scripts.cli._console import Console
from lora_scripts.train.listeners.control import SAVE

add_arguments = _asking.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Ask for it, and say where it lies."""
    if answer := _asking.ask(arguments, SAVE):
        Console().say("train.saved", step=answer["step"], path=answer["path"])
    return 0
