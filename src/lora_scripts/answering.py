"""The use-cases `classify`, `draft` and talking to a language model: one base, any number of adapters, chosen a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.adapters import files as adapter_files
from lora_scripts.contracts import Base, Placement
from lora_scripts.data.record import Message
from lora_scripts.data.texts import fields
from lora_scripts.data.texts.fields import Unfit
from lora_scripts.data.texts.files import RowFile
from lora_scripts.data.texts.tasks import classify_prompt, draft_prompt
from lora_scripts.errors import BaseModelError, ConfigError, DataError
from lora_scripts.files import replace_file, sha256_of
from lora_scripts.sampling import base_for

TASK_FILE = "task.json"
TASK_SCHEMA = 1
CHUNK = 64
REPLY_TOKENS = 128


@dataclass(frozen=True)
class Task:
    """What `task.json` says: labels, and the calibration found on held-out rows."""

    labels: tuple[str, ...]
    temperature: float = 1.0
    abstain_below: float = 0.0


@dataclass(frozen=True)
class Named:
    """An adapter folder under the name that rows call it by; "" for the only one."""

    name: str
    path: Path
    sha256: str
    task: Task


@dataclass(frozen=True)
class Told:
    """What `classify` found where rows said the right label: how many, how many right, and the table."""

    rows: int
    abstained: int
    right: int = 0
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def known(self) -> int:
        """Rows that said the right label."""
        return sum(map(sum, self.confusion))


def parse_adapters(values: Sequence[str], labels: Sequence[str] = ()) -> dict[str, Named]:
    """Read "PATH" or "name=PATH", one or several.

    Raises:
        ConfigError: two of one name, or several of which one has no name.
        BaseModelError: a folder that is no adapter, or without readable task.json and no labels given.
    """
    found: dict[str, Named] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():
            name, path = "", value
        if name in found or (not name and len(values) > 1):
            raise ConfigError("llm.adapter_names", value=value)
        folder = Path(path)
        file = folder / adapter_files.PEFT_FILE
        if not file.is_file():
            raise BaseModelError("adapter.no_file", path=file)
        found[name] = Named(name, folder, sha256_of(file), _task(folder, labels))
    return found


def _task(folder: Path, labels: Sequence[str]) -> Task:
    path = folder / TASK_FILE
    given = tuple(sorted(set(labels)))
    if not path.is_file():
        return Task(given)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        task = Task(tuple(map(str, raw["labels"])), float(raw["temperature"]), float(raw["abstain_below"]))
        if int(raw["schema"]) > TASK_SCHEMA or not task.temperature > 0:
            raise ValueError(f"schema {raw['schema']}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BaseModelError("llm.bad_task", path=path, reason=error) from error
    if given and given != task.labels:
        raise ConfigError("llm.other_labels", given=", ".join(labels), known=", ".join(task.labels), path=path)
    return task


class Speaker:
    """A base in memory, and adapters that are put on and taken off.

    Args:
        adapters: by name; their pairs are read once.
    """

    def __init__(self, base: Base, adapters: Mapping[str, Named]):
        import torch
        from accelerate import PartialState

        device = PartialState().device
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if half else torch.float32
        placement = Placement(device=device, base_dtype=dtype, encoder_dtype=torch.float32)
        self.base, self.adapters = base, dict(adapters)
        self.family = registry.load("families", base.family).plugin.load(base, placement)
        modules = self.family.trainable()
        known = {component: [name for name, _ in module.named_modules()] for component, module in modules.items()}
        self._pairs = {
            name: adapter_files.load(adapter.path, known_modules=known) for name, adapter in adapters.items()
        }

    @contextmanager
    def wearing(self, name: str | None, strength: float = 1.0) -> Iterator[Any]:
        """Return the family with an adapter added to its weights for a while; None is the base alone."""
        from lora_scripts.adapters import apply

        pairs = [] if name is None else [(self._pairs[name], strength)]
        with apply.added(self.family.trainable(), pairs):
            yield self.family


def open_speaker(adapters: Mapping[str, Named], base: str | None = None) -> Speaker:
    """Load the base that the adapters name, or the given one, and see that it is theirs.

    Raises:
        BaseModelError: adapters of different bases, of another base than given, or a base that cannot be found.
    """
    references = {name: adapter_files.base_of(adapter.path) for name, adapter in adapters.items()}
    named = sorted({reference for reference, _ in references.values() if reference})
    if base is None and len(named) != 1:
        raise BaseModelError("llm.bases_differ", found=", ".join(named) or "-")
    found = base_for(base if base is not None else named[0])
    if found.family != "causal_lm":
        raise BaseModelError("llm.not_causal", path=found.path, found=found.family)
    own = registry.load("families", found.family).plugin.weights_hash(found)
    for name, (_, digest) in references.items():
        if digest and digest != own:
            raise BaseModelError("llm.other_base", adapter=adapters[name].path, base=found.path)
    return Speaker(found, adapters)


def read_rows(path: Path, adapters: Mapping[str, Named], *, classifies: bool) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file of messages, checked.

    Args:
        classifies: rows that say a label are classified too.

    Raises:
        DataError: names the line: no message, an unknown adapter or label.
        BaseModelError: a row is to be classified, and its adapter knows no labels.
    """
    rows: list[dict[str, Any]] = []
    for number, raw in RowFile(path).rows():
        try:
            fields.filled(raw, "message")
            name, label = (fields.optional(raw, key).strip() for key in ("adapter", "label"))
        except Unfit as error:
            raise DataError(error.code, **{"file": path, "row": number, **error.params}) from error
        adapter = adapters.get("") or adapters.get(name)
        if adapter is None:
            known = ", ".join(sorted(adapters))
            raise DataError("llm.unknown_adapter", place=f"{path}:{number}", name=name or "-", known=known)
        labels = adapter.task.labels
        if label and labels and label not in labels:
            raise DataError("llm.unknown_label", place=f"{path}:{number}", label=label, known=", ".join(labels))
        if (classifies or not label) and len(labels) < 2:
            raise BaseModelError("llm.no_labels", path=adapter.path)
        rows.append({**raw, **{key: value for key, value in (("adapter", name), ("label", label)) if key in raw}})
    if not rows:
        raise DataError("llm.no_messages", path=path)
    return rows


def _by_adapter(rows: Sequence[Mapping[str, Any]], adapters: Mapping[str, Named]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        name = "" if set(adapters) == {""} else str(row.get("adapter", ""))
        groups.setdefault(name, []).append(i)
    return groups


def classify(
    speaker: Speaker, rows: Sequence[Mapping[str, Any]], tell: Callable[[int, int], None]
) -> list[tuple[str, float, bool]]:
    """Return (label, confidence, abstained) for each row, in order."""
    found: dict[int, tuple[str, float, bool]] = {}
    for name, places in _by_adapter(rows, speaker.adapters).items():
        task = speaker.adapters[name].task
        with speaker.wearing(name) as family:
            for start in range(0, len(places), CHUNK):
                chunk = places[start : start + CHUNK]
                prompts = [classify_prompt(rows[i]["message"]) for i in chunk]
                for i, row in zip(chunk, family.label_shares(prompts, task.labels, task.temperature), strict=True):
                    confidence = float(row.max())
                    label = task.labels[int(row.argmax())]
                    found[i] = (label, round(confidence, 4), confidence < task.abstain_below)
                tell(len(found), len(rows))
    return [found[i] for i in range(len(rows))]


def draft(
    speaker: Speaker, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], tell: Callable[[int, int], None]
) -> list[str]:
    """Return a reply to each row, in order, written under its label."""
    found: dict[int, str] = {}
    for name, places in _by_adapter(rows, speaker.adapters).items():
        with speaker.wearing(name) as family:
            for start in range(0, len(places), CHUNK):
                chunk = places[start : start + CHUNK]
                prompts = [draft_prompt(rows[i]["message"], labels[i], str(rows[i].get("lang", ""))) for i in chunk]
                answers = family.preview(prompts, seed=0, new_tokens=REPLY_TOKENS)
                found |= dict(zip(chunk, answers, strict=True))
                tell(len(found), len(rows))
    return [found[i] for i in range(len(rows))]


def answer(speaker: Speaker, prompts: Sequence[str], name: str | None, strength: float, new_tokens: int) -> list[str]:
    """Return answers to plain prompts with one adapter, or with the base alone."""
    with speaker.wearing(name, strength) as family:
        return list(family.preview([(Message("user", prompt),) for prompt in prompts], seed=0, new_tokens=new_tokens))


def compare(rows: Sequence[Mapping[str, Any]], found: Sequence[tuple[str, float, bool]]) -> Told:
    """Count, and where rows said the right label, compare."""
    abstained = sum(row[2] for row in found)
    pairs = [(str(row["label"]), said[0]) for row, said in zip(rows, found, strict=True) if row.get("label")]
    labels = tuple(sorted({word for pair in pairs for word in pair}))
    table = tuple(tuple(pairs.count((truth, said)) for said in labels) for truth in labels)
    return Told(len(rows), abstained, sum(truth == said for truth, said in pairs), labels, table)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a JSONL file.

    Raises:
        MachineError: no space or not writable.
    """
    data = b"".join(map(_line, rows))
    replace_file(path, lambda file: file.write(data))


def _line(row: Mapping[str, Any]) -> bytes:
    """Return a row as one line; half of a character, which a foreign field may hold, stays as the input wrote it."""
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(row)}\n".encode()
