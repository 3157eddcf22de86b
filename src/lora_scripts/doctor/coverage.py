"""What the set shows too much of, and what it lacks: counts only, no files are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.caption_files import kohya_folder
from lora_scripts.doctor import matching, terms
from lora_scripts.doctor.finding import EXAMPLES, Finding, Severity
from lora_scripts.doctor.word_lists import BACKGROUNDS, FRAMINGS

if TYPE_CHECKING:
    import numpy

    from lora_scripts.doctor.survey import Survey

FEWEST_PICTURES = 10
"""Pictures below which a LoRA mostly learns these very pictures."""
FEWEST_ALIKE = 6
ALIKE_SHARE = 0.4
"""Share of the set that looks nearly the same from which it is worth saying."""
ALIKE_COSINE = 0.93
"""Of CLIP's picture embeddings, for pictures of one pose in one place."""
ROWS = 1024
FEWEST_TOLD = 12
"""Captions that name a framing or background from which their variety says something."""
SAME_SHARE = 0.9
UNBALANCED = 4.0
"""How many times as often one folder's pictures may be shown as another's."""


def find(survey: Survey) -> Sequence[Finding]:
    """Return what is to be said of the variety of a set."""
    readable = [picture for picture in survey.pictures if picture.problem is None]
    found: list[Finding] = []
    if 0 < len(readable) < FEWEST_PICTURES:
        params = {"least": FEWEST_PICTURES}
        found.append(Finding("captions", "few_pictures", Severity.SHOULD, len(readable), params))
    found += _look_alike(survey)
    captions = {name: texts for name, texts in survey.captions.items() if any(texts)}
    found += [*_framing(captions, survey.settings.kind), *_backgrounds(captions)]
    return [*found, *_balance([picture.name for picture in readable])]


def _look_alike(survey: Survey) -> list[Finding]:
    """Return the finding about a set in which one picture was taken again and again."""
    if survey.settings.model is None:
        return []
    _, names, points_ND = matching.embedded(survey)
    alike = largest_ball(points_ND, ALIKE_COSINE)
    if alike < max(FEWEST_ALIKE, ALIKE_SHARE * len(names)):
        return []
    return [Finding("captions", "look_alike", Severity.SHOULD, alike, {"total": len(names)})]


def largest_ball(points_ND: numpy.ndarray, least: float) -> int:
    """Return how many points (of norm 1) the one with most neighbours has about it, itself included.

    Neighbours are counted, not chained: two pictures that are both like a third need not be like each other.
    """
    import numpy

    most = 0
    for start in range(0, len(points_ND), ROWS):
        block = points_ND[start : start + ROWS].astype(numpy.float32)
        near = numpy.zeros(len(block), int)
        for other in range(0, len(points_ND), ROWS):
            near += (block @ points_ND[other : other + ROWS].astype(numpy.float32).T >= least).sum(axis=1)
        most = max(most, int(near.max()))
    return most


def _framing(captions: Mapping[str, Sequence[str]], kind: str) -> list[Finding]:
    """Return what is to be said of how much of the subject the captions say is seen."""
    said: Counter[str] = Counter()
    told = 0
    for texts in captions.values():
        text = _plain(texts)
        kinds = {name for name, phrases in FRAMINGS.items() if any(_holds(text, phrase) for phrase in phrases)}
        said.update(kinds)
        told += bool(kinds)
    if told < FEWEST_TOLD:
        return []
    most, n = said.most_common(1)[0]
    if n >= SAME_SHARE * told:
        examples = [f"{FRAMINGS[most][0]} ({n}/{told})"]
        return [Finding("captions", "one_framing", Severity.GOOD, told, examples=examples)]
    if kind == "person" and not said["full"]:
        return [Finding("captions", "no_full_body", Severity.GOOD, told)]
    return []


def _backgrounds(captions: Mapping[str, Sequence[str]]) -> list[Finding]:
    said: Counter[str] = Counter()
    told = 0
    for texts in captions.values():
        text = _plain(texts)
        named = {phrase for phrase in BACKGROUNDS if _holds(text, phrase)}
        said.update(named)
        told += bool(named) or _holds(text, "background") or "背景" in text
    if told < FEWEST_TOLD:
        return []
    examples = [f"{phrase} ({n}/{told})" for phrase, n in said.most_common() if n >= SAME_SHARE * told]
    if not examples:
        return []
    return [Finding("captions", "one_background", Severity.GOOD, told, examples=examples[:EXAMPLES])]


def _holds(text: str, phrase: str) -> bool:
    """Say whether a text has a phrase: whole words in scripts that have words."""
    return phrase in text if terms.is_spaceless(phrase) else f" {phrase} " in text


def _plain(texts: Sequence[str]) -> str:
    """Return captions as words with one space about each; underscores are spaces."""
    rows = (tokens for text in texts for tokens in terms.segments(text.replace("_", " ")))
    return f" {' '.join(token for tokens in rows for token in tokens)} "


def _balance(names: Sequence[str]) -> list[Finding]:
    """Return the finding about sub-folders that are shown very unequally: pictures times repeats."""
    visits: Counter[str] = Counter()
    for name in names:
        top, slash, _ = name.partition("/")
        repeats = kohya_folder(name)[1]
        if slash and repeats:
            visits[top] += repeats
    if len(visits) < 2 or any("/" not in name for name in names):
        return []
    (_, most), (_, least) = visits.most_common()[0], visits.most_common()[-1]
    if most < UNBALANCED * least:
        return []
    return [Finding("captions", "unbalanced", Severity.GOOD, len(visits), {"most": most, "least": least})]
