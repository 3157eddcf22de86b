"""One verdict at a time: which rows it becomes."""

from __future__ import annotations

import pytest

from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import feedback, formats, tasks
from lora_scripts.data.texts.fields import Unfit

SAID = {
    "id": "m1",
    "message": "Where is it?",
    "label": "billing",
    "reply": "We look into it.",
    "confidence": 0.4,
    "adapter": "ab" * 32,
    "customer": "c9",
    "lang": "en",
    "time": "2026-01-02T03:04:05Z",
}
LABEL_ONLY = {key: value for key, value in SAID.items() if key != "reply"}
BETTER = "It comes on Monday."


def compiled(**verdict: object) -> dict[str, TextRow]:
    return compiled_from(SAID, **verdict)


def compiled_from(said: dict, **verdict: object) -> dict[str, TextRow]:
    raw = {**said, **verdict}
    assert formats.recognise(raw) is formats.FEEDBACK
    rows = feedback.convert(raw, "0/f:1")
    assert all((row.group, row.language, row.message) == ("c9", "en", "Where is it?") for row in rows)
    assert len({row.id for row in rows}) == len(rows)
    return {row.id.removeprefix("0/f:1#"): row for row in rows}


def words(turns: tuple[Message, ...]) -> str:
    (turn,) = turns
    assert turn.role == "assistant"
    return turn.content


def topic(row: TextRow) -> str:
    return row.prompt[0].content.removeprefix("Reply to the customer. Topic: ").removesuffix(".")


def test_a_corrected_label_counts_twice():
    rows = compiled(edit={"label": "delivery"})
    assert rows.keys() == {"classify"}
    row = rows["classify"]
    assert (row.label, words(row.answer), row.weight, row.task) == ("delivery", "delivery", 2.0, "classify")


def test_a_label_edited_to_itself_is_accepted():
    assert {part: (row.label, row.weight) for part, row in compiled(edit={"label": "billing"}).items()} == {
        "classify": ("billing", 1.0)
    }


def test_an_edited_reply():
    rows = compiled(edit={"reply": BETTER})
    assert rows.keys() == {"classify", "draft", "pair"}
    assert (rows["classify"].label, rows["classify"].weight) == ("billing", 1.0)
    draft, pair = rows["draft"], rows["pair"]
    assert (draft.kind, words(draft.answer), topic(draft), draft.task) == ("completion", BETTER, "billing", "draft")
    assert (pair.kind, words(pair.answer), words(pair.rejected)) == ("pair", BETTER, "We look into it.")
    assert pair.prompt == draft.prompt


def test_both_edited():
    rows = compiled(edit={"label": "delivery", "reply": BETTER}, thumb="down", reason="wrong topic")
    assert rows.keys() == {"classify", "draft", "pair"}
    assert rows["classify"].weight == 2.0
    assert {topic(rows["draft"]), topic(rows["pair"])} == {"delivery"}


@pytest.mark.parametrize("edit", ["We look into it.", " We look\n into  it. "])
def test_an_edit_of_spaces_is_no_pair(edit: str):
    rows = compiled(edit={"reply": edit})
    assert rows.keys() == {"classify", "draft"} and words(rows["draft"].answer) == edit


def test_an_edit_where_the_model_gave_no_reply():
    assert compiled_from(LABEL_ONLY, edit={"reply": BETTER}).keys() == {"classify", "draft"}


def test_thumb_up():
    rows = compiled(thumb="up")
    assert rows.keys() == {"classify", "draft", "thumb"}
    assert (rows["classify"].label, rows["classify"].weight) == ("billing", 1.0)
    assert words(rows["draft"].answer) == words(rows["thumb"].answer) == "We look into it."
    assert (rows["thumb"].kind, rows["thumb"].liked, rows["thumb"].prompt) == ("thumb", True, rows["draft"].prompt)


def test_thumb_down_is_never_learned():
    rows = compiled(thumb="down", reason="rude")
    assert rows.keys() == {"thumb"}
    row = rows["thumb"]
    assert (row.kind, row.liked, words(row.answer), topic(row)) == ("thumb", False, "We look into it.", "billing")


def test_thumb_down_with_the_right_label():
    rows = compiled(thumb="down", edit={"label": "delivery"})
    assert rows.keys() == {"classify", "thumb"}
    assert (rows["classify"].label, rows["thumb"].liked, topic(rows["thumb"])) == ("delivery", False, "delivery")


def test_thumb_down_with_the_right_reply():
    assert compiled(thumb="down", edit={"reply": BETTER}).keys() == {"classify", "draft", "pair"}


@pytest.mark.parametrize(("thumb", "parts"), [("up", {"classify", "thumb"}), ("down", {"thumb"})])
def test_a_thumb_on_a_label_alone(thumb: str, parts: set[str]):
    rows = compiled_from(LABEL_ONLY, thumb=thumb)
    assert rows.keys() == parts
    row = rows["thumb"]
    assert (row.liked, words(row.answer), row.label) == (thumb == "up", "billing", "")
    assert row.prompt == tasks.classify_prompt("Where is it?")


@pytest.mark.parametrize(
    "verdict",
    [{}, {"thumb": None}, {"edit": None}, {"edit": {}}, {"edit": {"label": None, "reply": " "}}, {"reason": "hm"}],
)
def test_nothing_said(verdict: dict):
    with pytest.raises(Unfit) as caught:
        feedback.convert({**SAID, **verdict}, "0/f:1")
    assert caught.value.code == "text.no_verdict"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"id": None}, "missing"),
        ({"message": ""}, "blank"),
        ({"label": None}, "missing"),
        ({"label": 3}, "not_text"),
        ({"thumb": "sideways"}, "bad_thumb"),
        ({"edit": "delivery"}, "bad_edit"),
        ({"edit": {"lable": "delivery"}}, "bad_edit"),
        ({"edit": {"label": 3}}, "not_text"),
        ({"edit": {"reply": ["a"]}}, "not_text"),
        ({"reply": 5}, "not_text"),
    ],
)
def test_verdicts_that_do_not_fit(changed: dict, code: str):
    with pytest.raises(Unfit) as caught:
        feedback.convert({**SAID, "thumb": "up", **changed}, "0/f:1")
    assert caught.value.code == f"text.{code}"


def test_an_edited_label_where_the_model_gave_none():
    rows = compiled(label=None, edit={"label": "delivery"})
    assert (rows["classify"].label, rows["classify"].weight) == ("delivery", 2.0)


def test_identity():
    assert feedback.identity({"id": "a"}) == "a" and feedback.identity({"id": 4}) == "4"
    assert feedback.identity({}) == feedback.identity({"id": []}) == ""
