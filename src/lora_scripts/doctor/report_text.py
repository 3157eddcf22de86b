"""The report on a terminal: three groups, each finding with how many, what, the first files, why, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts import messages
from lora_scripts.doctor import commands
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.run import ORDER, Examination

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

SHOWN_ITEMS = 3
SHOWN_NAMES = 5
COLOURS = {Severity.MUST: "red", Severity.SHOULD: "yellow", Severity.GOOD: "cyan"}


def show(done: Examination, console: Console, *, all_ignored: bool = False, saved: bool = False) -> None:
    """Print the report.

    Args:
        all_ignored: show ignored findings whole, and not only their names.
        saved: an HTML file was written too, so that it need not be recommended.
    """
    line(console, _title(done), "bold")
    for severity in ORDER:
        found = done.of(severity)
        if found:
            line(console, "")
            heading = messages.text(
                "doctor.group", group=messages.text(f"doctor.severity.{severity}"), count=len(found)
            )
            line(console, heading, f"bold {COLOURS[severity]}")
            console.print(_table(found, COLOURS[severity]))
    if done.ignored:
        line(console, "")
        names = ", ".join(f"{finding.id} ({messages.printable(finding.reason)})" for finding in done.ignored)
        line(console, messages.text("doctor.ignored", count=len(done.ignored), names=names), "dim")
        if all_ignored:
            console.print(_table(done.ignored, "dim"))
    for entry in done.unmatched:
        files = messages.printable(", ".join(entry.files) or "*")
        line(console, messages.text("doctor.unmatched", id=messages.printable(entry.id), files=files), "dim")
    line(console, "")
    _closing(done, console, saved)


def line(console: Console, text: str, style: str = "") -> None:
    """Print one line as it is, however long."""
    from rich.text import Text

    console.print(Text(text, style=style), soft_wrap=True, highlight=False)


def _title(done: Examination) -> str:
    kind = messages.text(f"doctor.looked_at.{done.kind}", count=done.looked_at)
    return messages.text("doctor.title", path=done.settings.path, looked_at=kind)


def _table(findings: Sequence[Finding], colour: str) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(justify="right", style=f"bold {colour}", no_wrap=True, min_width=4)
    table.add_column(overflow="fold", ratio=1)
    for finding in findings:
        table.add_row(str(finding.count), _cell(finding))
    return table


def _cell(finding: Finding) -> Group:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    named = _files(finding)
    if finding.examples:
        named.append(", ".join(messages.printable(str(example)) for example in finding.examples[:EXAMPLES]))
    return Group(
        Text(messages.printable(finding.sentence("what"))),
        *(Padding(Text(row, style="bold"), (0, 0, 0, 2)) for row in named),
        *(Text(messages.printable(finding.sentence(part)), style="dim") for part in ("why", "fix")),
    )


def _files(finding: Finding) -> list[str]:
    """Return the lines that name the first files: one for all, or one each where something is said of them."""
    items = list(finding.items)
    if not items:
        return []
    told = any(item.detail is not None or len(item.files) > 1 for item in items)
    shown = items[: SHOWN_ITEMS if told else SHOWN_NAMES]
    rest = len(items) - len(shown)
    more = messages.text("doctor.more", count=rest) if rest else ""
    if told:
        return [_row(item) for item in shown] + ([more] if more else [])
    return [", ".join([*(messages.printable(item.files[0]) for item in shown), *([more] if more else [])])]


def _row(item: Item) -> str:
    names = ", ".join(map(messages.printable, item.files[:SHOWN_NAMES]))
    if len(item.files) > SHOWN_NAMES:
        names += ", " + messages.text("doctor.more", count=len(item.files) - SHOWN_NAMES)
    return f"{names}  {detail(item)}".rstrip()


def detail(item: Item) -> str:
    """Return what is said of an item, on one line, or ""."""
    if item.detail is None:
        return ""
    return messages.printable(messages.text(item.detail.code, **item.detail.params))


def _closing(done: Examination, console: Console, saved: bool) -> None:
    """Say what is to be done next, with the commands."""
    if not done.findings:
        line(console, messages.text("doctor.healthy"), "green")
        return
    if not saved:
        command = commands.doctor(done.settings, "--html", "report.html")
        line(console, messages.text("doctor.next.html", command=command))
    fixable = sum(bool(finding.fix) for finding in done.findings)
    if fixable:
        command = commands.doctor(done.settings, "--fix")
        line(console, messages.text("doctor.next.fix", count=fixable, command=command))
    command = commands.ignore(done.settings, done.findings[0].id)
    line(console, messages.text("doctor.next.ignore", command=command))
