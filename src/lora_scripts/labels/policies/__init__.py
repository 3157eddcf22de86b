"""What captions say and leave out, by what is learned: one text a kind, which a person may copy and change."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path

from lora_scripts.data.caption_tables import read_text
from lora_scripts.errors import ConfigError


@dataclass(frozen=True)
class Policy:
    """One kind's rules; see the comments of the files beside this one.

    Attributes:
        groups: of phrases that are left out whole.
        frequent: share of captions above which a phrase of `frequent_groups` is left out.
        words, keep: whole words that a phrase must not hold, and phrases that are left in all the same.
        nouns, adjectives, phrases, openings: what is taken out of sentences.
    """

    groups: tuple[str, ...] = ()
    frequent: float = 1.0
    frequent_groups: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    adjectives: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()


def text(kind: str) -> str:
    """Return the text of a kind's policy."""
    return (files(__package__) / f"{kind}.toml").read_text(encoding="utf-8")


def load(kind: str, path: Path | None = None) -> Policy:
    """Return a kind's policy, or the one that a person wrote; none leaves nothing out.

    Raises:
        ConfigError: the person's file is not such a text.
        DataError: it cannot be read.
    """
    if path is None:
        return parse(text(kind), Path(f"{kind}.toml")) if kind else Policy()
    return parse(read_text(path), path)


def parse(written: str, path: Path) -> Policy:
    """Return the policy of a text.

    Raises:
        ConfigError: it is no TOML, or holds something else.
    """
    try:
        table = tomllib.loads(written)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("label.policy_broken", path=path, reason=error) from error
    known = [field.name for field in fields(Policy)]
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError("label.policy_broken", path=path, reason=f"{key} ({', '.join(known)})")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
        is_list = isinstance(value, list) and all(isinstance(word, str) for word in value)
        if not (is_number if key == "frequent" else is_list):
            raise ConfigError("label.policy_broken", path=path, reason=f"{key} = {value!r}"[:200])
        values[key] = float(value) if key == "frequent" else tuple(map(str.casefold, value))
    return Policy(**values)  # type: ignore[arg-type]
