"""The commands that a report offers, written so that a shell takes them as they stand."""

from __future__ import annotations

import os
import shlex
import subprocess

from lora_scripts import messages
from lora_scripts.doctor.settings import Settings


def doctor(settings: Settings, *words: str) -> str:
    """Return `lora-scripts doctor FOLDER ...` for the same data."""
    parts = ["lora-scripts", "doctor", messages.printable(str(settings.path)), *words]
    return subprocess.list2cmdline(parts) if os.name == "nt" else shlex.join(parts)


def ignore(settings: Settings, finding_id: str) -> str:
    """Return the command that ignores a finding; the reason is left to the person."""
    return doctor(settings, "--ignore", finding_id, "--reason", messages.text("doctor.reason_here"))
