"""What captions there are before anything is labelled, and who wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_scripts.data.caption_files import SIDECARS, assign, sidecars
from lora_scripts.data.folder import SIDE_FILE
from lora_scripts.data.record import Dataset, Dropped
from lora_scripts.errors import ConfigError
from lora_scripts.labels.journal import PERSON, Journal
from lora_scripts.labels.options import LabelOptions
from lora_scripts.labels.writing import Beside, Output, Table, read_beside


@dataclass
class Captions:
    """The captions of a folder's pictures, wherever they stand.

    Attributes:
        output: where captions are written.
        elsewhere: captions that training reads now and that do not stand in the output, by picture.
        fixed: pictures whose captions stand in a table that comes before the output and are left alone.
        problems: pictures whose caption file cannot be read: they are left alone.
    """

    output: Output
    journal: Journal
    elsewhere: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)
    problems: dict[str, Dropped] = field(default_factory=dict)
    others: list[Journal] = field(default_factory=list)

    def standing(self, name: str) -> tuple[list[str], bool]:
        """Return a picture's captions, and whether they stand in the output."""
        texts = self.output.captions(name)
        if texts and name not in self.fixed:
            return texts, True
        return list(self.elsewhere.get(name, ())), False

    def author(self, name: str, text: str) -> str:
        """Return who wrote a caption, by this side file or one of another output of the folder."""
        authors = (journal.author(name, text) for journal in (self.journal, *self.others))
        return next((author for author in authors if author != PERSON), PERSON)


def look(options: LabelOptions, pictures: Sequence[str], others: Sequence[str]) -> Captions:
    """Find every caption, by the trainer's order of precedence.

    Raises:
        DataError: a table that cannot be trusted, or pictures that would share a caption file.
        ConfigError: what was asked for could not have an effect.
    """
    journal = Journal(options.side_file)
    if options.sidecars:
        output: Output = Beside(options.input, pictures, others)
    else:
        output = Table(options.output, pictures)
    own = _relative(options.output, options.input)
    tables = [name for name in others if PurePosixPath(name).suffix.lower() not in SIDECARS and name != own]
    assignment = assign(Dataset(options.input, missing_pictures="ignore"), pictures, tables)
    listed = {name: one.captions for name, one in assignment.pictures.items() if one.kind == "table"}
    captions = Captions(output, journal, others=_other_journals(options))
    if options.sidecars:
        captions.elsewhere, captions.fixed = listed, set(listed)
        captions.problems = output.problems
        if listed and options.existing != "keep":
            table = next(one.source for one in assignment.pictures.values() if one.kind == "table")
            raise ConfigError("label.table_wins", table=table, existing=options.existing, count=len(listed))
        return captions
    rest = [name for name in pictures if name not in listed and not output.captions(name)]
    beside, captions.problems = read_beside(options.input, sidecars(rest, others)[0])
    captions.elsewhere = {name: texts for name, texts in listed.items() if not output.captions(name)}
    captions.elsewhere |= {name: (text,) for name, text in beside.items()}
    return captions


def _relative(path: Path, folder: Path) -> str:
    """Return what a folder's list calls a file, or "" where it lies elsewhere."""
    inside = path.resolve().is_relative_to(folder.resolve())
    return path.resolve().relative_to(folder.resolve()).as_posix() if inside else ""


def _other_journals(options: LabelOptions) -> list[Journal]:
    """Read the side files of other outputs of this folder: they tell of captions that are carried over."""
    own = options.side_file.resolve()
    return [Journal(path) for path in sorted(options.input.glob(f"*{SIDE_FILE}")) if path.resolve() != own]
