"""The captions of a folder of pictures, read as a training run reads them, except that what it would refuse is noted.

A run stops at the first broken row or sidecar. Here each becomes a problem, and everything else is still read.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_scripts.data.caption_files import SIDECARS, TABLES, inside, kohya_folder, sidecars
from lora_scripts.data.caption_tables import MAX_TABLE_BYTES, TABLE_SUFFIXES, Row, parse_table, read_text
from lora_scripts.data.folder import Folder
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import DataError, Problem

BROKEN_ROWS = 50
"""A table with more rows than this that cannot be read is not looked at further."""
NO_CAPTIONS = frozenset(
    "readme license licence copying notes note authors credits changelog todo requirements sources attribution "
    "prompt prompts tags classes labels trigger captions config settings info about sample_prompts".split()
)
"""Names of text files that lie among pictures without being the caption of one."""
MAX_SIDECAR_BYTES = 1 << 16
"""A stray text file that is larger is something else."""


@dataclass
class _Read:
    """What has been gathered so far; a picture in `sources` without captions has some that cannot be read."""

    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_captions(
    settings: Settings, folder: Folder
) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, Path], Sequence[Problem]]:
    """Return captions by picture, the file that each picture's captions stand in, and what is wrong with those files.

    A picture is absent from the captions where it has none, or where they cannot be read: then it has a source. The
    words of a kohya folder are captions without a source. A problem's `where` is what it is about: a file of the
    folder, "metadata.csv:12", or the name of a picture that is not there.
    """
    read = _Read()
    table = _table(settings, folder)
    if table is not None:
        _read_table(table, settings, folder, read)
    rest = [name for name in folder.pictures if name not in read.sources]
    _read_sidecars(settings.path, rest, folder, read)
    if table is None:
        _strays(settings.path, folder, read)
    for name in folder.pictures:
        words = kohya_folder(name)[2]
        if words and name not in read.sources:
            read.captions[name] = (words,)
    return read.captions, read.sources, read.problems


def _table(settings: Settings, folder: Folder) -> Path | None:
    if settings.metadata is not None:
        if not settings.metadata.is_file():
            raise DataError("data.metadata_missing", path=settings.metadata)
        return settings.metadata
    return next((settings.path / name for name in TABLES if name in folder.others), None)


def _read_table(table: Path, settings: Settings, folder: Folder, read: _Read) -> None:
    try:
        if table.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError("data.table_kind", path=table, allowed=", ".join(TABLE_SUFFIXES))
        text = read_text(table, MAX_TABLE_BYTES)
        rows, broken = _rows(text, table, read)
    except DataError as error:
        # Whatever it says of pictures is unknown; none of them may be called uncaptioned.
        read.problems.append(_problem(error, table.name))
        read.sources.update(dict.fromkeys(folder.pictures, table))
        return
    if not rows and not broken:
        read.problems.append(Problem("data.table_empty", {"path": table}, table.name))
    _match(rows, table, folder.pictures, read)
    for name in _named_in(broken, folder.pictures):
        read.sources.setdefault(name, table)


def _rows(text: str, table: Path, read: _Read) -> tuple[Sequence[Row], list[str]]:
    """Return the rows, and the lines that cannot be read, each of which becomes a problem.

    Raises:
        DataError: the table cannot be read at all.
    """
    lines = text.split("\n")
    broken: list[str] = []
    while True:
        try:
            return parse_table("\n".join(lines), table).rows, broken
        except DataError as error:
            line = error.params.get("line")
            first = next((number for number, row in enumerate(text.split("\n"), start=1) if row.strip()), 0)
            # Without its first line, which names the columns, a table means something else.
            if not isinstance(line, int) or len(broken) == BROKEN_ROWS or (line == first and table.suffix != ".jsonl"):
                raise
            # A blank line is passed over, so the next one keeps its number.
            if not "".join(lines[line - 1 : line]).strip():
                raise
            read.problems.append(_problem(error, f"{table.name}:{line}"))
            broken.append(lines[line - 1])
            lines[line - 1] = ""


def _match(rows: Iterable[Row], table: Path, pictures: Sequence[str], read: _Read) -> None:
    exact, spelt = set(pictures), defaultdict(list)
    for name in pictures:
        spelt[_composed(name)].append(name)
    captions: dict[str, dict[str, None]] = {}
    for row in rows:
        try:
            wanted = inside(row, table)
        except DataError as error:
            read.problems.append(_problem(error, f"{table.name}:{row.line}"))
            continue
        near = [wanted] if wanted in exact else spelt.get(_composed(wanted), [])
        if len(near) > 1:
            params = {"path": table, "line": row.line, "first": near[0], "second": near[1]}
            read.problems.append(Problem("data.row_of_two", params, f"{table.name}:{row.line}"))
            read.sources.update(dict.fromkeys(near, table))
        elif near:
            captions.setdefault(near[0], {}).update(dict.fromkeys(row.captions))
        else:
            params = {"file": table.name, "line": row.line}
            read.problems.append(Problem("captions.without_picture.row", params, row.name))
    read.captions.update({name: tuple(texts) for name, texts in captions.items()})
    read.sources.update(dict.fromkeys(captions, table))


def _named_in(lines: Sequence[str], pictures: Sequence[str]) -> list[str]:
    """Return the pictures that broken lines seem to be about."""
    return [name for name in pictures if any(name in line for line in lines)] if lines else []


def _read_sidecars(root: Path, pictures: Sequence[str], folder: Folder, read: _Read) -> None:
    found, _ = sidecars(pictures, folder.others, allow_shared=True)
    owners: dict[str, list[str]] = defaultdict(list)
    for picture, sidecar in found.items():
        owners[sidecar].append(picture)
    for sidecar, mine in owners.items():
        path = root / sidecar
        read.sources.update(dict.fromkeys(mine, path))
        try:
            text = read_text(path).strip()
        except DataError as error:
            read.problems.append(_problem(error, sidecar))
            continue
        read.captions.update(dict.fromkeys(mine, (text,)))
        if len(mine) > 1:
            params: dict[str, object] = {"path": sidecar, "first": mine[0], "second": mine[1]}
            read.problems.append(Problem("data.shared_caption", params, sidecar))


def _strays(root: Path, folder: Folder, read: _Read) -> None:
    """Note captions whose picture is not there: text files that lie where most pictures have one beside them."""
    of_pictures = set(sidecars(folder.pictures, folder.others, allow_shared=True)[0].values())
    stems = {_composed(str(PurePosixPath(name).with_suffix(""))).casefold() for name in folder.pictures}
    beside: Counter[str] = Counter()
    lying: Counter[str] = Counter()
    for name in folder.pictures:
        parent = str(PurePosixPath(name).parent)
        lying[parent] += 1
        beside[parent] += name in read.sources
    for name in folder.others:
        path = PurePosixPath(name)
        parent = str(path.parent)
        if path.suffix.lower() not in SIDECARS or name in of_pictures or path.stem.casefold() in NO_CAPTIONS:
            continue
        # One of another suffix beside the picture's own is passed over by a run, but it has its picture.
        if _composed(str(path.with_suffix(""))).casefold() in stems:
            continue
        among = lying[parent] > 0 and 2 * beside[parent] > lying[parent]
        if among and (root / name).stat().st_size <= MAX_SIDECAR_BYTES:
            read.problems.append(Problem("captions.without_picture.sidecar", {}, name))


def _problem(error: DataError, where: str) -> Problem:
    return Problem(error.code, error.params, where)


def _composed(name: str) -> str:
    """Return the Unicode form in which names are compared: some systems store accents apart."""
    return unicodedata.normalize("NFC", name)
