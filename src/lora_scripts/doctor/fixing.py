"""What `--fix` can do about findings: only what can be taken back, and only inside the data set's folder.

move_aside: superfluous copies, pictures that cannot be read and captions without a picture go into `.lora-doctor/`,
with their caption files; their rows are taken out of the table that training reads, which would refuse them.
respell_trigger: the misspelt trigger is corrected where it stands.
rename_suffix: a picture gets the ending of the format that it is in; its row and caption file follow.

`plan` touches nothing and says what it would do; `journal.perform` does it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_scripts.data import folder as folders
from lora_scripts.data.caption_files import TABLES, sidecars
from lora_scripts.data.folder import Folder
from lora_scripts.data.record import Note
from lora_scripts.doctor import editing
from lora_scripts.doctor.finding import Finding
from lora_scripts.doctor.journal import Change, Move, Rewrite, is_plain
from lora_scripts.doctor.settings import Settings

ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        told: what will be done, a sentence each.
        left: what cannot be done, and why.
    """

    changes: Sequence[Change]
    told: Sequence[Note]
    left: Sequence[Note]


@dataclass
class _Draft:
    """A plan in the making.

    Attributes:
        table: the table that training reads, where it lies in the folder.
        texts: caption files as they are to be, by name; what they were stands in `bytes`.
        moves: by the file's name; the new name, or "" for aside.
    """

    root: Path
    folder: Folder
    table: str = ""
    foreign_table: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, bytes] = field(default_factory=dict)
    moves: dict[str, str] = field(default_factory=dict)
    told: list[Note] = field(default_factory=list)
    left: list[Note] = field(default_factory=list)

    def text(self, name: str) -> str | None:
        """Return a caption file as it is to be so far; None where it cannot be changed."""
        if name not in self.texts:
            if not is_plain(self.root, name):
                return None
            self.bytes[name] = (self.root / name).read_bytes()
            text = editing.decode(self.bytes[name])
            if text is None:
                return None
            self.texts[name] = text
        return self.texts[name]

    def leave(self, code: str, name: str) -> None:
        """Note what is not done."""
        self.left.append(Note(code, {"path": PurePosixPath(name)}))


def plan(findings: Sequence[Finding], settings: Settings) -> Plan:
    """Say what can be done about findings.

    Raises:
        DataError: the folder cannot be read.
    """
    if settings.path.is_file():
        return Plan((), (), ())
    draft = _Draft(settings.path, folders.walk(settings.path))
    _choose_table(draft, settings)
    # What goes aside needs no other change.
    for name, fix in FIXES.items():
        fix([finding for finding in findings if finding.fix == name], draft)
    changes: list[Change] = [Move(source, target) for source, target in draft.moves.items()]
    for name, text in draft.texts.items():
        data = editing.encode(text, draft.bytes[name])
        if data != draft.bytes[name] and name not in draft.moves:
            changes.append(Rewrite(name, data))
    return Plan(changes, draft.told, draft.left)


def _choose_table(draft: _Draft, settings: Settings) -> None:
    lying = next((name for name in TABLES if name in draft.folder.others), "")
    if settings.metadata is None:
        draft.table = lying
        return
    table, root = settings.metadata.resolve(), settings.path.resolve()
    draft.foreign_table = not table.is_relative_to(root)
    draft.table = "" if draft.foreign_table else table.relative_to(root).as_posix()


def move_aside(findings: Sequence[Finding], draft: _Draft) -> None:
    """Put files aside; of several that belong together the first stays."""
    wanted = [name for finding in findings for item in finding.items for name in item.files[1:] or item.files]
    pictures: dict[str, None] = {}
    for name in dict.fromkeys(wanted):
        if name in draft.folder.others and _is_movable(draft.root, name):
            draft.moves[name] = ""
            draft.told.append(Note("doctor.fix.aside", {"path": PurePosixPath(name)}))
        elif name in draft.folder.pictures and _is_movable(draft.root, name):
            pictures[name] = None
        elif (draft.root / name).exists() or (draft.root / name).is_symlink():
            draft.leave("doctor.fix.left_link", name)
        elif name not in draft.folder.pictures and PurePosixPath(name).suffix:
            _take_row_out(draft, name)
    taken = _beside([name for name in draft.folder.pictures if name not in pictures], draft.folder.others)
    for name in pictures:
        _picture_aside(draft, name, taken)


def _is_movable(root: Path, name: str) -> bool:
    """Say whether a file may be moved: it is no link, and its bytes can be read, so that they can be known again."""
    return is_plain(root, name) and os.access(root / name, os.R_OK)


def _take_row_out(draft: _Draft, name: str) -> None:
    """Take out the row about a picture that is not there."""
    if _without_row(draft, name):
        params = {"file": PurePosixPath(draft.table), "path": PurePosixPath(name)}
        draft.told.append(Note("doctor.fix.row", params))
    else:
        draft.leave("doctor.fix.left_row", name)


def _picture_aside(draft: _Draft, name: str, taken: Collection[str]) -> None:
    """Put a picture aside with its caption files, those aside that another picture has taken."""
    if _has_row(draft, name) and not _without_row(draft, name):
        draft.leave("doctor.fix.left_row", name)
        return
    beside = sorted(_beside([name], draft.folder.others).difference(taken, draft.moves))
    for each in (name, *(each for each in beside if _is_movable(draft.root, each))):
        draft.moves[each] = ""
        draft.told.append(Note("doctor.fix.aside", {"path": PurePosixPath(each)}))


def _beside(pictures: Sequence[str], others: Sequence[str]) -> set[str]:
    """Return the caption files of pictures, also those that a run passes over."""
    found, passed_over = sidecars(pictures, others, allow_shared=True)
    return {*found.values(), *passed_over}


def _has_row(draft: _Draft, name: str) -> bool:
    """Say whether the table that training reads has a row about a picture; yes where that cannot be told."""
    if draft.foreign_table:
        return True
    text = draft.text(draft.table) if draft.table else ""
    names = None if text is None else editing.names(text, Path(draft.table))
    return bool(draft.table) and (names is None or name in names)


def _without_row(draft: _Draft, name: str) -> bool:
    text = draft.text(draft.table) if draft.table else None
    new = None if text is None else editing.without_rows(text, Path(draft.table), {name})
    if new is None:
        return False
    draft.texts[draft.table] = new
    return True


def respell_trigger(findings: Sequence[Finding], draft: _Draft) -> None:
    """Correct the trigger in the table's row, or in the file beside the picture."""
    beside, _ = sidecars(draft.folder.pictures, draft.folder.others, allow_shared=True)
    for item in (item for finding in findings for item in finding.items if item.detail is not None):
        name, said = item.files[0], item.detail.params if item.detail else {}
        words = (str(said.get("found", "")), str(said.get("trigger", "")))
        if name in draft.moves or not all(words):
            continue
        file = _respell(draft, name, words, beside)
        if not file:
            draft.leave("doctor.fix.left_words", name)
            continue
        params = {"path": PurePosixPath(name), "file": PurePosixPath(file), "found": words[0], "trigger": words[1]}
        draft.told.append(Note("doctor.fix.respelt", params))


def _respell(draft: _Draft, name: str, words: tuple[str, str], beside: Mapping[str, str]) -> str:
    """Correct one picture's captions; return the file that was changed, or ""."""
    for file, table in ((draft.table, Path(draft.table)), (beside.get(name, ""), None)):
        text = draft.text(file) if file else None
        new = None if text is None else editing.respell(text, table, {name}, words)
        if new is not None:
            draft.texts[file] = new
            return file
    return ""


def rename_suffix(findings: Sequence[Finding], draft: _Draft) -> None:
    """Give pictures the ending of their format."""
    names = [item.files[0] for finding in findings for item in finding.items]
    for name in dict.fromkeys(names):
        if name in draft.moves:
            continue
        ending = ENDINGS.get(_format(draft.root / name)) if is_plain(draft.root, name) else None
        new = str(PurePosixPath(name).with_suffix(ending)) if ending else ""
        free = new and new not in draft.moves.values() and not (draft.root / new).exists()
        if not free or (_has_row(draft, name) and not _with_row_renamed(draft, name, new)):
            draft.leave("doctor.fix.left_name", name)
            continue
        draft.moves[name] = new
        draft.told.append(Note("doctor.fix.renamed", {"path": PurePosixPath(name), "new": PurePosixPath(new)}))


def _with_row_renamed(draft: _Draft, name: str, new: str) -> bool:
    text = draft.text(draft.table) if draft.table else None
    changed = None if text is None else editing.renamed(text, Path(draft.table), name, new)
    if changed is None:
        return False
    draft.texts[draft.table] = changed
    return True


def _format(path: Path) -> str:
    """Return the format that a picture's bytes are in, or ""."""
    from PIL import Image

    from lora_scripts.data.decode import FORMATS

    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.format or ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""


FIXES: Mapping[str, Callable[[Sequence[Finding], _Draft], None]] = {
    "move_aside": move_aside,
    "rename_suffix": rename_suffix,
    "respell_trigger": respell_trigger,
}
