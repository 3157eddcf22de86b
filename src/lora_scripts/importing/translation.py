"""What becomes of each setting of another trainer: our config, a comment beside each key, and a line for a person."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_scripts.data.record import Note
from lora_scripts.errors import ConfigError

UNDERSTOOD, CHANGED, UNSUPPORTED = "understood", "changed", "unsupported"
VERDICTS = (UNDERSTOOD, CHANGED, UNSUPPORTED)
_SECRET = re.compile("token$|api_key|password")
_SHOWN = 80


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        written: its name in the file; "" where it only follows from others.
        value: what it means.
        said: what the file says, where that is something else.
    """

    written: str
    value: Any
    said: Any = None

    def shown(self) -> str:
        """Return what the file says, for a person."""
        return hidden(self.written, self.value if self.said is None else self.said)


@dataclass(frozen=True)
class Line:
    """What became of one setting.

    Attributes:
        key: its name in the file, with where it stands: "network_dim", "datasets[0].batch_size".
        target: what it is here, such as "lora_rank: 16"; empty where there is nothing to do.
        note: why it changed or is not supported.
        given: False where the file leaves it out and the other trainer's default counts.
    """

    key: str
    value: str
    verdict: str
    target: str = ""
    note: Note | None = None
    given: bool = True


class Translation:
    """Settings in, config and lines out. A setting without a verdict at the end was not known.

    Attributes:
        settings: by the name that the other trainer's command line has for them.
        tree: our config so far.
        comments: what each top-level key comes from.
    """

    def __init__(self, settings: Mapping[str, Setting]):
        self.settings = settings
        self.tree: dict[str, Any] = {}
        self.comments: dict[str, str] = {}
        self.lines: dict[str, Line] = {}

    def has(self, key: str) -> bool:
        """Say whether the file gives a value, an empty one not counted."""
        return key in self.settings and self.settings[key].value not in (None, "")

    def value(self, key: str, default: Any = None) -> Any:
        """Return the value, or the default where there is none."""
        return self.settings[key].value if self.has(key) else default

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a finite number; numbers in quotes count.

        Raises:
            ConfigError: it is something else.
        """
        return to_number(self.value(key, default), self.written(key))

    def whole(self, key: str, default: int | None = None) -> Any:
        """Return a whole number, likewise."""
        return to_whole(self.value(key, default), self.written(key))

    def flag(self, key: str) -> bool:
        """Return whether a switch is on."""
        return to_flag(self.value(key, False))

    def written(self, key: str) -> str:
        """Return the key's name in the file."""
        return self.settings[key].written if key in self.settings else key

    def put(self, target: str, value: Any, *keys: str, said: str = "") -> None:
        """Set a key of our config; `keys` are the settings that it comes from, `said` replaces what they tell."""
        self.tree[target] = value
        if keys or said:
            self.comments[target] = said or ", ".join(self._origin(key) for key in keys)

    def same(self, key: str, target: str, value: Any = None, default: Any = None) -> None:
        """Take a setting over as `target`; where the file leaves it out, the other trainer's default is said."""
        taken = value if value is not None else self.value(key, default)
        self.put(target, taken, key)
        if not self.has(key):
            self._tell(key, UNDERSTOOD, f"{target}: {shown(taken)}", None, default if default is not None else taken)
        else:
            self.understood(key, f"{target}: {shown(taken)}")

    def understood(self, key: str, target: str = "") -> None:
        """Say that a setting has its place here, or that nothing needs to be done for it."""
        self._tell(key, UNDERSTOOD, target, None)

    def changed(self, key: str, code: str, target: str = "", **params: object) -> None:
        """Say what became of a setting that cannot be taken over as it is, and why."""
        self._tell(key, CHANGED, target, Note(code, params))

    def unsupported(self, key: str, code: str, **params: object) -> None:
        """Say why a setting has no effect here."""
        self._tell(key, UNSUPPORTED, "", Note(code, params))

    def tell(self, line: Line) -> None:
        """Add a line; of two about one setting the worse one counts, and what is not in the file has none."""
        if not line.key or line.key.startswith("."):
            return
        old = self.lines.get(line.key)
        if old is None or _weight(line) >= _weight(old):
            self.lines[line.key] = line

    def judged(self, key: str) -> bool:
        """Say whether a setting, or a part of it, has a verdict."""
        written = self.written(key)
        return not written or any(line == written or line.startswith(f"{written}.") for line in self.lines)

    def _tell(self, key: str, verdict: str, target: str, note: Note | None, default: Any = None) -> None:
        given = key in self.settings
        if not given and default is None and verdict == UNDERSTOOD:
            return
        value = self.settings[key].shown() if given else shown(default)
        self.tell(Line(self.written(key), value, verdict, target, note, given))

    def _origin(self, key: str) -> str:
        if self.has(key):
            return f"{self.written(key)} = {self.settings[key].shown()}" if self.written(key) else key
        return f"{key}: default"


def _weight(line: Line) -> tuple[int, bool]:
    return VERDICTS.index(line.verdict), bool(line.target)


def hidden(key: str, value: Any) -> str:
    """Return a value for a person, with secrets blotted out."""
    return "***" if _SECRET.search(key) and value else shown(value)


def shown(value: Any) -> str:
    """Return a value in the words of a config: true, 0.0001, [a, b]."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(map(shown, value)) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    else:
        text = '""' if value in ("", None) else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def to_number(value: Any, key: str) -> float | None:
    """Return a finite number or None.

    Raises:
        ConfigError: for anything else.
    """
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError("import.bad_value", key=key, value=shown(value))
    return number


def to_whole(value: Any, key: str) -> int | None:
    """Return a whole number or None; 4.0 and "4" count.

    Raises:
        ConfigError: for anything else.
    """
    number = to_number(value, key)
    if number is not None and number != int(number):
        raise ConfigError("import.bad_value", key=key, value=shown(value))
    return None if number is None else int(number)


def to_flag(value: Any) -> bool:
    """Return whether a switch is on; "False" and "none" in quotes are off."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "0", "no", "none")
    return bool(value)
