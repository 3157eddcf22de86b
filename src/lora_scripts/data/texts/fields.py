"""One row's fields: what is wanted as text is text, and a row that does not fit says why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Raw: TypeAlias = Mapping[str, object]
"""One row as its file holds it."""
MAX_WEIGHT = 1000
# Half of a surrogate pair: JSON can write it alone, but no tokenizer and no file takes it.
_HALF = re.compile("[\ud800-\udfff]")


class Unfit(Exception):
    """A row that cannot be used: it is left out and counted, with this message code as its reason."""

    def __init__(self, code: str, **params: object):
        super().__init__(code)
        self.code, self.params = code, params


class Wrong(Unfit):
    """A row that shows a mistake of the whole file, such as a role nobody knows: the file is refused."""


def shown(value: object, limit: int = 60) -> str:
    """Return a value as JSON, on one line, without anything a console cannot print, cut to `limit` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = text if len(text) <= limit else text[:limit] + "..."
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def listing(names: Iterable[str], limit: int = 200) -> str:
    """Return names as "a, b, c", printable and cut to `limit` characters."""
    return shown(", ".join(names), limit + 2).strip('"')


def is_absent(raw: Raw, field: str) -> bool:
    """Say whether the row has nothing in an optional field: no key, null, an empty text, list or object."""
    value = raw.get(field)
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def text(raw: Raw, field: str, where: str = "") -> str:
    """Return a field's text as it stands, even where it is blank.

    Args:
        where: what the field's name is called in a sentence, where it lies deeper than the row: "messages[2].content".

    Raises:
        Unfit: it is absent, null, no text, or half of a character pair.
    """
    name, value = where or field, raw.get(field)
    if value is None:
        raise Unfit("text.missing", field=name)
    if not isinstance(value, str):
        raise Unfit("text.not_text", field=name, value=shown(value))
    if _HALF.search(value):
        raise Unfit("text.half_character", field=name)
    return value


def filled(raw: Raw, field: str, where: str = "") -> str:
    """Return a field's text; blank is unfit too."""
    value = text(raw, field, where)
    if not value.strip():
        raise Unfit("text.blank", field=where or field)
    return value


def optional(raw: Raw, field: str, where: str = "") -> str:
    """Return a field's text, "" where it is absent, null or blank."""
    value = "" if raw.get(field) is None else text(raw, field, where)
    return value if value.strip() else ""


def answer(raw: Raw, field: str) -> str:
    """Return the text that is to be learned; a blank one teaches to say nothing."""
    value = text(raw, field)
    if not value.strip():
        raise Unfit("text.empty_answer", field=field)
    return value


def name(raw: Raw, field: str) -> str:
    """Return a name, such as a customer's, "" where there is none; a whole number counts as one."""
    value = raw.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else optional(raw, field).strip()


def weight(raw: Raw, where: str) -> float | None:
    """Return a turn's own weight, None where it has none."""
    value = raw.get("weight")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_WEIGHT:
        raise Unfit("text.bad_weight", field=where, value=shown(value), allowed=MAX_WEIGHT)
    return float(value)


_UP = ("true", "1", "1.0", "up", "good", "yes")
_DOWN = ("false", "0", "0.0", "down", "bad", "no")


def liked(raw: Raw, field: str) -> bool:
    """Return a verdict as True or False, however it is written."""
    value = raw.get(field)
    if value is None:
        raise Unfit("text.missing", field=field)
    word = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    if word not in _UP + _DOWN:
        allowed = "true, false, 1, 0, up, down, good, bad, yes, no"
        raise Unfit("text.bad_thumb", field=field, value=shown(value), allowed=allowed)
    return word in _UP
