"""Rows side by side: duplicates, labels, leaks."""

from __future__ import annotations

import pytest

from lora_scripts import messages
from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import checks
from lora_scripts.data.texts.fields import Wrong
from lora_scripts.data.texts.tasks import classify_prompt


def chat(id: str, *turns: str, **rest: object) -> TextRow:
    roles = ("user", "assistant") * len(turns)
    return TextRow(id, "chat", tuple(map(Message, roles, turns)), **rest)


def labelled(id: str, message: str, label: str, **rest: object) -> TextRow:
    answer = (Message("assistant", label),)
    prompt = classify_prompt(message)
    return TextRow(id, "completion", prompt, answer, label=label, task="classify", message=message, **rest)


def text(id: str, content: str) -> TextRow:
    return TextRow(id, "text", answer=(Message("assistant", content),))


def test_leaks_by_question():
    train = [chat("1", "Where  IS\nit?", "There."), chat("2", "Who?", "Me."), text("3", "Once  upon a time")]
    held = [chat("4", "where is it?", "Elsewhere."), text("5", "once upon A TIME")]
    assert [row.id for row in checks.leaks(train, held)] == ["1", "3"]
    assert checks.leaks(train, []) == []


def test_leaks_across_formats():
    assert checks.leaks([labelled("1", "Where?", "a")], [chat("2", "where?", "x")])


def test_the_last_question_counts():
    train = [chat("1", "Hi", "Hi", "Where?", "There."), chat("2", "Where?", "There", "Thanks", "Welcome")]
    assert [row.id for row in checks.leaks(train, [chat("3", "Where?", "x")])] == ["1"]


def test_leaks_by_group():
    train = [labelled("1", "x", "a", group="c1"), labelled("2", "y", "a", group="c2"), labelled("3", "z", "a")]
    held = [labelled("4", "other", "a", group="c2"), labelled("5", "another", "a")]
    assert [row.id for row in checks.leaks(train, held)] == ["2"]


def test_duplicates_are_equal_in_all_that_is_learned():
    rows = [labelled("1", "x", "a"), labelled("2", "x", "a", weight=2.0), labelled("3", "x", "b"), chat("4", "x", "a")]
    kept, repeated = checks.split_duplicates(rows)
    assert [row.id for row in kept] == ["1", "3", "4"]
    assert [(row.id, first.id) for row, first in repeated] == [("2", "1")]


def test_two_verdicts_on_one_answer_are_no_duplicates():
    shared = {"prompt": (Message("user", "x"),), "answer": (Message("assistant", "y"),)}
    rows = [TextRow(str(number), "thumb", liked=liked, **shared) for number, liked in enumerate((True, False, True))]
    kept, repeated = checks.split_duplicates(rows)
    assert [row.id for row in kept] == ["0", "1"] and [row.id for row, _ in repeated] == ["2"]


def test_a_label_out_of_line_names_the_nearest():
    allowed = ("billing", "delivery", "returns")
    checks.check_label(labelled("1", "x", "billing"), allowed)
    checks.check_label(labelled("1", "x", "anything"), ())
    checks.check_label(chat("1", "x", "anything"), allowed)
    with pytest.raises(Wrong) as caught:
        checks.check_label(labelled("1", "x", "Deliverys"), allowed)
    assert (caught.value.params["label"], caught.value.params["nearest"]) == ('"Deliverys"', "delivery")
    with pytest.raises(Wrong):
        checks.check_label(labelled("1", "x", "账单"), allowed)


def test_what_is_said_of_rows():
    rows = [
        labelled("1", "x", "How to", language="en"),
        labelled("2", "y", "how_to", language="zh"),
        labelled("3", "X", "how_to", language="en"),
        chat("4", "x", "y", "z", " "),
    ]
    notes = checks.notes(rows, ["How to", "how_to", "rest"])
    params = {note.code.removeprefix("text."): note.params for note in notes}
    assert params == {
        "rows": {"count": 4, "kinds": "chat 1, classify 3"},
        "languages": {"languages": "en 2, zh 1"},
        "labels": {"count": 3, "labels": "How to 1, how_to 2"},
        "labels_absent": {"labels": "rest"},
        "labels_alike": {"labels": "How to = how_to"},
        "contradictions": {"count": 1, "examples": "3: how_to, 1: How to"},
        "silent_turns": {"count": 1, "examples": "4"},
    }
    assert all(messages.text(note.code, **note.params) for note in notes)


def test_nothing_odd_is_not_said():
    codes = [note.code for note in checks.notes([labelled("1", "x", "a"), labelled("2", "y", "b")], ["a", "b"])]
    assert codes == ["text.rows", "text.labels"]
