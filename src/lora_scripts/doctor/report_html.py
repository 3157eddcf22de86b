"""The report as one page for a browser: no request leaves it, and nothing in it but our own lines is obeyed.

File names and captions are other people's text: every value goes through `_text`, and a content security policy allows
this page's own script by its hash, pictures that stand in the page, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from lora_scripts import messages
from lora_scripts.data.decode import SUFFIXES
from lora_scripts.doctor import commands
from lora_scripts.doctor._page import SCRIPT, STYLE
from lora_scripts.doctor.finding import EXAMPLES, Finding, Item
from lora_scripts.doctor.report_text import detail
from lora_scripts.doctor.run import ORDER, PICTURES, Examination
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.thumbnails import Thumbnail, Thumbnails

PER_FINDING = 24
"""Items of one finding that are shown with pictures."""
CHOICES = {f"pictures.{name}" for name in ("exact", "near", "crop", "mirrored", "leak", "leak_near")}
"""Findings of which one picture is to be kept, the first."""
NAMED = 1000
"""Items of one finding that are named; all of them stand in the JSON."""
SHARE_A_GROUP = 8
"""Pictures shown of things that belong together."""


def encode(done: Examination) -> bytes:
    """Return the page's bytes."""
    return "".join(_page(done)).encode("utf-8", "backslashreplace")


def _page(done: Examination) -> Iterable[str]:
    language = {"zh_CN": "zh-CN"}.get(messages.language(), "en")
    title = messages.text("doctor.html.title", folder=messages.printable(_name(done.settings.path)))
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    policy += "; base-uri 'none'; form-action 'none'"
    yield f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="referrer" content="no-referrer">\n'
    yield f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    yield f'<a class="skip" href="#findings">{_said("doctor.html.skip")}</a>\n<div class="wrap">\n'
    yield from _top(done)
    yield '<main id="findings">\n'
    thumbnails = Thumbnails()
    for severity in ORDER:
        yield from _group(str(severity), done.of(severity), done, thumbnails)
    yield from _group("ignored", done.ignored, done, thumbnails)
    yield "</main>\n"
    yield from _bottom(done)
    yield f'</div>\n<p class="quiet" id="status" role="status"></p>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'


def _top(done: Examination) -> Iterable[str]:
    """What was looked at, and the groups with their findings as links."""
    looked_at = messages.text(f"doctor.looked_at.{done.kind}", count=done.looked_at)
    yield f'<header>\n<p class="over">{_said("doctor.html.over")}</p>\n'
    yield f"<h1>{_text(_name(done.settings.path))}</h1>\n"
    yield f'<p class="seen">{_text(looked_at)} · {_text(str(done.settings.path))}</p>\n</header>\n'
    if not done.findings:
        yield f'<p class="healthy">{_said("doctor.healthy")}</p>\n'
    yield f'<nav aria-label="{_said("doctor.html.overview")}">\n'
    groups = {str(severity): done.of(severity) for severity in ORDER}
    for name, found in {**groups, **({"ignored": done.ignored} if done.ignored else {})}.items():
        label = _text(_group_name(name))
        number = f'<span class="number">{len(found)}</span>'
        heading = f'<a href="#{name}">{number} {label}</a>' if found else f"{number} {label}"
        yield f'<section class="{name}">\n<h2>{heading}</h2>\n'
        if found:
            links = (f'<li><a href="#{_anchor(each)}">{_text(each.sentence("what"))}</a></li>\n' for each in found)
            yield f"<ul>\n{''.join(links)}</ul>\n"
        yield "</section>\n"
    yield "</nav>\n"


def _bottom(done: Examination) -> Iterable[str]:
    yield "<footer>\n"
    if any(finding.fix for finding in done.findings):
        yield f"<p>{_said('doctor.html.fix')}</p>\n{_command(commands.doctor(done.settings, '--fix'))}"
    yield f"<p>{_said('doctor.html.offline')}</p>\n</footer>\n"


def _group(name: str, found: Sequence[Finding], done: Examination, thumbnails: Thumbnails) -> Iterable[str]:
    if not found:
        return
    heading = messages.text("doctor.group", group=_group_name(name), count=len(found))
    yield f'<section class="{name}" id="{name}" aria-labelledby="{name}-title">\n'
    yield f'<h2 class="group" id="{name}-title">{_text(heading)}</h2>\n'
    for finding in found:
        yield from _article(finding, done, thumbnails)
    yield "</section>\n"


def _article(finding: Finding, done: Examination, thumbnails: Thumbnails) -> Iterable[str]:
    anchor = _anchor(finding)
    yield f'<article id="{anchor}" aria-labelledby="{anchor}-title">\n'
    yield f'<h3 id="{anchor}-title">{_text(finding.sentence("what"))}</h3>\n<dl>\n'
    for part in ("why", "fix"):
        label = _said("doctor.html.why") if part == "why" else _said("doctor.html.how")
        yield f"<dt>{label}</dt><dd>{_text(finding.sentence(part))}</dd>\n"
    yield "</dl>\n"
    if finding.reason:
        yield f'<p class="reason">{_text(messages.text("doctor.html.reason", reason=finding.reason))}</p>\n'
    if finding.examples:
        chips = "".join(f"<li>{_text(example)}</li>" for example in finding.examples[:EXAMPLES])
        yield f'<ul class="chips" aria-label="{_said("doctor.html.examples")}">{chips}</ul>\n'
    yield from _items(finding, done, thumbnails)
    if not finding.reason:
        yield f"<details>\n<summary>{_said('doctor.html.ignore')}</summary>\n"
        yield f"{_command(commands.ignore(done.settings, finding.id))}</details>\n"
    yield "</article>\n"


def _items(finding: Finding, done: Examination, thumbnails: Thumbnails) -> Iterable[str]:
    """The pictures of a finding, then the names of those that have no room."""
    items = list(finding.items)
    pictures = [item for item in items if done.kind == PICTURES and _is_picture(item.files[0])][:PER_FINDING]
    together = any(len(item.files) > 1 for item in pictures)
    drawn: list[Item] = []
    tiles: list[str] = []
    for item in pictures:
        if thumbnails.full:
            break
        draw = _together if together else _alone
        tiles.append(draw(item, done.settings, thumbnails, finding.id in CHOICES))
        drawn.append(item)
    if tiles:
        told = " told" if any(item.detail for item in drawn) else ""
        yield f'<ul class="{"groups" if together else f"grid{told}"}">\n{"".join(tiles)}</ul>\n'
    shown = {id(item) for item in drawn}
    rest = [item for item in items if id(item) not in shown]
    if not rest:
        return
    rows = "".join(map(_row, rest[:NAMED]))
    if len(rest) > NAMED:
        rows += f"<li>{_text(messages.text('doctor.more', count=len(rest) - NAMED))}</li>\n"
    if len(rest) <= EXAMPLES + 2 and not drawn:
        yield f'<ul class="rows">\n{rows}</ul>\n'
        return
    summary = messages.text("doctor.more" if drawn else "doctor.html.show", count=len(rest))
    opened = "" if drawn or len(rest) > PER_FINDING else " open"
    yield f'<details{opened}>\n<summary>{_text(summary)}</summary>\n<ul class="rows">\n{rows}</ul>\n</details>\n'


def _row(item: Item) -> str:
    names = "".join(f'<span class="name">{_text(name)}</span> ' for name in item.files)
    said = detail(item)
    return f"<li>{names}{_detail(said)}</li>\n"


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _alone(item: Item, settings: Settings, thumbnails: Thumbnails, choose: bool) -> str:
    figure = _figure(item.files[0], item, settings, thumbnails)
    return f"<li>{figure}</li>\n"


def _together(item: Item, settings: Settings, thumbnails: Thumbnails, choose: bool) -> str:
    """Pictures that belong together side by side; where one is to be chosen, the first is the one to keep."""
    figures = []
    for number, name in enumerate(item.files[:SHARE_A_GROUP]):
        alone = Item((name,), None, None if number else item.box)
        keep = choose and number == 0 and len(item.files) > 1
        figures.append(f"<li>{_figure(name, alone, settings, thumbnails, keep=keep)}</li>")
    rest = len(item.files) - SHARE_A_GROUP
    if rest > 0:
        names = ", ".join(messages.printable(name) for name in item.files[SHARE_A_GROUP:][:NAMED])
        figures.append(f'<li class="said">{_text(messages.text("doctor.more", count=rest))}: {_text(names)}</li>')
    return f'<li><ul class="grid">{"".join(figures)}</ul>{_detail(detail(item), "p")}</li>\n'


def _figure(name: str, item: Item, settings: Settings, thumbnails: Thumbnails, *, keep: bool = False) -> str:
    thumbnail = thumbnails.of(settings.path / name)
    kept = f'<span class="keep">{_said("doctor.html.keep")}</span>' if keep else ""
    caption = f'<span class="name">{_text(name)}</span>{_detail(detail(item))}{kept}'
    return f"<figure>{_frame(name, item, thumbnail)}<figcaption>{caption}</figcaption></figure>"


def _frame(name: str, item: Item, thumbnail: Thumbnail | None) -> str:
    if thumbnail is None:
        return f'<div class="frame"><span class="lost">{_said("doctor.html.no_picture")}</span></div>'
    alt = _text(messages.text("doctor.html.alt", name=messages.printable(name)))
    size = f'width="{thumbnail.width}" height="{thumbnail.height}"'
    image = f'<img src="{thumbnail.address}" alt="{alt}" {size} loading="lazy" decoding="async">'
    return f'<div class="frame"><span class="sheet">{image}{_mark(item)}</span></div>'


def _mark(item: Item) -> str:
    """A box over the picture, around what is meant."""
    if item.box is None or not all(math.isfinite(edge) for edge in item.box):
        return ""
    left, top, right, bottom = (min(1.0, max(0.0, float(edge))) for edge in item.box)
    place = f"left:{left:.2%};top:{top:.2%};width:{max(0.0, right - left):.2%};height:{max(0.0, bottom - top):.2%}"
    return f'<span class="mark" style="{place}"></span>'


def _detail(said: str, tag: str = "span") -> str:
    return f'<{tag} class="said">{_text(said)}</{tag}>' if said else ""


def _command(command: str) -> str:
    done, failed = _said("doctor.html.copied"), _said("doctor.html.not_copied")
    button = (
        f'<button type="button" hidden data-done="{done}" data-failed="{failed}">{_said("doctor.html.copy")}</button>'
    )
    return f'<div class="command"><code>{_text(command)}</code>{button}</div>\n'


def _group_name(name: str) -> str:
    return messages.text("doctor.html.ignored") if name == "ignored" else messages.text(f"doctor.severity.{name}")


def _anchor(finding: Finding) -> str:
    return f"{finding.id.replace('.', '-')}{'-ignored' if finding.reason else ''}"


def _name(path: Path) -> str:
    return path.resolve().name or str(path)


def _said(code: str) -> str:
    return _text(messages.text(code))


def _text(value: object) -> str:
    """Return text as HTML that only shows it, on one line and without signs that would turn it around."""
    return html.escape(messages.printable(str(value)), quote=True)
