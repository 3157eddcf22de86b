"""CLIP tokenization: ids for the text encoder, and which captions it will cut."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_scripts.data.captions import plain
from lora_scripts.data.record import Note, PictureExample

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def ids(tokenizer: Any, caption: str, max_tokens: int) -> Tensor:
    """(L,) ids of one caption with start and end, cut and padded to `max_tokens`."""
    rows = tokenizer(caption, padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
    return rows.input_ids[0]


def notes(folder: Path, max_tokens: int, examples: Sequence[PictureExample]) -> list[Note]:
    """Say how many captions are longer than `max_tokens` and name the worst; nothing where all fit."""
    texts = {plain(text, e.caption_rules): e.path for e in examples for text in e.captions}
    # A token is at least one byte of the text as the tokenizer sees it, so a short caption needs no counting.
    long = {text: path for text, path in texts.items() if _bytes(text) > max_tokens - 2}
    if not long:
        return []
    counts = dict(zip(long, _counts(folder, list(long)), strict=True))
    cut = {text: count for text, count in counts.items() if count > max_tokens}
    if not cut:
        return []
    worst = max(cut, key=lambda text: cut[text])
    return [
        Note(
            "base.captions_cut",
            {"count": len(cut), "limit": max_tokens - 2, "most": cut[worst] - 2, "path": long[worst].name},
        )
    ]


def _bytes(text: str) -> int:
    return len(unicodedata.normalize("NFC", text).lower().encode())


def _counts(folder: Path, texts: list[str]) -> list[int]:
    """Return each text's tokens with start and end; by the fast library alone where its file is there."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [len(row.ids) for row in tokenizer.encode_batch(texts)]
    from transformers import CLIPTokenizer

    return [len(row) for row in CLIPTokenizer.from_pretrained(folder)(texts, truncation=False).input_ids]


def folder_hash(folder: Path) -> str:
    """sha256 over a tokenizer's files."""
    digest = hashlib.sha256()
    for name in NAMES:
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
