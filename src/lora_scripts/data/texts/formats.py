"""The formats a text file may have, told apart by the keys of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from lora_scripts.data.record import TextRow
from lora_scripts.data.texts import answers, conversations, feedback, fields, tasks
from lora_scripts.data.texts.fields import Raw
from lora_scripts.errors import DataError


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what a person calls it, the same in every language.
        needs: sets of keys, of which a row must have one whole.
        convert: makes rows to learn from of one row of a file, given its id; raises `fields.Unfit`.
        others: further keys that it reads, or that are its own though they teach nothing.
        identity: names what a row is about, where a later row about the same supersedes it.
    """

    name: str
    needs: tuple[frozenset[str], ...]
    convert: Callable[[Raw, str], list[TextRow]]
    others: frozenset[str] = frozenset()
    identity: Callable[[Raw], str] | None = None

    @cached_property
    def columns(self) -> frozenset[str]:
        """Every key that is its own."""
        return self.others.union(*self.needs)

    def lacking(self, raw: Raw) -> str:
        """Return a key that the row lacks to be of this format, "" where it lacks none."""
        return min((", ".join(sorted(need - raw.keys())) for need in self.needs), key=len)

    def unused(self, raw: Raw) -> set[str]:
        """Return what a row says besides, which is not read."""
        beside = {key for key in raw.keys() - self.columns if raw[key] is not None}
        read = raw.keys() & self.columns
        return beside | {f"{key}[].{field}" for key in read for field in conversations.unused_fields(raw[key])}


def _needs(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(keys.split()) for keys in sets)


_TOOLS = frozenset(("tools", "functions"))

FEEDBACK = Format(
    "feedback",
    _needs("message edit", "message thumb", "message adapter", "message reason"),
    feedback.convert,
    feedback.COLUMNS,
    feedback.identity,
)
TEXT = Format("text", _needs("text"), answers.convert_text)

# The first that fits counts: those that need most, or are the only ones to use a key, come first.
FORMATS = (
    FEEDBACK,
    Format(
        "message/label/reply",
        _needs("message label", "message reply"),
        tasks.convert,
        frozenset(("id", "customer", "lang")),
    ),
    Format(
        "input/preferred_output/non_preferred_output",
        _needs("input preferred_output non_preferred_output"),
        answers.convert_preferred,
    ),
    Format("chosen/rejected", _needs("chosen rejected"), answers.convert_pair, frozenset(answers.PROMPTS) | {"system"}),
    Format(
        "prompt/completion/label",
        _needs("prompt completion label"),
        answers.convert_thumb,
        _TOOLS | {"system"},
    ),
    Format("messages", _needs("messages"), conversations.convert_messages, _TOOLS),
    Format("ShareGPT", _needs("conversations"), conversations.convert_sharegpt, _TOOLS | {"system"}),
    Format("Alpaca", _needs("instruction output"), answers.convert_alpaca, frozenset(("input", "system", "history"))),
    *(
        Format("/".join(names), _needs(" ".join(names)), answers.convert_completion, _TOOLS | {"system"})
        for names in answers.COMPLETIONS
    ),
    TEXT,
)


def recognise(keys: Iterable[str]) -> Format | None:
    """Return the format that rows with these keys have, or None."""
    return _recognise(frozenset(keys))


@lru_cache(64)
def _recognise(keys: frozenset[str]) -> Format | None:
    return next((format for format in FORMATS if any(need <= keys for need in format.needs)), None)


def unknown(path: Path, row: int, keys: Iterable[str]) -> DataError:
    """Return the error for a row whose keys are those of no format; it lists the keys that each needs."""
    known = "; ".join(", ".join(sorted(need)) for format in reversed(FORMATS) for need in format.needs)
    return DataError("text.unknown_keys", file=path, row=row, found=fields.listing(keys), known=known)
