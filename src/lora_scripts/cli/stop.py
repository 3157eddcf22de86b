"""`lora-scripts stop OUTPUT`: the run there finishes its step, saves and ends."""

from __future__ import annotations

import argparse

from lora_scripts.cli import _asking
from lora_scripts.cli._console import Console
from lora_scripts.train.listeners.control import STOP

add_arguments = _asking.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Ask for it, and say at which step it stopped."""
    if answer := _asking.ask(arguments, STOP):
        Console().say("train.stopped", step=answer["step"], total=answer["total"])
    return 0
