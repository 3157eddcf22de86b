"""Damaged letters are found and put right, and what only looks odd is left alone."""

from __future__ import annotations

import pytest

from lora_scripts.doctor.texts import damage
from lora_scripts.doctor.texts.text import Text


@pytest.mark.parametrize(
    "text",
    [
        "naïve café",
        "It’s “quoted” – here",
        "Größe 10°",
        "Привет, как дела?",
        "😀 ok",
        "发货太慢了，客服说今天会到",
        "çok güzel",
    ],
)
def test_utf8_read_as_latin(text: str) -> None:
    damaged = text.encode().decode("latin-1")
    assert damaged != text
    assert damage.repair(damaged) == text
    assert damage.repair(text) == text


def test_utf8_read_as_gbk() -> None:
    text = "你好，我的订单什么时候发货？"
    assert damage.repair(text.encode().decode("gb18030")) == text


def test_gbk_read_as_latin() -> None:
    text = "你好，我的订单什么时候发货？"
    assert damage.repair(text.encode("gbk").decode("latin-1")) == text


@pytest.mark.parametrize(
    "text",
    [
        "„MENÜ“ steht da",
        "“AMANHÔ e “IRMÃ”",
        "CAFÉ™ is ours",
        "EL NIÑO… «ESPAÑA»",
        "Ærø Ødegård Ålesund",
        "ÀÉÎÕÜ",
        "Žluťoučký kůň",
        "Καλημέρα σας",
        "鍵盤の設定",
        "朋友说“很好”……真的吗？？？",
        "繁體中文訊息，請問何時出貨？",
        "™®©",
    ],
)
def test_what_is_right_stays(text: str) -> None:
    assert damage.repair(text) == text
    assert damage.find([Text("a:1", "a", text, ())]) == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("a lost \ufffd letter", "lost"),
        ("锟斤拷锟斤拷", "lost"),
        ("zero\u200bwidth", "control"),
        ("a bell \x07 rings", "control"),
        ("Tom &amp; Ines aren&#39;t here", "entities"),
        ("cafÃ©", "damaged"),
    ],
)
def test_each_kind(text: str, finding: str) -> None:
    (found,) = damage.find([Text("a:1", "a", text, ())])
    assert (found.name, found.items[0].files) == (finding, ("a:1",))


def test_entities_in_talk_about_web_pages_are_meant() -> None:
    assert damage.find([Text("a:1", "a", "In HTML write &amp; for the sign, as in <b>R&amp;D</b>", ())]) == []
