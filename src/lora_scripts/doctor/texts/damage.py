"""Letters that a wrong encoding has destroyed, what they were, and leftovers of web pages and programs.

A text that was written as UTF-8 and read as something else can be read back: encode it as it was read, decode it as it
was written. That is only believed where it gives fewer odd signs, since "MENÜ”" could be such a text too.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.texts.privacy import masked, quoted

if TYPE_CHECKING:
    from lora_scripts.doctor.texts.text import Text

AROUND = 40
"""Letters shown on either side."""
# 锛, 銆, 鈥 and 紝 stand for nothing but the comma, the full stop and quotation marks of UTF-8 read as GBK.
_LOST = re.compile("\ufffd+|锟斤拷|(?:烫烫烫|屯屯屯)+|[锛銆鈥紝](?=[^锛銆鈥紝]*[锛銆鈥紝])")
# The signs that cp1252 has for 0x80 to 0x9f; its five holes are read as the controls that latin-1 has there.
_SIGNS = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_NEXT = rf"[{_SIGNS}\x80-\xbf]"
_WESTERN = re.compile(rf"(?:[\xc2-\xdf]{_NEXT}|[\xe0-\xef]{_NEXT}{{2}}|[\xf0-\xf4]{_NEXT}{{3}})+")
_CHINESE = re.compile("[·×÷\u0391-\u0451\u2000-\u9fff\ue000-\uf8ff\uff00-\uffee?]{3,}")
_BYTES = re.compile(r"(?:[\xa1-\xf7][\xa1-\xfe]){2,}")
_COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经"
    "么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全"
    "三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任"
    "常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必"
    "场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告"
    "类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运请您谢货单订退款客服收快递钱买卖店换号码送吗呢吧啊"
)
_SENTENCE = frozenset("，。！？、：；“”（）")
_ENTITY = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|hellip|mdash|ndash|[lr][sd]quo|eacute|euro|#\d{2,6}|#x[0-9a-fA-F]{2,5});"
)
_CODE = re.compile(
    r"</?[a-zA-Z][^<>]*>|```|\bhtml\b|\bxml\b|&(?:amp|lt|gt);.*\b(?:escape|entity|entities)\b", re.IGNORECASE
)
_HARMLESS = frozenset("\t\n\r\x85\u200c\u200d\u200e\u200f")
_UNSEEN = frozenset("\ufeff\u200b\u2060")


def find(texts: Sequence[Text]) -> list[Finding]:
    """Return findings about damaged letters, entities and signs that cannot be seen."""
    items: dict[str, list[Item]] = {"damaged": [], "lost": [], "control": [], "entities": []}
    for text in texts:
        whole = text.whole
        repaired = repair(whole)
        if repaired != whole:
            before, after = _difference(whole, repaired)
            items["damaged"].append(_item("damaged", text.name, before, after))
        # What is repaired is not told twice: bytes that are missing in it are lost, and damaged letters control signs.
        elif lost := _LOST.search(repaired):
            items["lost"].append(
                Item((text.name,), Note("texts.lost.detail", {"text": _around(repaired, *lost.span())}))
            )
        if signs := control_signs(repaired):
            items["control"].append(Item((text.name,), Note("texts.control.detail", {"signs": signs})))
        if (entity := _ENTITY.search(repaired)) and not _CODE.search(repaired):
            shown = _around(repaired, *entity.span())
            items["entities"].append(_item("entities", text.name, shown, html.unescape(shown)))
    severities = {"damaged": Severity.MUST, "lost": Severity.MUST}
    return [
        Finding("texts", name, severities.get(name, Severity.SHOULD), len(each), items=each)
        for name, each in items.items()
        if each
    ]


def _item(name: str, file: str, before: str, after: str) -> Item:
    return Item((file,), Note(f"texts.{name}.detail", {"text": before, "repaired": after}))


def repair(text: str) -> str:
    """Return a text with the letters that a wrong encoding made put right, as far as they can be."""
    if text.isascii():
        return text
    # Chinese first: pairs of its bytes are letters of UTF-8 too.
    text = _BYTES.sub(_read_as_latin, text)
    text = _WESTERN.sub(_read_as_western, text)
    return _CHINESE.sub(_read_as_chinese, text)


def _read_as_western(match: re.Match[str]) -> str:
    """Undo UTF-8 that was read as cp1252 or latin-1."""
    run = match[0]
    try:
        decoded = b"".join(map(_western_byte, run)).decode("utf-8")
    except UnicodeDecodeError:
        return run
    if not all(map(_is_usual, decoded)):
        return run
    # A capital before a quotation mark or three dots is a shout in quotes: two letters are asked for.
    before = match.string[max(0, match.start() - 1) : match.start()]
    shout = len(decoded) == 1 and run[1] in "‘’“”…™–—«»‹›" and (before.isupper() or not before.isalpha())
    rare = len(decoded) == 1 and run[0] not in "ÂÃ" and len(run) == 2
    return run if shout or rare else decoded


def _western_byte(letter: str) -> bytes:
    return letter.encode("latin-1") if ord(letter) < 256 else letter.encode("cp1252")


def _is_usual(letter: str) -> bool:
    """Say whether a letter is one of those that people write: Western, Greek, Cyrillic, Chinese, an emoji, a sign."""
    code = ord(letter)
    ranges = ((0xA0, 0x17F), (0x386, 0x45F), (0x2010, 0x2122), (0x2190, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF))
    return any(low <= code <= high for low, high in (*ranges, (0xFE0F, 0xFE0F), (0xFF01, 0xFF5E), (0x1F300, 0x1FAFF)))


def _read_as_latin(match: re.Match[str]) -> str:
    """Undo GBK that was read as latin-1: pairs of Western letters that are common Chinese ones."""
    run = match[0]
    try:
        decoded = run.encode("latin-1").decode("gbk")
    except UnicodeError:
        return run
    known = sum(letter in _COMMON or letter in _SENTENCE for letter in decoded)
    chinese = all("\u4e00" <= letter <= "\u9fff" or letter in _SENTENCE for letter in decoded)
    return decoded if chinese and 3 * known >= 2 * len(decoded) else run


def _read_as_chinese(match: re.Match[str]) -> str:
    """Undo UTF-8 that was read as GBK, which drops a byte here and there."""
    run = match[0]
    try:
        raw = b"".join(b"?" if letter == "?" else letter.encode("gb18030") for letter in run)
    except UnicodeEncodeError:
        return run
    decoded = raw.decode("utf-8", "replace")
    bad = decoded.count("\ufffd") + decoded.count("?")
    good = sum("\u4e00" <= letter <= "\u9fff" or letter in _SENTENCE for letter in decoded)
    if good < 2 or bad > 0.5 * len(decoded) or good + bad < 0.9 * len(decoded):
        return run
    return decoded if _familiar(decoded) > max(0.25, 2 * _familiar(run)) else run


def _familiar(text: str) -> float:
    """Return the share of a text's letters that are common in Chinese."""
    return sum(letter in _COMMON or letter in _SENTENCE for letter in text) / len(text)


def control_signs(text: str) -> str:
    """Return the signs of a text that cannot be seen and mean nothing, as "U+0007", or ""."""
    if text.isascii() and text.isprintable():
        return ""
    # A line end within a JSON text counts as unprintable, so most long texts come this far.
    signs = {each for each in set(text) - _HARMLESS if each in _UNSEEN or unicodedata.category(each) in ("Cc", "Co")}
    return ", ".join(f"U+{ord(letter):04X}" for letter in sorted(signs))


def _difference(before: str, after: str) -> tuple[str, str]:
    """Return what stands around the first letter that differs, before and after."""
    start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    return _around(before, start, start), _around(after, start, start)


def _around(text: str, start: int, stop: int) -> str:
    # What is cut could be the end of a number, which then looks like none.
    if masked(text) != text:
        return quoted(text)
    left, right = max(0, start - AROUND), min(len(text), stop + AROUND)
    return f"{'...' * (left > 0)}{quoted(text[left:right])}{'...' * (right < len(text))}"
