"""The word that calls what is learned, given or inferred from what nearly all captions share, and its misspellings."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lora_scripts.doctor import terms
from lora_scripts.doctor.word_lists import CHINESE_CLASSES, CHINESE_MEDIUM, CLASSES, MEDIUM, QUALITY, STOP_WORDS

IN_SHARE = 0.9
"""A word in at least this share of captions may be the trigger."""
FEWEST = 5
"""Captions from which a trigger can be inferred."""
SAMPLE = 400
"""Captions, spread over all, that are looked at where a sample will do."""
FRONT_SHARE = 0.8
FRONT_WORDS = 5
ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "y")
"""What an ordinary word may end in besides and still be the same."""

Captions = Mapping[str, Sequence[str]]
"""Captions by picture."""


@dataclass(frozen=True)
class Trigger:
    """The word that calls the thing.

    Attributes:
        word: as it is written most often.
        given: by the user, not inferred.
        sure: it is no ordinary word, or stands by itself in front of the captions.
        rivals: other words in as many captions, where it is not sure.
    """

    word: str
    given: bool
    sure: bool
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Misspelt:
    """A caption that has something like the trigger in its place."""

    picture: str
    caption: str
    word: str
    found: str


def find_trigger(captions: Captions, given: str | None) -> Trigger | None:
    """Return the trigger, or None where there is none or it cannot be told."""
    if given is not None:
        return Trigger(given.strip(), True, True) if given.strip() else None
    filled = {name: [text for text in texts if text] for name, texts in captions.items() if any(texts)}
    if len(filled) < FEWEST:
        return None
    shared = shared_words(filled, IN_SHARE)
    if not shared:
        return None
    some = list(filled.values())[:: max(1, len(filled) // SAMPLE)]
    fronts = {word: _in_front(some, word) for word in shared}
    own_parts = {word: _share(some, lambda text, word=word: _first_part(text) == word) for word in shared}
    scripted = _share(some, lambda text: any(map(terms.is_spaceless, terms.words(text)))) > 0.5
    compounds = _share(some, lambda text: len(re.findall(r"\w_\w", text)) > 1) > 0.1

    def is_sure(word: str) -> bool:
        if word in MEDIUM | QUALITY | CLASSES or word in (*CHINESE_MEDIUM, *CHINESE_CLASSES):
            return False
        rare = not terms.is_spaceless(word) and (
            not terms.is_ordinary(word) or (scripted and len(word) > 2) or ("_" in word and not compounds)
        )
        return (rare and fronts[word] >= FRONT_SHARE) or own_parts[word] >= FRONT_SHARE

    def rank(word: str) -> tuple[object, ...]:
        return (is_sure(word), not terms.is_ordinary(word), own_parts[word], fronts[word], shared[word], word)

    best = max(shared, key=rank)
    sure = is_sure(best)
    rivals = () if sure else tuple(word for word in shared if word != best)
    return Trigger(_as_written(some, best), False, sure, rivals)


def shared_words(captions: Captions, share: float) -> dict[str, int]:
    """Return the words in at least this share of captions and in how many pictures' captions they stand.

    A piece of Chinese text counts as a word where no longer piece is shared by as many.
    """
    counts = {phrase: n for phrase, n in document_frequency(captions, share).items() if " " not in phrase}
    pieces = [phrase for phrase in counts if terms.is_spaceless(phrase)]
    return {
        word: n
        for word, n in counts.items()
        if terms.is_word(word) and not any(word != piece and word in piece and counts[piece] >= n for piece in pieces)
    }


def document_frequency(captions: Captions, share: float) -> dict[str, int]:
    """Return the phrases in the captions of at least this share of the pictures, with the number of pictures.

    So that memory does not grow with the count, the candidates come from a sample spread over all.
    """
    texts = [[text for text in each if text] for each in captions.values()]
    texts = [each for each in texts if each]
    step = max(1, len(texts) // SAMPLE)
    seen: Counter[str] = Counter()
    drawn = texts[::step]
    for each in drawn:
        seen.update(set().union(*map(terms.phrases, each)))
    whole = step == 1
    likely = {phrase for phrase, n in seen.items() if n >= (share if whole else 0.8 * share) * len(drawn)}
    if whole:
        return {phrase: seen[phrase] for phrase in sorted(likely)}
    counts: Counter[str] = Counter()
    for each in texts:
        spread = "|".join(map(terms.spread, each))
        counts.update(phrase for phrase in likely if terms.within(phrase, spread))
    return {phrase: counts[phrase] for phrase in sorted(likely) if counts[phrase] >= share * len(texts)}


def pattern(trigger: str) -> re.Pattern[str]:
    """Return what finds a trigger in a normalised caption, as a word of its own; see `data.captions.with_trigger`."""
    word = terms.normal(trigger)
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", word) else ""
    after = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]\Z", word) else ""
    return re.compile(before + re.escape(word) + after)


def without(captions: Captions, trigger: str) -> list[tuple[str, str]]:
    """Return (picture, caption) of every caption that lacks the trigger; empty captions are no such captions."""
    found = pattern(trigger)
    return [
        (name, text)
        for name, texts in captions.items()
        for text in texts
        if text and not found.search(terms.normal(text))
    ]


def misspelt(captions: Captions, trigger: Trigger) -> list[Misspelt]:
    """Return captions that lack the trigger but have a word very much like it, which hardly any other caption has."""
    words = [trigger.word] if trigger.sure else [trigger.word, *trigger.rivals]
    hits: list[Misspelt] = []
    for word in words:
        lacking = without(captions, word)
        if len(lacking) * 2 > sum(map(len, captions.values())):
            continue
        near = [(name, text, found) for name, text in lacking if (found := _nearest(text, word, trigger.sure))]
        elsewhere = _spread({found for _, _, found in near}, captions, word)
        hits += [Misspelt(name, text, word, found) for name, text, found in near if elsewhere[found] == 0]
    return hits


def respelt(caption: str, found: str, word: str) -> str:
    """Return a caption with the trigger in the place of what was found; as it is where that is not there."""
    hit = re.search(pattern(found).pattern.replace("\\ ", r"\s+"), caption, re.IGNORECASE)
    if hit is None:
        return caption
    behind = found[len(word) :] if found.startswith(terms.normal(word)) else ""
    joined = behind.strip("-_") if len(behind) >= 3 else ""
    return f"{caption[: hit.start()]}{word}{f' {joined}' if joined else ''}{caption[hit.end() :]}"


def _spread(found: set[str], captions: Captions, word: str) -> Mapping[str, int]:
    """Return how many captions have each found spelling besides the trigger: there it is another word."""
    spread: dict[str, int] = defaultdict(int)
    if not found:
        return spread
    having = pattern(word)
    for texts in captions.values():
        for text in texts:
            lowered = terms.normal(text)
            if having.search(lowered):
                rest = having.sub(" ", lowered)
                for spelling in found:
                    spread[spelling] += pattern(spelling).search(rest) is not None
    return spread


def _nearest(caption: str, word: str, sure: bool) -> str:
    """Return what stands in a caption in the place of the trigger, as it is compared, or ""."""
    wanted = terms.normal(word)
    candidates: list[tuple[int, str]] = []
    for tokens in terms.segments(caption):
        for size in range(1, wanted.count(" ") + 2):
            for start in range(len(tokens) - size + 1):
                found = " ".join(tokens[start : start + size])
                if terms.is_spaceless(wanted):
                    candidates += _near_pieces(found, wanted)
                elif (far := _how_far(found, wanted, sure)) is not None:
                    candidates.append((far, found))
        # The word written in two.
        for first, second in pairwise(tokens):
            if len(wanted) >= 5 and first + second == wanted and not terms.is_spaceless(first):
                candidates.append((1, f"{first} {second}"))
    return min(candidates, default=(0, ""))[1]


def _how_far(found: str, wanted: str, sure: bool) -> int | None:
    """Return how far a word is from the trigger; None where it is not near enough, or a word of its own."""
    if terms.is_spaceless(found) or found in STOP_WORDS or found == wanted:
        return None
    rest = found[len(wanted) :].strip("-_") if found.startswith(wanted) else ""
    if sure and len(wanted) >= 4 and len(rest) >= 3 and terms.is_ordinary(rest):
        # A space was left out behind it.
        return 1
    if sure and _joined(found) == _joined(wanted):
        return 1
    if terms.is_known(found) or (terms.is_ordinary(wanted) and _inflected(found, wanted)):
        return None
    most = 0 if len(wanted) < 3 else 1 if len(wanted) < 7 else 2
    far = terms.distance(found, wanted, most)
    return far if far <= most else None


def _joined(text: str) -> str:
    return re.sub("[-_ ]", "", text)


def _near_pieces(run: str, wanted: str) -> Iterable[tuple[int, str]]:
    """Yield the pieces of a run of Chinese characters that have one wrong character."""
    if len(wanted) < 3 or not terms.is_spaceless(run):
        return
    for start in range(len(run) - len(wanted) + 1):
        piece = run[start : start + len(wanted)]
        if terms.distance(piece, wanted, 1) == 1:
            yield 1, piece


def _inflected(found: str, wanted: str) -> bool:
    return any(found == wanted + ending or wanted == found + ending for ending in ENDINGS)


def _share(captions: Iterable[Sequence[str]], holds) -> float:
    each = [any(holds(text) for text in texts) for texts in captions]
    return sum(each) / len(each)


def _in_front(captions: Iterable[Sequence[str]], word: str) -> float:
    """Return the share of captions in which a word is among the first that mean something."""

    def holds(text: str) -> bool:
        if terms.is_spaceless(word):
            return terms.normal(text).lstrip().startswith(word)
        meant = [token for token in terms.words(text) if token not in STOP_WORDS]
        return word in meant[:FRONT_WORDS]

    return _share(captions, holds)


def _first_part(caption: str) -> str:
    """Return what stands before the first comma, where it is one word."""
    part, comma, _ = re.sub("[，、]", ",", terms.normal(caption)).partition(",")
    return part.strip() if comma else ""


def _as_written(captions: Iterable[Sequence[str]], word: str) -> str:
    """Return the spelling of a word, in capitals or not, that most captions have."""
    found = pattern(word)
    spellings: Counter[str] = Counter()
    for texts in captions:
        for text in texts:
            hit = found.search(terms.normal(text))
            # Normalising may change lengths; then the compared form serves.
            spelt = text[hit.start() : hit.end()] if hit else ""
            if terms.normal(spelt) == word:
                spellings[spelt] += 1
    return spellings.most_common(1)[0][0] if spellings else word
