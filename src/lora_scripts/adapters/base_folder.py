"""The folder of a language model that an adapter names: found without a network, read without its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lora_scripts.adapters.base_hash import weight_files
from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.errors import BaseModelError
from lora_scripts.files import at_home

CONFIG = "config.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find(reference: str) -> Path | None:
    """Return the folder that a reference names, or the hub's snapshot in the local cache; None where it is neither."""
    if not reference:
        return None
    path = at_home(reference)
    if (path / CONFIG).is_file():
        return path
    if HUB_ID.fullmatch(reference):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(reference, CONFIG)
        except HFValidationError:
            return None
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def config(folder: Path) -> dict[str, Any]:
    """Return the model's config.

    Raises:
        BaseModelError: it is not readable.
    """
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")).items())
    except (ValueError, AttributeError, OSError) as error:
        raise BaseModelError("adapter.bad_config", path=folder / CONFIG, reason=error) from error


def module_names(folder: Path) -> set[str]:
    """Return the paths of all modules with weights, from the files' headers; empty where there are none to read."""
    try:
        headers = [read_header(file) for file in weight_files(folder)]
    except BaseModelError:
        return set()
    names = {name for header in headers for name in header.tensors}
    return {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
