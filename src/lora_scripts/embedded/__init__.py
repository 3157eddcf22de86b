"""The small real models that come with the package."""

from __future__ import annotations

from pathlib import Path

PREFIX = "embedded/"


def names() -> list[str]:
    """Return the names that `base_model` may use, such as "embedded/pictures"."""
    return sorted(PREFIX + path.parent.name for path in Path(__file__).parent.glob("*/model_index.json"))


def resolve(name: str) -> Path | None:
    """Return the folder of "embedded/<name>" inside the package, or None where there is no such model."""
    return Path(__file__).parent / name.removeprefix(PREFIX) if name in names() else None
