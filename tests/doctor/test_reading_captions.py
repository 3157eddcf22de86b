"""Captions are read as a run reads them; what a run would refuse is noted, and everything else is still read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts.data import folder
from lora_scripts.data.caption_files import assign
from lora_scripts.data.record import Dataset
from lora_scripts.doctor.reading_captions import read_captions
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import DataError


def lay(root: Path, *pictures: str, **texts: str | bytes) -> Path:
    """Lay picture files (which nobody decodes here) and other files, whose names stand with `__` for a dot."""
    for name in pictures:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode()
        (root / name.replace("__", ".")).write_bytes(data)
    return root


def read(root: Path, metadata: Path | None = None):
    captions, sources, problems = read_captions(Settings(root, metadata=metadata), folder.walk(root))
    return dict(captions), {name: path.name for name, path in sources.items()}, list(problems)


def refused(root: Path) -> bool:
    """Say whether a training run refuses the folder's captions."""
    lying = folder.walk(root)
    try:
        assign(Dataset(root), lying.pictures, lying.others)
    except DataError:
        return True
    return False


def test_reads_what_a_run_reads(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "a.png",
        "b.png",
        "10_red cat/c.png",
        "d.png",
        metadata__csv="file_name,prompt\na.png,one\na.png,two\n",
    )
    lay(tmp_path, b__txt=" beside \n", d__caption="")
    captions, sources, problems = read(tmp_path)
    lying = folder.walk(tmp_path)
    as_run = assign(Dataset(tmp_path), lying.pictures, lying.others).pictures
    assert captions == {name: one.captions for name, one in as_run.items() if one.kind}
    assert captions["a.png"] == ("one", "two")
    assert captions["10_red cat/c.png"] == ("red cat",)
    assert sources == {"a.png": "metadata.csv", "b.png": "b.txt", "d.png": "d.caption"}
    assert problems == []


def test_every_row_without_a_picture_is_named_with_its_line(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", metadata__csv="file_name,prompt\ngone.png,x\na.png,one\nlost.png,y\n")
    captions, _, problems = read(tmp_path)
    assert captions == {"a.png": ("one",)}
    assert [(one.code, one.where, one.params["line"]) for one in problems] == [
        ("captions.without_picture.row", "gone.png", 2),
        ("captions.without_picture.row", "lost.png", 4),
    ]
    assert refused(tmp_path)


def test_broken_rows_are_noted_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = ['{"file_name": "a.png", "prompt": "one"}', '{"file_name": "b.png", "prompt": ', "[1]"]
    rows += ['{"file_name": "../c.png", "prompt": "x"}', '{"file_name": "d.png", "prompt": "four"}']
    lay(tmp_path, "a.png", "b.png", "c.png", "d.png", metadata__jsonl="\n".join(rows))
    captions, sources, problems = read(tmp_path)
    assert captions == {"a.png": ("one",), "d.png": ("four",)}
    assert [(one.code, one.where) for one in problems] == [
        ("data.table_broken", "metadata.jsonl:2"),
        ("data.jsonl_row", "metadata.jsonl:3"),
        ("data.row_leaves_folder", "metadata.jsonl:4"),
    ]
    # Its row is broken, so it is not a picture without a caption; the one that no row names is.
    assert sources.keys() == {"a.png", "b.png", "d.png"}
    assert refused(tmp_path)


def test_a_broken_row_of_a_csv(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "b.png", metadata__csv="file_name,prompt\na.png,one, two\nb.png,three\n")
    captions, sources, problems = read(tmp_path)
    assert captions == {"b.png": ("three",)}
    assert [(one.code, one.where) for one in problems] == [("data.table_cells", "metadata.csv:2")]
    assert sources.keys() == {"a.png", "b.png"}


def test_a_quote_that_is_not_closed_swallows_one_row_only(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "b.png", metadata__csv='file_name,prompt\na.png,"open\nb.png,x\n')
    captions, _, problems = read(tmp_path)
    assert captions == {"b.png": ("x",)}
    assert [(one.code, one.where) for one in problems] == [("data.table_broken", "metadata.csv:2")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"file_name,prompt\na.png,caf\xe9\n", "data.encoding"),
        (b"name;words\na;b\n", "data.table_columns"),
        (b"file_name,prompt\na.png,x\0y\n", "data.text_nul"),
        (b"", "data.table_empty"),
        (b'"file_name,prompt\na.png,x\n', "data.table_broken"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_problem(tmp_path: Path, data: bytes, code: str) -> None:
    lay(tmp_path, "a.png", metadata__csv=data)
    captions, _, problems = read(tmp_path)
    assert captions == {}
    assert code in [one.code for one in problems]
    assert all(one.where.startswith("metadata.csv") for one in problems)
    assert refused(tmp_path)


def test_a_sidecar_in_another_encoding_hides_no_other(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "b.png", a__txt=b"it\x92s", b__txt="fine")
    captions, sources, problems = read(tmp_path)
    assert captions == {"b.png": ("fine",)}
    assert sources.keys() == {"a.png", "b.png"}
    assert [(one.code, one.where, one.params["guess"]) for one in problems] == [("data.encoding", "a.txt", "cp1252")]


def test_a_shared_sidecar_names_both_pictures(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "a.jpg", a__txt="both")
    captions, _, problems = read(tmp_path)
    assert captions == {"a.png": ("both",), "a.jpg": ("both",)}
    assert [(one.code, {one.params["first"], one.params["second"]}) for one in problems] == [
        ("data.shared_caption", {"a.png", "a.jpg"})
    ]


def test_a_stray_caption_is_one_that_lies_among_captions(tmp_path: Path) -> None:
    lay(tmp_path, *(f"{i}.png" for i in range(4)), **{f"{i}__txt": "x" for i in range(3)})
    lay(
        tmp_path,
        ghost__txt="a caption",
        README__txt="read me",
        LICENSE__txt="law",
        **{"3__caption": "x", "2__caption": "y"},
    )
    _, _, problems = read(tmp_path)
    assert [(one.code, one.where) for one in problems] == [("captions.without_picture.sidecar", "ghost.txt")]


def test_a_text_among_pictures_without_captions_is_none(tmp_path: Path) -> None:
    lay(tmp_path, *(f"{i}.png" for i in range(4)), **{"0__txt": "x"}, thoughts__txt="hm")
    assert read(tmp_path)[2] == []


def test_a_text_among_pictures_of_a_table_is_no_caption(tmp_path: Path) -> None:
    lay(tmp_path, "a.png", "b.png", metadata__csv="file_name,prompt\na.png,x\nb.png,y\n", thoughts__txt="hm")
    assert read(tmp_path)[2] == []


def test_a_metadata_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    lay(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        read(tmp_path, tmp_path / "nowhere.csv")
