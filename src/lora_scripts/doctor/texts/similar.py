"""Texts that are nearly the same, found without comparing each with each.

A text is the set of its pieces of five letters (Chinese: of three characters). How much of two sets is in common is
their Jaccard index; MinHash estimates it (Broder 1997, "On the resemblance and containment of documents"): of random
orders of all pieces, the share in which both sets have the same first one. Texts that share one of 16 bands of four
such firsts are compared exactly. Pieces that many texts have, such as those of one instruction before every question,
do not count.

Memory grows with the number of texts (256 bytes each), not with their length; the counts of pieces take 16 MB.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

BANDS, FIRSTS = 16, 4
NEARLY = 0.7
"""Jaccard index from which two texts are nearly the same: a word or two of fifteen differ."""
FEWEST = 20
"""Pieces that a text must have to be compared; shorter ones are alike by chance."""
LETTERS, CHARACTERS = 5, 3
COMMON_SHARE, COMMON_FEWEST = 0.1, 20
"""Pieces that more than this share of texts have, and more than so many, do not count."""
LONGEST = 50_000
"""Characters of a text that are compared."""
COMPARED = 8
"""Texts of one band that each is compared with."""
_COUNTERS = 1 << 22
_CHUNK = 4096
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_SIGNS = re.compile(r"[\W_]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


def plain(text: str) -> str:
    """Return what is left of a text without case, signs, and more than one space in a row."""
    return _SIGNS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def pieces(text: str) -> np.ndarray:
    """Return the hashes of a text's pieces, sorted, each once; shape (pieces,), uint64."""
    words = plain(text[:LONGEST])
    # Where a text is Chinese, spaces between words mean nothing.
    chinese = 4 * len(_CHINESE.findall(words)) > len(words)
    words = words.replace(" ", "") if chinese else f" {words} "
    size = CHARACTERS if chinese else LETTERS
    codes = np.frombuffer(words.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    if len(codes) < size:
        return np.empty(0, np.uint64)
    hashes = np.zeros(len(codes) - size + 1, np.uint64)
    for i in range(size):
        hashes = (hashes + codes[i : len(codes) - size + 1 + i] + np.uint64(1)) * _ODD
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


class Index:
    """Texts by what they have in common.

    Args:
        texts: in any language; what is asked for later are places in it.
    """

    def __init__(self, texts: Sequence[str]):
        self._texts = texts
        counts = np.zeros(_COUNTERS, np.uint32)
        for text in texts:
            # Several pieces of one counter count once: it is only a bound.
            counts[pieces(text) % np.uint64(_COUNTERS)] += 1
        self._common = counts > max(COMMON_FEWEST, COMMON_SHARE * len(texts))
        self._pieces = lru_cache(maxsize=512)(self._telling)
        draw = np.random.default_rng(0)
        self._factors = draw.integers(1, 1 << 62, BANDS * FIRSTS, dtype=np.uint64) | np.uint64(1)
        self._offsets = draw.integers(0, 1 << 62, BANDS * FIRSTS, dtype=np.uint64)
        self._compared: list[int] = []
        firsts: list[np.ndarray] = []
        for place in range(len(texts)):
            own = self._telling(place)
            if len(own) >= FEWEST:
                self._compared.append(place)
                firsts.append(self._firsts(own))
        self._signatures = np.array(firsts).reshape(-1, BANDS, FIRSTS)

    def _telling(self, place: int) -> np.ndarray:
        own = pieces(self._texts[place])
        return own[~self._common[own % np.uint64(_COUNTERS)]]

    def _firsts(self, own: np.ndarray) -> np.ndarray:
        """Return the first hash in each random order; shape (BANDS * FIRSTS,), uint32."""
        firsts = np.full(BANDS * FIRSTS, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(own), _CHUNK):
            orders = own[start : start + _CHUNK, None] * self._factors + self._offsets
            firsts = np.minimum(firsts, (orders >> np.uint64(16)).min(axis=0))
        return firsts.astype(np.uint32)

    def pairs(self, cut: int = 0) -> Iterator[tuple[int, int, float]]:
        """Yield (place, place, Jaccard index) of texts that are nearly the same, the first place the lower.

        Of many that are all alike, not each pair is told, but enough to connect them.

        Args:
            cut: 0, or a place: then only texts before it are compared with those from it on.
        """
        seen: set[tuple[int, int]] = set()
        for places in self._bands():
            firsts = [place for place in places if not cut or place < cut][:COMPARED]
            seconds = [place for place in places if place >= cut] if firsts else []
            for first, second in ((first, second) for second in seconds for first in firsts if first < second):
                if (first, second) in seen:
                    continue
                seen.add((first, second))
                alike = self.alike(first, second)
                if alike >= NEARLY:
                    yield first, second, alike

    def _bands(self) -> Iterator[list[int]]:
        """Yield the places, in order, of texts that share a band."""
        places = np.array(self._compared)
        for band in range(BANDS if len(places) else 0):
            _, group, sizes = np.unique(self._signatures[:, band], axis=0, return_inverse=True, return_counts=True)
            order = np.argsort(group.reshape(-1), kind="stable")
            stops = np.cumsum(sizes)
            for stop, size in zip(stops[sizes > 1], sizes[sizes > 1], strict=True):
                yield places[order[stop - size : stop]].tolist()

    def alike(self, first: int, second: int) -> float:
        """Return the Jaccard index of two texts' pieces."""
        a, b = self._pieces(first), self._pieces(second)
        common = len(np.intersect1d(a, b, assume_unique=True))
        return common / max(1, len(a) + len(b) - common)


def groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the places that pairs connect, each group in order."""
    head: dict[int, int] = {}

    def top(place: int) -> int:
        while head.setdefault(place, place) != place:
            head[place] = head[head[place]]
            place = head[place]
        return place

    for first, second in pairs:
        one, other = sorted((top(first), top(second)))
        head[other] = one
    found: dict[int, list[int]] = defaultdict(list)
    for place in sorted(head):
        found[top(place)].append(place)
    return [each for _, each in sorted(found.items())]
