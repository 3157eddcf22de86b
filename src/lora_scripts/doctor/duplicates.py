"""Pictures that are there more than once: byte by byte, saved again, mirrored, cut out of another, or held out as well.

A copy counts twice in training without telling anything new; one in the held-out part makes the result look better than
it is.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor.alike import Entry, groups, search
from lora_scripts.doctor.comparing import Match
from lora_scripts.doctor.finding import Finding, Item, Severity

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Picture, Survey

EVERY_SECONDS = 5.0
"""Between two words about the progress."""
NEARLY_ALL = 0.92
"""Share of the area from which a cut takes nothing but the margin, and the two are called the same."""


def find(survey: Survey) -> Sequence[Finding]:
    """Return copies inside the folder, and between it and the held-out part."""
    own = [picture for picture in survey.pictures if picture.sha256]
    exact = _same_bytes(own, survey)
    superfluous = {picture.name for group in exact for picture in group[1:]}
    held = [picture for picture in survey.held if picture.sha256]
    leaked = _leaked(own, held)
    left = [p for p in own if p.row >= 0 and p.measured and p.name not in superfluous]
    left += [p for p in held if p.row >= 0 and p.measured]
    # What is in both parts byte by byte is told already.
    matches = _matches(left, survey)
    inside = [match for match in matches if _is_own(left[match.whole], survey) and _is_own(left[match.part], survey)]
    across = [match for match in matches if _is_own(left[match.whole], survey) != _is_own(left[match.part], survey)]
    across = [match for match in across if left[match.whole].sha256 != left[match.part].sha256]
    found = [
        _finding("leak", Severity.MUST, [_item((there, here), survey) for there, here in leaked], fix="move_aside"),
        _finding("leak_near", Severity.MUST, _near_leaks(across, left, survey)),
        _finding("exact", Severity.MUST, [_item(group, survey) for group in exact], fix="move_aside"),
        *_near(inside, left, survey),
    ]
    return [finding for finding in found if finding.count]


def _finding(name: str, severity: Severity, items: Sequence[Item], *, fix: str = "") -> Finding:
    """Count the copies, not what is kept."""
    return Finding("pictures", name, severity, sum(len(item.files) - 1 for item in items), items=items, fix=fix)


def _is_own(picture: Picture, survey: Survey) -> bool:
    return picture.root == survey.settings.path


def _name(picture: Picture, survey: Survey) -> str:
    """Return its name relative to the folder that is looked at, also for a held-out one."""
    if _is_own(picture, survey):
        return picture.name
    try:
        return Path(os.path.relpath(picture.path, survey.settings.path)).as_posix()
    except ValueError:  # another drive
        return picture.path.as_posix()


def _item(
    pictures: Sequence[Picture],
    survey: Survey,
    detail: Note | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> Item:
    return Item(tuple(_name(picture, survey) for picture in pictures), detail, box)


def _same_bytes(pictures: Sequence[Picture], survey: Survey) -> list[list[Picture]]:
    """Return groups of equal files; first the one to keep: with a caption, else the shortest name."""
    by_content: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        # An empty file is no copy of another one.
        if picture.problem is None or picture.problem.code != "data.picture_empty":
            by_content[picture.sha256].append(picture)

    def rank(picture: Picture) -> tuple[bool, int, str]:
        return not any(survey.captions.get(picture.name, ())), len(picture.name), picture.name

    return [sorted(group, key=rank) for group in by_content.values() if len(group) > 1]


def _leaked(own: Sequence[Picture], held: Sequence[Picture]) -> list[tuple[Picture, Picture]]:
    there = {picture.sha256: picture for picture in held}
    return [(there[picture.sha256], picture) for picture in own if picture.sha256 in there]


def _matches(pictures: Sequence[Picture], survey: Survey) -> list[Match]:
    told = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal told
        if survey.tell is not None and done < total and time.monotonic() - told > EVERY_SECONDS:
            told = time.monotonic()
            survey.tell("pictures.comparing", done=done, total=total)

    entries = [Entry(picture.row, picture.size) for picture in pictures]
    return search(entries, survey.miniatures, advance)


def _is_whole(match: Match) -> bool:
    left, top, right, bottom = match.box
    return (right - left) * (bottom - top) >= NEARLY_ALL


def _better(picture: Picture) -> tuple[float, float, float, str]:
    """Sort the one to keep first: the largest, then the one saved with the least loss, then the sharpest."""
    assert picture.measured is not None
    quality = picture.measured.quality or 101
    return -picture.size[0] * picture.size[1], -quality, -picture.measured.sharpness, picture.name


def _near(matches: Sequence[Match], pictures: Sequence[Picture], survey: Survey) -> list[Finding]:
    """Tell groups of the same picture, mirrored ones, and parts of another."""
    same = [match for match in matches if _is_whole(match)]
    found: dict[str, list[Item]] = {"near": [], "mirrored": []}
    kept: dict[int, int] = {}
    for name, mirrored in (("near", False), ("mirrored", True)):
        pairs = [(match.whole, match.part) for match in same if match.mirrored == mirrored]
        # One of a group of copies speaks for all of it.
        pairs = [(kept.get(first, first), kept.get(second, second)) for first, second in pairs]
        for group in groups([pair for pair in pairs if pair[0] != pair[1]]):
            best, *others = sorted(group, key=lambda number: _better(pictures[number]))
            kept.update(dict.fromkeys(others, best))
            found[name].append(
                _item([pictures[number] for number in (best, *others)], survey, _sizes(best, others, pictures))
            )
    parts: dict[tuple[int, int], Item] = {}
    for match in matches:
        whole, part = (_last(number, kept) for number in (match.whole, match.part))
        if not _is_whole(match) and whole != part and (part, whole) not in parts:
            left, top, right, bottom = match.box
            note = Note("pictures.crop.detail", {"percent": round(100 * (right - left) * (bottom - top))})
            parts.setdefault((whole, part), _item((pictures[whole], pictures[part]), survey, note, match.box))
    return [
        _finding("near", Severity.SHOULD, found["near"]),
        _finding("mirrored", Severity.SHOULD, found["mirrored"]),
        _finding("crop", Severity.SHOULD, list(parts.values())),
    ]


def _last(number: int, kept: dict[int, int]) -> int:
    while number in kept:
        number = kept[number]
    return number


def _sizes(best: int, others: Sequence[int], pictures: Sequence[Picture]) -> Note:
    sizes = ["{}x{}".format(*pictures[number].size) for number in (best, *others)]
    return Note("pictures.near.detail", {"sizes": ", ".join(sizes)})


def _near_leaks(matches: Sequence[Match], pictures: Sequence[Picture], survey: Survey) -> list[Item]:
    items = []
    for match in matches:
        first, second = pictures[match.whole], pictures[match.part]
        there, here = (second, first) if _is_own(first, survey) else (first, second)
        # A box is of the first that is named.
        items.append(_item((there, here), survey, None, match.box if there is first else None))
    return items
