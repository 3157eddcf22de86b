"""Tables and files beside pictures: what nobody asked to change is the same letter for letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_scripts.errors import DataError
from lora_scripts.labels.writing import Beside, Table
from tests.labels.test_label import journal, table, trained

PICTURES = [f"{i:03d}.png" for i in range(8)]
NAMES = ["a.png", "b.png", "c.png"]


def changed(path: Path, written: str, encoding: str = "utf-8") -> str:
    """A table after `b.png`'s first caption is another one and `c.png` has one."""
    path.write_bytes(written.encode(encoding))
    rows = Table(path, NAMES)
    rows.put("b.png", 0, "new, b")
    rows.put("c.png", None, "new c")
    rows.flush()
    return path.read_bytes().decode(encoding)


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        (
            "t.csv",
            'file_name,prompt\n"a.png", "x, y"\nb.png,old\n',
            'file_name,prompt\n"a.png", "x, y"\nb.png,"new, b"\nc.png,new c\n',
        ),
        (
            "t.csv",
            "note;Caption;IMAGE\r\nn;x;a.png\r\n\r\nm;old;b.png",
            "note;Caption;IMAGE\r\nn;x;a.png\r\n\r\nm;new, b;b.png\r\n;new c;c.png\r\n",
        ),
        ("t.csv", "a.png,x\nb.png,old\nb.png,other\n", 'a.png,x\nb.png,"new, b"\nb.png,other\nc.png,new c\n'),
        (
            "t.csv",
            'file_name,text,n\na.png,"two\nlines",1\nb.png,old,"say ""2"""\n',
            'file_name,text,n\na.png,"two\nlines",1\nb.png,"new, b","say ""2"""\nc.png,new c,\n',
        ),
        ("t.tsv", "file_name\tprompt\nb.png\told\n", "file_name\tprompt\nb.png\tnew, b\nc.png\tnew c\n"),
        (
            "t.csv",
            "file_name,prompt\n./b.png,old\ngone.png,x\n",
            'file_name,prompt\n./b.png,"new, b"\ngone.png,x\nc.png,new c\n',
        ),
        (
            "t.jsonl",
            '{"file_name": "a.png",  "text": "x"}\n\n{"n": 1, "image": "b.png", "caption": "old"}',
            '{"file_name": "a.png",  "text": "x"}\n\n{"n": 1, "image": "b.png", "caption": "new, b"}\n'
            '{"file_name": "c.png", "prompt": "new c"}\n',
        ),
        (
            "t.jsonl",
            '{"file_name": "b.png", "captions": ["old", {"text": "w", "weight": 2}]}\n',
            '{"file_name": "b.png", "captions": ["new, b", {"text": "w", "weight": 2}]}\n'
            '{"file_name": "c.png", "prompt": "new c"}\n',
        ),
    ],
)
def test_only_what_was_put_changes(tmp_path, name, written, expected):
    assert changed(tmp_path / name, written) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_encoding_stays(tmp_path, encoding):
    text = changed(tmp_path / "t.csv", "file_name,prompt\na.png,图\nb.png,old\n", encoding)
    assert text == 'file_name,prompt\na.png,图\nb.png,"new, b"\nc.png,new c\n'


@pytest.mark.parametrize("written", ["", "\n", "file_name,prompt\n", "\ufefffile_name,prompt\r\n"])
def test_a_table_without_rows_is_begun(label, pictures, written):
    (pictures / "metadata.csv").write_bytes(written.encode())
    assert label()[0] == 0 and len(trained(pictures)) == len(table(pictures)) == 8


def test_several_captions_of_a_picture_are_kept_or_each_changed(label, pictures):
    path = pictures / "metadata.csv"
    path.write_text("file_name,prompt\n000.png,one\n000.png,two\n")
    label()
    assert trained(pictures)["000.png"] == ("one", "two")
    label("--existing", "append")
    assert trained(pictures)["000.png"] == tuple(f"{n}, red square, oil painting, on a table" for n in ("one", "two"))
    label("--existing", "relabel", "--set", "always=x")
    assert [text.split(",")[0] for text in trained(pictures)["000.png"]] == ["one", "two"]
    label("--existing", "overwrite", "--set", "always=x")
    assert trained(pictures)["000.png"] == ("red square, oil painting, on a table, x",)
    before = [line["before"] for line in journal(pictures) if line.get("file_name") == "000.png"]
    assert "one" in before and "two" in before


def test_json_rows_with_lists_go_into_a_csv_as_rows(label, pictures):
    rows = [{"file_name": "000.png", "captions": ["one", "two"]}, {"file_name": "001.png", "text": ""}]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label()
    captions = trained(pictures)
    assert captions["000.png"] == ("one", "two") and captions["001.png"] == ("",)
    assert captions["002.png"] == ("blue square, oil painting, on a table",)


def test_a_table_of_another_name_takes_over_what_training_reads_now(label, pictures):
    (pictures / "metadata.csv").write_text("file_name,prompt\n000.png,mine\n")
    (pictures / "001.txt").write_text("beside")
    code, said, _ = label("--output", pictures / "other.jsonl")
    captions = trained(pictures, pictures / "other.jsonl")
    assert code == 0 and captions["000.png"] == ("mine",) and captions["001.png"] == ("beside",)
    assert "metadata_path" in said and "2 yours" in said


def test_files_beside_pictures_that_a_table_would_hide_are_refused(label, pictures):
    (pictures / "metadata.csv").write_text("file_name,prompt\n000.png,mine\n")
    code, _, error = label("--output", "txt", "--existing", "overwrite")
    assert code == 2 and "metadata.csv" in error
    assert label("--output", "txt")[0] == 0
    assert not (pictures / "000.txt").exists() and trained(pictures)["000.png"] == ("mine",)
    assert trained(pictures)["001.png"] == ("green square, oil painting, on a table",)


def test_who_wrote_is_known_across_outputs(label, pictures):
    label("--output", "txt")
    (pictures / "000.txt").write_text("mine")
    label()
    label("--existing", "relabel", "--set", "always=x")
    captions = table(pictures)
    assert captions["000.png"] == "mine" and captions["001.png"] == "green square, oil painting, on a table, x"


def test_a_caption_file_that_cannot_be_read_is_named_and_left_alone(label, pictures):
    (pictures / "000.txt").write_bytes(b"caf\xe9")
    for output in ("txt", pictures / "metadata.csv"):
        code, said, _ = label("--output", output)
        assert code == 0 and "000.txt" in said and "Left out: 1" in said
        assert (pictures / "000.txt").read_bytes() == b"caf\xe9"
    assert "000.png" not in table(pictures)


def test_names_that_no_table_can_hold_are_said_and_can_have_files(label, pictures):
    for name in ("a\\b.png", "c:d.png", " x.png"):
        (pictures / "000.png").rename(pictures / name)
        (pictures / name).read_bytes()
        (pictures / "000.png").write_bytes((pictures / name).read_bytes())
    code, said, _ = label()
    assert code == 0 and "Left out: 3" in said and len(table(pictures)) == 8
    assert len(trained(pictures)) == 11
    (pictures / "metadata.csv").unlink()
    assert label("--output", "txt")[0] == 0 and trained(pictures)["c:d.png"][0].startswith("red square")


def test_a_broken_table_stops_before_anything_is_written(label, pictures):
    (pictures / "metadata.csv").write_text('file_name,prompt\n000.png,"open\n')
    before = (pictures / "metadata.csv").read_bytes()
    code, _, error = label()
    assert code == 3 and "metadata.csv" in error and (pictures / "metadata.csv").read_bytes() == before


def test_names_that_differ_in_unicode_form_only(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file_name,prompt\n\u00e9.png,mine\n", encoding="utf-8")
    assert Table(path, ["e\u0301.png"]).captions("e\u0301.png") == ["mine"]
    both = Table(path, ["e\u0301.png", "\u00e9.png"])
    assert both.captions("\u00e9.png") == ["mine"] and both.captions("e\u0301.png") == []
    with pytest.raises(DataError, match=r"share"):
        Beside(tmp_path, ["e\u0301.png", "\u00e9.png"], [])
