"""Personal data and secrets: what is found is counted and pointed at, and only ever shown masked.

A number counts where more than its length speaks for it: a checksum, an issuer's prefix, a country code, or a word
before it. What the rest of the doctor quotes goes through `masked` too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from lora_scripts.data.record import Note
from lora_scripts.doctor.finding import Finding, Item, Severity

if TYPE_CHECKING:
    from lora_scripts.doctor.texts.text import Text

MUST = ("key", "card", "iban", "id_number")
KINDS = ("key", "email", "iban", "id_number", "card", "phone", "ip")
"""In the order in which a text is searched: what one kind has taken no later one sees."""
WITHOUT_DIGITS = ("key", "email")
"""Kinds that a text without a single digit may hold."""
QUOTED = 120
MOST_SEARCHED = 200_000
"""Characters of a row that are searched."""

_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{20,}|sk_live_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[opsu]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}|glpat-[A-Za-z0-9_-]{20}|xox[abprs]-[A-Za-z0-9-]{20,}"
    r"|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})(?![A-Za-z0-9])"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\sA-Za-z0-9+/=\\]*-----END [A-Z ]*PRIVATE KEY-----)?"
)
_DIGIT = re.compile(r"\d", re.A)
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![\w-])", re.A)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_ID_NUMBER = re.compile(r"(?<![A-Za-z0-9])[1-9]\d{16}[0-9Xx](?![A-Za-z0-9])", re.A)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)", re.A)
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|3[47]\d{13}|62\d{14,17}"
    r"|(?:5[1-5]\d\d|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)|6011|65\d\d|35(?:2[89]|[3-8]\d))\d{12}"
)
"""What numbers of cards begin with, and how long they then are."""
_PHONE = re.compile(
    r"(?<![\w+])\+[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?!\d)"
    r"|(?<![\d+-])(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?![\d-])"
    r"|(?<![\d(+-])\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[.-]\d{4}(?![\d-])",
    re.A,
)
_CALLED = re.compile(
    r"(?i:\b(?:phone|tel|telephone|mobile|cell|call me (?:on|at)|whatsapp)\b|电话|手机|座机)"
    r"[^\d\n]{0,12}?(\(?0?\d[\d ()./-]{5,16}\d)(?!\d)",
    re.A,
)
_NUMBERED = re.compile(
    r"(?i:order|invoice|ticket|tracking|parcel|serial|reference|ref|no\.|nr\.|imei|sku|ean|isbn|#|订单|单号|编号|运单|快递|发票)"
    r"[^\d\n]{0,14}\Z"
)
_IP = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.A)
_VERSION = re.compile(r"(?i:\bv|version|firmware|release|build|版本|固件)\W{0,3}\Z")
_NOBODY = re.compile(
    r"(?i)(?:\.|@)(?:example\.(?:com|net|org)|example|test|invalid|localhost)\Z"
    r"|^(?:no-?reply|info|support|service|sales|contact|help|hello|office|customer\.?(?:service|care)|billing|admin)@"
)
"""Addresses that are nobody's, or a desk's."""


@dataclass(frozen=True)
class Hit:
    """One piece of personal data, and where it stands."""

    kind: str
    start: int
    stop: int
    text: str


def hits(text: str) -> list[Hit]:
    """Return the personal data in a text, in order."""
    found: list[Hit] = []
    text = text[:MOST_SEARCHED]
    digits = _DIGIT.search(text) is not None
    for kind in KINDS if digits else WITHOUT_DIGITS:
        for start, stop in _search(kind, text):
            if not any(start < hit.stop and hit.start < stop for hit in found):
                found.append(Hit(kind, start, stop, text[start:stop]))
    return sorted(found, key=lambda hit: hit.start)


def masked(text: str) -> str:
    """Return a text with all personal data in it masked."""
    for hit in reversed(hits(text)):
        text = text[: hit.start] + mask(hit) + text[hit.stop :]
    return text


def quoted(text: str, limit: int = QUOTED) -> str:
    """Return a text for a report: masked, on one line, cut."""
    # What is cut off first could end inside a number, which then looks like none.
    line = " ".join(masked(text[:MOST_SEARCHED]).split())
    line = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in line)
    return line if len(line) <= limit else f"{line[:limit]}..."


def mask(hit: Hit) -> str:
    """Return what is shown of a hit: enough to find it, too little to use it."""
    if hit.kind == "email":
        user, _, host = hit.text.partition("@")
        return f"{user[0]}***@***{host[host.rindex('.') :]}"
    if hit.kind == "key":
        return f"{hit.text[:3]}***"
    if hit.kind == "ip":
        return f"{hit.text.partition('.')[0]}.***"
    return f"***{re.sub(r'[^0-9A-Za-z]', '', hit.text)[-2:]}"


def _search(kind: str, text: str) -> Iterator[tuple[int, int]]:
    if kind == "key":
        yield from (match.span() for match in _KEY.finditer(text))
    elif kind == "email" and "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text) if not _NOBODY.search(match[0]))
    elif kind == "iban":
        yield from (match.span() for match in _IBAN.finditer(text) if is_iban(match[0]))
    elif kind == "id_number":
        yield from (match.span() for match in _ID_NUMBER.finditer(text) if is_chinese_id(match[0]))
    elif kind == "card":
        # One in ten numbers of orders has a card's check digit.
        cards = (match for match in _CARD.finditer(text) if is_card(match[0]))
        yield from (match.span() for match in cards if not _after(_NUMBERED, text, match))
    elif kind == "phone":
        yield from _phones(text)
    elif kind == "ip":
        yield from (
            match.span() for match in _IP.finditer(text) if _is_public(match[0]) and not _after(_VERSION, text, match)
        )


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        digits = sum(letter.isdigit() for letter in match[0])
        if 8 <= digits <= 15 and not _after(_NUMBERED, text, match):
            yield match.span()
    for match in _CALLED.finditer(text):
        if 7 <= sum(letter.isdigit() for letter in match[1]) <= 15:
            yield match.span(1)


def _after(pattern: re.Pattern[str], text: str, match: re.Match[str]) -> bool:
    return pattern.search(text, max(0, match.start() - 24), match.start()) is not None


def is_card(number: str) -> bool:
    """Say whether a number begins like those of payment cards and ends with their check digit (Luhn, ISO/IEC 7812)."""
    digits = [int(letter) for letter in number if letter.isdigit()]
    if not _ISSUED.fullmatch("".join(map(str, digits))) or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(number: str) -> bool:
    """Say whether a number is an IBAN: its head at its end, letters as 10 to 35, it leaves 1 over 97 (ISO 13616)."""
    plain = re.sub(r"[ -]", "", number)
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])) % 97 == 1


def is_chinese_id(number: str) -> bool:
    """Say whether a number is a Chinese citizen's: a day of birth in it, and the check digit of GB 11643-1999."""
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return born.year >= 1900 and "10X98765432"[total % 11] == number[17].upper()


def _is_public(address: str) -> bool:
    """Say whether an address is somebody's: no private, local or special one."""
    a, b, *_ = parts = [int(part) for part in address.split(".")]
    if max(parts) > 255 or a in (0, 10, 127) or a >= 224 or max(parts) < 10:
        return False
    return not (a == 192 and b == 168) and not (a == 172 and 16 <= b < 32) and not (a == 169 and b == 254)


def find(texts: Sequence[Text]) -> list[Finding]:
    """Return a finding for each kind of personal data, with the rows it stands in."""
    items: dict[str, list[Item]] = defaultdict(list)
    for text in texts:
        by_kind: dict[str, list[str]] = defaultdict(list)
        for hit in hits(text.whole):
            by_kind[hit.kind].append(mask(hit))
        for kind, shown in by_kind.items():
            seen = ", ".join(list(dict.fromkeys(shown))[:3])
            items[kind].append(Item((text.name,), Note(f"texts.{kind}.detail", {"seen": seen})))
    return [
        Finding("texts", kind, Severity.MUST if kind in MUST else Severity.SHOULD, len(items[kind]), items=items[kind])
        for kind in KINDS
        if items[kind]
    ]
