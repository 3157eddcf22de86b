"""The prompts that kohya's tools draw samples of: lines of a file or of the window's field, with flags behind them."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.data.caption_tables import read_text

_FLAG = re.compile(r"\s--([a-z]+)(?:\s+(.*?))?(?=\s--[a-z]|\Z)", re.DOTALL)
_NAMES = {"sample_steps": "s", "scale": "l", "seed": "d", "width": "w", "height": "h", "negative_prompt": "n"}


@dataclass
class Prompts:
    """Prompts without their flags.

    Attributes:
        flags: every flag that was taken off, with its values.
    """

    texts: list[str] = field(default_factory=list)
    flags: dict[str, list[str]] = field(default_factory=dict)

    def one_number(self, flag: str) -> float | None:
        """Return a flag's value where all prompts that have it agree on a number."""
        values = set(self.flags.get(flag, []))
        try:
            return float(values.pop()) if len(values) == 1 else None
        except ValueError:
            return None

    def add(self, line: str) -> None:
        """Take in one line of a file of prompts."""
        line = line.strip()
        if not line or line.startswith("#"):
            return
        for match in _FLAG.finditer(" " + line):
            self.flags.setdefault(match[1], []).append((match[2] or "").strip())
        text = _FLAG.sub("", " " + line).strip()
        if text:
            self.texts.append(text)


def of_text(text: str) -> Prompts:
    """Read one prompt a line."""
    found = Prompts()
    for line in text.splitlines():
        found.add(line)
    return found


def of_file(path: Path) -> Prompts:
    """Read a .txt, .toml or .json file of prompts; one that is none gives no prompt.

    Raises:
        DataError: it cannot be read.
    """
    text = read_text(path)
    if path.suffix.lower() not in (".toml", ".json"):
        return of_text(text)
    try:
        tree = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError):
        return Prompts()
    return _of_tree(tree)


def _of_tree(tree: Any) -> Prompts:
    shared: dict[str, Any] = {}
    if isinstance(tree, dict):
        shared = tree.get("prompt", {}) if isinstance(tree.get("prompt"), dict) else {}
        tree = shared.get("subset", [])
    found = Prompts()
    for one in tree if isinstance(tree, list) else []:
        entry = {**shared, **one} if isinstance(one, dict) else {"prompt": one}
        if isinstance(entry.get("prompt"), str) and entry["prompt"].strip():
            found.texts.append(entry["prompt"].strip())
        for key, value in entry.items():
            if key in _NAMES:
                found.flags.setdefault(_NAMES[key], []).append(str(value))
    return found
