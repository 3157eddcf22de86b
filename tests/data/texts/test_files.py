"""Files to rows: encodings, broken rows, tables, and what is refused before it does harm."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from lora_scripts.data.texts import files, tables
from lora_scripts.data.texts.files import RowFile
from lora_scripts.errors import DataError, MachineError

PAIR = {"prompt": "Hello?", "completion": "Hi, you."}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path) -> list[tuple[int, dict]]:
    return [(number, dict(row)) for number, row in RowFile(path).rows()]


def refusal(path: Path, code: str) -> str:
    with pytest.raises(DataError) as caught:
        rows(path)
    assert caught.value.code == f"text.{code}"
    assert path.name in str(caught.value)
    return str(caught.value)


LINE = json.dumps(PAIR)
READABLE = {
    "lines.jsonl": (f"{LINE}\n", [1]),
    "no last line end.ndjson": (LINE, [1]),
    "blank lines.jsonl": (f"\n  \n{LINE}\n\n{LINE}\r\n", [3, 5]),
    "mark.jsonl": (f"\ufeff{LINE}\n", [1]),
    "UPPER.JSONL": (f"{LINE}\n", [1]),
    "list.json": (f"[\n{LINE},\n{LINE}\n]", [1, 2]),
    "data.json": (json.dumps({"data": [PAIR], "version": 1}), [1]),
    "one list.json": (json.dumps({"train": [PAIR, PAIR]}), [1, 2]),
    "one row.json": (LINE, [1]),
    "commas.csv": ('prompt,completion\nHello?,"Hi, you."\n', [2]),
    "semicolons.csv": ("prompt;completion\nHello?;Hi, you.\n", [2]),
    "tabs.csv": ("prompt\tcompletion\nHello?\tHi, you.\n", [2]),
    "tabs.tsv": ("prompt\tcompletion\nHello?\tHi, you.\n", [2]),
    "mark.csv": ('\ufeffprompt,completion\nHello?,"Hi, you."\n', [2]),
    "carriage returns.csv": ('prompt,completion\r\nHello?,"Hi, you."\r\n', [2]),
    "old mac.csv": ('prompt,completion\rHello?,"Hi, you."\r', [2]),
    "spaces.csv": ('\nprompt, completion\n\nHello?, "Hi, you."\n,\n', [4]),
    "surplus.csv": ('prompt,completion,\nHello?,"Hi, you.",\n', [2]),
}


@pytest.mark.parametrize("name", READABLE)
def test_rows(tmp_path: Path, name: str):
    content, numbers = READABLE[name]
    assert rows(written(tmp_path, name, content)) == [(number, PAIR) for number in numbers]


@pytest.mark.parametrize("name", READABLE)
def test_the_hash_is_of_the_bytes(tmp_path: Path, name: str):
    path = written(tmp_path, name, READABLE[name][0])
    file = RowFile(path)
    assert list(file.rows())
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_line_separators_inside_a_string_end_no_row(tmp_path: Path):
    row = {"text": "one\u2028two\u0085three"}
    path = written(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n" + LINE)
    assert rows(path) == [(1, row), (2, PAIR)]


def test_a_carriage_return_between_fields_ends_no_row(tmp_path: Path):
    assert rows(written(tmp_path, "a.jsonl", LINE.replace(", ", ",\r", 1))) == [(1, PAIR)]


def test_keys_beside_the_list_are_known(tmp_path: Path):
    file = RowFile(written(tmp_path, "a.json", json.dumps({"version": 2, "data": [PAIR]})))
    assert list(file.rows()) == [(1, PAIR)] and file.unused == ("version",)


def test_a_quoted_cell_keeps_its_line_ends_and_rows_count_lines(tmp_path: Path):
    long = "x" * 200_000
    path = written(tmp_path, "a.csv", f'prompt,completion\n"a\n""b""",c\nd,{long}\n')
    assert rows(path) == [
        (2, {"prompt": 'a\n"b"', "completion": "c"}),
        (4, {"prompt": "d", "completion": long}),
    ]


def test_a_text_file_is_one_row(tmp_path: Path):
    assert rows(written(tmp_path, "a.txt", "\ufeffone\r\ntwo\r\n")) == [(1, {"text": "one\ntwo\n"})]
    assert rows(written(tmp_path, "a.md", "# T\n")) == [(1, {"text": "# T\n"})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("content", ["", "\ufeff", "\n \n"])
def test_empty_files_have_no_rows(tmp_path: Path, name: str, content: str):
    assert rows(written(tmp_path, name, content)) == []


def test_broken_line_17(tmp_path: Path):
    path = written(tmp_path, "a.jsonl", f"{LINE}\n" * 16 + '{"prompt": "x" "completion": "y"}\n')
    message = refusal(path, "broken_json")
    assert "a.jsonl:17, column 16" in message and "Expecting ',' delimiter" in message


def test_broken_document_names_the_line(tmp_path: Path):
    assert "a.json:3," in refusal(written(tmp_path, "a.json", f"[\n{LINE},\n{{]\n"), "broken_json")


BROKEN = {
    "truncated": ('{"text": "x', "broken_json"),
    "a list": ('["text"]', "not_object"),
    "a text": ('"text"', "not_object"),
    "a number of 5000 digits": ('{"text": ' + "9" * 5000 + "}", "broken_json"),
    "a key twice": ('{"text": "a", "id": 1, "text": "b"}', "duplicate_key"),
    "a key twice inside": ('{"messages": [{"role": "user", "role": "system"}]}', "duplicate_key"),
    "deep lists": ("[" * 200_000, "too_deep"),
    "deep objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "too_deep"),
    "a NUL": ('{"text": "\0"}', "nul"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_lines_are_refused(tmp_path: Path, case: str):
    content, code = BROKEN[case]
    assert "a.jsonl:2" in refusal(written(tmp_path, "a.jsonl", f'{{"text": "fine"}}\n{content}\n'), code)


def test_a_key_twice_is_named(tmp_path: Path):
    assert 'the key "text" twice' in refusal(written(tmp_path, "a.jsonl", BROKEN["a key twice"][0]), "duplicate_key")


def test_lines_under_the_name_of_a_document(tmp_path: Path):
    assert ".jsonl" in refusal(written(tmp_path, "a.json", f"{LINE}\n{LINE}\n"), "lines_as_json")


def test_a_document_without_rows(tmp_path: Path):
    message = refusal(written(tmp_path, "a.json", '{"colour": "red", "rows": {}}'), "unknown_keys")
    assert "colour, rows" in message and "prompt" in message
    refusal(written(tmp_path, "b.json", "[1]"), "not_object")


ENCODINGS = {
    "utf-16": ("UTF-16", 0),
    "gbk": ("GBK", 10),
    "cp1252": ("cp1252", 13),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_name_the_byte(tmp_path: Path, name: str, encoding: str):
    guess, position = ENCODINGS[encoding]
    text = '{"text": "我的快递还没有到，请查一下"}' if encoding != "cp1252" else '{"text": "caf\u00e9 au lait"}'
    message = refusal(written(tmp_path, name, text.encode(encoding)), "encoding")
    assert guess in message and f" at {position} " in message


def test_the_position_counts_from_the_start_of_a_large_file(tmp_path: Path):
    start = ("é" * (files.MEBIBYTE // 2 - 1) + "\u20ac").encode()
    path = written(tmp_path, "a.txt", start + b"fine" * 300_000 + b"\xff")
    assert f"0xff at {len(start) + 1_200_000} " in refusal(path, "encoding")
    # A character that the end of the file cuts in two.
    assert f"0xe2 at {files.MEBIBYTE - 2} " in refusal(written(tmp_path, "b.txt", start[:-1]), "encoding")


def test_utf16_without_a_mark(tmp_path: Path):
    assert "UTF-16" in refusal(written(tmp_path, "a.csv", "text\nabc\n".encode("utf-16-le")), "nul")


TABLES = {
    "unknown columns": ("frage,antwort\na,b\n", "unknown_keys", "frage, antwort"),
    "too few cells": ("prompt,completion\na,b\nc\n", "cells", "a.csv:3 has 1 cells where 2"),
    "too many cells": ("text\nhello, you\n", "cells", "a.csv:2 has 2 cells where 1"),
    "open quote": ('prompt,completion\na,b\nc,"d\n', "broken_csv", "a.csv:3"),
    "stray quote": ('prompt,completion\na,"b" c\n', "broken_csv", "a.csv:2"),
    "a column twice": ("text,id,text\na,b,c\n", "duplicate_column", "(text)"),
}


@pytest.mark.parametrize("case", TABLES)
def test_broken_tables(tmp_path: Path, case: str):
    content, code, said = TABLES[case]
    assert said in refusal(written(tmp_path, "a.csv", content), code)


def test_the_csv_limit_is_put_back(tmp_path: Path):
    import csv

    before = csv.field_size_limit()
    refusal(written(tmp_path, "a.csv", 'text\n"open'), "broken_csv")
    assert csv.field_size_limit() == before != tables.MAX_CELL


def test_kinds_that_are_not_read(tmp_path: Path):
    message = refusal(written(tmp_path, "a.docx", "x"), "suffix")
    assert all(suffix in message for suffix in (".jsonl", ".json", ".csv", ".parquet", ".txt", ".md"))


def test_a_folder_is_no_file(tmp_path: Path):
    (tmp_path / "a.jsonl").mkdir()
    refusal(tmp_path / "a.jsonl", "not_a_file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jsonl")
    refusal(tmp_path / "a.jsonl", "not_a_file")


def test_a_missing_file(tmp_path: Path):
    refusal(tmp_path / "gone.jsonl", "unreadable")


@pytest.mark.skipif(sys.platform == "win32", reason="a sparse file is not made so")
@pytest.mark.parametrize(("name", "mebibytes"), [("a.jsonl", 4096), ("a.csv", 4096), ("a.json", 1024), ("a.txt", 64)])
def test_files_that_are_too_large(tmp_path: Path, name: str, mebibytes: int):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate((mebibytes << 20) + 1)
    assert str(mebibytes) in refusal(path, "file_too_large")


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_TEXT_MEBIBYTES", 1)
    path = written(tmp_path, "a.jsonl", f'{LINE}\n{{"text": "{"x" * files.MEBIBYTE}"}}\n')
    assert "a.jsonl:2" in refusal(path, "line_too_long")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError) as caught:
        rows(written(tmp_path, "a.parquet", b"PAR1"))
    assert 'pip install "lora-scripts[parquet]"' in str(caught.value)


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    turns = [{"role": "user", "content": "Hello?", "name": None}, {"role": "assistant", "content": "Hi.", "name": "x"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}] * 3), path, row_group_size=2)
    file = RowFile(path)
    assert list(file.rows()) == [(number, {"messages": turns}) for number in (1, 2, 3)]
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-20])
    refusal(path, "broken_parquet")
    twice = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, path)
    refusal(path, "duplicate_column")
