"""Pictures that cannot be read, or are read as something else than a person may think."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lora_scripts import messages
from lora_scripts.data.caption_files import TABLES, sidecars
from lora_scripts.data.decode import FOREIGN_SUFFIXES
from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.reading_captions import NO_CAPTIONS

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Picture, Survey

FORMAT_OF = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
}
TRANSPARENT = 0.05
"""Share of see-through pixels from which the ground shows; rounded corners of screenshots have less."""
MOST = 0.5
"""What holds for more of the pictures than this is how the set is, and no file is named for it."""
OUR_FOLDER = ".lora-doctor"
BESIDE_PICTURES = frozenset(
    ".txt .caption .csv .tsv .jsonl .json .toml .yaml .yml .md .rst .html .css .py .npz .npy .safetensors .log".split()
)
"""What people and programs keep beside pictures on purpose: captions, settings, notes, caches."""


def find(survey: Survey) -> Sequence[Finding]:
    """Return what is wrong with files, and what is done to pictures while they are read."""
    unread = [picture for picture in survey.pictures if picture.problem is not None]
    foreign = [picture for picture in unread if _is_foreign(picture)]
    broken = [picture for picture in unread if not _is_foreign(picture)]
    found = [
        _about("unreadable", Severity.MUST, [_refused(picture) for picture in broken], fix="move_aside"),
        _about("foreign_format", Severity.MUST, [_refused(picture) for picture in foreign]),
        *_skipped(survey),
        _about("same_name", Severity.SHOULD, _same_names(survey)),
        _about("wrong_suffix", Severity.SHOULD, _wrong_suffixes(survey), fix="rename_suffix"),
    ]
    readable = survey.readable
    found.append(_about("several", Severity.SHOULD, [Item((p.name,)) for p in readable if p.several]))
    found += [_transparent(readable), *_converted(readable), _strays(survey)]
    return [finding for finding in found if finding is not None]


def _about(name: str, severity: Severity, items: Sequence[Item], *, fix: str = "") -> Finding | None:
    count = sum(len(item.files) for item in items)
    return Finding("pictures", name, severity, count, items=items, fix=fix) if items else None


def _is_foreign(picture: Picture) -> bool:
    """Say whether it may be a fine picture, in a format that is not decoded."""
    return (
        picture.problem is not None
        and picture.problem.code == "data.picture_format"
        and PurePosixPath(picture.name).suffix.lower() in FOREIGN_SUFFIXES
    )


def _refused(picture: Picture) -> Item:
    assert picture.problem is not None
    return Item((picture.name,), Note(picture.problem.code, picture.problem.params))


def _skipped(survey: Survey) -> list[Finding | None]:
    """What the folder holds but is not read: links and pipes may be meant, hidden files rarely are."""
    hidden: list[Item] = []
    odd: list[Item] = []
    for dropped in survey.folder.skipped:
        name = _shown(dropped.path, survey.settings.path)
        if name != OUR_FOLDER:
            (hidden if dropped.code == "data.hidden" else odd).append(Item((name,), Note(dropped.code, dropped.params)))
    return [_about("skipped", Severity.SHOULD, odd), _about("hidden", Severity.GOOD, hidden)]


def _shown(path: Path, root: Path) -> str:
    """Return a file's name in its folder; bytes that are no UTF-8 are spelt out."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _same_names(survey: Survey) -> list[Item]:
    """Names that are one on Windows or macOS: they differ in case, or in how an accent is stored."""
    alike: dict[str, list[str]] = defaultdict(list)
    for picture in survey.pictures:
        alike[unicodedata.normalize("NFC", picture.name).casefold()].append(picture.name)
    return [Item(tuple(names)) for names in alike.values() if len(names) > 1]


def _wrong_suffixes(survey: Survey) -> list[Item]:
    items = []
    for picture in survey.readable:
        suffix = PurePosixPath(picture.name).suffix.lower()
        if picture.format and FORMAT_OF.get(suffix) != picture.format:
            params = {"format": picture.format, "suffix": messages.printable(suffix)}
            items.append(Item((picture.name,), Note("pictures.wrong_suffix.detail", params)))
    return items


def _transparent(readable: Sequence[Picture]) -> Finding | None:
    seen = [picture for picture in readable if picture.transparent > TRANSPARENT]
    if len(seen) > MOST * len(readable) and len(seen) > EXAMPLES:
        return Finding("pictures", "transparent_set", Severity.GOOD, len(seen), {"total": len(readable)})
    items = [
        Item((p.name,), Note("pictures.transparent.detail", {"percent": round(100 * p.transparent)})) for p in seen
    ]
    return _about("transparent", Severity.SHOULD, items)


def _converted(readable: Sequence[Picture]) -> list[Finding | None]:
    turned = [
        Item((p.name,), Note("pictures.turned.detail", {"orientation": p.orientation}))
        for p in readable
        if p.orientation != 1
    ]
    converted = [
        Item((p.name,), Note(f"pictures.converted.{p.converted}")) for p in readable if p.converted and p.format
    ]
    profile = [Item((p.name,)) for p in readable if p.profile_ignored]
    return [
        _about("turned", Severity.GOOD, turned),
        _about("converted", Severity.GOOD, converted),
        _about("profile_ignored", Severity.GOOD, profile),
    ]


def _strays(survey: Survey) -> Finding | None:
    """Count files that are neither pictures nor anything that people keep beside pictures."""
    used, passed_over = sidecars(survey.folder.pictures, survey.folder.others, allow_shared=True)
    known = {*used.values(), *passed_over, *TABLES}
    strays = [
        name
        for name in survey.folder.others
        if name not in known
        and PurePosixPath(name).suffix.lower() not in BESIDE_PICTURES
        and PurePosixPath(name).stem.casefold() not in NO_CAPTIONS
    ]
    if not strays:
        return None
    examples = tuple(messages.printable(name) for name in strays[:EXAMPLES])
    return Finding("pictures", "strays", Severity.GOOD, len(strays), examples=examples)
