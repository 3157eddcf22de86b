"""The captions that kohya's tools would train a folder with, and whether ours would read the same ones.

They take the first line of `<name><caption_extension>`, else the class words; or, in the fine-tuning style, what a
JSON file says. Where ours would read something else, the captions are written into a table beside the config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lora_scripts.data.caption_files import SIDECARS, TABLES
from lora_scripts.data.caption_tables import read_text
from lora_scripts.importing.subsets import Subset, read_metadata

DEFAULT_EXTENSION = ".caption"


def extension_of(subset: Subset) -> str:
    """Return the ending of caption files, with its dot."""
    old = subset.options.get("caption_extention")
    named = str(old or subset.options.get("caption_extension") or DEFAULT_EXTENSION)
    return named if named.startswith(".") else f".{named}"


def theirs(subset: Subset) -> dict[str, str]:
    """Return each picture's caption there, by file name.

    Raises:
        DataError: a caption file that cannot be read.
    """
    if subset.metadata is not None:
        return _from_metadata(subset, subset.metadata)
    extension = extension_of(subset)
    words = str(subset.options.get("class_tokens") or "")
    return {picture.path.name: _first_line(picture.path, extension, words) for picture in subset.pictures}


def ours(subset: Subset) -> dict[str, str] | None:
    """Return each picture's caption as our reader would find it without a table; None where a table lies there."""
    if any((subset.folder / name).exists() for name in TABLES):
        return None
    words = str(subset.options.get("class_tokens") or "")
    found: dict[str, str] = {}
    for picture in subset.pictures:
        beside = (picture.path.with_suffix(suffix) for suffix in SIDECARS)
        file = next((path for path in beside if path.is_file()), None)
        found[picture.path.name] = read_text(file).strip() if file else words.strip()
    return found


def table(captions: Mapping[str, str]) -> bytes:
    """Return captions as a metadata.jsonl."""
    rows = [{"file_name": name, "text": captions[name]} for name in sorted(captions)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _first_line(picture: Path, extension: str, words: str) -> str:
    stem = picture.name.removesuffix(picture.suffix)
    # Names that end in four numbers say where a face is; the caption's name may be without them.
    pieces = stem.split("_")
    stems = [stem, "_".join(pieces[:-4])] if len(pieces) >= 5 else [stem]
    for name in stems:
        file = picture.with_name(name + extension)
        if file.is_file():
            return read_text(file).split("\n")[0].strip()
    return words


def _from_metadata(subset: Subset, path: Path) -> dict[str, str]:
    separator = str(subset.options.get("caption_separator") or ",")
    said = read_metadata(path)
    found: dict[str, str] = {}
    for picture in subset.pictures:
        one = said[picture.path.stem]
        parts = [str(one[key]) for key in ("caption", "tags") if one.get(key)]
        found[picture.path.name] = separator.join(parts)
    return found
