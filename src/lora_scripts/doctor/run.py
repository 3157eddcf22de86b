"""A whole examination: what kind of data it is, every check over it, and the findings in the order of their harm."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_scripts import messages
from lora_scripts.data import folder as folders
from lora_scripts.data.decode import FORMATS
from lora_scripts.data.folder import Folder
from lora_scripts.data.texts.files import ROW_SUFFIXES, SUFFIXES, suffix
from lora_scripts.doctor import ignoring
from lora_scripts.doctor.finding import Finding, Severity
from lora_scripts.doctor.ignoring import Entry
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import DataError

PICTURES, TEXTS = "pictures", "texts"
KINDS = (PICTURES, TEXTS)
ORDER = (Severity.MUST, Severity.SHOULD, Severity.GOOD)

QUIET_SECONDS = 2.0
"""How long nothing is said about the progress."""

Tell = Callable[..., object]


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        kind: "pictures" or "texts".
        looked_at: how many pictures or rows, those that cannot be read and held-out ones among them.
        findings: those that count, the worst first.
        ignored: those that a person chose to ignore; each has its reason.
        unmatched: entries of the ignore file that nothing was found for.
    """

    settings: Settings
    kind: str
    looked_at: int
    findings: Sequence[Finding]
    ignored: Sequence[Finding] = ()
    unmatched: Sequence[Entry] = ()

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one group."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def must_fix(self) -> bool:
        """Whether something is wrong that must be mended first."""
        return bool(self.of(Severity.MUST))


def examine(
    settings: Settings, *, kind: str = "", excused: Collection[tuple[str, str]] = (), tell: Tell | None = None
) -> Examination:
    """Run every check.

    Args:
        kind: "pictures" or "texts", or "" to see by the files.
        excused: topics and names of findings that training itself takes care of.
        tell: is told how far it is, as `tell(code, done=..., total=...)`.

    Raises:
        ConfigError, DataError: there is nothing to look at, or the ignore file is broken.
    """
    entries = ignoring.read(home(settings.path))
    kind = kind or kind_of(settings.path)
    found, looked_at = _pictures(settings, tell) if kind == PICTURES else _texts(settings, tell)
    found = [finding for finding in found if (finding.topic, finding.name) not in excused]
    kept, ignored, unmatched = ignoring.apply(found, entries)
    return Examination(settings, kind, looked_at, in_order(kept), in_order(ignored), unmatched)


def home(path: Path) -> Path:
    """Return the folder that a data set's own files lie in, such as the ignore file."""
    return path.parent if path.is_file() else path


def kind_of(path: Path) -> str:
    """Say what a data set holds: a folder with pictures is one of pictures.

    Raises:
        DataError: it holds neither pictures nor texts.
    """
    if path.is_file():
        if suffix(path) not in ROW_SUFFIXES:
            raise DataError("doctor.no_rows", path=path, allowed=", ".join(ROW_SUFFIXES))
        return TEXTS
    folder = folders.walk(path)
    if folder.pictures:
        return PICTURES
    if any(suffix(name) in SUFFIXES for name in folder.others):
        return TEXTS
    raise _nothing(path, folder)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings by severity; within one as the checks stand, which begin with what does most harm."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.severity))


def _pictures(settings: Settings, tell: Tell | None) -> tuple[list[Finding], int]:
    from lora_scripts.doctor import (
        captions,
        coverage,
        duplicates,
        marks,
        matching,
        quality,
        reading,
        sizes,
        survey,
        words,
    )

    seen = survey.survey(settings, tell)
    # The order is that of harm, see `in_order`.
    checks = (reading, captions, words, duplicates, matching, sizes, quality, marks, coverage)
    found = [finding for check in checks for finding in check.find(seen)]
    return found, len(seen.pictures) + len(seen.held)


def _texts(settings: Settings, tell: Tell | None) -> tuple[list[Finding], int]:
    from lora_scripts.doctor.texts import checkup

    started = time.monotonic()

    def told(steps: int, total: int) -> None:
        if tell is not None and time.monotonic() - started > QUIET_SECONDS:
            tell("doctor.progress", done=steps, total=total)

    done = checkup.find(settings, told)
    return list(done.findings), done.looked_at


def _nothing(path: Path, folder: Folder) -> DataError:
    allowed = {"pictures": ", ".join(FORMATS), "texts": ", ".join(SUFFIXES)}
    if folder.others:
        return DataError(
            "doctor.nothing", path=path, examples=", ".join(map(messages.printable, folder.others[:3])), **allowed
        )
    if folder.skipped:
        return DataError("data.all_skipped", path=path, reasons=folders.sentences(folder.skipped))
    return DataError("doctor.empty_folder", path=path, **allowed)
