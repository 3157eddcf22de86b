"""`lora-scripts runs OUTPUT`: what became of each run in a folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import messages

if TYPE_CHECKING:
    from lora_scripts.run_states import RunState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument(
        "output", type=Path, nargs="?", default=Path("output"), metavar="OUTPUT", help=messages.text("cli.help.runs")
    )
    parser.add_argument("--json", action="store_true", help=messages.text("cli.help.as_json"))


def run(arguments: argparse.Namespace) -> int:
    """Print one line a run, newest first."""
    from lora_scripts import run_states
    from lora_scripts.cli._console import Console

    console = Console()
    found = run_states.find(arguments.output)
    if arguments.json:
        console.line(json.dumps([dataclasses.asdict(one) for one in found], default=str, ensure_ascii=False, indent=1))
        return 0
    for one in found:
        console.line(f"{one.path}: {_sentence(one)}")
        if one.since:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.since))
            saved = one.saved if one.saved is not None else "-"
            console.say("cli.runs.detail", since=since, saved=saved)
    return 0


def _sentence(one: RunState) -> str:
    owner = one.owner or {}
    return messages.text(
        f"cli.runs.{one.state}",
        step=one.step,
        total=one.total or "?",
        reason=one.reason,
        pid=owner.get("pid", "?"),
        host=owner.get("host", "?"),
    )
