"""Which captions belong to which picture, and what is said about the rest."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from lora_scripts import messages
from lora_scripts.data.caption_files import Assigned, assign, kohya_folder, source_notes
from lora_scripts.data.record import Dataset
from lora_scripts.errors import DataError

EVERY_SOURCE = {
    "given.csv": "file_name,prompt\na.png,from given\n",
    "metadata.csv": "file_name,prompt\na.png,from csv\n",
    "metadata.jsonl": '{"file_name": "a.png", "text": "from jsonl"}\n',
    "a.txt": " from txt\n",
    "a.caption": "from caption",
}


def files(folder: Path, contents: dict[str, str]) -> Dataset:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return Dataset(folder)


def assigned(dataset: Dataset, *pictures: str):
    lying = [path.relative_to(dataset.path).as_posix() for path in dataset.path.rglob("*") if path.is_file()]
    return assign(dataset, sorted(pictures), sorted(set(lying) - set(pictures)))


def refusal(dataset: Dataset, *pictures: str) -> str:
    with pytest.raises(DataError) as caught:
        assigned(dataset, *pictures)
    return str(caught.value)


def notes(result) -> dict[str, dict]:
    for note in result.notes:
        messages.text(note.code, **note.params)
    return {note.code: dict(note.params) for note in result.notes}


def test_precedence_is_as_stated(tmp_path: Path):
    order = ["given.csv", "metadata.csv", "metadata.jsonl", "a.txt", "a.caption"]
    dataset = files(tmp_path, EVERY_SOURCE)
    dataset = Dataset(tmp_path, metadata=tmp_path / "given.csv")
    kinds = []
    for name in order:
        (one,) = assigned(dataset, "a.png").pictures.values()
        assert one.captions == (f"from {Path(name).stem if name == 'given.csv' else Path(name).suffix[1:]}",)
        kinds.append(one.kind)
        (tmp_path / name).unlink()
        dataset = Dataset(tmp_path)
    assert kinds == ["table"] * 3 + ["beside"] * 2
    assert assigned(dataset, "a.png").pictures == {"a.png": Assigned(("",))}


def test_what_is_not_used_is_told(tmp_path: Path):
    files(tmp_path, EVERY_SOURCE)
    result = assigned(Dataset(tmp_path, metadata=tmp_path / "given.csv"), "a.png")
    ignored = [dict(note.params) for note in result.notes if note.code == "data.table_ignored"]
    assert ignored == [{"file": f"metadata.{kind}", "used": "given.csv"} for kind in ("csv", "jsonl")]
    assert notes(result)["data.sidecars_ignored"] == {"used": "given.csv", "count": 1, "examples": "a.txt"}
    for name in ("given.csv", "metadata.csv", "metadata.jsonl"):
        (tmp_path / name).unlink()
    result = assigned(Dataset(tmp_path), "a.png")
    assert notes(result) == {"data.sidecars_ignored": {"used": ".txt", "count": 1, "examples": "a.caption"}}
    assert result.used == {"a.txt", "a.caption"}


def test_a_table_outside_the_folder_names_pictures_inside(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "words.csv").write_text("file_name,prompt\na.png,a cat\n")
    result = assigned(Dataset(tmp_path / "pictures", metadata=tmp_path / "words.csv"), "a.png")
    assert result.pictures["a.png"] == Assigned(("a cat",), "table", "words.csv") and not result.notes


def test_several_rows_are_several_captions(tmp_path: Path):
    dataset = files(tmp_path, {"metadata.csv": "image,text\na.png,one\nb.png,x\na.png,two\na.png,one\n"})
    result = assigned(dataset, "a.png", "b.png")
    assert result.pictures["a.png"].captions == ("one", "two") and result.pictures["b.png"].captions == ("x",)


def test_a_list_in_jsonl_is_several_captions(tmp_path: Path):
    dataset = files(tmp_path, {"metadata.jsonl": '{"file": "a.png", "text": ["one", "two"]}'})
    assert assigned(dataset, "a.png").pictures["a.png"] == Assigned(("one", "two"), "table", "metadata.jsonl")


def test_an_empty_cell_is_an_empty_caption(tmp_path: Path):
    dataset = files(tmp_path, {"metadata.csv": "image,text\na.png,\n", "a.txt": "other words"})
    assert assigned(dataset, "a.png").pictures["a.png"].captions == ("",)


def test_unlisted_pictures_get_what_lies_beside_them(tmp_path: Path):
    dataset = files(tmp_path, {"metadata.csv": "image,text\na.png,one\n", "b.txt": "two"})
    result = assigned(dataset, "a.png", "b.png", "c.png")
    assert [one.captions[0] for one in result.pictures.values()] == ["one", "two", ""]
    assert notes(result)["data.unlisted"] == {"file": "metadata.csv", "count": 2, "examples": "b.png, c.png"}


def test_absent_pictures_are_an_error_with_names(tmp_path: Path):
    rows = "".join(f"gone{i}.png,x\n" for i in range(7))
    dataset = files(tmp_path, {"metadata.csv": f"image,text\na.png,one\n{rows}gone0.png,y\n"})
    message = refusal(dataset, "a.png")
    assert "metadata.csv" in message and "7 pictures" in message and "missing_pictures: ignore" in message
    assert "gone0.png, gone1.png, gone2.png, gone3.png, gone4.png, ..." in message and "gone5.png" not in message
    ignoring = Dataset(tmp_path, missing_pictures="ignore")
    result = assigned(ignoring, "a.png")
    assert notes(result)["data.absent_ignored"]["count"] == 7
    assert result.pictures["a.png"].captions == ("one",)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "sub/../../x.png", "..\\x.png", "C:\\x.png", ".."])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str):
    message = refusal(files(tmp_path, {"metadata.csv": f"image,text\na.png,one\n{name},two\n"}), "a.png")
    assert "metadata.csv, line 3" in message and name in message and 'without ".."' in message


@pytest.mark.parametrize("name", ["./sub/a.png", "sub\\a.png", "sub/deep/../a.png", "sub//a.png"])
def test_names_of_other_systems_are_understood(tmp_path: Path, name: str):
    dataset = files(tmp_path, {"metadata.csv": f"image,text\n{name},one\n"})
    assert assigned(dataset, "sub/a.png").pictures["sub/a.png"].captions == ("one",)


def test_unicode_spellings_match(tmp_path: Path):
    composed, parted = unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café.png")
    assert composed != parted
    for row, file in ((composed, parted), (parted, composed)):
        dataset = files(tmp_path, {"metadata.csv": f"image,text\n{row},one\n"})
        assert assigned(dataset, file).pictures[file].captions == ("one",)
    (tmp_path / "metadata.csv").unlink()
    files(tmp_path, {parted.replace(".png", ".txt"): "beside"})
    assert assigned(Dataset(tmp_path), composed).pictures[composed].captions == ("beside",)


def test_a_row_for_two_spellings_is_refused(tmp_path: Path):
    first, second = "\u212bngstr\u00f6m.png", "A\u030angstro\u0308m.png"
    wanted = unicodedata.normalize("NFC", first)
    assert len({first, second, wanted}) == 3
    message = refusal(files(tmp_path, {"metadata.csv": f"image,text\n{wanted},one\n"}), first, second)
    assert first in message and second in message and "line 2" in message and "rename one" in message


@pytest.mark.parametrize("pair", [("x.png", "x.jpg"), ("X.PNG", "x.png"), ("sub/x.png", "sub/x.webp")])
def test_pictures_that_share_a_caption_file_are_refused(tmp_path: Path, pair: tuple[str, str]):
    dataset = files(tmp_path, {f"{pair[1].rpartition('.')[0]}.txt": "words"})
    message = refusal(dataset, *pair)
    assert pair[0] in message and pair[1] in message and "x.txt" in message and "rename one" in message


def test_pictures_of_one_stem_are_fine_without_a_shared_file(tmp_path: Path):
    dataset = files(tmp_path, {"metadata.csv": "image,text\nx.png,one\nx.jpg,two\n", "x.txt": "unused"})
    result = assigned(dataset, "x.png", "x.jpg")
    assert {one.captions[0] for one in result.pictures.values()} == {"one", "two"}
    assert notes(result)["data.sidecars_ignored"]["used"] == "metadata.csv"
    (tmp_path / "metadata.csv").unlink()
    files(tmp_path, {"X.txt": "large"})
    result = assigned(Dataset(tmp_path), "x.png", "X.PNG")
    assert {name: one.captions[0] for name, one in result.pictures.items()} == {"x.png": "unused", "X.PNG": "large"}


def test_a_caption_beside_differs_in_case_at_most(tmp_path: Path):
    dataset = files(tmp_path, {"img_1.TXT": "words", "img_10.txt": "other"})
    assert assigned(dataset, "IMG_1.JPG").pictures["IMG_1.JPG"] == Assigned(("words",), "beside", ".txt")


def test_hand_edited_words_stay_as_they_are(tmp_path: Path):
    words = 'A  "cat",\n(red:1.2), it\'s {odd}, 猫'
    dataset = files(tmp_path, {"a.txt": f"\ufeff\n {words} \r\n\n"})
    assert assigned(dataset, "a.png").pictures["a.png"].captions == (words,)


def test_kohya_folders(tmp_path: Path):
    dataset = files(tmp_path, {"10_red cat/b.txt": "beside", "metadata.csv": "image,text\n10_red cat/c.png,row\n"})
    names = ["10_red cat/a.png", "10_red cat/b.png", "10_red cat/c.png", "10_red cat/deep/d.png", "5_/e.png", "f.png"]
    result = assigned(dataset, *names)
    assert result.pictures == {
        names[0]: Assigned(("red cat",), "folder", "10_red cat", 10),
        names[1]: Assigned(("beside",), "beside", ".txt", 10),
        names[2]: Assigned(("row",), "table", "metadata.csv", 10),
        names[3]: Assigned(("red cat",), "folder", "10_red cat", 10),
        names[4]: Assigned(("",), "", "5_", 5),
        names[5]: Assigned(("",)),
    }
    assert [(note.code, dict(note.params)) for note in source_notes(result.pictures.values())] == [
        ("data.captions_from", {"source": "metadata.csv", "count": 1}),
        ("data.captions_beside", {"source": ".txt", "count": 1}),
        ("data.captions_from_folder", {"source": "10_red cat", "count": 2}),
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("3_my_style/x.png", ("3_my_style", 3, "my_style")),
        ("0_off/x.png", ("0_off", 0, "off")),
        ("10000_x/x.png", ("10000_x", 10000, "x")),
        ("20240131_holiday/x.png", ("", 1, "")),
        ("cats/10_red/x.png", ("", 1, "")),
        ("10_red.png", ("", 1, "")),
        ("ten_red/x.png", ("", 1, "")),
        ("10red/x.png", ("", 1, "")),
    ],
)
def test_what_counts_as_a_kohya_folder(name: str, wanted: tuple[str, int, str]):
    assert kohya_folder(name) == wanted


def test_an_absent_table_is_told(tmp_path: Path):
    message = refusal(Dataset(tmp_path, metadata=tmp_path / "words.csv"), "a.png")
    assert "words.csv does not exist" in message and "metadata_path" in message


def test_encoding_of_a_caption_beside_is_told(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"a woman\x92s hat")
    message = refusal(Dataset(tmp_path), "a.png")
    assert "a.txt: byte 0x92 at 7, not UTF-8 (looks like cp1252)" in message


def test_weights_belong_to_their_captions(tmp_path: Path):
    rows = "image,text,weight\na.png,one,3\nb.png,x,2\na.png,two,\na.png,one,5\nb.png,y,2\nc.png,z,7\n"
    found = assigned(files(tmp_path, {"metadata.csv": rows}), "a.png", "b.png", "c.png").pictures
    assert (found["a.png"].captions, found["a.png"].weights) == (("one", "two"), (5.0, 1.0))
    # Alike, or alone: nothing to weigh.
    assert found["b.png"].weights == () and found["c.png"].weights == ()


def test_class_words_caption_what_has_no_caption(tmp_path: Path):
    lying = {"10_red cat/b.txt": "beside", "metadata.csv": "image,text\n10_red cat/c.png,row\n10_red cat/d.png,\n"}
    names = [f"10_red cat/{name}.png" for name in "abcd"]
    found = assigned(replace(files(tmp_path, lying), class_words="a cat"), *names).pictures
    assert [found[name].captions for name in names] == [("a cat",), ("beside",), ("row",), ("",)]
    assert found[names[0]].repeats == 10
    (note,) = [note for note in source_notes(found.values()) if note.code == "data.captions_class"]
    assert note.params == {"source": "a cat", "count": 1}


def test_lines_of_a_caption_beside_are_one_caption(tmp_path: Path):
    found = assigned(files(tmp_path, {"a.txt": "one\ntwo\n"}), "a.png").pictures
    assert found["a.png"].captions == ("one\ntwo",)
