"""Captions as words and phrases: words where a script has spaces, pieces of two to four characters where not."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from lora_scripts.doctor.word_lists import CHINESE_STOP, STOP_WORDS

_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTER = rf"(?:(?![{_SPACELESS}])\w)"
_TOKEN = re.compile(rf"[{_SPACELESS}]+|{_LETTER}+(?:[-'’]{_LETTER}+)*")
_TOKEN_ASCII = re.compile(r"\w+(?:[-']\w+)*", re.ASCII)
_RUN = re.compile(f"[{_SPACELESS}]")
_OWNER = re.compile(r"['’]s\Z")
_BREAK = re.compile(r"[,.;:!?|\n\r()\[\]{}\"，、。；：！？（）【】《》“”]+")
LONGEST = 3
"""Words of a phrase."""
LONGEST_PIECE = 4
"""Characters of a piece of Chinese text."""

ORDINARY_RANK = 45_000
"""CLIP's vocabulary is sorted by how often a piece was merged; the last ones are rare words such as "sks"."""
LONG_WORD = 5
"""Letters from which every whole piece of the vocabulary is a word of its own: no misspelling got that far."""
_BOORU = re.compile(r"\d+(girl|boy|other)s?")


def normal(caption: str) -> str:
    """Return a caption as it is compared: full-width letters as plain ones, in lower case."""
    return (caption if caption.isascii() else unicodedata.normalize("NFKC", caption)).casefold()


def is_spaceless(token: str) -> bool:
    """Say whether a token is a run of Chinese or Japanese characters."""
    return _RUN.match(token) is not None


def segments(caption: str) -> Iterator[list[str]]:
    """Yield the tokens between two marks of punctuation: words, and runs of Chinese characters."""
    plain = caption.isascii()
    for part in _BREAK.split(normal(caption)):
        if plain:
            if tokens := [token.removesuffix("'s") for token in _TOKEN_ASCII.findall(part)]:
                yield tokens
            continue
        tokens = [_OWNER.sub("", token).replace("’", "'") for token in _TOKEN.findall(part)]
        if tokens:
            yield tokens


def words(caption: str) -> list[str]:
    """Return the words of a caption, stop words among them, and its runs of Chinese characters cut into pairs."""
    found: list[str] = []
    if caption.isascii():
        return [token.removesuffix("'s") for token in _TOKEN_ASCII.findall(caption.casefold())]
    for tokens in segments(caption):
        for token in tokens:
            long = is_spaceless(token) and len(token) > LONGEST_PIECE
            found += [token[i : i + 2] for i in range(len(token) - 1)] if long else [token]
    return found


def phrases(caption: str) -> set[str]:
    """Return what a caption could have in common with others.

    These are one to three words in a row without a stop word at either end, and pieces of two to four Chinese
    characters likewise.
    """
    found: set[str] = set()
    for tokens in segments(caption):
        for start, token in enumerate(tokens):
            if is_spaceless(token):
                found |= set(_pieces(token))
                continue
            if token in STOP_WORDS:
                continue
            for stop in range(start + 1, min(start + LONGEST, len(tokens)) + 1):
                last = tokens[stop - 1]
                if is_spaceless(last):
                    break
                if last not in STOP_WORDS:
                    found.add(" ".join(tokens[start:stop]))
    return found


def _pieces(run: str) -> Iterator[str]:
    for start in range(len(run)):
        for stop in range(start + 2, min(start + LONGEST_PIECE, len(run)) + 1):
            if run[start] not in CHINESE_STOP and run[stop - 1] not in CHINESE_STOP:
                yield run[start:stop]


def spread(caption: str) -> str:
    """Return a caption as tokens with a space about each, in which `within` finds its phrases."""
    return "|".join(f" {' '.join(tokens)} " for tokens in segments(caption))


def is_word(phrase: str) -> bool:
    """Say whether a phrase is one word that means something: no number, no single letter."""
    return " " not in phrase and len(phrase) > 1 and not phrase.isdigit()


def within(short: str, long: str) -> bool:
    """Say whether a phrase is a part of a longer one, or of a caption that was spread."""
    return short in long if is_spaceless(short) else f" {short} " in f" {long} "


def is_ordinary(word: str) -> bool:
    """Say whether a word is one that many captions have: a whole piece of CLIP's vocabulary, and none of its rarest."""
    if _BOORU.fullmatch(word) or word.isdigit():
        return True
    parts = [part for part in re.split(r"[-_']", word) if part]
    return bool(parts) and all(_vocabulary().get(f"{part}</w>", ORDINARY_RANK) < ORDINARY_RANK for part in parts)


def is_known(word: str) -> bool:
    """Say whether a word is one of its own, though maybe a rare one."""
    return is_ordinary(word) or (len(word) >= LONG_WORD and f"{word}</w>" in _vocabulary())


@cache
def _vocabulary() -> dict[str, int]:
    path = files("lora_scripts.families") / "clip_tokenizer" / "vocab.json"
    return json.loads(path.read_text(encoding="utf-8"))


def distance(first: str, second: str, most: int) -> int:
    """Return how many letters are wrong, missing, too many or swapped with their neighbour; `most + 1` for more."""
    if abs(len(first) - len(second)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        last, row, older = row, [i], before
        for j, right in enumerate(second, start=1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (left != right))
            if i > 1 and j > 1 and left == second[j - 2] and first[i - 2] == right:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
        before = last
    return row[-1]
