"""`lora-scripts import kohya PATH`: another trainer's project as a config of ours, with a word on every setting."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts import messages
from lora_scripts.files import at_home

if TYPE_CHECKING:
    from lora_scripts.importing.translation import Line

TRAINERS = ("kohya",)
LISTS = {"understood": "import.understood", "changed": "import.changed", "unsupported": "import.unsupported"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    text = messages.text
    parser.add_argument("trainer", choices=TRAINERS, help=text("import.help.trainer"))
    parser.add_argument("path", type=Path, metavar="PATH", help=text("import.help.path"))
    parser.add_argument("--output", type=Path, metavar="FILE", help=text("import.help.output"))
    parser.add_argument("--overwrite", action="store_true", help=text("import.help.overwrite"))


def run(arguments: argparse.Namespace) -> int:
    """Translate, write, and print the three lists."""
    from lora_scripts.cli._console import Console
    from lora_scripts.importing import kohya

    console = Console()
    stem = at_home(arguments.path).resolve().stem or "project"
    output = arguments.output or Path(f"kohya-{stem}.yaml")
    imported = kohya.read(arguments.path, output)
    kohya.save(imported, overwrite=arguments.overwrite)
    for verdict, title in LISTS.items():
        lines = [line for line in imported.lines if line.verdict == verdict]
        console.say(title, count=sum(line.given for line in lines))
        for shown in _listed(lines):
            console.line(shown)
        console.line("")
    for note in imported.notes:
        console.say(note.code, **note.params)
    if imported.steps:
        console.say("import.steps", steps=imported.steps)
    console.say("import.wrote", path=output)
    code = "import.next" if imported.complete else "import.next_base"
    console.say(code, path=shlex.quote(str(output)))
    return 0


def _listed(lines: Sequence[Line]) -> list[str]:
    """Return a line for each setting; those that nothing needs to be done for share one."""
    shown, idle = [], []
    for line in lines:
        if not line.target and line.note is None:
            idle.append(line.key)
            continue
        key = line.key if line.given else messages.text("import.left_out", key=line.key)
        said = messages.text("import.setting", key=key, value=line.value)
        if line.target:
            said = messages.text("import.becomes", setting=said, target=line.target)
        if line.note is not None:
            reason = messages.text(line.note.code, **line.note.params)
            said = messages.text("import.because", setting=said, reason=reason)
        shown.append(f"  {said}")
    if idle:
        shown.append("  " + messages.text("import.idle", keys=", ".join(idle)))
    return shown
