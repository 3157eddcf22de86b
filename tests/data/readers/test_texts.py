"""Whole files and folders of text: what is read, left out, counted and said."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from lora_scripts import messages, registry
from lora_scripts.data.readers.texts import TextScan, leaks, read
from lora_scripts.data.record import CaptionRules, Dataset, Message
from lora_scripts.errors import DataError

GOOD = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
TASKS = [
    {"message": "Where is it?", "label": "delivery", "reply": "On its way.", "customer": "c1", "lang": "en"},
    {"message": "Charged twice", "label": "billing", "customer": "c2", "lang": "en"},
    {"message": "还没收到", "label": "delivery", "customer": "c3", "lang": "zh"},
]


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def scan(*data: Path | Dataset, **options) -> TextScan:
    result = read([one if isinstance(one, Dataset) else Dataset(one) for one in data], **options)
    for one in (*result.notes, *result.dropped):
        for language in messages.LANGUAGES:
            assert messages.catalogue(language)[one.code].format(**one.params)
    assert len({row.id for row in result.rows}) == len(result.rows)
    return result


def refusal(*data: Path | Dataset, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        scan(*data, **options)
    assert caught.value.exit_code == 3 and str(caught.value)
    return caught.value


def said(result: TextScan, code: str) -> list[dict]:
    return [dict(note.params) for note in result.notes if note.code == f"text.{code}"]


def dropped(result: TextScan) -> list[tuple[str, str, int]]:
    return [(one.path.name, one.code.removeprefix("text."), one.params["row"]) for one in result.dropped]


def test_the_reader_is_registered():
    assert "texts" in registry.names("readers")
    assert registry.load("readers", "texts").read is read and registry.load("readers", "texts").leaks is leaks


def test_a_file(tmp_path: Path):
    path = lines(tmp_path / "train.jsonl", *GOOD)
    result = scan(Dataset(path, repeats=3, weight=0.5))
    assert result.found == len(result.rows) == 20 and not result.dropped and result.labels == ()
    row = result.rows[4]
    assert (row.id, row.kind, row.repeats, row.weight) == ("0/train.jsonl:5", "completion", 3, 0.5)
    assert (row.prompt, row.answer) == ((Message("user", "What is 4?"),), (Message("assistant", "It is 4."),))
    assert result.files == {"0/train.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert [(note.code, note.params) for note in result.notes] == [
        ("text.format", {"file": "train.jsonl", "format": "prompt/completion", "count": 20}),
        ("text.rows", {"count": 20, "kinds": "completion 20"}),
    ]


def test_a_folder(tmp_path: Path):
    lines(tmp_path / "b.jsonl", *GOOD[:2])
    lines(tmp_path / "sub/a.jsonl", {"text": "once"})
    lines(tmp_path / ".hidden/c.jsonl", {"text": "never"})
    (tmp_path / "a.csv").write_text("question,answer\nWho?,Me.\n")
    (tmp_path / "README.md").write_text("about these data")
    (tmp_path / "cat.png").write_bytes(b"x")
    result = scan(tmp_path, tmp_path / "b.jsonl")
    assert [row.id for row in result.rows] == ["0/a.csv:2", "0/b.jsonl:1", "0/b.jsonl:2", "0/sub/a.jsonl:1"]
    assert list(result.files) == ["0/a.csv", "0/b.jsonl", "0/sub/a.jsonl", "1/b.jsonl"]
    assert said(result, "other_files") == [{"count": 2, "examples": "README.md, cat.png"}]
    names = ["question/answer", "prompt/completion", "text", "prompt/completion"]
    assert [note["format"] for note in said(result, "format")] == names
    assert said(result, "duplicates")[0]["count"] == 2
    assert [one.path.name for one in result.dropped] == [".hidden", "b.jsonl", "b.jsonl"]


def test_a_folder_of_texts(tmp_path: Path):
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text(f"text {number}", encoding="utf-8")
    (tmp_path / "notes.md").write_text("# notes")
    result = scan(tmp_path)
    assert (result.found, len(result.rows), result.rows[12].id) == (13, 13, "0/notes.md:1")
    assert said(result, "formats") == [{"path": tmp_path, "files": 13, "format": "text", "count": 13}]
    assert said(result, "format") == []


def test_a_blank_text_file_is_left_out(tmp_path: Path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(f"text {number}" if number else "")
    assert dropped(scan(tmp_path)) == [("0.txt", "blank", 1)]


def test_nothing_to_read(tmp_path: Path):
    assert refusal(tmp_path).code == "text.no_files"
    (tmp_path / "a.docx").write_text("x")
    assert "a.docx" in str(refusal(tmp_path)) and ".jsonl" in str(refusal(tmp_path))
    assert refusal(tmp_path / "gone").code == "text.path_missing"
    assert refusal(tmp_path / "a.docx").code == "text.suffix"
    (tmp_path / "a.jsonl").write_text("\n")
    assert refusal(tmp_path).code == "text.empty_file"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    outside = lines(tmp_path / "outside.jsonl", *GOOD)
    lines(tmp_path / "data/in.jsonl", {"text": "inside"})
    (tmp_path / "data/out.jsonl").symlink_to(outside)
    result = scan(tmp_path / "data")
    assert len(result.rows) == 1 and [one.code for one in result.dropped] == ["data.link_outside"]


def test_broken_json_line_17(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", *GOOD[:16])
    path.write_text(path.read_text() + '{"prompt": "x", }\n')
    assert "a.jsonl:17," in str(refusal(path))


def test_unknown_columns_are_listed_with_the_formats(tmp_path: Path):
    message = str(refusal(lines(tmp_path / "a.jsonl", {"frage": "x", "antwort": "y"})))
    assert "frage, antwort" in message
    assert all(keys in message for keys in ("messages", "conversations", "instruction", "chosen", "message"))


def test_the_first_row_of_another_format_is_named(tmp_path: Path):
    error = refusal(lines(tmp_path / "a.jsonl", GOOD[0], GOOD[1], {"text": "x"}, {"text": "y"}))
    assert error.code == "text.mixed" and error.params["row"] == 3
    assert "prompt/completion" in str(error) and "keys text" in str(error)
    assert refusal(lines(tmp_path / "b.jsonl", GOOD[0], {**GOOD[1], "label": True})).code == "text.mixed"
    assert refusal(lines(tmp_path / "c.jsonl", GOOD[0], {"id": 3})).code == "text.mixed"


def test_unfit_rows_are_left_out_and_told(tmp_path: Path):
    bad = [{"prompt": "x", "completion": None}, {"prompt": 3, "completion": "x"}, {"prompt": "x"}]
    result = scan(lines(tmp_path / "a.jsonl", *GOOD, *bad), max_bad_fraction=0.2)
    assert (result.found, len(result.rows)) == (23, 20)
    assert dropped(result) == [("a.jsonl", "missing", 21), ("a.jsonl", "not_text", 22), ("a.jsonl", "missing", 23)]
    assert result.dropped[2].params["field"] == "completion" and result.dropped[1].params["value"] == "3"
    assert said(result, "dropped") == [{"count": 3}]


def test_nan_is_no_text(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", *GOOD, {"prompt": "x", "completion": float("nan")})
    result = scan(path)
    assert dropped(result) == [("a.jsonl", "not_text", 21)] and result.dropped[0].params["value"] == "NaN"


def test_too_many_unfit_rows(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", *GOOD, *({"prompt": f"x{n}", "completion": ""} for n in range(3)))
    error = refusal(path)
    assert error.code == "text.too_many_unfit"
    assert "3 of 23" in str(error) and "10%" in str(error) and "a.jsonl:21" in str(error)
    assert len(scan(path, max_bad_fraction=3 / 23).rows) == 20
    assert refusal(lines(tmp_path / "b.jsonl", {"text": ""}), max_bad_fraction=1.0).code == "text.none_usable"


def test_a_wrong_role_refuses_the_file(tmp_path: Path):
    turns = [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]
    right = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    error = refusal(lines(tmp_path / "a.jsonl", *({"messages": turns if n == 3 else right} for n in range(50))))
    assert "a.jsonl:4" in str(error) and "messages[1].role" in str(error) and '"bot"' in str(error)
    assert "system, developer, user, assistant, tool" in str(error)


def test_fields_that_are_not_used_are_named(tmp_path: Path):
    rows = [{**GOOD[0], "source": "web", "id": None}, {**GOOD[1], "score": 3}]
    assert said(scan(lines(tmp_path / "a.jsonl", *rows)), "columns_unused") == [
        {"file": "a.jsonl", "columns": "score, source"}
    ]
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": GOOD}))
    assert said(scan(tmp_path / "b.json"), "columns_unused") == [{"file": "b.json", "columns": "version"}]


def test_duplicates(tmp_path: Path):
    result = scan(lines(tmp_path / "a.jsonl", *GOOD, GOOD[3], GOOD[3]), lines(tmp_path / "b.jsonl", GOOD[4]))
    assert len(result.rows) == 20 and result.found == 23
    assert dropped(result) == [("a.jsonl", "duplicate", 21), ("a.jsonl", "duplicate", 22), ("b.jsonl", "duplicate", 1)]
    assert result.dropped[2].params["first"] == "0/a.jsonl:5"
    assert said(result, "duplicates") == [
        {
            "count": 3,
            "examples": "0/a.jsonl:21 = 0/a.jsonl:4, 0/a.jsonl:22 = 0/a.jsonl:4, 1/b.jsonl:1 = 0/a.jsonl:5",
        }
    ]


def test_task_rows(tmp_path: Path):
    result = scan(lines(tmp_path / "a.jsonl", *TASKS))
    assert result.labels == ("billing", "delivery")
    assert [row.id.removeprefix("0/a.jsonl:") for row in result.rows] == [
        "1#classify",
        "1#draft",
        "2#classify",
        "3#classify",
    ]
    assert {row.prompt[0].content for row in result.rows if row.task == "classify"} == {"Sort the message."}
    assert said(result, "labels") == [{"count": 2, "labels": "billing 1, delivery 2"}]
    assert said(result, "rows") == [{"count": 4, "kinds": "classify 3, draft 1"}]


def test_given_labels(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", *TASKS)
    result = scan(path, labels=["returns", "delivery", "billing"])
    assert result.labels == ("billing", "delivery", "returns")
    assert result.rows[0].prompt[0].content == "Sort the message."
    assert said(result, "labels_absent") == [{"labels": "returns"}]
    error = refusal(path, labels=["deliveries", "billing"])
    assert (error.code, error.params["row"]) == ("text.label_unknown", 1)
    assert "the nearest is deliveries" in str(error) and '"delivery"' in str(error)


def test_the_held_out_part(tmp_path: Path):
    train = scan(lines(tmp_path / "a.jsonl", *TASKS))
    path = lines(
        tmp_path / "b.jsonl", {"message": " CHARGED  twice", "label": "billing"}, {**TASKS[0], "message": "New"}
    )
    held = scan(path, labels=train.labels, held_out=True)
    assert [row.id for row in held.rows] == [
        "held/0/b.jsonl:1#classify",
        "held/0/b.jsonl:2#classify",
        "held/0/b.jsonl:2#draft",
    ]
    assert list(held.files) == ["held/0/b.jsonl"]
    # One asks the same, one is of the same customer.
    assert [row.id for row in leaks(train.rows, held.rows)] == [
        "0/a.jsonl:1#classify",
        "0/a.jsonl:1#draft",
        "0/a.jsonl:2#classify",
    ]


def test_feedback(tmp_path: Path):
    said_by_model = {"message": "Where?", "label": "billing", "reply": "We look.", "adapter": "ab" * 32}
    rows = [
        {**said_by_model, "id": "1", "edit": {"label": "a mistake"}},
        {**said_by_model, "id": "2", "thumb": None},
        {**said_by_model, "id": "3", "message": "Why?", "thumb": "up"},
        {**said_by_model, "id": "4", "message": "Who?", "thumb": "down"},
        {**said_by_model, "id": "1", "edit": {"label": "delivery", "reply": "Monday."}, "time": "later"},
    ]
    result = scan(lines(tmp_path / "feedback.jsonl", *rows), labels=["billing", "delivery"])
    assert [row.id.removeprefix("0/feedback.jsonl:") for row in result.rows] == [
        *("3#classify", "3#draft", "3#thumb", "4#thumb"),
        *("5#classify", "5#draft", "5#pair"),
    ]
    assert [row.weight for row in result.rows if row.task == "classify"] == [1.0, 2.0]
    assert result.rows[4].prompt[0].content == "Sort the message."
    assert said(result, "feedback") == [{"file": "feedback.jsonl", "classify": 2, "draft": 2, "pairs": 1, "thumbs": 2}]
    assert said(result, "superseded") == [{"file": "feedback.jsonl", "count": 1}]
    # Silence says nothing against the file: it does not count as unfit.
    assert dropped(result) == [("feedback.jsonl", "no_verdict", 2)]
    assert said(result, "columns_unused") == []


def test_weights_multiply(tmp_path: Path):
    row = {"id": 1, "message": "x", "label": "a", "edit": {"label": "b"}}
    result = scan(Dataset(lines(tmp_path / "a.jsonl", row), weight=0.25))
    assert [row.weight for row in result.rows] == [0.5]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"metadata": Path("a.csv")}, "metadata"),
        ({"captions": CaptionRules(dropout=0.1)}, "caption"),
        ({"flip": True}, "flip"),
        ({"missing_pictures": "ignore"}, "missing_pictures"),
        ({"class_words": "a cat"}, "class_words"),
        ({"mask": "alpha"}, "mask"),
        ({"regularisation": True, "visits": "as trained"}, "regularisation"),
        ({"visits": 7}, "visits"),
    ],
)
def test_settings_of_pictures_are_refused(tmp_path: Path, settings: dict, key: str):
    error = refusal(Dataset(lines(tmp_path / "a.jsonl", *GOOD), **settings))
    assert error.code == "text.picture_settings" and error.params["keys"] == key


def test_nothing_odd_reaches_the_console(tmp_path: Path):
    row = {"messages": [{"role": "\x1b[2J\x9b\u202euser", "content": "a"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    message = str(refusal(tmp_path / "a.jsonl"))
    assert message.isprintable() and "\\u001b[2J\\x9b\\u202euser" in message
    (tmp_path / "b.jsonl").write_text(json.dumps({"\x1b[2J\ud800": 1}))
    message = str(refusal(tmp_path / "b.jsonl"))
    assert message.isprintable() and "\\u001b[2J\\ud800" in message
