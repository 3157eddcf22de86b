"""A folder's files, found without ever hanging or leaving it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_scripts import messages
from lora_scripts.data.decode import FOREIGN_SUFFIXES, FORMATS, SUFFIXES
from lora_scripts.data.record import Dropped
from lora_scripts.errors import DataError

SIDE_FILE = ".labels.jsonl"
"""How the names of files end in which labelling keeps what it knows of each caption: neither captions nor data."""


PUT_ASIDE = ".lora-doctor"
"""Where the doctor puts what is not to be trained on: out of sight on purpose."""


@dataclass
class Folder:
    """What lies in a folder and below; names are relative to it, with "/", and sorted.

    Attributes:
        pictures: by suffix, photographs in formats that are not decoded among them.
        others: every other visible file.
        skipped: what is not read for a reason: hidden, a link out of the folder, a pipe ...
    """

    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: list[Dropped] = field(default_factory=list)


def walk(root: Path) -> Folder:
    """List a folder and its sub-folders.

    Links to files inside the folder are followed. Links to folders are not: what they lead to is either outside or
    listed at its own place, so that no loop can arise.

    Raises:
        DataError: the folder is absent, no folder, or cannot be read.
    """
    if not root.exists():
        raise DataError("data.folder_missing", path=root)
    if not root.is_dir():
        raise DataError("data.not_a_folder", path=root)
    folder, home, pending = Folder(), root.resolve(), [""]
    while pending:
        relative = pending.pop()
        try:
            entries = list(os.scandir(root / relative))
        except OSError as error:
            if not relative:
                raise DataError("data.unreadable", path=root, reason=error.strerror or error) from error
            reason = {"path": root / relative, "reason": error.strerror or str(error)}
            folder.skipped.append(Dropped(root / relative, "data.unreadable", reason))
            continue
        for entry in entries:
            pending += _sort_in(entry, f"{relative}/{entry.name}".lstrip("/"), folder, home)
    folder.pictures.sort()
    folder.others.sort()
    folder.skipped.sort(key=lambda dropped: str(dropped.path))
    return folder


def no_pictures(root: Path, folder: Folder) -> DataError:
    """Return the error for a folder without a single picture."""
    if folder.pictures or folder.others:
        examples = ", ".join(folder.others[:3])
        return DataError("data.no_pictures", path=root, examples=examples, allowed=", ".join(FORMATS))
    if folder.skipped:
        return DataError("data.all_skipped", path=root, reasons=sentences(folder.skipped))
    return DataError("data.empty_folder", path=root, allowed=", ".join(FORMATS))


def sentences(dropped: Sequence[Dropped]) -> str:
    """Tell the reasons of the first three."""
    return " ".join(messages.text(one.code, **one.params) for one in dropped[:3])


def _sort_in(entry: os.DirEntry[str], name: str, folder: Folder, home: Path) -> list[str]:
    """Put one entry where it belongs; return it where it is a folder to go into."""
    path = Path(entry.path)
    picture = PurePosixPath(name).suffix.lower() in SUFFIXES | FOREIGN_SUFFIXES
    if not _is_utf8(name):
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        folder.skipped.append(Dropped(path, "data.name_not_utf8", {"path": shown}))
        return []
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except OSError as error:
        reason = {"path": path, "reason": error.strerror or str(error)}
        folder.skipped.append(Dropped(path, "data.unreadable", reason))
        return []
    if entry.name.startswith("."):
        # The many small files that desktops and version control leave behind are not worth a line each.
        if picture or (stat.S_ISDIR(mode) and entry.name != PUT_ASIDE):
            folder.skipped.append(Dropped(path, "data.hidden", {"path": path}))
        return []
    if entry.name.endswith(SIDE_FILE):
        return []
    if stat.S_ISLNK(mode):
        refusal = _link_refusal(path, home)
        if refusal is not None:
            folder.skipped.append(refusal)
            return []
    elif stat.S_ISDIR(mode):
        return [name]
    elif not stat.S_ISREG(mode):
        folder.skipped.append(Dropped(path, "data.not_a_file", {"path": path}))
        return []
    (folder.pictures if picture else folder.others).append(name)
    return []


def _link_refusal(path: Path, home: Path) -> Dropped | None:
    """Return why a link is not followed, or None where it leads to a file inside the folder."""
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    # A link to itself is a RuntimeError up to Python 3.12.
    except (OSError, RuntimeError):
        return Dropped(path, "data.link_broken", {"path": path})
    if not target.is_relative_to(home):
        return Dropped(path, "data.link_outside", {"path": path, "target": target})
    if stat.S_ISDIR(mode):
        return Dropped(path, "data.link_to_folder", {"path": path, "target": target})
    return None if stat.S_ISREG(mode) else Dropped(path, "data.not_a_file", {"path": path})


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
