"""Each format by its keys, to turns; each way to get one wrong, with its reason."""

from __future__ import annotations

import pytest

from lora_scripts.data.record import Message, TextRow
from lora_scripts.data.texts import formats
from lora_scripts.data.texts.fields import Unfit, Wrong
from lora_scripts.data.texts.tasks import classify_prompt, draft_prompt, labels_in


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str, weight: float | None = None) -> Message:
    return Message("assistant", text, weight)


def converted(raw: dict) -> list[TextRow]:
    format = formats.recognise(raw)
    assert format is not None
    return format.convert(raw, "0/a:1")


def convert(raw: dict) -> TextRow:
    (row,) = converted(raw)
    assert row.id == "0/a:1"
    return row


def unfit(raw: dict) -> tuple[str, str]:
    with pytest.raises(Unfit) as caught:
        converted(raw)
    return caught.value.code.removeprefix("text."), str(caught.value.params.get("field", ""))


def said(*turns: tuple[str, object]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


ASKED, ANSWERED = ("user", "2 + 2?"), ("assistant", "4")
SUM = (user("2 + 2?"), bot("4"))


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("messages", "messages"),
        ("messages prompt prompt_id", "messages"),
        ("conversations system id", "ShareGPT"),
        ("instruction input output", "Alpaca"),
        ("prompt completion", "prompt/completion"),
        ("prompt response", "prompt/response"),
        ("question answer", "question/answer"),
        ("input output", "input/output"),
        ("text", "text"),
        ("prompt chosen rejected", "chosen/rejected"),
        ("chosen rejected", "chosen/rejected"),
        ("input preferred_output non_preferred_output", "input/preferred_output/non_preferred_output"),
        ("prompt completion label", "prompt/completion/label"),
        ("message label", "message/label/reply"),
        ("message label reply customer lang", "message/label/reply"),
        ("id message label reply confidence edit thumb reason adapter", "feedback"),
        ("message label adapter", "feedback"),
        ("message", None),
        ("prompt", None),
        ("Text", None),
        ("", None),
    ],
)
def test_recognised(keys: str, name: str | None):
    found = formats.recognise(keys.split())
    assert (found.name if found else None) == name


def test_every_format_can_be_reached():
    assert len(formats.FORMATS) == 13
    for format in formats.FORMATS:
        assert all(formats.recognise(need) is format for need in format.needs)


def test_messages():
    raw = {"messages": said(("developer", "Be brief."), ASKED, ANSWERED)}
    assert convert(raw) == TextRow("0/a:1", "chat", (system("Be brief."), *SUM))


def test_weights_of_turns_are_kept():
    raw = {
        "messages": [{**turn, "weight": weight} for turn, weight in zip(said(ASKED, ANSWERED), (0, 2.5), strict=True)]
    }
    assert [turn.weight for turn in convert(raw).prompt] == [0.0, 2.5]
    assert [turn.weight for turn in convert({"messages": said(ASKED, ANSWERED)}).prompt] == [None, None]


@pytest.mark.parametrize("weight", [-1, True, "1", float("nan"), float("inf"), 1001])
def test_weights_that_are_none(weight: object):
    assert unfit({"messages": [said(ASKED)[0], {**said(ANSWERED)[0], "weight": weight}]}) == (
        "bad_weight",
        "messages[1].weight",
    )


def test_parts_of_text():
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+ 2?"}]
    assert convert({"messages": said(("user", parts), ANSWERED)}).prompt[0] == user("2\n+ 2?")
    parts[1] = {"type": "image_url", "image_url": {"url": "x"}}
    assert unfit({"messages": said(("user", parts), ANSWERED)}) == ("part", "messages[0].content[1]")


def test_nulls_of_tables_are_nothing():
    turns = [{**turn, "tool_calls": None, "name": None, "weight": None} for turn in said(ASKED, ANSWERED)]
    raw = {"messages": turns, "tools": [], "functions": None}
    assert convert(raw).prompt == SUM
    assert formats.recognise(raw).unused(raw) == set()


TURNS = {
    "no answer": (said(ASKED), "empty_answer", "messages"),
    "a blank answer": (said(ASKED, ("assistant", " \n")), "empty_answer", "messages"),
    "a blank question": (said(("user", ""), ANSWERED), "blank", "messages[0]"),
    "null": (said(("user", None), ANSWERED), "missing", "messages[0].content"),
    "a number": (said(ASKED, ("assistant", 4)), "not_text", "messages[1].content"),
    "half a character": (said(ASKED, ("assistant", "\ud83d")), "half_character", "messages[1].content"),
    "no role": ([{"content": "x"}], "missing", "messages[0].role"),
    "no list": ("2 + 2?", "not_turns", "messages"),
    "no object": (["2 + 2?"], "not_turns", "messages[0]"),
    "an empty list": ([], "blank", "messages"),
    "a call": ([{**said(ANSWERED)[0], "tool_calls": [{"id": 1}]}], "tools", "messages[0].tool_calls"),
}


@pytest.mark.parametrize("case", TURNS)
def test_turns_that_do_not_fit(case: str):
    turns, code, field = TURNS[case]
    assert unfit({"messages": turns}) == (code, field)


def test_tools_are_refused():
    assert unfit({"messages": said(ASKED, ANSWERED), "tools": [{}]}) == ("tools", "tools")
    assert unfit({"prompt": "a", "response": "b", "tools": [{}]}) == ("tools", "tools")


def test_unknown_roles_are_wrong():
    with pytest.raises(Wrong) as caught:
        converted({"messages": said(("bot", "hi"), ANSWERED)})
    assert caught.value.params["value"] == '"bot"' and "assistant" in str(caught.value.params["allowed"])
    with pytest.raises(Wrong):
        converted({"conversations": [{"from": "observation", "value": "x"}]})


def test_sharegpt():
    names = (("human", "user"), ("user", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"), ("bing", "assistant"))
    turns = [{"from": name, "value": name} for name, _ in names]
    row = convert({"conversations": turns, "system": "Be brief."})
    assert row.kind == "chat"
    assert row.prompt == (system("Be brief."), *(Message(role, name) for name, role in names))


def test_sharegpt_with_two_systems():
    turns = [{"from": "system", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert unfit({"conversations": turns, "system": "c"}) == ("two_systems", "conversations[0]")
    assert convert({"conversations": turns, "system": ""}).prompt == (system("a"), bot("b"))


def test_alpaca():
    row = convert({"instruction": "Add.", "input": "2, 2", "output": "4", "system": None})
    assert row == TextRow("0/a:1", "completion", (user("Add.\n\n2, 2"),), (bot("4"),))
    row = convert({"instruction": "Add.", "input": "", "output": "4", "system": "Brief.", "history": [["a", "b"]]})
    assert row.prompt == (system("Brief."), user("a"), bot("b", 0.0), user("Add."))
    assert unfit({"instruction": "", "input": "", "output": "4"}) == ("blank", "instruction")
    assert unfit({"instruction": "Add.", "output": " "}) == ("empty_answer", "output")
    assert unfit({"instruction": "Add.", "output": 4}) == ("not_text", "output")
    assert unfit({"instruction": "Add.", "output": "4", "history": ["ab"]}) == ("bad_history", "history[0]")


@pytest.mark.parametrize("keys", ["prompt completion", "prompt response", "question answer", "input output"])
def test_a_prompt_and_what_follows(keys: str):
    asked, answered = keys.split()
    assert convert({asked: " 2 + 2?", answered: "4 "}) == TextRow(
        "0/a:1", "completion", (user(" 2 + 2?"),), (bot("4 "),)
    )
    assert convert({asked: "a", answered: "b", "system": "s"}).prompt == (system("s"), user("a"))
    assert unfit({asked: "", answered: "4"}) == ("blank", asked)
    assert unfit({asked: "a", answered: None}) == ("missing", answered)
    assert unfit({asked: 3, answered: "4"}) == ("not_text", asked)


def test_a_prompt_of_turns_is_read_and_not_learned():
    prompt = said(("user", "a"), ("assistant", "b"), ("user", "c"))
    row = convert({"prompt": prompt, "completion": said(ANSWERED)})
    assert row == TextRow("0/a:1", "chat", (user("a"), bot("b", 0.0), user("c"), bot("4")))
    assert convert({"prompt": "2 + 2?", "completion": said(ANSWERED)}).prompt == SUM


def test_raw_text():
    assert convert({"text": " as it is\n"}) == TextRow("0/a:1", "text", answer=(bot(" as it is\n"),))
    assert unfit({"text": "\n"}) == ("blank", "text")
    assert unfit({"text": ["a"]}) == ("not_text", "text")


GOOD, BAD = (bot("4"),), (bot("5"),)
PAIRS = {
    "texts": {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    "turns": {"prompt": said(ASKED), "chosen": said(ANSWERED), "rejected": said(("assistant", "5"))},
    "conversations": {"chosen": said(ASKED, ANSWERED), "rejected": said(ASKED, ("assistant", "5"))},
    "both": {"prompt": "2 + 2?", "chosen": said(ASKED, ANSWERED), "rejected": said(ASKED, ("assistant", "5"))},
    "OpenAI": {
        "input": {"messages": said(ASKED), "tools": []},
        "preferred_output": said(ANSWERED),
        "non_preferred_output": said(("assistant", "5")),
    },
    "another name": {"question": "2 + 2?", "chosen": "4", "rejected": "5"},
}


@pytest.mark.parametrize("layout", PAIRS)
def test_pairs(layout: str):
    assert convert(PAIRS[layout]) == TextRow("0/a:1", "pair", (user("2 + 2?"),), GOOD, BAD)


@pytest.mark.parametrize("layout", ["texts", "turns", "conversations", "both", "another name"])
def test_pairs_under_a_system_prompt(layout: str):
    assert convert({**PAIRS[layout], "system": "s"}).prompt == (system("s"), user("2 + 2?"))


def test_pairs_that_begin_with_more_than_one_turn():
    begun = (("system", "s"), ASKED, ANSWERED, ("user", "Sure?"))
    row = convert({"chosen": said(*begun, ("assistant", "Yes.")), "rejected": said(*begun, ("assistant", "No."))})
    assert row.prompt == (system("s"), *SUM, user("Sure?"))
    assert (row.answer, row.rejected) == ((bot("Yes."),), (bot("No."),))


BAD_PAIRS = {
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b "}, "pair_equal"),
    "equal conversations": ({"chosen": said(ASKED, ANSWERED), "rejected": said(ASKED, ANSWERED)}, "pair_equal"),
    "blank": ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty_answer"),
    "null": ({"prompt": "a", "chosen": None, "rejected": "b"}, "missing"),
    "other questions": ({"chosen": said(("user", "x"), ANSWERED), "rejected": said(ASKED, ANSWERED)}, "missing"),
    "one goes on": ({"chosen": said(ASKED, ANSWERED), "rejected": said(ASKED, ANSWERED, ASKED)}, "pair_start"),
    "parted later": (
        {"chosen": said(ASKED, ANSWERED, ("user", "x"), ANSWERED), "rejected": said(ASKED, ANSWERED, ASKED, ANSWERED)},
        "pair_start",
    ),
    "another prompt": ({**PAIRS["both"], "prompt": "3 + 3?"}, "pair_prompt"),
    "without a prompt": ({"chosen": "a", "rejected": "b"}, "missing"),
    "input is a text": ({**PAIRS["OpenAI"], "input": "a"}, "bad_input"),
    "tools": ({**PAIRS["OpenAI"], "input": {"messages": said(ASKED), "tools": [{}]}}, "tools"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pairs_that_are_none(case: str):
    raw, code = BAD_PAIRS[case]
    assert unfit(raw)[0] == code


@pytest.mark.parametrize(
    ("label", "liked"),
    [
        *((value, True) for value in (True, 1, 1.0, "true", "True", "1", "up", " Good ", "yes")),
        *((value, False) for value in (False, 0, 0.0, "false", "FALSE", "0", "down", "bad", "no")),
    ],
)
def test_thumbs(label: object, liked: bool):
    row = convert({"prompt": "2 + 2?", "completion": "4", "label": label})
    assert row == TextRow("0/a:1", "thumb", (user("2 + 2?"),), GOOD, liked=liked)


@pytest.mark.parametrize("label", [2, "maybe", "", [], {"a": 1}, 0.5])
def test_thumbs_that_say_nothing(label: object):
    assert unfit({"prompt": "2 + 2?", "completion": "4", "label": label}) == ("bad_thumb", "label")


def test_prompts_of_the_tasks():
    assert classify_prompt("Hi") == (system("Sort the message."), user("Hi"))
    assert draft_prompt("Hi", "a") == (system("Reply to the customer. Topic: a."), user("Hi"))
    assert draft_prompt("Hi", "a", "zh") == draft_prompt("Hi", "a")


def test_a_task_row_becomes_two():
    raw = {"message": "Where?", "label": " delivery ", "reply": "Soon.", "id": 7, "customer": 12, "lang": "en"}
    classify, draft = converted(raw)
    shared = {"message": "Where?", "group": "12", "language": "en"}
    assert classify == TextRow(
        "0/a:1#classify",
        "completion",
        classify_prompt("Where?"),
        (bot("delivery"),),
        label="delivery",
        task="classify",
        **shared,
    )
    assert draft == TextRow(
        "0/a:1#draft", "completion", draft_prompt("Where?", "delivery"), (bot("Soon."),), task="draft", **shared
    )
    assert labels_in([classify, draft]) == ("delivery",)


def test_task_rows_with_less():
    assert [row.task for row in converted({"message": "x", "label": "a", "reply": None})] == ["classify"]
    assert unfit({"message": "x", "reply": "y"})[0] == "reply_without_label"
    assert unfit({"message": "x", "label": ""}) == ("missing", "label")
    assert unfit({"message": " ", "label": "a"}) == ("blank", "message")
    assert unfit({"message": "x", "label": 3}) == ("not_text", "label")
    assert unfit({"message": "x", "label": "a", "customer": True}) == ("not_text", "customer")


def test_what_is_not_read_is_known():
    raw = {"messages": [{"role": "user", "content": "a", "name": "Ann"}], "id": 1, "source": None, "meta": {"x": 1}}
    assert formats.recognise(raw).unused(raw) == {"id", "meta", "messages[].name"}
