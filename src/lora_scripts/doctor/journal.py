"""Changes to a data set that can be taken back exactly, also after a kill in the middle.

A fix has a folder of its own, `.lora-doctor/<time>-<n>/` in the data set's folder:

    journal.json    what is to be moved and changed, with every file's sha256 before and after; on the disk before
                    the first file is touched
    aside/...       files that were moved, under the names they had
    old/...         the bytes of changed files as they were
    new/...         the bytes they are to get; each is renamed into its place

Each change is one rename inside one file system, so a file is at one place or at the other, never half. Taking back
first looks at every file: one that was touched since, and nothing is done at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import files
from lora_scripts.data.folder import PUT_ASIDE
from lora_scripts.errors import DataError

FOLDER = PUT_ASIDE
JOURNAL = "journal.json"
BEGUN, DONE = "begun", "done"
SCHEMA = 1


@dataclass(frozen=True)
class Move:
    """A file that gets another place; names are relative to the data set's folder. No target: it is put aside."""

    source: str
    target: str = ""


@dataclass(frozen=True)
class Rewrite:
    """A file that gets other bytes."""

    path: str
    data: bytes


Change = Move | Rewrite


@dataclass(frozen=True)
class Step:
    """One change as the journal has it; `before` lies at `path` as long as nothing was done.

    Attributes:
        path: relative to the data set's folder.
        place: where `path` is moved to, or where its old bytes are kept; relative to the same folder.
        after: sha256 of the new bytes; "" for a move.
    """

    path: str
    place: str
    before: str
    after: str = ""


def perform(root: Path, changes: Sequence[Change]) -> Path:
    """Make changes, and return the folder of the fix.

    Raises:
        DataError: an earlier fix was cut off, or a file has changed meanwhile.
        MachineError: the folder cannot be written.
    """
    earlier = _last(root)
    if earlier is not None and _read(root, earlier)[0] == BEGUN:
        raise DataError("doctor.fix_cut_off", path=earlier)
    try:
        folder = _new_folder(root)
        steps = [_stage(root, folder, change) for change in changes]
        _write(folder, BEGUN, steps)
    except OSError as error:
        raise files.cannot_write(root, error) from error
    try:
        for step in steps:
            _do(root, folder, step)
        _write(folder, DONE, steps)
    except (OSError, DataError) as error:
        # What cannot be taken back now can be later: the journal stands.
        with contextlib.suppress(OSError, DataError):
            _take_back(root, folder)
        raise (files.cannot_write(root, error) if isinstance(error, OSError) else error) from error
    return folder


def undo(root: Path) -> list[Step]:
    """Take the last fix back, and return what was restored.

    Raises:
        DataError: there is none, its journal is damaged, or files were changed since; then nothing is touched.
        MachineError: the folder cannot be written.
    """
    folder = _last(root)
    if folder is None:
        raise DataError("doctor.no_fix", path=root)
    try:
        return _take_back(root, folder)
    except OSError as error:
        raise files.cannot_write(root, error) from error


def _take_back(root: Path, folder: Path) -> list[Step]:
    steps = _read(root, folder)[1]
    changed = [step.path for step in steps if _state(root, step) == ""]
    if changed:
        raise DataError("doctor.changed_since", path=root, count=len(changed), first=root / changed[0])
    restored = [step for step in reversed(steps) if _state(root, step) == "done"]
    for step in restored:
        target = root / step.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / step.place, target)
        files.sync_folder(target.parent)
    _remove(root, folder)
    return restored


def _new_folder(root: Path) -> Path:
    home = root / FOLDER
    if home.is_symlink():
        raise DataError("doctor.journal_link", path=home)
    home.mkdir(exist_ok=True)
    # A fix that was cut off before its journal stood has touched nothing.
    for stray in home.iterdir():
        if _number(stray) and not (stray / JOURNAL).exists() and not (stray / "aside").exists():
            shutil.rmtree(stray)
    number = max((_number(path) for path in home.iterdir()), default=0) + 1
    folder = home / f"{time.strftime('%Y%m%d-%H%M%S')}-{number}"
    folder.mkdir()
    return folder


def _number(path: Path) -> int:
    """Return a fix's number, which orders them whatever the clock says; 0 for what is none."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < 10 and path.is_dir() and not path.is_symlink() else 0


def _last(root: Path) -> Path | None:
    home = root / FOLDER
    if home.is_symlink() or not home.is_dir():
        return None
    return max(
        (path for path in home.iterdir() if _number(path) and (path / JOURNAL).exists()), key=_number, default=None
    )


def _stage(root: Path, folder: Path, change: Change) -> Step:
    """Write down what a change is, and lay its bytes ready."""
    base = folder.relative_to(root).as_posix()
    if isinstance(change, Move):
        place = change.target or f"{base}/aside/{change.source}"
        if os.path.lexists(root / place):
            raise DataError("doctor.in_the_way", path=root / place)
        return Step(change.source, place, files.sha256_of(root / change.source))
    source = root / change.path
    old, new = folder / "old" / change.path, folder / "new" / change.path
    for path, data in ((old, source.read_bytes()), (new, change.data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            files.sync(file.fileno())
    shutil.copystat(source, old)
    shutil.copymode(source, new)
    return Step(change.path, f"{base}/old/{change.path}", files.sha256_of(old), files.sha256_of(new))


def _do(root: Path, folder: Path, step: Step) -> None:
    path, place = root / step.path, root / step.place
    if not is_plain(root, step.path) or files.sha256_of(path) != step.before:
        raise DataError("doctor.changed_meanwhile", path=path)
    if step.after:
        os.replace(folder / "new" / step.path, path)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, place)
        files.sync_folder(place.parent)
    files.sync_folder(path.parent)


def _state(root: Path, step: Step) -> str:
    """Return "done" or "open" for a change, or "" where the files are as neither of them leaves them."""
    here, there = _sha256(root, step.path), _sha256(root, step.place)
    if step.after:
        if here == step.before:
            return "open"
        return "done" if here == step.after and there == step.before else ""
    if here == step.before and there != step.before:
        return "open"
    return "done" if here is None and there == step.before else ""


def _sha256(root: Path, name: str) -> str | None:
    """Return the hash of a file's bytes; None where nothing is there, "" for what is no file."""
    if not os.path.lexists(root / name):
        return None
    return files.sha256_of(root / name) if is_plain(root, name) else ""


def is_plain(root: Path, name: str) -> bool:
    """Say whether a name is that of a file in the folder itself: no link, and not behind one."""
    path = root / name
    try:
        mode = path.lstat().st_mode
        behind_link = path.resolve() != root.resolve() / name
    except (OSError, RuntimeError, ValueError):
        return False
    return stat.S_ISREG(mode) and not behind_link and ".." not in Path(name).parts


def _write(folder: Path, state: str, steps: Sequence[Step]) -> None:
    rows = [{"path": s.path, "place": s.place, "before": s.before, "after": s.after} for s in steps]
    text = json.dumps({"schema": SCHEMA, "state": state, "steps": rows}, indent=1)
    files.write_bytes(folder / JOURNAL, text.encode("ascii"))
    files.sync_folder(folder)
    files.sync_folder(folder.parent)


def _read(root: Path, folder: Path) -> tuple[str, list[Step]]:
    """Return a journal's state and steps.

    Raises:
        DataError: it is none, or names something outside the data set's folder.
    """
    try:
        value: Any = json.loads((folder / JOURNAL).read_bytes())
        steps = [Step(**row) for row in value["steps"]]
        known = value["schema"] == SCHEMA and value["state"] in (BEGUN, DONE)
        whole = known and all(isinstance(text, str) for step in steps for text in vars(step).values())
        whole = whole and all(_is_inside(root, name) for step in steps for name in (step.path, step.place))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DataError("doctor.journal_broken", path=folder / JOURNAL)
    return value["state"], steps


def _is_inside(root: Path, name: str) -> bool:
    return bool(name) and (root / name).resolve().is_relative_to(root.resolve())


def _remove(root: Path, folder: Path) -> None:
    """Remove what a fix left: our copies, empty folders, and the journal last."""
    for part in ("old", "new"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for path, _, _ in os.walk(folder / "aside", topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    for stray in folder.glob(f"{files.STAGED_PREFIX}*"):
        stray.unlink()
    (folder / JOURNAL).unlink()
    for empty in (folder, root / FOLDER):
        with contextlib.suppress(OSError):
            empty.rmdir()
