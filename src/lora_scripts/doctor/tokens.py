"""How many tokens captions take in the base's tokenizer, and how many it reads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import BaseModelError

if TYPE_CHECKING:
    from lora_scripts.contracts import Base

CLIP_TOKENS = 75
"""What CLIP's text encoder reads of a caption: 77 with start and end."""
FOLDERS = ("tokenizer", "tokenizer_2", ".")
CHUNK = 1000


def limit(settings: Settings) -> int:
    """Return how many tokens of a caption count, without start and end.

    Raises:
        BaseModelError: there is a base that is absent, or that no family recognises.
    """
    if settings.max_tokens is not None:
        return settings.max_tokens
    most = 0 if settings.base is None else _recognised(settings.base).max_tokens
    return most - 2 if most else CLIP_TOKENS


def count(settings: Settings, texts: Sequence[str]) -> list[int]:
    """Return the tokens of each text, without start and end.

    Raises:
        BaseModelError: there is a base that is absent, or that no family recognises.
    """
    tokenizer = _tokenizer(settings.base)
    counts: list[int] = []
    for start in range(0, len(texts), CHUNK):
        rows = tokenizer.encode_batch(list(texts[start : start + CHUNK]), add_special_tokens=False)
        counts += [len(row.ids) for row in rows]
    return counts


@lru_cache(maxsize=2)
def _tokenizer(base: Path | None) -> Any:
    from tokenizers import Tokenizer

    with _file(base) as path:
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _file(base: Path | None) -> AbstractContextManager[Path]:
    """Return the tokenizer's file: the base's own where it brings one, else CLIP's, which single files are made for."""
    if base is not None:
        own = (_recognised(base).path / folder / "tokenizer.json" for folder in FOLDERS)
        found = next((path for path in own if path.is_file()), None)
        if found is not None:
            return nullcontext(found)
    return as_file(files("lora_scripts.families") / "clip_tokenizer" / "tokenizer.json")


def _recognised(path: Path) -> Base:
    from lora_scripts.preparation import resolve_base

    path = resolve_base(str(path))
    for name in registry.names("families"):
        base = registry.load("families", name).plugin.recognise(path)
        if base is not None:
            return base
    raise BaseModelError("base.unrecognised", path=path, known=", ".join(registry.names("families")))
