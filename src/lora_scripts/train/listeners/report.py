"""`report.md`: what was measured on the held-out part, before, on the way and after, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_scripts import messages
from lora_scripts.events import Command, Evaluated, Event, Finished
from lora_scripts.files import write_bytes


class Report:
    """Writes the report when all steps are done, from `events.jsonl`: a resumed run knows the earlier measurements.

    What is measured after that is of the weights that are kept: where an earlier step's are put back, the report is
    written again.

    Args:
        events: output_dir/events.jsonl.
        path: output_dir/report.md.
        name: the run's.
    """

    def __init__(self, events: Path, path: Path, name: str):
        self.events, self.path, self.name = events, path, name
        self._finished = False

    def __call__(self, event: Event) -> Command | None:
        """Write at the end."""
        is_end = isinstance(event, Finished) and not event.stopped
        if is_end or (self._finished and isinstance(event, Evaluated)):
            self._finished = True
            if found := measurements(self.events):
                write_bytes(self.path, render(self.name, found, event.step).encode())
        return None


def measurements(events: Path) -> list[dict[str, Any]]:
    """Return the held-out measurements of a run, one a step, oldest first."""
    found: dict[int, dict[str, Any]] = {}
    lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("event") == "Evaluated":
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]


def render(name: str, found: Sequence[Mapping[str, Any]], kept: int) -> str:
    """Return the report as Markdown.

    Args:
        kept: the step whose weights are the result.
    """
    text = messages.text
    names = list(dict.fromkeys(key for row in found for key in row["logs"]))
    lines = [f"# {name}", "", text("train.report_table"), ""]
    lines += ["| " + " | ".join(["step", "loss", *names]) + " |", "|" + "---:|" * (2 + len(names))]
    for row in found:
        cells = [f"{row['logs'][key]:.3f}" if key in row["logs"] else "" for key in names]
        lines.append("| " + " | ".join([str(row["step"]), f"{row['loss']:.4f}", *cells]) + " |")
    after = next((row for row in found if row["step"] == kept), found[-1])
    for title, row in (("train.report_before", found[0]), ("train.report_after", after)):
        if row["details"].get("confusion"):
            lines += ["", text(title, step=row["step"]), "", *confusion(row["details"])]
    return "\n".join(lines) + "\n"


def confusion(details: Mapping[str, Any]) -> list[str]:
    """Return the matrix as a table: a row for what a text is, a column for what it was taken for."""
    labels: list[str] = list(details["labels"])
    wide = max(map(len, labels))
    short = [label[:6] for label in labels]
    lines = [f"{'':{wide}}  " + " ".join(f"{label:>6}" for label in short)]
    for label, row in zip(labels, details["confusion"], strict=True):
        lines.append(f"{label:{wide}}  " + " ".join(f"{count or '.':>6}" for count in row))
    return ["```", *lines, "```"]
