"""Caption tables and encodings, one quirk at a time."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from lora_scripts.data.caption_tables import Row, read_table, read_text
from lora_scripts.errors import DataError

CAT = Row("cat.png", ("a cat, sitting",), 2)
QUIRKS = {
    "plain": 'file_name,prompt\ncat.png,"a cat, sitting"\n',
    "semicolons": "file_name;prompt\ncat.png;a cat, sitting\n",
    "tabs": "file_name\tprompt\ncat.png\ta cat, sitting\n",
    "mark": '\ufefffile_name,prompt\ncat.png,"a cat, sitting"\n',
    "crlf": 'file_name,prompt\r\ncat.png,"a cat, sitting"\r\n',
    "old mac": 'file_name,prompt\rcat.png,"a cat, sitting"\r',
    "no last line end": 'file_name,prompt\ncat.png,"a cat, sitting"',
    "other names": 'image,caption\ncat.png,"a cat, sitting"\n',
    "further names": 'File,TEXT\ncat.png,"a cat, sitting"\n',
    "filename": 'filename,text\ncat.png,"a cat, sitting"\n',
    "turned": 'prompt,file_name\n"a cat, sitting",cat.png\n',
    "quoted header": '"file_name","prompt"\n"cat.png","a cat, sitting"\n',
    "spaces": 'file_name, prompt\n cat.png , " a cat, sitting "\n',
    "trailing comma": 'file_name,prompt,\ncat.png,"a cat, sitting",\n',
    "surplus empty cells": 'file_name,prompt\ncat.png,"a cat, sitting",,\n',
    "blank lines": 'file_name,prompt\ncat.png,"a cat, sitting"\n\n , \n\n',
}


def written(folder: Path, content: str | bytes, name: str = "metadata.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("quirk", QUIRKS)
def test_csv_quirks(tmp_path: Path, quirk: str):
    table = read_table(written(tmp_path, QUIRKS[quirk]))
    assert list(table.rows) == [CAT] and table.ignored_columns == ()


@pytest.mark.parametrize(
    "text", ['cat.png,"a cat, sitting"\n', "cat.png;a cat, sitting\n", "\ncat.png\ta cat, sitting\n"]
)
def test_csv_without_a_header(tmp_path: Path, text: str):
    (row,) = read_table(written(tmp_path, text)).rows
    assert (row.name, row.captions) == ("cat.png", ("a cat, sitting",))


def test_captions_keep_every_letter(tmp_path: Path):
    text = 'file_name,prompt\na.png,"line one\r\nline ""two"""\nb.png,it\'s a "quoted" word\nc.png,   \nd.png,第一\n'
    rows = read_table(written(tmp_path, text)).rows
    assert [row.captions[0] for row in rows] == ['line one\r\nline "two"', 'it\'s a "quoted" word', "", "第一"]
    # A caption of two lines moves the numbers of those behind it.
    assert [row.line for row in rows] == [2, 4, 5, 6]


def test_weights_of_a_csv(tmp_path: Path):
    text = "file_name,weight,prompt\na.png,2,one\na.png, 0.5 ,two\na.png,,three\n"
    table = read_table(written(tmp_path, text))
    assert [(row.captions, row.weights) for row in table.rows] == [
        (("one",), (2.0,)),
        (("two",), (0.5,)),
        (("three",), ()),
    ]
    assert table.ignored_columns == ()
    short = read_table(written(tmp_path, "file_name,prompt,Weight\na.png,one\nb.png,two,3\n"))
    assert [row.weights for row in short.rows] == [(), (3.0,)]


def test_weights_of_a_jsonl(tmp_path: Path):
    rows = [
        '{"file_name": "a.png", "captions": ["a", {"text": "b", "weight": 2}]}',
        '{"file_name": "b.png", "captions": ["a", {"text": "b", "weight": 2}], "weight": 3}',
        '{"file_name": "c.png", "caption": {"text": " b ", "weight": 2.5}}',
        '{"file_name": "d.png", "text": "a", "weight": 4}',
        '{"file_name": "e.png", "prompt": ["a", {"text": "b"}]}',
    ]
    table = read_table(written(tmp_path, "\n".join(rows), "metadata.jsonl"))
    assert [(row.captions, row.weights) for row in table.rows] == [
        (("a", "b"), (1.0, 2.0)),
        (("a", "b"), (3.0, 2.0)),
        (("b",), (2.5,)),
        (("a",), (4.0,)),
        (("a", "b"), ()),
    ]
    assert table.ignored_columns == ()


@pytest.mark.parametrize("value", ["much", "0", "-1", "nan", "inf", "1e999", "2,5"])
def test_bad_weights_of_a_csv(tmp_path: Path, value: str):
    message = refusal(written(tmp_path, f'file_name,prompt,weight\na.png,one,1\na.png,two,"{value}"\n'))
    assert f"line 3: the weight of a caption is {value}; it must be a number above 0" in message


@pytest.mark.parametrize("value", ["0", "-1", "true", '"much"', "[1]", "NaN", "1e999", "9" * 400])
def test_bad_weights_of_a_jsonl(tmp_path: Path, value: str):
    for row in (f'"caption": "a", "weight": {value}', f'"captions": [{{"text": "a", "weight": {value}}}]'):
        message = refusal(written(tmp_path, '\n{"file_name": "a.png", ' + row + "}", "metadata.jsonl"))
        assert "line 2: the weight of a caption is" in message and len(message) < 400


@pytest.mark.parametrize(
    "value", ['[{"weight": 1}]', '[{"text": 1}]', '[{"text": "a", "wieght": 2}]', "[[]]", "[]", "{}"]
)
def test_captions_that_are_none(tmp_path: Path, value: str):
    message = refusal(written(tmp_path, '{"file_name": "a.png", "captions": ' + value + "}", "metadata.jsonl"))
    assert "line 1" in message and '{"text": ..., "weight": ...}' in message


def test_further_columns_are_named(tmp_path: Path):
    table = read_table(written(tmp_path, "id,file_name,score,prompt\n1,cat.png,0.5,a cat\n"))
    assert list(table.rows) == [Row("cat.png", ("a cat",), 2)] and table.ignored_columns == ("id", "score")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("file_name,prompt\ncat.png,a cat, sitting\n", ["line 2", "3 cells", "2", "double quotes"]),
        ("file_name,prompt\ncat.png,ok\ncat.png\n", ["line 3", "1 cells"]),
        ("cat.png,a cat, sitting\n", ["line 1", "3 cells"]),
        ('file_name,prompt\ncat.png,"never closed\n', ["line 2", "correct the line"]),
        ('file_name,prompt\ncat.png,"a cat" sitting\n', ["line 2", "correct the line"]),
        ('cat.png,"never closed\n', ["line 1", "correct the line"]),
        ("file_name,description\ncat.png,a cat\n", ["file_name, description", "prompt, caption, text"]),
        ("cat;dog\n", ["cat", "file_name, filename, image, file", "correct the first line"]),
        ("file_name\ncat.png\n", ["file_name", "prompt, caption, text"]),
        ("file_name,prompt,caption\ncat.png,a,b\n", ["prompt, caption", "keep one"]),
        ("file_name,file,caption\ncat.png,a,b\n", ["file_name, file", "keep one"]),
        ("file_name,prompt\n,a cat\n", ["line 2", "add the file name"]),
        ("file_name,prompt\n", ["no captions", "add a row"]),
        ("", ["no captions", "add a row"]),
        (" \n\n", ["no captions"]),
        ("file_name,prompt\ncat.png,a\0b\n", ["NUL", "at 26", "UTF-8"]),
        (f"file_name,prompt\ncat.png,{'x' * 200_000}\n", ["line 2", "field"]),
    ],
)
def test_csv_that_would_have_to_be_guessed_is_refused(tmp_path: Path, text: str, parts: list[str]):
    message = refusal(written(tmp_path, text))
    assert all(part in message for part in parts), message


def test_jsonl(tmp_path: Path):
    lines = [
        '{"file_name": "cat.png", "text": " a cat ", "score": 1}',
        "",
        '{"image": "dog.png", "caption": ["a dog", "the dog"]}',
        '{"file": "sub/x.png", "prompt": "line \u2028 separator"}',
    ]
    table = read_table(written(tmp_path, "\r\n".join(lines), "metadata.jsonl"))
    assert list(table.rows) == [
        Row("cat.png", ("a cat",), 1),
        Row("dog.png", ("a dog", "the dog"), 3),
        Row("sub/x.png", ("line \u2028 separator",), 4),
    ]
    assert table.ignored_columns == ("score",)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"file_name": "a.png", "text": "x"', "cannot be read"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "duplicate key"),
        ('["a.png", "x"]', '"file_name"'),
        ('{"file_name": "a.png"}', '"prompt"'),
        ('{"file_name": "a.png", "text": 5}', '"prompt"'),
        ('{"file_name": 5, "text": "x"}', '"file_name"'),
        ('{"file_name": "a.png", "text": []}', '"prompt"'),
        ('{"file_name": "a.png", "text": "x", "caption": "y"}', '"prompt"'),
        ('{"file_name": " ", "text": "x"}', "names no picture"),
        ("[" * 5000, "line 2"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path: Path, line: str, part: str):
    good = '{"file_name": "ok.png", "text": "x"}\n'
    message = refusal(written(tmp_path, good + line + "\n" + good, "metadata.jsonl"))
    assert "line 2" in message and part in message


def test_other_kinds_of_tables_are_refused(tmp_path: Path):
    message = refusal(written(tmp_path, "x", "captions.parquet"))
    assert ".csv, .tsv, .jsonl" in message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"caf\xc3\xa9", "café"),
        (codecs.BOM_UTF8 + "café".encode(), "café"),
        ("café".encode("utf-16"), "café"),
        (codecs.BOM_UTF16_BE + "café".encode("utf-16-be"), "café"),
        ("café".encode("utf-32"), "café"),
        (b"", ""),
        ("x" * 2**20, "x" * 2**20),
    ],
)
def test_encodings_that_are_read(tmp_path: Path, content: str | bytes, text: str):
    assert read_text(written(tmp_path, content, "a.txt")) == text


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"x" * 975 + b"\x92s hat", ["byte 0x92 at 975, not UTF-8 (looks like cp1252)", "save the file as UTF-8"]),
        ("don’t, won’t, can’t".encode("cp1252"), ["looks like cp1252"]),
        ("一只红色的猫".encode("gbk"), ["byte 0xba at 4", "looks like GBK"]),
        (b"\x81\x20\x8d", ["looks like latin-1"]),
        (codecs.BOM_UTF16_LE + b"a\0b", ["not UTF-16"]),
        ("plain".encode("utf-16-le"), ["NUL", "at 1", "save the file as UTF-8"]),
        (b"x" * (2**20 + 1), ["1024 KiB", "shorten it"]),
    ],
)
def test_encodings_that_are_refused(tmp_path: Path, content: bytes, parts: list[str]):
    with pytest.raises(DataError) as caught:
        read_text(written(tmp_path, content, "a.txt"))
    assert all(part in str(caught.value) for part in ["a.txt", *parts]), str(caught.value)
