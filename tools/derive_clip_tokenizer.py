"""Derive CLIP's vocab.json and merges.txt from the byte-pair table in the MIT-licensed open-clip-torch wheel.

pip download --no-deps open-clip-torch==3.3.0
python tools/derive_clip_tokenizer.py open_clip_torch-3.3.0-py3-none-any.whl
"""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

FOLDER = Path(__file__).resolve().parents[1] / "src" / "lora_scripts" / "families" / "clip_tokenizer"
TABLE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
VOCABULARY = 49408
MAX_TOKENS = 77


def main(wheel: Path) -> None:
    """Write the tokenizer's folder."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(TABLE)).decode().split("\n")
    symbols = list(bytes_to_unicode().values())
    merges = lines[1 : VOCABULARY - 2 * len(symbols) - 2 + 1]
    words = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == VOCABULARY
    FOLDER.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    (FOLDER / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (FOLDER / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(FOLDER / "vocab.json"), str(FOLDER / "merges.txt"), model_max_length=MAX_TOKENS, pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(FOLDER)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
