"""The files of a diffusers folder: JSON that is not believed blindly, and where the weights of a part lie."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lora_scripts.errors import BaseModelError

MAX_JSON_BYTES = 32 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        BaseModelError: it is missing, too large or broken.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BaseModelError("base.broken_json", path=path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        part = f"{path.parent.name}/{path.name}"
        raise BaseModelError("base.part_missing", path=path.parent.parent, part=part) from error
    except (ValueError, OSError, RecursionError) as error:
        raise BaseModelError("base.broken_json", path=path) from error
    if not isinstance(value, dict):
        raise BaseModelError("base.broken_json", path=path)
    return value


def weight_files(folder: Path, part: str, stem: str) -> list[Path]:
    """Return a part's safetensors files: whole, sharded, or an fp16 variant.

    Raises:
        BaseModelError: there are none, only pickles, or a shard is missing.
    """
    found = found_weights(folder, part, stem)
    if not found:
        pickles = sorted(path for suffix in ("bin", "ckpt", "pt") for path in (folder / part).glob(f"*.{suffix}"))
        if pickles:
            raise BaseModelError("base.pickle", path=pickles[0])
        raise BaseModelError("base.part_missing", path=folder, part=f"{part}/{stem}.safetensors")
    shards = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", found[0].name)
    if shards:
        names = [f"{shards[1]}-{i + 1:05d}-of-{shards[2]}.safetensors" for i in range(int(shards[2]))]
        missing = sorted({*names, f"{shards[1]}.safetensors.index.json"} - _names(folder / part, found))
        if missing:
            raise BaseModelError("base.part_missing", path=folder, part=f"{part}/{missing[0]}")
    return found


def _names(folder: Path, found: list[Path]) -> set[str]:
    """Return the names of weight files and of their index, a half-precision one under the whole one's name."""
    indices = {path.name for path in folder.glob("*.index*.json")}
    halves = {name.replace(".safetensors.index.fp16.json", ".fp16.safetensors.index.json") for name in indices}
    return {path.name for path in found} | indices | halves


def found_weights(folder: Path, part: str, stem: str) -> list[Path]:
    """Return the files that are there, or none."""
    for name in (stem, f"{stem}.fp16"):
        whole = folder / part / f"{name}.safetensors"
        if whole.is_file():
            return [whole]
        shards = sorted((folder / part).glob(f"{name}-?????-of-?????.safetensors"))
        if shards:
            return shards
    return []
