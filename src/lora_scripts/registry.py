"""Plug-ins by kind and name: the file name is the key; other packages join through entry points.

`families/sd.py` is ``load("families", "sd")``. A package outside registers the same thing as an entry point
of the group ``lora_scripts.families``. What a plug-in module must define stands in `contracts.py`.
"""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from lora_scripts.errors import ConfigError

KINDS = ("families", "objectives", "optimizers", "schedules", "adapters", "exporters", "readers", "captioners")
_FOLDERS = {"readers": "data/readers", "adapters": "adapters/kinds"}


@cache
def names(kind: str) -> tuple[str, ...]:
    """Return the sorted names of one kind, built-in and third-party."""
    folder = Path(__file__).parent / _FOLDERS.get(kind, kind)
    own = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    own |= {path.parent.name for path in folder.glob("[a-z]*/__init__.py")}
    return tuple(sorted(own | {*_points(kind)}))


@cache
def _points(kind: str) -> dict[str, EntryPoint]:
    """Return the third-party plug-ins of one kind by name: finding them reads the metadata of all packages."""
    return {point.name: point for point in entry_points(group=f"lora_scripts.{kind}")}


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str | None:
    """Return the known name most like `word`, or None where nothing is near."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.55)), None)


def load(kind: str, name: str) -> ModuleType:
    """Import and return the plug-in module.

    Raises:
        ConfigError: for a name that no plug-in of this kind has; it tells the nearest.
    """
    if name not in names(kind):
        near = nearest(name, names(kind)) or ", ".join(names(kind))
        raise ConfigError("registry.unknown", kind=kind, name=name, known=", ".join(names(kind)), nearest=near)
    if name in _points(kind):
        return _points(kind)[name].load()
    package = _FOLDERS.get(kind, kind).replace("/", ".")
    return importlib.import_module(f"lora_scripts.{package}.{name}")
