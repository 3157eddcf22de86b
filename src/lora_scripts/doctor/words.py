"""What captions do with words: the trigger, how it is misspelt or left out, and what fuses with it.

A word that stands in nearly every caption is learned as a part of what the trigger means. Counts are of pictures: one
with several captions counts once. Findings about words name no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor import terms
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.trigger import (
    Misspelt,
    Trigger,
    document_frequency,
    find_trigger,
    misspelt,
    pattern,
    without,
)
from lora_scripts.doctor.word_lists import (
    CHINESE_CLASSES,
    CHINESE_MEDIUM,
    CHINESE_TRAITS,
    CLASSES,
    MEDIUM,
    STOP_WORDS,
    TRAITS,
)

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Survey

FUSED, FREQUENT = 0.85, 0.6
"""From which share of the pictures on a word is as good as a part of the trigger, and may become one."""
FEWEST_FUSED, FEWEST_FREQUENT = 6, 12
"""Captioned pictures from which these shares mean something."""
LEAKED = 0.25
"""Share of the captions with permanent traits from which a person's look goes into words instead of the trigger."""
NEARLY = 0.05
"""Phrases whose shares differ by no more than this are one."""
MOST_PHRASES = 500
"""Shared phrases that are compared with each other: captions that are all the same have thousands."""
QUOTED = 120


def find(survey: Survey) -> Sequence[Finding]:
    """Return what is to be said of the words of the captions."""
    captions = {name: texts for name, texts in survey.captions.items() if any(texts)}
    if not captions:
        return ()
    settings = survey.settings
    trigger = find_trigger(captions, settings.trigger)
    found = [*_about_trigger(captions, trigger), *_missing(captions, trigger, settings.kind)]
    found += _shared(captions, trigger, settings.kind)
    return found + (_leaks(captions) if settings.kind == "person" else [])


def _about_trigger(captions: Mapping[str, Sequence[str]], trigger: Trigger | None) -> list[Finding]:
    if trigger is None or trigger.given or not trigger.sure:
        return []
    have = len(captions) - len({name for name, _ in without(captions, trigger.word)})
    params = {"trigger": trigger.word, "total": len(captions)}
    return [Finding("captions", "trigger_inferred", Severity.GOOD, have, params)]


def _missing(captions: Mapping[str, Sequence[str]], trigger: Trigger | None, kind: str) -> list[Finding]:
    """Return what is to be said of captions without the trigger, or with something like it."""
    total = len(captions)
    if trigger is None:
        wanted = kind in ("person", "thing") and total >= FEWEST_FUSED
        return [Finding("captions", "no_trigger", Severity.SHOULD, total)] if wanted else []
    found: list[Finding] = []
    wrong = misspelt(captions, trigger)
    if wrong:
        found.append(_respell(wrong, trigger))
    if not trigger.sure:
        return found
    excused = {(one.picture, one.caption) for one in wrong}
    lacking = [pair for pair in without(captions, trigger.word) if pair not in excused]
    if lacking and len({name for name, _ in lacking}) == total:
        return [*found, Finding("captions", "trigger_nowhere", Severity.SHOULD, total, {"trigger": trigger.word})]
    if lacking:
        items = [
            Item((name,), Note("captions.trigger_missing.detail", {"caption": quoted(text)})) for name, text in lacking
        ]
        params = {"trigger": trigger.word, "total": total}
        found.append(Finding("captions", "trigger_missing", Severity.SHOULD, len(items), params, items))
    return found


def _respell(wrong: Sequence[Misspelt], trigger: Trigger) -> Finding:
    items = [
        Item(
            (one.picture,),
            Note(
                "captions.trigger_misspelt.detail",
                {"found": one.found, "trigger": one.word, "caption": quoted(one.caption)},
            ),
        )
        for one in wrong
    ]
    params = {
        "trigger": ", ".join(dict.fromkeys(one.word for one in wrong)),
        "found": ", ".join(dict.fromkeys(one.found for one in wrong)),
    }
    severity = Severity.MUST if trigger.sure else Severity.SHOULD
    return Finding("captions", "trigger_misspelt", severity, len(items), params, items, fix="respell_trigger")


def _shared(captions: Mapping[str, Sequence[str]], trigger: Trigger | None, kind: str) -> list[Finding]:
    """Return what is to be said of words and phrases that most captions have."""
    total = len(captions)
    if total < FEWEST_FUSED:
        return []
    sure = trigger is not None and trigger.sure
    counts = _phrases(captions, trigger.word if trigger is not None and sure else "")
    found: list[Finding] = []
    if trigger is not None and sure:
        name, n = _class_word(captions, trigger.word, counts)
        if name:
            counts = {phrase: c for phrase, c in counts.items() if phrase != name}
            params = {"word": name, "trigger": trigger.word, "total": total}
            found.append(Finding("captions", "class_word", Severity.GOOD, n, params))
    if kind == "style" and sure:
        medium = {phrase: n for phrase, n in counts.items() if _of_medium(phrase)}
        counts = {phrase: n for phrase, n in counts.items() if phrase not in medium}
        found += _finding("medium_words", Severity.SHOULD, medium, total, trigger)
    fused = {phrase: n for phrase, n in counts.items() if n >= FUSED * total}
    rest = {phrase: n for phrase, n in counts.items() if phrase not in fused}
    if sure:
        found += _finding("fused_words", Severity.SHOULD, fused, total, trigger)
    else:
        found += _finding("shared_words", Severity.GOOD, fused, total, None)
    if total >= FEWEST_FREQUENT:
        found += _finding("frequent_words", Severity.GOOD, rest, total, None)
    return found


def _finding(
    name: str, severity: Severity, counts: Mapping[str, int], total: int, trigger: Trigger | None
) -> list[Finding]:
    if not counts:
        return []
    most = sorted(counts, key=lambda phrase: (-counts[phrase], phrase))
    examples = [f"{phrase} ({counts[phrase]}/{total})" for phrase in most[:EXAMPLES]]
    params: dict[str, object] = {"total": total}
    if trigger is not None:
        params["trigger"] = trigger.word
    return [Finding("captions", name, severity, len(counts), params, examples=examples)]


def _phrases(captions: Mapping[str, Sequence[str]], trigger: str) -> dict[str, int]:
    """Return the phrases that many pictures' captions share; of those that overlap, the longest that is as frequent."""
    normal = terms.normal(trigger)
    counts = {
        phrase: n
        for phrase, n in document_frequency(captions, FREQUENT).items()
        if (" " in phrase or terms.is_word(phrase)) and not (normal and _touches(phrase, normal))
    }
    near = NEARLY * len(captions)
    counts = dict(sorted(counts.items(), key=lambda pair: -pair[1])[:MOST_PHRASES])
    kept = dict(counts)
    for long in sorted(counts, key=len, reverse=True):
        parts = [short for short in counts if short != long and terms.within(short, long)]
        if any(counts[part] - counts[long] > near for part in parts):
            kept.pop(long, None)
        elif long in kept:
            for part in parts:
                kept.pop(part, None)
    return _without_overlaps(kept)


def _without_overlaps(counts: dict[str, int]) -> dict[str, int]:
    """Leave out phrases that begin where another ends, as cut from one longer phrase."""
    kept: dict[str, int] = {}
    for phrase in sorted(counts, key=lambda each: (-counts[each], -len(each), each)):
        if not any(_overlap(phrase, other) and abs(counts[phrase] - counts[other]) <= 1 for other in kept):
            kept[phrase] = counts[phrase]
    return kept


def _overlap(first: str, second: str) -> bool:
    one, two = (list(each) if terms.is_spaceless(each) else each.split() for each in (first, second))
    least = 1 if min(len(one), len(two)) > 1 else len(one) + len(two)
    sizes = range(least, min(len(one), len(two)))
    return any(one[-size:] == two[:size] or two[-size:] == one[:size] for size in sizes)


def _touches(phrase: str, trigger: str) -> bool:
    """Say whether a phrase contains the trigger or a part of it."""
    return (
        pattern(trigger).search(phrase) is not None
        or bool({*phrase.split()} & {*trigger.split()})
        or (terms.is_spaceless(phrase) and phrase in trigger)
    )


def _class_word(captions: Mapping[str, Sequence[str]], trigger: str, counts: Mapping[str, int]) -> tuple[str, int]:
    """Return the word for the kind of thing beside the trigger in nearly all captions, or ("", 0).

    It stands behind, as in "sks dog", or in front, as in "in the style of sks".
    """
    follows: dict[str, int] = {}
    for texts in captions.values():
        beside: set[str] = set()
        for text in texts:
            hit = pattern(trigger).search(terms.normal(text))
            behind = terms.words(hit.string[hit.end() :])[:1] if hit else []
            before = [word for word in terms.words(hit.string[: hit.start()]) if word not in STOP_WORDS] if hit else []
            beside |= {word for word in (*behind, *before[-1:]) if word in CLASSES or word in CHINESE_CLASSES}
        for word in beside:
            follows[word] = follows.get(word, 0) + 1
    best = max(follows, key=lambda word: follows[word], default="")
    if best in counts and follows[best] >= FUSED * len(captions):
        return best, follows[best]
    return "", 0


def _of_medium(phrase: str) -> bool:
    if terms.is_spaceless(phrase):
        return any(word in phrase for word in CHINESE_MEDIUM)
    return any(word in MEDIUM for word in phrase.replace("-", " ").split())


def _leaks(captions: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Return the finding about captions that say what a person always looks like."""
    counts: dict[str, int] = {}
    leaking = 0
    for texts in captions.values():
        found = {trait for text in texts for trait in _traits(text)}
        leaking += bool(found)
        for trait in found:
            counts[trait] = counts.get(trait, 0) + 1
    if leaking < LEAKED * len(captions) or len(captions) < FEWEST_FUSED:
        return []
    most = sorted(counts, key=lambda trait: (-counts[trait], trait))[:EXAMPLES]
    examples = [f"{trait} ({counts[trait]}/{len(captions)})" for trait in most]
    return [Finding("captions", "identity_leak", Severity.SHOULD, leaking, {"total": len(captions)}, examples=examples)]


def _traits(caption: str) -> set[str]:
    """Return the traits that a caption names, each with the word before it: "blue eyes"."""
    found = set()
    for tokens in terms.segments(caption):
        for at, token in enumerate(tokens):
            behind = tokens[at + 1] if at + 1 < len(tokens) else ""
            if terms.is_spaceless(token):
                found |= {trait for trait in CHINESE_TRAITS if trait in token}
            elif _is_trait(token) and not _is_trait(behind):
                before = tokens[at - 1] if at and tokens[at - 1] not in STOP_WORDS else ""
                found.add(f"{before} {token}".strip())
    return found


def _is_trait(token: str) -> bool:
    return not TRAITS.isdisjoint(token.replace("-", "_").split("_"))


def quoted(caption: str) -> str:
    """Return a caption on one line, cut where it is long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in caption).split())
    return line if len(line) <= QUOTED else f"{line[: QUOTED - 3]}..."
