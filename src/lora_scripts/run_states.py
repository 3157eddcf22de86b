"""What became of each run, told from its folder alone: whoever started it, and however it ended.

What run.json says is checked against who holds the folder's lock, which ends with the process; a run that says
"running" and that nobody holds was interrupted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts.errors import ConfigError, LoraScriptsError
from lora_scripts.runs import RunFolder
from lora_scripts.train import checkpoint
from lora_scripts.train.listeners.control import REQUESTS

TAIL_BYTES = 1 << 18
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunState:
    """One run.

    Attributes:
        state: "running", "finished", "stopped", "interrupted", "failed" or "unreadable".
        step, total: optimizer steps done and planned; total is 0 where nothing says.
        saved: step of the newest complete checkpoint, or None.
        since: seconds since the epoch when it began or was carried on; 0 where nothing says.
        reason: why it failed or cannot be read, as a sentence.
        owner: process id, host and start of who holds the folder; empty where nobody does.
    """

    path: Path
    state: str
    step: int = 0
    total: int = 0
    saved: int | None = None
    since: float = 0.0
    reason: str = ""
    owner: Mapping[str, Any] | None = None


def find(root: Path) -> list[RunState]:
    """Return the runs in a folder: itself, or those of its sub-folders, newest first.

    Raises:
        ConfigError: it is no folder, or no run is in it.
    """
    if not root.is_dir():
        raise ConfigError("train.no_run", path=root)
    folders = [root] if (root / "run.json").exists() else sorted(path.parent for path in root.glob("*/run.json"))
    if not folders:
        raise ConfigError("train.no_run", path=root)
    return sorted((look(folder) for folder in folders), key=lambda run: (-run.since, str(run.path)))


def look(path: Path) -> RunState:
    """Return the state of the run in one folder."""
    folder = RunFolder(path)
    owner = folder.owner()
    try:
        record = folder.record()
    except LoraScriptsError as error:
        return RunState(path, "unreadable", reason=str(error), owner=owner)
    if record is None:
        raise ConfigError("train.no_run", path=path)
    steps = checkpoint.steps(folder.checkpoints)
    saved = steps[-1] if steps else None
    session = record["sessions"][-1] if record["sessions"] else {}
    last = _last_events(folder.events_path)
    step = int(session.get("step", last.get("Stepped", {}).get("step", saved or 0)))
    state = record["state"]
    if state == "running" and owner is None:
        state, step = "interrupted", max(last.get("Stepped", {}).get("step", 0), saved or 0)
    elif owner is not None:
        state = "running"
    reason = str(record.get("error") or last.get("Failed", {}).get("error", "")) if state == "failed" else ""
    total = int(record.get("resolved", {}).get("steps", 0))
    return RunState(path, state, step, total, saved, float(session.get("started", 0.0)), reason, owner)


def ask(path: Path, what: str, *, wait: float = 60.0) -> Mapping[str, Any]:
    """Ask the run in a folder for something, and wait until it has been done.

    Args:
        what: one of `train.listeners.control.REQUESTS`.
        wait: seconds; 0 does not wait.

    Returns:
        The event that answers, such as `Saved`; empty where it was not waited for, or not long enough.

    Raises:
        ConfigError: no run is going on there.
    """
    assert what in REQUESTS
    found = look(path) if (path / "run.json").exists() else None
    if found is None:
        raise ConfigError("train.no_run", path=path)
    if found.state != "running":
        raise ConfigError("train.not_running", path=path, state=found.state, step=found.step)
    folder = RunFolder(path)
    size = folder.events_path.stat().st_size if folder.events_path.exists() else 0
    folder.ask(what)
    answer = {"stop": "Finished", "save": "Saved", "preview": "Previewed"}[what]
    until = time.monotonic() + wait
    while time.monotonic() < until:
        event = _last_events(folder.events_path, size).get(answer)
        if event is not None:
            return event
        if folder.owner() is None:
            raise ConfigError("train.not_running", path=path, state=look(path).state, step=look(path).step)
        time.sleep(POLL_SECONDS)
    return {}


def _last_events(path: Path, begin: int = 0) -> dict[str, dict[str, Any]]:
    """Return the last event of each kind near the end of an events.jsonl, of what was written behind `begin`."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with path.open("rb") as file:
            file.seek(max(begin, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
            found[row["event"]] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found
