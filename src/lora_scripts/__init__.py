"""lora-scripts: train, verify and use LoRAs for picture and language models.

The public API; everything heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "LoraScriptsError": "errors",
    "Outcome": "app",
    "RunConfig": "config.schema",
    "load_config": "config.load",
    "prepare": "preparation",
    "train": "app",
}
__all__ = ["LoraScriptsError", "Outcome", "RunConfig", "__version__", "load_config", "prepare", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    module = importlib.import_module(f"lora_scripts.{_HOME[name]}")
    return getattr(module, "load" if name == "load_config" else name)
