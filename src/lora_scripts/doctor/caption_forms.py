"""How one caption is written: tags or prose, leftovers of templates and programs, letters that are damaged."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Set

from lora_scripts.doctor import terms
from lora_scripts.doctor.word_lists import FUNCTION_WORDS, OPENINGS

WESTERN = frozenset(FUNCTION_WORDS)

# What the bytes of UTF-8 look like where the text was taken for cp1252. One letter in capitals before a quotation mark
# looks like that too, so besides the usual ones (for accents, signs and typographic marks) two in a row are asked for.
_CP1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\u0080-\u00bf"
_LETTER = rf"(?:[\u00c2-\u00df][{_CP1252}]|[\u00e0-\u00ef][{_CP1252}]{{2}}|\u00f0[{_CP1252}]{{3}})"
_TWICE_ENCODED = re.compile(rf"Ã[{_CP1252}]|Â[\u00a0-\u00bf]|â[€„†‚][{_CP1252}]|{_LETTER}{{2,}}")
_DAMAGE = re.compile("锟斤拷|烫烫烫|屯屯屯|\ufffd+")
_WEIGHT = re.compile(r"\([^()]+:\s*\d+(?:\.\d+)?\)|\[[^\[\]]+:\s*\d+(?:\.\d+)?\]|<lora:[^<>]+>")
_ESCAPED = re.compile(r"\\[()\[\]]")
_UNDERSCORED = re.compile(r"[^\W_]+(?:_[^\W_]+)+")
_COMMAS = re.compile(r"[,，、]\s*(?=[,，、])|^\s*[,，、]|[,，、]\s*$")
_SEPARATOR = re.compile(r"[,，、]")
# Marks of direction and of joining belong to real texts; the byte order mark and C0, C1 controls do not.
_HARMLESS = frozenset("\t\n\r\u200c\u200d\u200e\u200f")
LONG_PART = 8
"""Words of a part between commas from which it is a sentence."""


def form(caption: str) -> str:
    """Return "tags", "prose", or "" where it could be either."""
    parts = [part for part in _SEPARATOR.split(caption) if part.strip()]
    if not parts:
        return ""
    sizes = [_size(part) for part in parts]
    words = terms.words(caption)
    held = sum(word in FUNCTION_WORDS["English"] for word in words) / max(1, len(words))
    if max(sizes) >= LONG_PART and (held >= 0.15 or any(map(terms.is_spaceless, words))):
        return "prose"
    if len(parts) >= 4 and sum(sizes) <= 3 * len(parts) and held < 0.1:
        return "tags"
    return ""


def _size(part: str) -> int:
    """Return the words of a part; a word of Chinese has two characters."""
    return sum(
        max(1, len(token) // 2) if terms.is_spaceless(token) else 1 for row in terms.segments(part) for token in row
    )


def opening(caption: str) -> str:
    """Return what a template or a chatty model put in front of a caption, or ""."""
    start = " ".join(terms.normal(caption[:200]).split())
    return next((each for each in OPENINGS if start.startswith(each)), "")


def markup(caption: str, shared: Set[str] = frozenset()) -> list[str]:
    """Return what only the prompt of a drawing program understands: weights, escaped brackets, words_with_underscores.

    Args:
        caption: any text.
        shared: words that may have an underscore, such as the trigger.
    """
    found = _WEIGHT.findall(caption) + _ESCAPED.findall(caption)
    return found + [word for word in _UNDERSCORED.findall(caption) if terms.normal(word) not in shared]


def stray_commas(caption: str) -> list[str]:
    """Return the place of commas with nothing between or behind them, with some letters around it."""
    hits = _COMMAS.finditer(caption)
    return [caption[max(0, hit.start() - 8) : hit.end() + 8].strip().replace("\n", " ") for hit in hits]


def doubled_tags(caption: str) -> list[str]:
    """Return the tags that a caption has twice."""
    tags = Counter(" ".join(terms.normal(part).split()) for part in _SEPARATOR.split(caption))
    return [tag for tag, n in tags.items() if tag and n > 1]


def mojibake(caption: str) -> str:
    """Return what a wrong encoding made of letters, with some of their neighbours, or ""."""
    for hit in _TWICE_ENCODED.finditer(caption):
        try:
            _bytes(hit[0]).decode("utf-8")
        except UnicodeDecodeError:
            continue
        return _around(caption, hit)
    lost = _DAMAGE.search(caption)
    return _around(caption, lost) if lost else ""


def _bytes(text: str) -> bytes:
    """Return the bytes that were shown as these letters; cp1252 leaves five of them open."""
    return b"".join(
        letter.encode("latin-1") if ord(letter) < 256 else letter.encode("cp1252", "replace") for letter in text
    )


def _around(caption: str, hit: re.Match[str]) -> str:
    return " ".join(caption[max(0, hit.start() - 6) : hit.end() + 6].split())


def control_signs(caption: str) -> str:
    """Return the signs of a caption that cannot be seen and mean nothing, as "U+0007", or ""."""
    signs = {letter for letter in caption if letter not in _HARMLESS and unicodedata.category(letter) in ("Cc", "Co")}
    signs |= {letter for letter in caption if letter in "\ufeff\u200b\u2060"}
    return ", ".join(f"U+{ord(letter):04X}" for letter in sorted(signs))
