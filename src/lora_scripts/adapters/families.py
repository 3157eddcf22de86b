"""What the registered families say of LoRA files: asked here, so that nothing below them names an architecture."""

from __future__ import annotations

from functools import cache

from lora_scripts import registry
from lora_scripts.adapters.keys import KeyMap

# Its modules are written as they are: it has no key map.
LANGUAGE_FAMILY = "causal_lm"


@cache
def key_maps() -> dict[str, KeyMap]:
    """Return the key map of every family that has one: those that make pictures."""
    found = {name: getattr(registry.load("families", name).plugin, "keys", None) for name in registry.names("families")}
    return {name: keys for name, keys in found.items() if keys is not None}


def title(family: str) -> str:
    """Return a family's name in words; what is no family's is returned as it is."""
    return registry.load("families", family).plugin.title if family in registry.names("families") else family


def titles() -> str:
    """Return the names of all picture families, for a sentence."""
    return ", ".join(map(title, key_maps()))
