"""The three reports of one examination: what stands in them, and that nothing in them is obeyed."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lora_scripts import messages
from lora_scripts.data.record import Note
from lora_scripts.doctor import report_html, report_json, report_text, thumbnails
from lora_scripts.doctor.finding import Finding, Item, Severity
from lora_scripts.doctor.ignoring import Entry
from lora_scripts.doctor.run import Examination, in_order
from lora_scripts.doctor.settings import Settings

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'\x1b[31m\u202e"
LONE = "caf\udce9\n.png"


def misspelt(name: str, caption: str = ATTACK) -> Item:
    params = {"found": "skz", "trigger": "sks", "caption": caption}
    return Item((name,), Note("captions.trigger_misspelt.detail", params), (0.25, -1.0, 0.75, 2.0))


@pytest.fixture
def done(tmp_path: Path) -> Examination:
    root = tmp_path / "my pictures & <b>"
    root.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (600, 300), colour).save(root / f"{number}.png")
    found = [
        Finding("captions", "lengths", Severity.GOOD, 3, dict(median=1, most=2, limit=75, long=0, share="0%")),
        Finding("captions", "fused_words", Severity.SHOULD, 5, {"trigger": "sks", "total": 3}, examples=list("abcde")),
        Finding("captions", "shared", Severity.MUST, 1, items=[Item(("0.png", "1.png"))], fix="move_aside"),
        Finding(
            "captions",
            "trigger_misspelt",
            Severity.MUST,
            2,
            {"trigger": "sks", "found": "skz"},
            [misspelt("2.png"), misspelt(LONE)],
            fix="respell_trigger",
        ),
    ]
    ignored = [
        Finding("captions", "empty", Severity.SHOULD, 1, items=[Item(("1.png",))], reason=f"on purpose {ATTACK}")
    ]
    return Examination(Settings(root), "pictures", 3, in_order(found), ignored, [Entry("captions.none", "x")])


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text that is shown."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.shown.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_json_has_its_schema_and_names_no_innocent_file(done: Examination):
    written = report_json.encode(done)
    assert written.isascii()
    value = json.loads(written)
    assert list(value) == ["schema", "folder", "kind", "looked_at", "summary", "findings"]
    assert value["summary"] == {"must_fix": 2, "should_look": 1, "good_to_know": 1, "ignored": 1}
    ids = ["captions.shared", "captions.trigger_misspelt", "captions.fused_words", "captions.lengths", "captions.empty"]
    assert [finding["id"] for finding in value["findings"]] == ids
    keys = ["id", "severity", "what", "why", "count", "fix", "fixable", "items", "examples", "ignored"]
    assert all(list(finding) == keys for finding in value["findings"])
    shared, wrong, fused, lengths, empty = value["findings"]
    assert (shared["fixable"], fused["fixable"]) == (True, False)
    assert shared["items"] == [{"files": ["0.png", "1.png"], "detail": None, "box": None}]
    assert wrong["items"][1]["files"] == [LONE]
    assert wrong["items"][0]["box"] == [0.25, 0.0, 0.75, 1.0]
    assert fused["examples"] == ["a", "b", "c"]
    assert lengths["items"] == []
    assert (empty["ignored"].startswith("on purpose"), shared["ignored"]) == (True, None)
    assert "2.png" not in json.dumps([shared, fused, lengths, empty])


def test_json_depends_on_the_language_in_its_sentences_only(done: Examination, monkeypatch: pytest.MonkeyPatch):
    def without_sentences(value: object) -> object:
        if isinstance(value, dict):
            return {k: without_sentences(v) for k, v in value.items() if k not in ("what", "why", "fix", "detail")}
        return [without_sentences(each) for each in value] if isinstance(value, list) else value

    english = report_json.build(done)
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh_CN")
    chinese = report_json.build(done)
    assert english != chinese
    assert without_sentences(english) == without_sentences(chinese)


def test_the_page_obeys_nobody_and_asks_for_nothing(done: Examination):
    text = report_html.encode(done).decode("utf-8")
    page = Page(text)
    assert page.open == []
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = [each["content"] or "" for each in page.of("meta") if "http-equiv" in each]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    # Our own script aside, whatever a name or a caption says is only shown.
    assert len(page.of("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all((image["src"] or "").startswith("data:image/") for image in page.of("img"))
    assert len(page.of("img")) == 4  # 0, 1, 2 and the ignored 1; the file that is not there has none
    assert all(image["alt"] for image in page.of("img"))
    assert all((link["href"] or "").startswith("#") for link in page.of("a"))
    assert not re.search(r"https?://|@import|url\(", text)
    assert {"link", "iframe", "object", "form"}.isdisjoint(name for name, _ in page.elements)
    assert "\x1b" not in text and "\u202e" not in text
    assert "alert(1)" in "".join(page.shown)


def test_the_page_can_be_walked_by_keyboard_and_read_aloud(done: Examination):
    page = Page(report_html.encode(done).decode("utf-8"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) >= 10
    assert {(link["href"] or "")[1:] for link in page.of("a")} <= set(ids)
    assert [name for name, _ in page.elements if re.fullmatch("h[1-3]", name)].count("h1") == 1
    assert len(page.of("h3")) == len(page.of("article")) == 5
    assert page.of("html") == [{"lang": "en"}]
    # The four findings that count can be ignored, and what --fix can mend has its command below.
    assert len(page.of("button")) == 5
    (mark, _) = [each["style"] for each in page.of("span") if each.get("class") == "mark"] * 2
    assert mark == "left:25.00%;top:0.00%;width:50.00%;height:100.00%"


def test_the_page_is_chinese_for_chinese_readers(done: Examination, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh_CN")
    page = Page(report_html.encode(done).decode("utf-8"))
    assert page.of("html") == [{"lang": "zh-CN"}]
    shown = "".join(page.shown)
    own = {
        code: text for code, text in messages.catalogue("en").items() if code.startswith(("doctor.html", "doctor.sev"))
    }
    assert len(own) >= 20
    assert {code for code, text in own.items() if f">{text}<" in shown or text in page.shown} == set()
    assert messages.text("doctor.severity.must_fix") in shown


def test_thumbnails_are_bounded_in_number_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(thumbnails, "MAX_PICTURES", 5)
    items = []
    for number in range(8):
        Image.effect_noise((400, 500), 90).convert("RGB").save(tmp_path / f"{number}.png")
        items.append(Item((f"{number}.png",)))
    finding = Finding("captions", "missing", Severity.SHOULD, len(items), items=items)
    text = report_html.encode(Examination(Settings(tmp_path), "pictures", 8, [finding])).decode()
    page = Page(text)
    assert len(page.of("img")) == 5
    assert "and 3 more" in "".join(page.shown)
    assert all(f"{number}.png" in text for number in range(8))
    for image in page.of("img"):
        data = base64.b64decode((image["src"] or "").partition(",")[2])
        assert max(Image.open(io.BytesIO(data)).size) == thumbnails.MAX_SIDE
    monkeypatch.setattr(thumbnails, "MAX_BYTES", 1)
    assert (
        len(Page(report_html.encode(Examination(Settings(tmp_path), "pictures", 8, [finding])).decode()).of("img")) == 1
    )


def test_the_terminal_shows_groups_names_and_commands(done: Examination):
    console = Console(file=io.StringIO(), width=100)
    report_text.show(done, console)
    said = console.file.getvalue()
    places = [
        said.index(each)
        for each in ("Must fix (2)", "Should look (1)", "Good to know (1)", "1 ignored: captions.empty")
    ]
    assert places == sorted(places)
    assert "0.png, 1.png" in said
    assert "a, b, c" in said and "a, b, c, d" not in said
    assert "--html report.html" in said and "--fix" in said and "--ignore captions.shared" in said
    assert "\x1b" not in said and "\u202e" not in said
    assert "captions.none" in said
    assert messages.text("captions.empty.what", count=1) not in said
    report_text.show(done, console, all_ignored=True)
    assert messages.text("captions.empty.what", count=1) in console.file.getvalue()


def test_a_healthy_set_is_said_to_be_healthy(tmp_path: Path):
    healthy = Examination(Settings(tmp_path), "texts", 7, [])
    console = Console(file=io.StringIO(), width=100)
    report_text.show(healthy, console)
    assert "7 rows looked at" in console.file.getvalue()
    assert messages.text("doctor.healthy") in console.file.getvalue()
    assert messages.text("doctor.healthy") in report_html.encode(healthy).decode()
