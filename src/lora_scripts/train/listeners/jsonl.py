"""events.jsonl: every event, one a line, for programs that watch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lora_scripts import messages
from lora_scripts.events import SCHEMA_VERSION, Command, Event
from lora_scripts.redaction import hide


class JsonLines:
    """Appends to the file; a resumed run first drops what happened after its checkpoint.

    Args:
        path: the file.
        step: the step the run starts from.
        warn: told once, as a sentence, when the file cannot be written; training goes on.
    """

    def __init__(self, path: Path, step: int, warn: Any):
        self.path, self.warn, self._warned = path, warn, False
        try:
            if path.exists():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
                path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        except OSError as error:
            self._warn(error)

    def __call__(self, event: Event) -> Command | None:
        """Write one line."""
        row = {"v": SCHEMA_VERSION, "event": type(event).__name__, **dataclasses.asdict(event)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(hide(json.dumps(row, ensure_ascii=False, default=str)) + "\n")
        except OSError as error:
            self._warn(error)
        return None

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self.warn(messages.text("train.log_gap", path=self.path, reason=error.strerror or str(error)))
            self._warned = True


def _step_of(line: str) -> float:
    """Return the step of a line; a torn last line counts as after everything."""
    try:
        row = json.loads(line)
        return row.get("step", 0) if row.get("event") != "Finished" else float("inf")
    except ValueError:
        return float("inf")
