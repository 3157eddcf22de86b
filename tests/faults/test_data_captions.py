"""Captions in every encoding, missing, in broken tables; and data sets that are hardly any."""

from __future__ import annotations

import json

import pytest

from tests import tiny

READ = {
    "BOM": b"\xef\xbb\xbfcaf\xc3\xa9",
    "UTF-16": "caf\u00e9".encode("utf-16"),
    "UTF-32": "caf\u00e9".encode("utf-32"),
    "UTF-8": b"caf\xc3\xa9\r\n",
}
REFUSED = {
    "cp1252": (b"it\x92s", "byte 0x92 at 2, not UTF-8 (looks like cp1252)"),
    "GBK": ("\u4e00\u53ea\u732b\u5750\u7740".encode("gbk"), "(looks like GBK)"),
    "half a UTF-16": ("cat".encode("utf-16") + b"x", "not UTF-16"),
    "NUL": (b"a\0b", "NUL character at 1"),
    "a mebibyte": (b"x" * (1 << 20) + b"x", "larger than 1024 KiB"),
}


@pytest.mark.parametrize("case", READ)
def test_f75_caption_bytes_that_are_decoded(data, settings, case):
    from lora_scripts.config.load import from_mapping
    from lora_scripts.preparation import prepare

    tiny.tiny_pictures(data, 2)
    for number in range(2):
        (data / f"disc{number}.txt").write_bytes(READ[case])
    assert {example.title for example in prepare(from_mapping(settings)).examples} == {"caf\u00e9"}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["disc1.txt", "disc1.caption", "metadata.csv"])
def test_f75_caption_bytes_that_are_not_are_told_before_anything_is_loaded(
    data, settings, command, contents, tmp_path, case, name
):
    content, words = REFUSED[case]
    if name == "metadata.csv":
        if case in ("a mebibyte", "half a UTF-16"):
            pytest.skip("a table may be long; this one would have to be UTF-16 from its start")
        content = b"file_name,prompt\ndisc0.png,fine\ndisc1.png," + content
        words = words.replace(" at 2", " at 44").replace(" at 1", " at 43")
    tiny.tiny_pictures(data, 2)
    (data / name).write_bytes(content)
    before = contents(data)
    answer = command("train", settings)
    assert answer.code == 3 and name in answer.error and words in answer.error
    assert len(answer.error.splitlines()) == 1
    assert contents(data) == before and not (tmp_path / "out").exists()


def test_f75_the_cases_are_all():
    assert len(READ) == 4 and len(REFUSED) == 5


def test_f76_caption_empty_missing_are_counted(data, settings, plan):
    tiny.tiny_pictures(data, 4)
    (data / "disc0.txt").write_text("")
    (data / "disc1.txt").write_text(" \n\t")
    (data / "disc2.txt").write_text("a disc")
    told = plan(settings)
    assert "Captions from .txt files beside the pictures: 1." in told
    assert "Pictures without a caption: 3 (disc0.png, disc1.png, disc3.png)." in told
    # Captions that are there and empty are a choice, which class words leave alone.
    worded = plan(settings | {"train_data_dir": None, "datasets": [{"path": str(data), "class_words": "a thing"}]})
    assert 'Captions from class_words "a thing": 1.' in worded
    assert "Pictures without a caption: 2 (disc0.png, disc1.png)." in worded


CSV = {
    "BOM": b"\xef\xbb\xbffile_name,prompt\ndisc0.png,a\ndisc1.png,b\n",
    "semicolons": b"file_name;prompt\ndisc0.png;a\ndisc1.png;b\n",
    "quotes": b'"file_name","prompt"\n"disc0.png","a"\n"disc1.png","b"\n',
    "CRLF": b"file_name,prompt\r\ndisc0.png,a\r\ndisc1.png,b\r\n",
    "extra column": b"file_name,score,prompt\ndisc0.png,1,a\ndisc1.png,2,b\n",
    "a row twice": b"file_name,prompt\ndisc0.png,a\ndisc0.png,a\ndisc1.png,b\n",
    "no header": b"disc0.png,a\ndisc1.png,b\n",
}


@pytest.mark.parametrize("case", CSV)
def test_f77_csv_quirks_that_are_understood(data, settings, case):
    from lora_scripts.config.load import from_mapping
    from lora_scripts.preparation import prepare

    tiny.tiny_pictures(data, 2)
    (data / "metadata.csv").write_bytes(CSV[case])
    assert sorted(e.title for e in prepare(from_mapping(settings | {"caption": {}})).examples) == ["a", "b"]


def test_f77_an_embedded_newline_stays_in_its_caption(data, settings):
    from lora_scripts.config.load import from_mapping
    from lora_scripts.preparation import prepare

    tiny.tiny_pictures(data, 2)
    (data / "metadata.csv").write_text('file_name,prompt\ndisc0.png,"two\nlines, ""quoted"""\ndisc1.png,b\n')
    titles = {example.title for example in prepare(from_mapping(settings)).examples}
    assert titles == {'two\nlines, "quoted"', "b"}


BAD_CSV = {
    "cells": ("file_name,prompt\n\n\ndisc0.png,a\ndisc1.png,b\n\ndisc1.png,x,y,z\n", "line 7, has 4 cells"),
    "open quote": ('file_name,prompt\ndisc0.png,"a\ndisc1.png,b\n', "line 2, cannot be read"),
    "behind a quote": ('file_name,prompt\ndisc0.png,a\ndisc1.png,"b" c\n', "line 3, cannot be read"),
    "no name": ("file_name,prompt\ndisc0.png,a\n,b\n", "line 3, names no picture"),
    "missing file": ("file_name,prompt\ndisc0.png,a\nghost.png,b\n", "1 pictures that are not in"),
    "leaves": ("file_name,prompt\n../disc0.png,a\n", "line 2: ../disc0.png lies outside"),
    "columns": ("name,prompt\ndisc0.png,a\n", "begins with the columns name, prompt"),
    "nothing": ("", "holds no captions"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_f77_csv_quirks_that_are_not_name_the_line(data, settings, command, contents, case):
    text, words = BAD_CSV[case]
    tiny.tiny_pictures(data, 2)
    (data / "metadata.csv").write_text(text)
    before = contents(data)
    answer = command("check", settings)
    assert answer.code == 3 and "metadata.csv" in answer.error and words in answer.error
    assert len(answer.error.splitlines()) == 1 and contents(data) == before


def test_f77_the_cases_are_all():
    assert len(CSV) == 7 and len(BAD_CSV) == 8


BAD_LINES = {
    "broken": '{"file_name": "disc1.png", "prompt": ',
    "no object": "[1]",
    "no caption": '{"file_name": "disc1.png"}',
    "a key twice": '{"file_name": "disc1.png", "prompt": "a", "prompt": "b"}',
    "half of a character": json.dumps({"file_name": "disc1.png", "prompt": "a \ud83d b"}),
    "half of a character in a name": json.dumps({"file_name": "\udc80.png", "prompt": "a"}),
    "half of a character in a key": json.dumps({"file_name": "disc1.png", "prompt": "a", "\ud800": 1}),
    "deep": '{"file_name": ' + "[" * 100_000,
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_f78_jsonl_bad_line_is_named_and_the_file_kept(data, settings, command, contents, case):
    tiny.tiny_pictures(data, 3)
    rows = [json.dumps({"file_name": f"disc{i}.png", "prompt": "fine"}) for i in (0, 2)]
    (data / "metadata.jsonl").write_text("\n".join([rows[0], "", BAD_LINES[case], rows[1]]))
    before = contents(data)
    answer = command("train", settings)
    assert answer.code == 3 and "metadata.jsonl, line 3" in answer.error
    assert len(answer.error) < 500 and len(answer.error.splitlines()) == 1 and contents(data) == before


def test_f78_a_whole_character_in_two_escapes_is_one(data, settings):
    from lora_scripts.config.load import from_mapping
    from lora_scripts.preparation import prepare

    tiny.tiny_pictures(data, 1)
    (data / "metadata.jsonl").write_text('{"file_name": "disc0.png", "prompt": "a \\ud83d\\ude00 and \\\\ud83d"}')
    (example,) = prepare(from_mapping(settings)).examples
    assert example.title == "a \U0001f600 and \\ud83d"


def test_f79_tiny_dataset_of_none(data, settings, command):
    answer = command("train", settings)
    assert answer.code == 3 and "is empty" in answer.error


@pytest.mark.parametrize(("pictures", "batch"), [(1, 1), (1, 4), (3, 4)])
def test_f79_tiny_dataset_below_a_batch_trains_with_what_there_is(data, settings, command, tmp_path, pictures, batch):
    tiny.tiny_pictures(data, pictures)
    answer = command("train", settings | {"batch_size": batch, "gradient_accumulation": 1, "epochs": 2})
    assert answer.code == 0, answer.error
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "Stepped"]
    assert steps == [1, 2]


def test_f79_nothing_is_left_for_training_beside_the_held_out_part(data, settings, command):
    tiny.tiny_pictures(data, 1)
    answer = command("train", settings | {"validation": {"share": 0.5}})
    assert answer.code == 2 and "validation.share is 0.5" in answer.error
