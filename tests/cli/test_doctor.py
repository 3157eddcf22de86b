"""`lora-scripts doctor` as a user calls it: what it prints and writes, exit codes, and bad input as sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lora_scripts.cli import main
from lora_scripts.doctor import ignoring
from tests.doctor import planted_pictures
from tests.doctor.texts import planted


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows with one blank message."""
    folder = tmp_path / "rows"
    folder.mkdir()
    path = folder / "train.jsonl"
    lines = [json.dumps(row) for row in planted.clean_rows(60)] + ['{"message": " ", "label": "billing"}']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve clean captioned pictures, a copy of one, and a misspelt trigger."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        planted_pictures.illustration(number).save(folder / f"{number}.png", compress_level=1)
        (folder / f"{number}.txt").write_text(planted_pictures.sentence(number), encoding="utf-8")
    shutil.copy(folder / "3.png", folder / "copy.png")
    (folder / "copy.txt").write_text(planted_pictures.sentence(77), encoding="utf-8")
    wrong = planted_pictures.sentence(5).replace(planted_pictures.TRIGGER, planted_pictures.MISSPELT)
    (folder / "5.txt").write_text(wrong, encoding="utf-8")
    return folder


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_reports_and_exit_codes_of_texts(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    before = snapshot(rows.parent)
    html, report = tmp_path / "report.html", tmp_path / "report.json"
    command = ["doctor", str(rows), "--html", str(html), "--json", str(report)]
    assert main(command) == 3
    said = capsys.readouterr().out
    assert "61 rows looked at" in said and "Must fix (1)" in said and "train.jsonl:61" in said
    assert json.loads(report.read_bytes())["summary"]["must_fix"] == 1
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert snapshot(rows.parent) == before
    assert main(["doctor", str(rows), "--ignore", "texts.blank", "--reason", "filled in later"]) == 0
    assert "is ignored from now on" in capsys.readouterr().out
    assert main(command) == 0
    assert "1 ignored: texts.blank (filled in later)" in capsys.readouterr().out
    assert json.loads(report.read_bytes())["findings"][-1]["ignored"] == "filled in later"


def test_fix_mends_and_undo_gives_every_byte_back(pictures: Path, capsys: pytest.CaptureFixture):
    before = snapshot(pictures)
    assert main(["doctor", str(pictures)]) == 3
    assert snapshot(pictures) == before
    assert "--fix" in capsys.readouterr().out
    assert main(["doctor", str(pictures), "--fix"]) == 0
    said = capsys.readouterr().out
    assert "put aside: copy.png" in said and "put aside: copy.txt" in said
    assert f"{planted_pictures.MISSPELT} becomes {planted_pictures.TRIGGER}" in said
    assert "12 pictures looked at" in said
    assert not (pictures / "copy.png").exists()
    assert main(["doctor", str(pictures), "--fix"]) == 0
    assert "nothing that --fix can mend" in capsys.readouterr().out
    assert main(["doctor", str(pictures), "--undo"]) == 0
    assert "Undone: 3 files" in capsys.readouterr().out
    assert snapshot(pictures) == before
    assert main(["doctor", str(pictures), "--undo"]) == 3
    assert "nothing to undo" in capsys.readouterr().err


def test_a_config_says_where_and_how(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(pictures / "7.png", held / "seen.png")
    config = tmp_path / "config.yaml"
    values = {
        "train_data_dir": str(pictures),
        "base_model": "embedded/pictures",
        "output_dir": str(tmp_path / "out"),
        "caption": {"trigger": "qqsun"},
        "validation": {"enabled": True, "paths": [str(held)]},
    }
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    report = tmp_path / "report.json"
    assert main(["doctor", "--config", str(config), "--json", str(report)]) == 3
    value = json.loads(report.read_bytes())
    assert (value["folder"], value["looked_at"]) == (str(pictures), 14)
    # Training puts that trigger in front of every caption.
    ids = {finding["id"] for finding in value["findings"]}
    assert ids.isdisjoint({"captions.trigger_missing", "captions.trigger_nowhere"})
    assert any("7.png" in item["files"] and len(item["files"]) == 2 for f in value["findings"] for item in f["items"])
    values["datasets"] = [{"path": values.pop("train_data_dir")}, {"path": str(held)}]
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["doctor", "--config", str(config)]) == 2
    assert "names several data folders" in capsys.readouterr().err
    assert main(["doctor", str(held), "--config", str(config), "--json", str(report)]) in (0, 3)
    assert json.loads(report.read_bytes())["folder"] == str(held)
    assert "is not on this machine" not in capsys.readouterr().out
    values["base_model"] = "someone/elsewhere"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["doctor", str(held), "--config", str(config)]) in (0, 3)
    assert "someone/elsewhere is not on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "Name the folder"),
        (["absent"], 3, "does not exist"),
        (["ROWS", "--html", "absent/x.html"], 2, "its folder must exist"),
        (["ROWS", "--json", "."], 2, "must not be a folder"),
        (["ROWS", "--json", "ROWS"], 2, "would overwrite"),
        (["ROWS", "--ignore", "texts.blanc", "--reason", "x"], 2, "nearest: texts.blank"),
        (["ROWS", "--ignore", "texts.blank"], 2, "needs a reason"),
        (["ROWS", "--ignore", "texts.blank", "--reason", " "], 2, "needs a reason"),
        (["ROWS", "--reason", "x"], 2, "--reason belongs to --ignore"),
        (["ROWS", "--files", "x"], 2, "--files belongs to --ignore"),
        (["ROWS", "--resolution", "0"], 2, "--resolution 0"),
        (["ROWS", "--max-tokens", "-1"], 2, "--max-tokens -1"),
        (["ROWS", "--fix"], 2, "folders of pictures only"),
        (["ROWS", "--undo"], 3, "nothing to undo"),
        (["ROWS", "--config", "absent.yaml"], 2, "absent.yaml"),
        (["ROWS", "--held-out", "absent"], 3, "absent"),
    ],
)
def test_bad_input_is_a_sentence(
    words: list[str], code: int, said: str, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(rows.parent.parent)
    before = snapshot(rows.parent)
    assert main(["doctor", *(str(rows) if word == "ROWS" else word for word in words)]) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told and len(told.strip().splitlines()) == 1
    assert snapshot(rows.parent) == before


def test_a_report_never_takes_the_place_of_data(pictures: Path, capsys: pytest.CaptureFixture):
    for option, name in (("--html", "3.png"), ("--json", "metadata.jsonl"), ("--html", "3.txt")):
        assert main(["doctor", str(pictures), option, str(pictures / name)]) == 2
        assert "would overwrite" in capsys.readouterr().err
    assert main(["doctor", str(pictures), "--html", str(pictures / "report.html")]) == 3
    assert (pictures / "report.html").exists()


def test_a_broken_ignore_file_is_a_sentence(rows: Path, capsys: pytest.CaptureFixture):
    (rows.parent / ignoring.FILE).write_text("[[ignore]]\nid = \n", encoding="utf-8")
    assert main(["doctor", str(rows)]) == 2
    assert "line 2" in capsys.readouterr().err


def test_a_folder_of_neither_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "tool.bin").write_bytes(b"x")
    assert main(["doctor", str(tmp_path)]) == 3
    assert "neither pictures nor texts" in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["doctor", str(tmp_path), "--as", "texts"]) == 3
    assert "Traceback" not in capsys.readouterr().err
