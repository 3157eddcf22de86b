"""Labelling a folder, as the command line does it: what is written, what is kept, and what a person is told."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from lora_scripts.data.caption_files import assign
from lora_scripts.data.folder import walk
from lora_scripts.data.record import Dataset
from tests import toy_labels


def table(folder: Path, name: str = "metadata.csv") -> dict[str, str]:
    with (folder / name).open(encoding="utf-8-sig", newline="") as file:
        return {row["file_name"]: row["prompt"] for row in csv.DictReader(file)}


def trained(folder: Path, metadata: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The captions as the trainer reads them."""
    found = walk(folder)
    dataset = Dataset(folder, metadata=metadata, missing_pictures="ignore")
    return {name: one.captions for name, one in assign(dataset, found.pictures, found.others).pictures.items()}


def journal(folder: Path, name: str = "metadata.labels.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def edit(path: Path, **captions: str) -> None:
    """Change captions of a table by hand, as a spreadsheet would."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    for row in rows:
        row[1] = captions.get(row[0].removesuffix(".png").replace(".", "_"), row[1])
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def test_every_picture_gets_a_caption_and_a_line_that_tells_whose_it_is(label, pictures):
    code, said, _ = label()
    assert code == 0 and "New captions: 8" in said and "toy captioner" in said
    captions = table(pictures)
    assert len(captions) == 8 and captions["000.png"] == "red square, oil painting, on a table"
    lines = [line for line in journal(pictures) if line["kind"] == "caption"]
    assert [line["file_name"] for line in lines] == sorted(captions)
    first = lines[0]
    assert first["schema"] == 1 and first["author"] == "toy captioner" and first["text"] == captions["000.png"]
    assert first["tags"][0][0] == "red_square" and 0 < first["sure"] <= 1 and len(first["sha256"]) == 64
    assert trained(pictures) == {name: (text,) for name, text in captions.items()}


def test_five_edited_captions_stand_and_nothing_is_labelled_twice(label, pictures, tmp_path):
    log = tmp_path / "log"
    label("--set", f"log={log}")
    mine = {f"00{i}": f"my own words, number {i}" for i in range(5)}
    edit(pictures / "metadata.csv", **mine)
    code, said, _ = label("--set", f"log={log}")
    assert code == 0 and "5 yours" in said and "3 the machine's" in said and "New captions: 0" in said
    captions = table(pictures)
    assert {name: captions[f"{name}.png"] for name in mine} == mine
    assert len(log.read_text().split()) == 8
    assert {line["author"] for line in journal(pictures) if line.get("text") in mine.values()} <= {"person"}


def test_relabel_keeps_what_a_person_wrote(label, pictures):
    label()
    edit(pictures / "metadata.csv", **{"002": "mine"})
    label("--existing", "relabel", "--set", "voice=other", "--set", "always=vivid")
    captions = table(pictures)
    assert captions["002.png"] == "mine"
    assert all("vivid" in text for name, text in captions.items() if name != "002.png")


def test_a_caption_that_a_person_puts_back_is_theirs(label, pictures):
    label()
    first = table(pictures)["002.png"]
    label("--existing", "overwrite", "--set", "always=vivid")
    edit(pictures / "metadata.csv", **{"002": first})
    for how in ("keep", "relabel"):
        _, said, _ = label("--existing", how, "--set", "always=vivid")
        assert "1 yours, 7 the machine's" in said and table(pictures)["002.png"] == first


def test_overwriting_loses_nothing(label, pictures):
    label()
    edit(pictures / "metadata.csv", **{"002": "mine"})
    label("--existing", "overwrite", "--set", "always=vivid")
    assert "vivid" in table(pictures)["002.png"]
    assert [line["before"] for line in journal(pictures) if line.get("file_name") == "002.png"][-1] == "mine"


@pytest.mark.parametrize(("how", "expected"), [("append", "mine, "), ("prepend", ", mine")])
def test_adding_is_done_once(label, pictures, how, expected):
    (pictures / "metadata.csv").write_text("file_name,prompt\n000.png,mine\n001.png,\n")
    label("--existing", how)
    once = table(pictures)
    assert expected in once["000.png"] and "red square" in once["000.png"] and len(once) == 8
    label("--existing", how)
    assert table(pictures) == once


def test_rules_are_applied_and_the_side_file_says_which(label, pictures):
    words = ["--trigger", "ohwx", "--prefix", "a drawing of", "--suffix", "end", "--exclude", "on a table"]
    label(*words, "--replace", "oil painting=gouache", "--threshold", "0.3")
    captions = table(pictures)
    assert all(text.startswith("ohwx") and text.endswith("end") for text in captions.values())
    assert all("gouache" in text and "on a table" not in text for text in captions.values())
    removed = json.dumps([line["removed"] for line in journal(pictures) if line["kind"] == "caption"])
    assert "on a table" in removed


def test_style_leaves_the_medium_out_and_what_holds_for_all(label, pictures):
    # What holds for all is judged from ten pictures on.
    toy_labels.folder(pictures, 12)
    code, _, _ = label("--kind", "style", "--set", "always=warm")
    captions = table(pictures)
    assert code == 0 and all("oil painting" not in text and "warm" not in text for text in captions.values())
    assert all("square" in text for text in captions.values())


def test_a_person_needs_a_class_word_and_thing_leaves_itself_out(label, pictures):
    code, _, error = label("--kind", "person")
    assert code == 2 and "--class-word" in error
    code, _, _ = label("--kind", "thing", "--class-word", "cube", "--trigger", "zzq")
    assert code == 0 and all(text.startswith("zzq cube") for text in table(pictures).values())
    assert all("square" not in text for text in table(pictures).values())


def test_sentences_lose_what_a_style_shall_learn(label, pictures):
    label("--kind", "style", "--set", "sentence=An oil painting of a COLOUR square on a table")
    assert table(pictures)["000.png"].lower().count("oil painting") == 0 and "red square" in table(pictures)["000.png"]


def test_captions_are_cut_to_what_the_base_reads(label, pictures):
    label("--max-tokens", "3")
    lines = [line for line in journal(pictures) if line["kind"] == "caption"]
    assert len(lines) == 8 and all(line["tokens"] <= 3 and line["text"] for line in lines)


def test_unreadable_files_are_named_and_stop_no_other(label, pictures):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    (pictures / "page.jpg").write_text("<html>")
    for _ in range(2):
        code, said, _ = label()
        assert code == 0 and "broken.png" in said and "page.jpg" in said and "Left out: 2" in said
    assert len(table(pictures)) == 8
    only = pictures.parent / "only"
    only.mkdir()
    (only / "x.png").write_bytes(b"")
    code, _, error = label(folder=only)
    assert code == 3 and "x.png" in error and not (only / "metadata.csv").exists()


def test_a_table_keeps_its_columns_rows_and_signs(label, pictures):
    written = 'image;caption;weight;note\n000.png;"mine; with a sign";2;"a ""quoted"" word"\nabsent.png;gone;;x\n'
    (pictures / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + written.encode())
    label()
    text = (pictures / "metadata.csv").read_text(encoding="utf-8-sig")
    assert text.startswith(written) and len(text.splitlines()) == 3 + 7
    assert trained(pictures)["000.png"] == ("mine; with a sign",)
    assert trained(pictures)["001.png"] == ("green square, oil painting, on a table",)


def test_captions_beside_pictures_are_carried_into_a_table(label, pictures):
    (pictures / "000.txt").write_text("beside, mine\n")
    (pictures / "001.caption").write_text("also mine")
    label()
    captions = table(pictures)
    assert captions["000.png"] == "beside, mine" and captions["001.png"] == "also mine"


def test_files_beside_the_pictures(label, pictures):
    (pictures / "000.txt").write_text("mine")
    code, _, _ = label("--output", "txt")
    assert code == 0 and (pictures / "000.txt").read_text().strip() == "mine"
    assert (pictures / "001.txt").read_text().strip() == "green square, oil painting, on a table"
    assert not (pictures / "metadata.csv").exists() and len(trained(pictures)) == 8
    assert trained(pictures)["001.png"] == ("green square, oil painting, on a table",)


def test_two_pictures_of_one_name_cannot_share_a_file(label, pictures):
    shutil.copy(pictures / "000.png", pictures / "000.jpg")
    code, said, error = label("--output", "txt")
    assert "000.txt" in said + error and not (pictures / "000.txt").exists()
    assert code in (0, 3) and (pictures / "001.txt").exists() == (code == 0)


def test_json_lines(label, pictures):
    label("--output", pictures / "metadata.jsonl")
    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and rows[0]["file_name"] == "000.png"
    assert trained(pictures)["000.png"] == ("red square, oil painting, on a table",)


@pytest.mark.parametrize("sign", ["=1+1", "+cmd", "-x", "@_@", "=_="])
def test_cells_that_a_spreadsheet_would_run_are_written_so_that_it_does_not(label, pictures, sign):
    label("--set", f"sentence={sign} COLOUR")
    assert f"{sign} red" in trained(pictures)["000.png"][0]
    with (pictures / "metadata.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


def test_names_of_every_kind_survive(label, pictures):
    names = ["a, b.png", 'with "quotes".png', "图画.png", "e\u0301.png", "sub/deeper/x.png", "new\nline.png", "%41.png"]
    for i, name in enumerate(names):
        toy_labels.picture(pictures / name, "red", shade=40 + i)
    label()
    captions = trained(pictures)
    assert len(captions) == 15
    for name in names:
        assert captions[name] == ("red square, oil painting, on a table",), name


def test_an_edited_picture_is_labelled_anew_unless_a_person_wrote(label, pictures):
    label()
    edit(pictures / "metadata.csv", **{"000": "mine"})
    toy_labels.picture(pictures / "000.png", "blue")
    toy_labels.picture(pictures / "001.png", "blue")
    _, said, _ = label()
    assert table(pictures)["000.png"] == "mine" and table(pictures)["001.png"].startswith("blue square")
    assert "000.png" in said


def test_a_dry_run_shows_and_writes_nothing(label, pictures):
    before = sorted(path.name for path in pictures.iterdir())
    code, said, _ = label("--dry-run", "3")
    assert code == 0 and said.count("after:") == 3 and "red square" in said
    assert sorted(path.name for path in pictures.iterdir()) == before


def test_training_takes_the_side_file_for_what_it_is(label, pictures):
    from lora_scripts import registry
    from lora_scripts.data.record import Sizes

    label()
    scan = registry.load("readers", "pictures").read([Dataset(pictures)], Sizes((8,), 8))
    assert len(scan.examples) == 8 and not [note for note in scan.notes if note.code == "data.other_files"]


def test_captions_are_judged_where_the_captioner_can(label, pictures):
    edit_me = {"003": "a blue square"}
    label("--set", "judges=true")
    edit(pictures / "metadata.csv", **edit_me)
    _, said, _ = label("--set", "judges=true")
    assert "find their own picture first" in said and "003.png" in said
    assert any(line["kind"] == "review" for line in journal(pictures))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--set", "colour=1"], 2, "colour"),
        (["--existing", "merge"], 2, "--existing"),
        (["--threshold", "2"], 2, "--threshold"),
        (["--replace", "x"], 2, "--replace"),
        (["--captioner", "clipp"], 2, "clip"),
        (["--device", "cuda:7"], 4, "cuda:7"),
        (["--captioner", "wd14"], 2, "--model"),
        (["--policy", "absent.toml", "--kind", "style"], 3, "absent.toml"),
    ],
)
def test_mistakes_are_sentences_before_anything_is_written(label, pictures, words, code, said):
    given = words if "--captioner" in words else [*words, "--captioner", "toy"]
    found, _, error = label(*given)
    assert found == code and said in error and "Traceback" not in error
    assert not (pictures / "metadata.csv").exists()


def test_absent_and_empty_folders_are_sentences(label, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "absent", tmp_path / "empty"):
        code, _, error = label(folder=folder)
        assert code == 3 and str(folder) in error


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence(label, pictures):
    pictures.chmod(0o500)
    try:
        code, _, error = label()
    finally:
        pictures.chmod(0o700)
    assert code == 4 and str(pictures) in error


def test_a_broken_side_file_is_told_with_its_line(label, pictures):
    label()
    side = pictures / "metadata.labels.jsonl"
    lines = side.read_text().splitlines()
    side.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    code, _, error = label()
    assert code == 3 and "line 2" in error
    # A torn last line is what a kill leaves.
    side.write_text("\n".join(lines) + '\n{"schema": 1, "kin')
    assert label()[0] == 0


def test_the_mission_s_command_on_the_example_offline(root, tmp_path, monkeypatch):
    """tools/auto_label.py as typed, with the embedded labeller; five captions edited; training reads them."""
    import runpy
    import sys

    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "examples/style_high_contrast", "data/style_train")
    (Path("data/style_train/metadata.csv")).unlink()
    words = "--input data/style_train --output data/style_train/metadata.csv".split()

    def command() -> None:
        monkeypatch.setattr(sys, "argv", ["auto_label.py", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(root / "tools/auto_label.py"), run_name="__main__")
        assert ended.value.code == 0

    command()
    folder = Path("data/style_train")
    first = table(folder)
    assert len(first) == 60 and all(first.values()) and len(set(first.values())) > 40
    mine = {name.removesuffix(".png"): f"corrected by hand {i}" for i, name in enumerate(sorted(first)[:5])}
    edit(folder / "metadata.csv", **mine)
    command()
    second = table(folder)
    assert {name: second[f"{name}.png"] for name in mine} == mine
    assert {name: text for name, text in second.items() if name.removesuffix(".png") not in mine} == {
        name: text for name, text in first.items() if name.removesuffix(".png") not in mine
    }


def test_no_caption_is_emptied_because_many_say_the_same(label, pictures):
    toy_labels.folder(pictures, 12)
    policy = pictures.parent / "mine.toml"
    policy.write_text('frequent = 0.5\nfrequent_groups = ["setting", "palette"]\ngroups = ["medium"]\n')
    words = ["--kind", "style", "--policy", policy, "--exclude", "red square"]
    label(*words)
    captions = table(pictures)
    assert captions["000.png"] == "on a table" and captions["001.png"] == "green square" and len(captions) == 12
    _, said, _ = label(*words)
    assert table(pictures) == captions and "belongs to the style" not in said
