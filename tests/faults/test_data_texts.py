"""The same faults where the data are texts: bytes, tables, lines, duplicates, and hardly any rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_text

ROWS = [json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}) for i in range(8)]


@pytest.fixture
def texts(settings: dict[str, Any], text_base: Path, data: Path) -> dict[str, Any]:
    """A run over the texts in `data`."""
    kept = {key: settings[key] for key in ("output_dir", "cache_dir", "lora_rank", "epochs", "preview")}
    return kept | {"train_data_dir": str(data), "base_model": str(text_base), "base_precision": "float32"}


BYTES = {
    "cp1252": (b'{"prompt": "a", "completion": "it\x92s"}\n', "byte 0x92"),
    "UTF-16": ("\n".join(ROWS).encode("utf-16"), "looks like UTF-16"),
    "GBK": ('{"prompt": "a", "completion": "\u4e00\u53ea\u732b\u5750\u7740"}\n'.encode("gbk"), "looks like GBK"),
    "NUL": (ROWS[0].encode() + b"\n\0\n", "NUL"),
}


@pytest.mark.parametrize("case", BYTES)
def test_f75_bytes_that_are_no_utf8_are_told_at_scan(data, texts, command, contents, case):
    content, words = BYTES[case]
    (data / "rows.jsonl").write_bytes(content)
    before = contents(data)
    answer = command("train", texts)
    assert answer.code == 3 and "rows.jsonl" in answer.error and words in answer.error
    assert len(answer.error.splitlines()) == 1 and contents(data) == before


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_f75_marks_and_line_ends_are_understood(data, texts, plan, mark, end):
    (data / "rows.jsonl").write_bytes(mark + end.join(ROWS).encode())
    assert "8" in next(line for line in plan(texts).splitlines() if "rows.jsonl" in line)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["prompt,completion", "a,b", "c,d,e"], "3"),
        (["prompt,completion", 'a,"b'], "2"),
        (["prompt;completion;prompt", "a;b;c"], "prompt"),
    ],
)
def test_f77_csv_quirks_name_the_row(data, texts, command, rows, words):
    (data / "rows.csv").write_text("\n".join(rows))
    answer = command("train", texts)
    assert answer.code == 3 and "rows.csv" in answer.error and words in answer.error
    assert len(answer.error.splitlines()) == 1


@pytest.mark.parametrize("line", ['{"prompt": ', "[1]", '{"a": 1, "a": 2}', "{" * 50_000], ids=range(4))
def test_f78_jsonl_bad_line_is_named(data, texts, command, contents, line):
    (data / "rows.jsonl").write_text("\n".join([*ROWS[:5], line, *ROWS[5:]]))
    before = contents(data)
    answer = command("train", texts)
    assert answer.code == 3 and "rows.jsonl" in answer.error and "6" in answer.error
    assert len(answer.error) < 500 and contents(data) == before


def test_f78_a_row_with_half_a_character_is_left_out_and_told(data, texts, plan):
    half = json.dumps({"prompt": "a", "completion": "b \ud83d"})
    (data / "rows.jsonl").write_text("\n".join([*ROWS, half]))
    told = plan(texts | {"max_bad_fraction": 0.2})
    assert "half" in told and "Rows left out: 1" in told.replace("Rows and files left out", "Rows left out")


@pytest.mark.parametrize(("rows", "code"), [(0, 3), (1, 0), (2, 0)])
def test_f79_tiny_dataset(data, texts, command, rows, code):
    (data / "rows.jsonl").write_text("\n".join(ROWS[:rows]))
    answer = command("train", texts)
    assert answer.code == code, answer.error
    assert bool(answer.error) == bool(code)


def test_f72_duplicates_are_counted_once(data, texts, plan):
    (data / "rows.jsonl").write_text("\n".join([*ROWS, ROWS[0]]))
    told = plan(texts)
    assert ":9" in told and "rows.jsonl" in told


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_f73_links_and_pipes_are_passed_over(data, texts, plan, tmp_path):
    (data / "rows.jsonl").write_text("\n".join(ROWS))
    (tmp_path / "outside.jsonl").write_text("\n".join(ROWS))
    (data / "loop.jsonl").symlink_to(data / "loop.jsonl")
    (data / "out.jsonl").symlink_to(tmp_path / "outside.jsonl")
    os.mkfifo(data / "pipe.jsonl")
    told = plan(texts)
    assert "leads nowhere or to itself" in told and "leaves the data folder" in told and "pipe.jsonl" in told


def test_f38_rows_replaced_before_resume_are_refused(data, texts, command, tmp_path):
    tiny_text.write_rows(data / "rows.jsonl", [json.loads(row) for row in ROWS])
    assert command("train", texts).code == 0
    tiny_text.write_rows(data / "rows.jsonl", [json.loads(row) for row in ROWS[:-1]])
    answer = command("train", texts)
    assert answer.code == 3 and "training data changed" in answer.error
