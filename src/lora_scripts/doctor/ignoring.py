"""What a person chose to ignore: `.lora-doctor.toml` in the data set's folder.

    [[ignore]]
    id = "pictures.blurry"
    files = ["art/*"]                 # left out: all of that finding
    reason = "blurred on purpose"
    date = 2026-11-25

An entry says why. It hides nothing: what is ignored is told with its reason, and only counts no more. A pattern covers
the items whose files it matches; the rest of the finding stays.
"""

from __future__ import annotations

import datetime
import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from lora_scripts import files, messages
from lora_scripts.doctor.finding import TOPICS, Finding, Item
from lora_scripts.errors import ConfigError

FILE = ".lora-doctor.toml"
KEYS = {"id", "reason", "files", "date"}
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One decision: a finding's id, why, and the files it is for; none means all of the finding."""

    id: str
    reason: str
    files: tuple[str, ...] = ()


def known_ids() -> list[str]:
    """Return the ids of all findings there are."""
    parts = [code.split(".") for code in messages.catalogue("en")]
    return sorted(f"{code[0]}.{code[1]}" for code in parts if code[0] in TOPICS and code[2:] == ["what"])


def read(folder: Path) -> list[Entry]:
    """Return the entries of a folder's ignore file, none where there is no such file.

    Raises:
        ConfigError: it cannot be read, or an entry is not understood.
    """
    path = folder / FILE
    text = _text(path)
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        number = line[1] if line else text.count("\n") + 1
        reason = messages.printable(str(error).partition(" (at ")[0])
        raise ConfigError("doctor.ignore_broken", path=path, line=number, reason=reason) from error
    rows = values.get("ignore", [])
    if values.keys() - {"ignore"} or not isinstance(rows, list):
        keys = ", ".join(map(messages.printable, sorted(values.keys() - {"ignore"}) or ["ignore"]))
        raise ConfigError("doctor.ignore_key", path=path, line=1, key=keys, allowed="[[ignore]]")
    return [_entry(row, path, line) for row, line in zip(rows, _lines(text, len(rows)), strict=True)]


def add(folder: Path, entry: Entry) -> Path:
    """Write one more entry behind what is there, and return the file.

    Raises:
        ConfigError: the file is broken, there is no such finding, the reason is empty, or the entry stands there.
        MachineError: the folder cannot be written.
    """
    refuse_unknown(entry.id)
    if not entry.reason.strip():
        raise ConfigError("doctor.ignore_reason", id=entry.id)
    path = folder / FILE
    earlier = next((old for old in read(folder) if (old.id, old.files) == (entry.id, entry.files)), None)
    if earlier is not None:
        raise ConfigError("doctor.ignored_already", id=entry.id, path=path, reason=messages.printable(earlier.reason))
    text = _text(path)
    lines = ["[[ignore]]", f"id = {_quoted(entry.id)}"]
    if entry.files:
        lines.append(f"files = [{', '.join(map(_quoted, entry.files))}]")
    lines += [f"reason = {_quoted(entry.reason.strip())}", f"date = {datetime.date.today().isoformat()}"]
    before = f"{text.rstrip()}\n\n" if text.strip() else ""
    files.write_bytes(path, f"{before}{chr(10).join(lines)}\n".encode())
    return path


def refuse_unknown(name: str) -> None:
    """Refuse an id that no finding has.

    Raises:
        ConfigError: names the nearest.
    """
    known = known_ids()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.5) or known
        raise ConfigError("doctor.unknown_id", id=messages.printable(name), known=", ".join(near))


def apply(findings: Sequence[Finding], entries: Sequence[Entry]) -> tuple[list[Finding], list[Finding], list[Entry]]:
    """Return what still counts, what is ignored (with its reason), and the entries that nothing was found for."""
    kept, ignored, matched = [], [], set()
    for finding in findings:
        rest: Finding | None = finding
        for entry in entries:
            if rest is None or entry.id != finding.id:
                continue
            rest, covered = _split(rest, entry)
            if covered is not None:
                matched.add(entry)
                ignored.append(covered)
        if rest is not None:
            kept.append(rest)
    return kept, ignored, [entry for entry in entries if entry not in matched]


def _split(finding: Finding, entry: Entry) -> tuple[Finding | None, Finding | None]:
    """Return the part of a finding that stays and the part that an entry covers; None for no part."""
    if not entry.files:
        return None, replace(finding, reason=entry.reason)
    covered = [item for item in finding.items if _covers(entry.files, item)]
    if not covered:
        return finding, None
    rest = [item for item in finding.items if item not in covered]
    part = replace(finding, items=covered, count=_count(finding, covered), reason=entry.reason)
    return (replace(finding, items=rest, count=_count(finding, rest)) if rest else None), part


def _covers(patterns: Sequence[str], item: Item) -> bool:
    """Say whether patterns match all files of an item, of several at least all but the first, which is the good one."""
    return all(any(_matches(name, pattern) for pattern in patterns) for name in item.files[1:] or item.files)


def _matches(name: str, pattern: str) -> bool:
    """Say whether a pattern fits a name, or, where it names a row of a file, that file."""
    names = {name, messages.printable(name), re.sub(r":\d+$", "", name)}
    return any(each == pattern or fnmatchcase(each, pattern) for each in names)


def _count(finding: Finding, items: Sequence[Item]) -> int:
    """Return the count of a part, counted as the whole finding counts: superfluous files, files or items."""

    def superfluous(of: Sequence[Item]) -> int:
        return sum(len(item.files) - 1 for item in of)

    def distinct(of: Sequence[Item]) -> int:
        return len({name for item in of for name in item.files})

    way = next((each for each in (len, superfluous, distinct) if each(finding.items) == finding.count), len)
    return way(items)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError("doctor.ignore_broken", path=path, line=1, reason=f"> {MAX_BYTES} B")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError("doctor.ignore_unreadable", path=path, reason=error.strerror or error) from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("doctor.ignore_broken", path=path, line=line, reason="UTF-8") from error


def _lines(text: str, count: int) -> list[int]:
    """Return the line on which each entry begins; 1 for all where they are written otherwise."""
    found = [
        number for number, line in enumerate(text.split("\n"), start=1) if re.match(r"\s*\[\[\s*ignore\s*]]", line)
    ]
    return found if len(found) == count else [1] * count


def _entry(row: object, path: Path, line: int) -> Entry:
    """Check one entry."""
    if not isinstance(row, dict):
        raise ConfigError("doctor.ignore_key", path=path, line=line, key="ignore", allowed="[[ignore]]")
    foreign = sorted(row.keys() - KEYS)
    if foreign:
        key, allowed = messages.printable(", ".join(foreign)), ", ".join(sorted(KEYS))
        raise ConfigError("doctor.ignore_key", path=path, line=line, key=key, allowed=allowed)
    name, reason, patterns = row.get("id"), row.get("reason"), row.get("files", [])
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(name, str) or not isinstance(reason, str) or not reason.strip():
        raise ConfigError("doctor.ignore_entry", path=path, line=line)
    if not isinstance(patterns, list) or not all(isinstance(each, str) for each in patterns):
        raise ConfigError("doctor.ignore_entry", path=path, line=line)
    return Entry(name, reason.strip(), tuple(patterns))


def _quoted(text: str) -> str:
    """Return a TOML string; what has no place in a file of UTF-8 is written as it is shown."""
    shown = "".join(
        letter if letter not in "\x7f" and _storable(letter) else messages.printable(letter) for letter in text
    )
    return json.dumps(shown, ensure_ascii=False)


def _storable(letter: str) -> bool:
    return not "\ud800" <= letter <= "\udfff"
