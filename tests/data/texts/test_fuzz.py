"""Whatever a file holds, reading it ends in rows or in one sentence."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_scripts import messages
from lora_scripts.data.readers.texts import TextScan, read
from lora_scripts.data.record import Dataset
from lora_scripts.data.texts import formats
from lora_scripts.errors import DataError

ROLES = {"system", "user", "assistant", "tool"}
KEYS = sorted({key for format in formats.FORMATS for key in format.columns} | {"content", "role", "other"})
TEXTS = st.text(max_size=8) | st.sampled_from(["user", "assistant", "gpt", "up", "true", "\ud800", " ", "a", "billing"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | TEXTS
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXTS}, optional={"weight": SCALARS}
)
SPOKEN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXTS})
VALUES = st.recursive(
    SCALARS | TURN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
FIELD = TEXTS | SCALARS | st.lists(TURN, max_size=3) | st.lists(SPOKEN, max_size=3) | VALUES
ASK, SAY = {"role": "user", "content": "a"}, [{"role": "assistant", "content": text} for text in ("b", "c", " ")]
WORD = st.sampled_from("xyz")
PLAUSIBLE = {
    **dict.fromkeys(("messages", "chosen", "rejected"), st.sampled_from([[ASK, one] for one in SAY] + ["x", "y"])),
    **dict.fromkeys(
        ("preferred_output", "non_preferred_output", "completion"), st.sampled_from([SAY[:1], SAY[1:], "x"])
    ),
    "conversations": st.lists(SPOKEN, min_size=1, max_size=3),
    "label": st.sampled_from(["billing", "true", "up", True, 0]),
    "thumb": st.sampled_from(["up", "down", None]),
    "edit": st.sampled_from([None, {"label": "billing"}, {"reply": "x"}, {"label": "a", "reply": "y"}]),
    "input": st.sampled_from([{"messages": [ASK]}, "x"]),
    "history": st.sampled_from([[], [["a", "b"]], None]),
    **dict.fromkeys(("tools", "functions"), st.none()),
}
SOME = settings(max_examples=150)


@st.composite
def rows_of_one_format(draw: st.DrawFn) -> list[dict]:
    """Rows with the keys of one format, of whose values one may be anything."""
    format = draw(st.sampled_from(formats.FORMATS))
    needed = draw(st.sampled_from(format.needs))
    others = draw(st.lists(st.sampled_from(sorted(format.columns)), max_size=4))
    odd = draw(st.sampled_from(["", "", *sorted(needed), *others]))
    values = {key: FIELD if key == odd else PLAUSIBLE.get(key, WORD) for key in [*sorted(needed), *others]}
    return draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=4))


def scanned(name: str, content: bytes, **options) -> TextScan | DataError:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return read([Dataset(path)], **options)
        except DataError as error:
            return error


def is_sound(result: TextScan | DataError) -> None:
    """Fail where a result could break what comes after it."""
    if isinstance(result, DataError):
        sentences = [(result.code, result.params)]
    else:
        sentences = [(one.code, one.params) for one in (*result.notes, *result.dropped)]
        assert len({row.id for row in result.rows}) == len(result.rows) > 0
        assert all(one.params.keys() >= {"file", "row"} for one in result.dropped)
        for row in result.rows:
            turns = (*row.prompt, *row.answer, *row.rejected)
            assert turns and all(turn.role in ROLES for turn in turns)
            assert "".join([*(turn.content for turn in turns), row.label, row.group, row.language]).encode()
            assert all(turn.weight is None or 0 <= turn.weight <= 1000 for turn in turns)
            assert any(turn.role == "assistant" and turn.content.strip() for turn in turns)
            assert (row.liked is not None) == (row.kind == "thumb") and bool(row.rejected) == (row.kind == "pair")
            assert bool(row.answer) == (row.kind != "chat")
            assert row.kind != "pair" or row.answer != row.rejected
    for language in messages.LANGUAGES:
        for code, params in sentences:
            sentence = messages.catalogue(language)[code].format(**params)
            assert sentence.encode() and sentence.isprintable()


@given(content=st.binary(max_size=60), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "a.tsv"]))
@SOME
def test_any_bytes(content: bytes, name: str):
    is_sound(scanned(name, content))


@given(
    rows=rows_of_one_format(), name=st.sampled_from(["a.jsonl", "a.json"]), labels=st.sampled_from([(), ("billing",)])
)
@settings(max_examples=400)
def test_any_values_under_known_keys(rows: list[dict], name: str, labels: tuple[str, ...]):
    content = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    is_sound(scanned(name, content.encode(), labels=labels, max_bad_fraction=1.0))


@given(row=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), VALUES, max_size=5))
@SOME
def test_any_object(row: dict):
    is_sound(scanned("a.jsonl", json.dumps(row).encode(), max_bad_fraction=1.0))


@given(
    header=st.sampled_from(["prompt,completion", "text", "message;label;reply", "a,b"]),
    body=st.text(alphabet='ab",;\t\n\r \x00é', max_size=40),
)
@SOME
def test_any_table(header: str, body: str):
    is_sound(scanned("a.csv", f"{header}\n{body}".encode(), max_bad_fraction=1.0))


@given(cells=st.lists(st.tuples(st.text(max_size=10), st.text(max_size=10)), min_size=1, max_size=5))
@SOME
def test_a_table_that_csv_writes_is_read_as_it_was(cells: list[tuple[str, str]]):
    import csv
    import io

    from lora_scripts.data.texts import files

    cells = [(a.replace("\0", ""), b.replace("\0", "")) for a, b in cells]
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("prompt", "completion"), *cells])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(stream.getvalue().encode())
        found = [(row["prompt"], row["completion"]) for _, row in files.RowFile(path).rows()]
    assert found == [pair for pair in cells if any(cell.strip() for cell in pair)]


@pytest.mark.parametrize(
    "rows", [[{"text": "fine"}, {"text": "\ud800"}], [{"message": "a", "label": "b", "lang": "\udfff"}]]
)
def test_the_check_sees_what_it_should(rows: list[dict]):
    result = scanned("a.jsonl", "\n".join(map(json.dumps, rows)).encode(), max_bad_fraction=1.0)
    is_sound(result)
    params = result.params if isinstance(result, DataError) else {"reasons": str(result.dropped)}
    assert "half" in str(params["reasons"])
