"""How rows are written: leftovers of templates and chat models, copied questions, other languages, what all repeat."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item, Severity
from lora_scripts.doctor.languages import language, script
from lora_scripts.doctor.texts import similar
from lora_scripts.doctor.texts.privacy import quoted

if TYPE_CHECKING:
    from lora_scripts.doctor.texts.text import Text

SMALL_PART = 0.2
"""What is in no more than this share of the rows is an exception that rows can be named for."""
FEWEST = 10
REPEATED_SHARE, REPEATED_FEWEST = 0.2, 10
"""From which share of the answers on, and how many, a line is a signature."""
COPIED_LETTERS = 24
"""Letters of a question from which an answer that holds them has copied it."""
LANGUAGE_LETTERS = 500
"""Letters of a row that its language is told by."""
_ASSISTANT = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b|\bi(?:'|’)?m (?:just )?an ai\b"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data)\b|\bi (?:cannot|can(?:'|’)t) (?:assist|help) with that request\b"
    r"|\A\W*(?:sure|certainly|of course|absolutely)[!,.]? (?:here(?:'|’)?s|here is|here are|i(?:'|’)d be happy to)\b"
    r"|\A\W*here(?:'|’)?s? (?:is )?(?:a|an|the|your) (?:\w+ ){0,3}(?:reply|response|draft|rewrite|answer|version)\b"
    r"|作为(?:一个|一名)?\s*(?:ai|人工智能)(?:语言)?(?:模型|助手)|作为(?:一个)?(?:大型)?语言模型|我的知识截止|我只是一个\s*(?:ai|人工智能)"
    r"|\A\W*(?:当然[！!，,]?|好的[，,！!]?)(?:以下是|下面是|这是)(?:为您|为你|您的|你的|一[个份条封])",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"\[(?:INSERT|Insert|insert|YOUR|Your|your|ENTER|Enter|ADD|Add)\b[^\[\]\n]{0,40}\]"
    r"|\[(?:NAME|Name|DATE|Date|COMPANY|Company|Company Name|Customer Name|Customer|Order Number|First Name|Product)\]"
    r"|\{\{\s*[A-Za-z_][\w. ]{0,30}\}\}|(?<![$\w\\f\"'{])\{(?:[a-z]+_)*"
    r"(?:name|date|company|customer|order|number|product|email|user|id|input|text)\}"
    r"|<(?:NAME|INSERT[^<>\n]{0,30}|YOUR[ _][^<>\n]{0,30}|CUSTOMER|ORDER_NUMBER)>|\blorem ipsum\b"
    r"|[\[【{](?:请?(?:填写|输入|插入)[^\[\]【】{}\n]{0,12}|(?:客户|您的|你的)?(?:姓名|名字|公司名称?|日期|订单号))[\]】}]"
)
_CODE = re.compile(r"```|\bdef \w+\(|=>|;\s*\n|</\w+>|\bf[\"']|\.format\(")
_LINE = re.compile(r"[^\n]+")


def find(texts: Sequence[Text]) -> list[Finding]:
    """Return what is to be said of the way rows are written."""
    found: list[Finding] = []
    for name, pattern in (("assistant_phrase", _ASSISTANT), ("placeholder", _PLACEHOLDER)):
        found += _matches(name, pattern, texts)
    return [*found, *_copied(texts), *_repeated(texts), *_languages(texts)]


def _matches(name: str, pattern: re.Pattern[str], texts: Sequence[Text]) -> list[Finding]:
    items = []
    for text in texts:
        answers = [answer for answer in text.answers if not (name == "placeholder" and _CODE.search(answer))]
        match = next((match for answer in answers if (match := pattern.search(answer))), None)
        if match is not None:
            items.append(Item((text.name,), Note(f"texts.{name}.detail", {"seen": quoted(match[0], 60)})))
    return [Finding("texts", name, Severity.SHOULD, len(items), items=items)] if items else []


def _copied(texts: Sequence[Text]) -> list[Finding]:
    items = []
    for text in texts:
        asked = similar.plain(text.asked)
        if len(asked) < (COPIED_LETTERS if asked.isascii() else COPIED_LETTERS // 2):
            continue
        if any(similar.plain(answer).startswith(asked) for answer in text.answers):
            items.append(Item((text.name,), Note("texts.copied.detail", {"text": quoted(text.asked)})))
    return [Finding("texts", "copied", Severity.GOOD, len(items), items=items)] if items else []


def _repeated(texts: Sequence[Text]) -> list[Finding]:
    """Return the finding about first and last lines that many answers share, such as a signature."""
    seen: Counter[str] = Counter()
    answered = 0
    for text in texts:
        lines = [line.strip() for line in _LINE.findall("\n".join(text.answers)) if line.strip()]
        if lines:
            answered += 1
            ends = {_sentence(lines[0], 0), _sentence(lines[-1], -1)} if text.asked else {lines[0], lines[-1]}
            seen.update(each for each in ends if len(each) > 3)
    often = max(REPEATED_FEWEST, REPEATED_SHARE * answered)
    lines = [(line, n) for line, n in seen.most_common(EXAMPLES) if n >= often]
    if not lines:
        return []
    examples = [f"{quoted(line, 60)} ({n}/{answered})" for line, n in lines]
    return [Finding("texts", "repeated_line", Severity.GOOD, lines[0][1], {"total": answered}, examples=examples)]


def _sentence(line: str, place: int) -> str:
    """Return a line's first or last sentence."""
    parts = [part.strip() for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", line) if part.strip()]
    return parts[place] if parts else line


def _languages(texts: Sequence[Text]) -> list[Finding]:
    """Return findings about rows in another language than most of their file."""
    by_file: dict[str, list[tuple[Text, str]]] = defaultdict(list)
    for text in texts:
        by_file[text.file].append((text, _spoken(text)))
    if all(len(rows) == 1 for rows in by_file.values()):
        by_file = {"": [row for rows in by_file.values() for row in rows]}
    items, mixed, total = [], Counter[str](), 0
    for rows in by_file.values():
        counts = Counter(spoken for _, spoken in rows if spoken)
        if len(counts) < 2 or counts.total() < FEWEST:
            continue
        main, others = counts.most_common(1)[0][0], [row for row in rows if row[1]]
        others = [row for row in others if row[1] != main]
        total += counts.total()
        if len(others) > SMALL_PART * counts.total():
            mixed += counts
        else:
            items += [
                Item((text.name,), Note("texts.other_language.detail", {"text": quoted(text.topic)}))
                for text, _ in others
            ]
    found = []
    if items:
        found.append(Finding("texts", "other_language", Severity.SHOULD, len(items), items=items))
    if mixed:
        examples = [f"{each} ({n})" for each, n in mixed.most_common(EXAMPLES)]
        found.append(Finding("texts", "languages_mixed", Severity.GOOD, mixed.total(), examples=examples))
    return found


def _spoken(text: Text) -> str:
    """Return a row's language, "" where it cannot be told: a short text in Latin letters may be in any."""
    sample = text.topic[:LANGUAGE_LETTERS]
    name = language(sample)
    return "" if name == "Latin" or script(sample) == "" else name
