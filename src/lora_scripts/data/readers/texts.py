"""Rows of text from files and folders, in whichever usual format; what does not fit is left out and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_scripts.data.folder import sentences, walk
from lora_scripts.data.record import CaptionRules, Dataset, Dropped, Note, TextRow
from lora_scripts.data.texts import checks, fields, files, formats, tasks
from lora_scripts.data.texts.checks import leaks
from lora_scripts.data.texts.fields import Unfit, Wrong
from lora_scripts.errors import DataError

__all__ = ["TextScan", "leaks", "read"]

HARMLESS = ("text.duplicate", "text.no_verdict")
"""Reasons to leave a row out that say nothing against the file."""
_SHOWN, _FILES_NAMED = 5, 10


@dataclass(frozen=True)
class TextScan:
    """What was found.

    Attributes:
        rows: in the order of the data sets, their files' names and the rows in them; ids are unique.
        found: rows looked at, before any was dropped.
        dropped: rows and files left out, each with its reason; a row's parameters hold `file` and `row`.
        notes: what the plan should say, file by file and on the whole.
        labels: the allowed ones, sorted: those given, else those that rows name.
        files: sha256 of the bytes of each file that was read, by "<data set>/<file>".
    """

    rows: Sequence[TextRow]
    found: int
    dropped: Sequence[Dropped] = ()
    notes: Sequence[Note] = ()
    labels: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Found:
    """What one data set holds, as its files are read; `formats` says (file, format, rows)."""

    prefix: str
    rows: list[TextRow] = field(default_factory=list)
    found: int = 0
    unfit: list[Dropped] = field(default_factory=list)
    skipped: list[Dropped] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    formats: list[tuple[str, str, int]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)


def read(
    datasets: Sequence[Dataset],
    *,
    labels: Sequence[str] = (),
    held_out: bool = False,
    max_bad_fraction: float = 0.1,
) -> TextScan:
    """Read every row of every data set.

    Args:
        datasets: files, or folders with their sub-folders. The text files of a folder are read, one row each, where
            nothing else in it is: beside files of rows they describe them.
        labels: the allowed labels of task rows; none given, all that are found are allowed.
        held_out: the rows are only measured; their ids say so.
        max_bad_fraction: share of a data set's rows, 0 to 1, that may be unfit before the run is refused.

    Raises:
        DataError: a file that cannot be read or understood, a label that is not allowed, too many rows
            that are unfit, none left.
        MachineError: a Parquet file, and nothing to read it with.
    """
    allowed = tuple(sorted(set(labels)))
    parts = []
    for index, dataset in enumerate(datasets):
        _refuse_picture_settings(dataset)
        prefix = f"held/{index}" if held_out else str(index)
        parts.append(_read_dataset(prefix, dataset, allowed, max_bad_fraction))
    rows = [row for part in parts for row in part.rows]
    allowed = allowed or tasks.labels_in(rows)
    rows, repeated = checks.split_duplicates(rows)
    paths = {name: path for part in parts for name, path in part.paths.items()}
    doubles = [_duplicate(row, first, paths) for row, first in repeated]
    notes = [*(note for part in parts for note in part.notes), *checks.notes(rows, allowed)]
    if repeated:
        notes.append(Note("text.duplicates", _listed([f"{row.id} = {first.id}" for row, first in repeated])))
    dropped = [*(one for part in parts for one in (*part.skipped, *part.unfit)), *doubles]
    if dropped:
        notes.append(Note("text.dropped", {"count": len(dropped)}))
    hashes = {name: digest for part in parts for name, digest in part.hashes.items()}
    return TextScan(rows, sum(part.found for part in parts), tuple(dropped), tuple(notes), allowed, hashes)


def _refuse_picture_settings(dataset: Dataset) -> None:
    """Refuse settings that do nothing to texts, rather than doing nothing with them."""
    given = {
        "metadata": dataset.metadata is not None,
        "caption": dataset.captions != CaptionRules(),
        "flip": dataset.flip,
        "missing_pictures": dataset.missing_pictures != "error",
        "class_words": bool(dataset.class_words),
        "mask": dataset.mask is not None,
        "regularisation": dataset.regularisation,
        "visits": dataset.visits is not None and not dataset.regularisation,
    }
    if any(given.values()):
        keys = ", ".join(key for key, is_given in given.items() if is_given)
        raise DataError("text.picture_settings", path=dataset.path, keys=keys)


def _read_dataset(prefix: str, dataset: Dataset, allowed: Sequence[str], max_bad_fraction: float) -> _Found:
    part = _Found(prefix)
    for name, path in _files(dataset.path, part):
        part.paths[f"{prefix}/{name}"] = path
        _read_file(name, path, allowed, part)
    part.notes[:0] = _format_notes(dataset.path, part.formats)
    bad = [one for one in part.unfit if one.code not in HARMLESS]
    if len(bad) > max_bad_fraction * part.found:
        counts = {"bad": len(bad), "found": part.found, "share": f"{max_bad_fraction:.0%}"}
        raise DataError("text.too_many_unfit", path=dataset.path, **counts, reasons=sentences(bad))
    if not part.rows:
        raise DataError("text.none_usable", path=dataset.path, reasons=sentences(part.unfit))
    part.rows = [replace(row, weight=row.weight * dataset.weight, repeats=dataset.repeats) for row in part.rows]
    return part


def _format_notes(path: Path, found: Sequence[tuple[str, str, int]]) -> list[Note]:
    """Say which format each file has, or how many have which where there are too many to name."""
    if len(found) <= _FILES_NAMED:
        return [Note("text.format", {"file": name, "format": format, "count": rows}) for name, format, rows in found]
    files_of = Counter(format for _, format, _ in found)
    rows_of: Counter[str] = Counter()
    for _, format, rows in found:
        rows_of[format] += rows
    return [
        Note("text.formats", {"path": path, "files": count, "format": format, "count": rows_of[format]})
        for format, count in files_of.items()
    ]


def _files(path: Path, part: _Found) -> list[tuple[str, Path]]:
    """Return the files to read, by name; those that are not are told to `part`."""
    if not path.exists():
        raise DataError("text.path_missing", path=path)
    if not path.is_dir():
        return [(path.name, path)]
    folder = walk(path)
    part.skipped = [
        # The pictures' reader says it of pictures.
        Dropped(one.path, "text.not_a_file", {"path": one.path}) if one.code == "data.not_a_file" else one
        for one in folder.skipped
    ]
    names = sorted(folder.pictures + folder.others)
    chosen = [name for name in names if files.is_row_file(name)]
    chosen = chosen or [name for name in names if files.suffix(name) in files.TEXTS]
    others = sorted(set(names) - set(chosen))
    if not chosen:
        examples = fields.listing(others[:_SHOWN]) or "-"
        raise DataError("text.no_files", path=path, examples=examples, allowed=", ".join(files.SUFFIXES))
    if others:
        part.notes.append(Note("text.other_files", _listed(others)))
    return [(name, path / name) for name in chosen]


def _read_file(name: str, path: Path, allowed: Sequence[str], part: _Found) -> None:
    """Read one file's rows into `part`; in an append-only file the last row about one thing stands for all of them."""

    def convert(format: formats.Format, raw: fields.Raw, number: int) -> list[TextRow] | Dropped:
        return _convert(format, raw, f"{part.prefix}/{name}:{number}", (path, number), allowed)

    file, format, count = files.RowFile(path), None, 0
    made: list[list[TextRow] | Dropped] = []
    latest: dict[object, tuple[int, fields.Raw]] = {}
    unused: set[str] = set()
    for number, raw in file.rows():
        format = _same_format(format, raw, path, number)
        unused |= format.unused(raw)
        count += 1
        if format.identity is None:
            made.append(convert(format, raw, number))
        else:
            key = format.identity(raw) or number
            # What comes later stands later, too; a mistake that it replaces is none any more.
            latest.pop(key, None)
            latest[key] = (number, raw)
    if format is None:
        raise DataError("text.empty_file", path=path)
    made += [convert(format, raw, number) for number, raw in latest.values()]
    rows = [row for one in made if not isinstance(one, Dropped) for row in one]
    part.rows += rows
    part.unfit += [one for one in made if isinstance(one, Dropped)]
    part.found += count
    part.hashes[f"{part.prefix}/{name}"] = file.sha256
    part.formats.append((name, format.name, count))
    if count > len(made):
        part.notes.append(Note("text.superseded", {"file": name, "count": count - len(made)}))
    if format is formats.FEEDBACK:
        part.notes.append(_feedback_note(name, rows))
    if ignored := sorted(unused.union(file.unused)):
        part.notes.append(Note("text.columns_unused", {"file": name, "columns": fields.listing(ignored)}))


def _same_format(format: formats.Format | None, raw: fields.Raw, path: Path, number: int) -> formats.Format:
    """Return a row's format, which is that of the rows before it."""
    found = formats.recognise(raw)
    if found is not None and (format is None or found is format):
        return found
    if format is None:
        raise formats.unknown(path, number, raw)
    # A row that only lacks something is no row of another format: it is left out for what it lacks.
    if found is None and raw.keys() & format.columns:
        return format
    raise DataError("text.mixed", file=path, row=number, found=fields.listing(raw), format=format.name)


def _convert(
    format: formats.Format, raw: fields.Raw, id: str, place: tuple[Path, int], allowed: Sequence[str]
) -> list[TextRow] | Dropped:
    params: dict[str, object] = {"file": place[0], "row": place[1]}
    try:
        if lacking := format.lacking(raw):
            raise Unfit("text.missing", field=lacking)
        rows = format.convert(raw, id)
        for row in rows:
            checks.check_label(row, allowed)
    except Wrong as error:
        raise DataError(error.code, **params, **error.params) from error
    except Unfit as error:
        return Dropped(place[0], error.code, {**params, **error.params})
    return rows


def _feedback_note(name: str, rows: Sequence[TextRow]) -> Note:
    made = Counter(row.id.rpartition("#")[2] for row in rows)
    counts = {"classify": made["classify"], "draft": made["draft"], "pairs": made["pair"], "thumbs": made["thumb"]}
    return Note("text.feedback", {"file": name, **counts})


def _duplicate(row: TextRow, first: TextRow, paths: Mapping[str, Path]) -> Dropped:
    name, _, place = row.id.rpartition(":")
    path = paths[name]
    number = int(place.partition("#")[0])
    return Dropped(path, "text.duplicate", {"file": path, "row": number, "part": row.id, "first": first.id})


def _listed(names: Sequence[str]) -> dict[str, object]:
    shown = fields.listing(names[:_SHOWN])
    return {"count": len(names), "examples": shown if len(names) <= _SHOWN else f"{shown} ..."}
