"""What is wrong with captions as files and as texts; their words are looked at in `words`.

"Must fix" is what a training run refuses, or what teaches something plainly wrong (letters that a wrong encoding has
destroyed). A picture without a caption is trained on with an empty one, so that is "should look".
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor import caption_forms, terms, tokens
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.languages import language
from lora_scripts.doctor.trigger import IN_SHARE, shared_words
from lora_scripts.doctor.word_lists import STOP_WORDS
from lora_scripts.doctor.words import quoted
from lora_scripts.errors import Problem

if TYPE_CHECKING:
    from lora_scripts.doctor.survey import Survey

SMALL_PART = 0.2
"""Something in no more than this share of the captions is an exception that a file can be named for."""
CONTENT_WORDS = 5
"""Captions with fewer words besides shared ones and stop words are often equal for a reason: "sks dog"."""
NEARLY_EQUAL = 0.9
"""Share of words (Jaccard) from which two captions are nearly the same."""
MOST_COMPARED = 5_000
"""Captions beyond which twins are not looked for, so that memory does not grow with the count."""
FEWEST = 5
TEMPLATE_SHARE = 0.5
MIXED_SHARE = 0.1

Captions = Mapping[str, Sequence[str]]


def find(survey: Survey) -> Sequence[Finding]:
    """Return what is to be said of the captions of a set."""
    found = [*_unreadable(survey.caption_problems), *_without_picture(survey.caption_problems), *_uncaptioned(survey)]
    captions = {name: [text for text in texts if text.strip()] for name, texts in survey.captions.items()}
    captions = {name: texts for name, texts in captions.items() if texts}
    if not captions:
        return found
    shared = shared_words(captions, IN_SHARE)
    found += [*_damaged(captions), *_lengths(survey, captions), *_equal(survey, captions, shared)]
    found += [*_languages(captions, shared), *_habits(captions, shared)]
    return found


def _unreadable(problems: Iterable[Problem]) -> list[Finding]:
    """Return findings about caption files that a training run refuses."""
    found: list[Finding] = []
    shared = [problem for problem in problems if problem.code == "data.shared_caption"]
    broken = [problem for problem in problems if problem not in shared and problem.code.partition(".")[0] != "captions"]
    if broken:
        items = [
            Item(
                (problem.where,), Note("captions.unreadable.detail", {"reason": Problem(problem.code, problem.params)})
            )
            for problem in broken
        ]
        found.append(Finding("captions", "unreadable", Severity.MUST, len(items), items=items))
    if shared:
        items = [
            Item(
                (str(one.params["first"]), str(one.params["second"])),
                Note("captions.shared.detail", {"file": one.where}),
            )
            for one in shared
        ]
        found.append(Finding("captions", "shared", Severity.MUST, len(items), items=items))
    return found


def _without_picture(problems: Iterable[Problem]) -> list[Finding]:
    """Return the finding about captions of pictures that are not there; a run refuses such rows."""
    lone = [problem for problem in problems if problem.code.startswith("captions.without_picture.")]
    if not lone:
        return []
    rows = any(problem.code == "captions.without_picture.row" for problem in lone)
    items = [Item((problem.where,), Note(problem.code, problem.params)) for problem in lone]
    severity = Severity.MUST if rows else Severity.SHOULD
    return [Finding("captions", "without_picture", severity, len(items), items=items, fix="move_aside")]


def _uncaptioned(survey: Survey) -> list[Finding]:
    """Return findings about pictures without a caption, or with an empty one."""
    readable = [picture.name for picture in survey.pictures if picture.problem is None]
    known = survey.captions.keys() | survey.caption_sources.keys()
    absent = [name for name in readable if name not in known]
    blank = [name for name in readable if name in survey.captions and not any(map(str.strip, survey.captions[name]))]
    if readable and len(absent) + len(blank) == len(readable):
        return [Finding("captions", "none", Severity.SHOULD, len(readable))]
    found: list[Finding] = []
    if absent:
        items = [Item((name,)) for name in absent]
        found.append(Finding("captions", "missing", Severity.SHOULD, len(items), items=items))
    if blank:
        items = [Item((name,)) for name in blank]
        found.append(Finding("captions", "empty", Severity.SHOULD, len(items), items=items))
    return found


def _damaged(captions: Captions) -> list[Finding]:
    """Return findings about letters destroyed by a wrong encoding, and signs that cannot be seen."""
    found: list[Finding] = []
    for name, severity, look in (
        ("damaged", Severity.MUST, caption_forms.mojibake),
        ("control", Severity.SHOULD, caption_forms.control_signs),
    ):
        items = [
            Item((picture,), Note(f"captions.{name}.detail", {"seen": seen, "caption": quoted(text)}))
            for picture, texts in captions.items()
            for text in texts
            if (seen := look(text))
        ]
        if items:
            found.append(Finding("captions", name, severity, len(items), items=items))
    return found


def _lengths(survey: Survey, captions: Captions) -> list[Finding]:
    """Return the statistics in tokens, and what is longer than the base reads."""
    rows = [(name, text) for name, texts in captions.items() for text in texts]
    counts = tokens.count(survey.settings, [text for _, text in rows])
    limit = tokens.limit(survey.settings)
    long = sorted(
        ((n, name, text) for n, (name, text) in zip(counts, rows, strict=True) if n > limit), key=lambda one: -one[0]
    )
    found: list[Finding] = []
    if long:
        items = [
            Item((name,), Note("captions.too_long.detail", {"tokens": n, "limit": limit, "caption": quoted(text)}))
            for n, name, text in long
        ]
        params: dict[str, object] = {"limit": limit, "most": long[0][0], "total": len(rows)}
        found.append(Finding("captions", "too_long", Severity.SHOULD, len(items), params, items))
    params = {
        "median": round(statistics.median(counts)),
        "most": max(counts),
        "limit": limit,
        "long": len(long),
        "share": f"{len(long) / len(rows):.0%}",
    }
    return [*found, Finding("captions", "lengths", Severity.GOOD, len(rows), params)]


def _equal(survey: Survey, captions: Captions, shared: Mapping[str, int]) -> list[Finding]:
    """Return findings about captions that do not tell their pictures apart."""
    holders: dict[str, list[str]] = defaultdict(list)
    for name, texts in captions.items():
        for text in {" ".join(terms.words(text)) for text in texts}:
            holders[text].append(name)
    # The same bytes may well have the same caption; that they are there twice is said elsewhere.
    content = {picture.name: picture.sha256 for picture in survey.pictures}
    groups = {text: names for text, names in holders.items() if len({content.get(name, name) for name in names}) > 1}
    total = len(captions)
    found: list[Finding] = []
    telling = {
        text: names
        for text, names in groups.items()
        if len({*text.split()} - shared.keys() - STOP_WORDS) >= CONTENT_WORDS
    }
    concerned = {name for names in telling.values() for name in names}
    named = 0 < len(concerned) <= SMALL_PART * total
    if named:
        items = [
            Item(tuple(names), Note("captions.equal.detail", {"caption": quoted(_text_of(captions[names[0]], text))}))
            for text, names in telling.items()
        ]
        found.append(Finding("captions", "equal", Severity.SHOULD, len(items), items=items))
    rest = [names for text, names in groups.items() if not (named and text in telling)]
    if rest:
        alike = len({name for names in rest for name in names})
        params = {"total": total, "groups": len(rest)}
        found.append(Finding("captions", "repeated", Severity.GOOD, alike, params))
    pairs = _nearly_equal([text for text in holders if text not in groups])
    if 0 < pairs <= SMALL_PART * total:
        found.append(Finding("captions", "nearly_equal", Severity.GOOD, pairs))
    return found


def _text_of(texts: Sequence[str], words: str) -> str:
    return next(text for text in texts if " ".join(terms.words(text)) == words)


def _nearly_equal(captions: Sequence[str]) -> int:
    """Count the captions that have a near twin: one word more, less or other, and 90 % of all words in common.

    Two sets are one word apart where they are equal without one word of either, so a sum over hashes finds them without
    comparing each with each.
    """
    if len(captions) > MOST_COMPARED:
        return 0
    sets = [frozenset(text.split()) for text in captions]
    sums = [sum(map(hash, each)) for each in sets]
    by_sum: dict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(sets):
        by_sum[sums[number]].append(number)
        for word in each:
            by_sum[sums[number] - hash(word)].append(number)
    twins: set[int] = set()
    for numbers in by_sum.values():
        first = sets[numbers[0]]
        for number in numbers[1:]:
            if number != numbers[0] and len(first & sets[number]) >= NEARLY_EQUAL * len(first | sets[number]):
                twins |= {number, numbers[0]}
    return len(twins)


def _languages(captions: Captions, shared: Mapping[str, int]) -> list[Finding]:
    """Return the finding about captions in another language than the rest."""
    if len(captions) < FEWEST:
        return []
    spoken = {name: language(" ".join(texts), shared.keys()) for name, texts in captions.items()}
    counts: dict[str, int] = defaultdict(int)
    for each in spoken.values():
        counts[each] += each != ""
    told = sum(counts.values())
    # Tags have no function words: what is only known to be in Latin letters is no other language than English.
    western = max((name for name in counts if name in caption_forms.WESTERN), key=lambda n: counts[n], default="")
    if counts["English"] or not western or counts[western] <= SMALL_PART * told:
        western = "English"
    counts[western] += counts.pop("Latin", 0)
    spoken = {name: western if each == "Latin" else each for name, each in spoken.items()}
    if len([n for n in counts.values() if n]) < 2:
        return []
    main = max(counts, key=lambda each: counts[each])
    others = {name: each for name, each in spoken.items() if each not in ("", main)}
    if len(others) > SMALL_PART * told:
        examples = [f"{each} ({n})" for each, n in sorted(counts.items(), key=lambda pair: -pair[1]) if n][:EXAMPLES]
        return [Finding("captions", "languages_mixed", Severity.GOOD, told, examples=examples)]
    items = [
        Item((name,), Note("captions.other_language.detail", {"caption": quoted(captions[name][0])})) for name in others
    ]
    return [Finding("captions", "other_language", Severity.SHOULD, len(items), {"total": told}, items)]


def _habits(captions: Captions, shared: Mapping[str, int]) -> list[Finding]:
    """Return what is worth knowing of how the captions are written; no files are named."""
    texts = [text for each in captions.values() for text in each]
    found: list[Finding] = []
    forms = [caption_forms.form(text) for text in texts]
    tags, prose = forms.count("tags"), forms.count("prose")
    if len(texts) >= FEWEST and min(tags, prose) >= max(2, MIXED_SHARE * len(texts)):
        found.append(Finding("captions", "forms_mixed", Severity.GOOD, len(texts), {"tags": tags, "prose": prose}))
    openings = [opening for text in texts if (opening := caption_forms.opening(text))]
    if len(texts) >= FEWEST and len(openings) >= TEMPLATE_SHARE * len(texts):
        examples = list(dict.fromkeys(openings))[:EXAMPLES]
        params = {"total": len(texts)}
        found.append(Finding("captions", "template", Severity.GOOD, len(openings), params, examples=examples))
    looks: tuple[tuple[str, Callable[[str], list[str]]], ...] = (
        ("markup", lambda text: caption_forms.markup(text, shared.keys())),
        ("commas", caption_forms.stray_commas),
        ("doubled", caption_forms.doubled_tags),
    )
    for name, look in looks:
        seen = [hits for text in texts if (hits := look(text))]
        if seen:
            examples = list(dict.fromkeys(hit for hits in seen for hit in hits))[:EXAMPLES]
            found.append(Finding("captions", name, Severity.GOOD, len(seen), {"total": len(texts)}, examples=examples))
    return found
