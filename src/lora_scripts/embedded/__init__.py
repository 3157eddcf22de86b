"""The small real models that come with the package, or that one command fetches."""

from __future__ import annotations

from pathlib import Path

from lora_scripts.embedded import smollm2

PREFIX = "embedded/"
# Models that are too large for the package: fetched once into the user's cache.
FETCHED = {f"{PREFIX}{smollm2.NAME}": smollm2}


def names() -> list[str]:
    """Return the names that `base_model` may use, such as "embedded/pictures"."""
    inside = [PREFIX + path.parent.name for path in Path(__file__).parent.glob("*/model_index.json")]
    return sorted([*inside, *FETCHED])


def resolve(name: str) -> Path | None:
    """Return the folder of "embedded/<name>", or None where there is no such model.

    The folder of a model that has to be fetched may not be there yet; `command` then says how.
    """
    if name in FETCHED:
        return FETCHED[name].folder()
    return Path(__file__).parent / name.removeprefix(PREFIX) if name in names() else None


def is_there(name: str) -> bool:
    """Say whether a model is whole on this machine."""
    return name not in FETCHED or FETCHED[name].is_there()


def command(name: str) -> str:
    """Return the command that fetches "embedded/<name>"."""
    return f"lora-scripts fetch {name.removeprefix(PREFIX)}"
