"""Which weights a language model's folder holds: one number for the family that trains and the verb that exports."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lora_scripts.errors import BaseModelError
from lora_scripts.files import sha256_of

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_STEM = "adapter_model"


def hash_of_folder(path: Path) -> str:
    """Return the sha256 over the bytes of a folder's weight files in the order of their names.

    Raises:
        BaseModelError: the folder holds no safetensors weights, or not all that its index names.
    """
    digest = hashlib.sha256()
    for file in weight_files(path):
        digest.update(f"{file.name}:{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def weight_files(path: Path) -> list[Path]:
    """Return the files that transformers would load, sorted by name: the whole one, else the index's, else all.

    Raises:
        BaseModelError: see above.
    """
    if (path / WHOLE).is_file():
        return [path / WHOLE]
    if (path / INDEX).is_file():
        names = _indexed(path / INDEX)
    else:
        names = {file.name for file in path.glob("*.safetensors") if not file.name.startswith(ADAPTER_STEM)}
    files = [path / name for name in sorted(names)]
    if not files or not all(file.is_file() for file in files):
        raise BaseModelError("adapter.no_weights", path=path)
    return files


def _indexed(index: Path) -> set[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError("adapter.bad_config", path=index, reason=error) from error
    # A name is a file of this folder, whatever the index says.
    return {Path(str(name)).name for name in names}
