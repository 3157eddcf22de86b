"""In which script and language a caption is written: by its letters, and by the words that hold sentences together."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Set
from functools import lru_cache

from lora_scripts.doctor import terms
from lora_scripts.doctor.word_lists import FUNCTION_WORDS

FEWEST_LETTERS = 6
"""A caption with fewer letters, such as the trigger alone, is in no language."""
FEWEST_WORDS = 3
"""Function words of a language that a caption must have, and twice as many as of any other."""
SPACELESS_WEIGHT = 3
"""A Chinese character says as much as so many letters."""
_SCRIPTS = {
    "LATIN": "Latin",
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "THAI": "Thai",
    "DEVANAGARI": "Devanagari",
}


def script(caption: str, shared: Set[str] = frozenset()) -> str:
    """Return the script that most of a caption is in, or "" where it is too short to tell.

    Args:
        caption: any text.
        shared: words that do not count, such as the trigger.
    """
    weights: Counter[str] = Counter()
    for tokens in terms.segments(caption):
        for token in tokens:
            if token in shared:
                continue
            if token.isascii():
                weights["Latin"] += len(token) - sum(map(str.isdigit, token))
                continue
            for letter in token:
                name = _script_of(letter)
                weights[name] += SPACELESS_WEIGHT if name in ("Chinese", "Japanese") else 1
    weights.pop("", None)
    if sum(weights.values()) < FEWEST_LETTERS:
        return ""
    # Japanese is written with Chinese characters too.
    if weights["Japanese"] and weights["Japanese"] >= 0.2 * weights["Chinese"]:
        weights["Japanese"] += weights.pop("Chinese", 0)
    return max(weights, key=lambda name: weights[name])


def language(caption: str, shared: Set[str] = frozenset()) -> str:
    """Return the language of a caption, its script where that is all that can be told, or ""."""
    name = script(caption, shared)
    if name != "Latin":
        return name
    words = Counter(terms.words(caption))
    hits = {each: sum(words[word] for word in known) for each, known in FUNCTION_WORDS.items()}
    first, second = sorted(hits.items(), key=lambda pair: -pair[1])[:2]
    return first[0] if first[1] >= FEWEST_WORDS and first[1] >= 2 * second[1] else "Latin"


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    if not letter.isalpha():
        return ""
    try:
        return _SCRIPTS.get(unicodedata.name(letter).split()[0].removesuffix("-"), "")
    except ValueError:
        return ""
