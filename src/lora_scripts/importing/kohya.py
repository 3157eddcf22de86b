"""A project of kohya's sd-scripts, or of the kohya_ss window around them, as a config of ours.

What is read: a training file (TOML, or the window's JSON), a data set's file (TOML or JSON), or a folder of folders
such as `10_red cat`. Facts about settings and defaults are those of sd-scripts' train_network in 2026.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import messages
from lora_scripts.config.load import from_mapping
from lora_scripts.data.record import Note
from lora_scripts.importing.data_section import DataPart, judge_data, put_data
from lora_scripts.importing.kohya_steps import steps_per_epoch
from lora_scripts.importing.sources import Source, open_source
from lora_scripts.importing.subsets import FOREIGN, pictures_of, read_datasets
from lora_scripts.importing.training import judge_rest, put_training
from lora_scripts.importing.translation import CHANGED, UNDERSTOOD, UNSUPPORTED, Line, Translation, hidden
from lora_scripts.importing.writing import write, yaml_of

DEFAULT_STEPS = 1600
BASE_TO_NAME = "path/to/base.safetensors"


@dataclass(frozen=True)
class Imported:
    """A translated project.

    Attributes:
        tree: our config.
        lines: what became of each setting, in the file's order.
        notes: what should be said besides.
        steps: of the run, 0 where only data was named.
        contents: every file to write: the config first.
        complete: the config names a base, and can be trained.
    """

    tree: Mapping[str, Any]
    lines: Sequence[Line]
    notes: Sequence[Note]
    steps: int
    contents: Mapping[Path, bytes]
    complete: bool


@dataclass(frozen=True)
class Course:
    """How long the run is: steps, steps an epoch, the setting that says so, and the arithmetic in words."""

    steps: int
    per_epoch: int
    key: str
    arithmetic: str


def read(path: Path, output: Path) -> Imported:
    """Translate what was named; nothing is written.

    Args:
        output: where the config will be written; captions that need a table get one beside it.

    Raises:
        ConfigError, DataError: in words.
    """
    source = open_source(path)
    work = Translation(source.settings)
    values = {key: setting.value for key, setting in source.settings.items()}
    datasets = read_datasets(source, values)
    part = DataPart(source, datasets, work.flag("masked_loss"), work.number("prior_loss_weight", 1.0))
    put_data(work, part, lambda number: output.absolute().with_name(f"{output.stem}.captions-{number + 1}.jsonl"))
    steps = 0
    if source.trains:
        course = _course(work, source, part)
        steps = course.steps
        work.put("steps", steps, said=f"{course.key}: {course.arithmetic}")
        _judge_course(work, course)
        put_training(work, source, steps, course.per_epoch)
    else:
        work.put("output_dir", f"output/{source.path.stem}")
    if not work.has("pretrained_model_name_or_path"):
        work.put("base_model", BASE_TO_NAME)
    _judge_weights(work, part)
    _judge_folders(work, part)
    for setting in source.overridden:
        note = Note("import.why.overridden", {})
        work.tell(Line(setting.written, hidden(setting.written, setting.value), CHANGED, note=note))
    judge_data(work, part)
    judge_rest(work, source.gui)
    from_mapping(work.tree)
    head = messages.text("import.head", name=source.path.name)
    contents = {output: yaml_of(work.tree, work.comments, head)}
    contents |= {Path(work.tree["datasets"][number]["metadata"]): data for number, data in part.tables.items()}
    lines = _in_order(work)
    return Imported(work.tree, lines, _notes(part), steps, contents, work.has("pretrained_model_name_or_path"))


def save(imported: Imported, *, overwrite: bool = False) -> None:
    """Write the config and its caption tables.

    Raises:
        ConfigError: other files are in their places.
    """
    write(imported.contents, overwrite=overwrite)


def _course(work: Translation, source: Source, part: DataPart) -> Course:
    """Return how many steps kohya's tools would train."""
    held = work.number("validation_split") or 0.0
    batches = sum(dataset.batches(held) for dataset in part.datasets)
    accumulation = max(1, work.whole("gradient_accumulation_steps") or 1)
    processes = max(1, work.whole("num_processes") or 1)
    per_epoch = steps_per_epoch(batches, accumulation, processes)
    epochs = work.whole("max_train_epochs")
    if epochs:
        arithmetic = f"{epochs} x ceil({batches} / {accumulation * processes})"
        return Course(epochs * per_epoch, per_epoch, work.written("max_train_epochs"), arithmetic)
    if work.whole("max_train_steps"):
        return Course(work.whole("max_train_steps"), per_epoch, "max_train_steps", str(work.whole("max_train_steps")))
    if source.gui and source.data is None:
        # The window's own formula: buckets do not count, and regularisation pictures double it.
        visits = sum(s.repeats * len(s.pictures) for _, s in part.used if not s.regularisation)
        size = part.datasets[0].batch_size * accumulation
        factor = 2 if work.has("reg_data_dir") else 1
        steps = math.ceil(visits / size * (work.whole("epoch") or 1) * factor)
        return Course(steps, per_epoch, "epoch", f"{visits} / {size} x {work.whole('epoch') or 1} x {factor}")
    return Course(DEFAULT_STEPS, per_epoch, "max_train_steps", "default")


def _judge_course(work: Translation, course: Course) -> None:
    target = f"steps: {course.steps}"
    for key in ("max_train_epochs", "max_train_steps", "epoch"):
        decides = work.written(key) == course.key
        work.understood(key, target if decides and work.has(key) else "")
    if not work.has("max_train_epochs") and not work.has("max_train_steps") and course.key == "max_train_steps":
        work.tell(Line("max_train_steps", str(DEFAULT_STEPS), UNDERSTOOD, target, given=False))


def _judge_weights(work: Translation, part: DataPart) -> None:
    work.understood("masked_loss", "datasets[].mask" if part.masked else "")
    if part.prior_weight == 1 or not any(subset.regularisation for _, subset in part.used):
        work.understood("prior_loss_weight")
    elif part.prior_weight > 0:
        work.changed("prior_loss_weight", "import.why.weight", f"datasets[].weight: {part.prior_weight:g}")
    else:
        work.unsupported("prior_loss_weight", "import.why.no_weight")
    if not any(dataset.rule.enabled for dataset in part.datasets) and "enable_bucket" not in work.lines:
        note = Note("import.why.always_buckets", {})
        if work.settings and "enable_bucket" not in work.settings:
            work.tell(Line("enable_bucket", "false", CHANGED, note=note, given=False))


def _judge_folders(work: Translation, part: DataPart) -> None:
    """Say what becomes of each numbered folder, and of those beside them that have no number."""
    if part.source.data is not None or any(subset.metadata for _, subset in part.used):
        return
    for dataset in part.datasets:
        for subset in dataset.subsets:
            value = messages.text("import.pictures", count=len(subset.pictures))
            key = f"{subset.folder.parent.name}/{subset.folder.name}"
            words = str(subset.options.get("class_tokens") or "")
            target = f'repeats: {subset.repeats}, class_words: "{words}"'
            if subset.regularisation:
                target = f'regularisation: true, class_words: "{words}"'
            note = None if subset.used else Note("import.why.unused_folder", {})
            verdict = UNDERSTOOD if subset.used else CHANGED
            work.tell(Line(key, value, verdict, target if subset.used else "", note))
    numbered = {subset.folder for dataset in part.datasets for subset in dataset.subsets}
    for root in sorted({folder.parent for folder in numbered}):
        for other in sorted(path for path in root.iterdir() if path.is_dir() and path not in numbered):
            value = messages.text("import.pictures", count=len(pictures_of(other)))
            note = Note("import.why.no_number", {})
            work.tell(Line(f"{root.name}/{other.name}", value, UNSUPPORTED, note=note))


def _notes(part: DataPart) -> list[Note]:
    """Say what the folders hold that the two programs see differently."""
    notes: list[Note] = []
    pictures = [picture for _, subset in part.used for picture in subset.pictures]
    turned = [picture.path.name for picture in pictures if picture.turned]
    if turned:
        notes.append(Note("import.note.turned", {"count": len(turned), "example": turned[0]}))
    broken = [picture.path.name for picture in pictures if picture.size is None]
    if broken:
        notes.append(Note("import.note.broken", {"count": len(broken), "example": broken[0]}))
    for _, subset in part.used:
        inside = [path for path in subset.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if inside:
            notes.append(Note("import.note.sub_folders", {"path": subset.folder, "example": inside[0].name}))
        foreign = [path.name for path in subset.folder.iterdir() if path.suffix.lower() in FOREIGN]
        if foreign:
            notes.append(Note("import.note.foreign", {"count": len(foreign), "example": foreign[0]}))
    if part.tables:
        notes.append(Note("import.note.tables", {"count": len(part.tables)}))
    return notes


def _in_order(work: Translation) -> list[Line]:
    """Return the lines in the order of the training file, then of the data set's file, then what was left out."""
    places = {setting.written: place for place, setting in enumerate(work.settings.values())}
    last = len(places)

    def place(line: Line) -> tuple[bool, int]:
        return not line.given, places.get(line.key, places.get(line.key.partition(".")[0], last))

    return sorted(work.lines.values(), key=place)
