"""Every sentence a user sees, by code, in English and Simplified Chinese.

`en/<topic>.toml` and `zh_CN/<topic>.toml` hold the same codes with the same `{placeholders}`; the code
"data.empty_folder" is the key `empty_folder` of `data.toml`. The language is `LORA_SCRIPTS_LANG` ("en" or
"zh_CN"), else the locale's, else English.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path, PurePath

LANGUAGES = ("en", "zh_CN")


def language() -> str:
    """Return the language in force: the variable, else the locale's variables."""
    for variable in ("LORA_SCRIPTS_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable, "")
        if value:
            return "zh_CN" if value.lower().startswith("zh") else "en"
    return "en"


def _flatten(table: dict, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@cache
def catalogue(name: str) -> dict[str, str]:
    """Return one language's sentences by dotted code."""
    sentences: dict[str, str] = {}
    for path in sorted((Path(__file__).parent / name).glob("*.toml")):
        sentences |= _flatten(tomllib.loads(path.read_text(encoding="utf-8")), f"{path.stem}.")
    return sentences


def text(code: str, **params: object) -> str:
    """Return the sentence for `code` in the user's language, its placeholders filled; paths are made printable.

    Raises:
        KeyError: for a code that the catalogue does not have (our own mistake; a test looks for them).
    """
    shown = {key: printable(str(value)) if isinstance(value, PurePath) else value for key, value in params.items()}
    return catalogue(language())[code].format(**shown)


def printable(name: str) -> str:
    """Return a name on one line, without anything that a terminal would obey instead of showing it."""
    return name if name.isprintable() else "".join(map(_printable, name))


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def has(code: str) -> bool:
    """Say whether the catalogue knows `code`."""
    return code in catalogue("en")
