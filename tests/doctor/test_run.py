"""What kind of data is looked at, in which order findings come, and what is said where there is nothing to look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lora_scripts import messages
from lora_scripts.doctor import ignoring, run
from lora_scripts.doctor.finding import TOPICS, Finding, Severity
from lora_scripts.doctor.ignoring import Entry
from lora_scripts.doctor.settings import Settings
from lora_scripts.errors import ConfigError, DataError
from tests.doctor.texts import planted


def rows(path: Path, count: int = 30) -> Path:
    lines = (json.dumps(row) for row in planted.clean_rows(count))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_folder_with_a_picture_is_one_of_pictures(tmp_path: Path):
    rows(tmp_path / "rows.jsonl")
    assert run.kind_of(tmp_path) == "texts"
    assert run.kind_of(tmp_path / "rows.jsonl") == "texts"
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "sub/logo.PNG")
    assert run.kind_of(tmp_path) == "pictures"
    assert run.examine(Settings(tmp_path), kind="texts").kind == "texts"


def test_where_there_is_nothing_to_look_at(tmp_path: Path):
    def said(path: Path) -> str:
        with pytest.raises(DataError) as refused:
            run.examine(Settings(path))
        return str(refused.value)

    assert "does not exist" in said(tmp_path / "absent")
    assert "is empty" in said(tmp_path)
    (tmp_path / ".hidden.png").write_bytes(b"x")
    assert "nothing that can be used" in said(tmp_path)
    (tmp_path / "setup.exe").write_bytes(b"x")
    assert "neither pictures nor texts, only other files (setup.exe)" in said(tmp_path)
    assert "holds no rows" in said(tmp_path / "setup.exe")


def test_findings_come_by_severity_and_else_as_the_checks_stand():
    order = [("b", "SHOULD"), ("a", "GOOD"), ("d", "MUST"), ("c", "SHOULD"), ("e", "MUST")]
    found = [Finding("texts", name, Severity[severity], 1) for name, severity in order]
    assert [finding.name for finding in run.in_order(found)] == ["d", "e", "b", "c", "a"]


def test_a_clean_set_has_nothing_to_mend(tmp_path: Path):
    done = run.examine(Settings(rows(tmp_path / "rows.jsonl", planted.ROWS)))
    assert (done.looked_at, done.must_fix, done.of(Severity.SHOULD)) == (planted.ROWS, False, [])
    assert [finding.id for finding in done.findings] == ["texts.labels", "texts.about_lengths"]


def test_what_is_ignored_or_excused_does_not_count(tmp_path: Path):
    path = rows(tmp_path / "rows.jsonl", 60)
    path.write_text(path.read_text("utf-8") + '{"message": " ", "label": "billing"}\n', encoding="utf-8")
    assert run.examine(Settings(path)).must_fix
    assert not run.examine(Settings(path), excused=[("texts", "blank")]).must_fix
    ignoring.add(tmp_path, Entry("texts.blank", "a template, it is filled in later"))
    ignoring.add(tmp_path, Entry("texts.key", "old"))
    done = run.examine(Settings(path))
    assert not done.must_fix
    assert [(finding.id, finding.count) for finding in done.ignored] == [("texts.blank", 1)]
    assert [entry.id for entry in done.unmatched] == ["texts.key"]


def test_a_broken_ignore_file_stops_before_anything_is_read(tmp_path: Path):
    (tmp_path / ignoring.FILE).write_text("[[ignore]", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1"):
        run.examine(Settings(tmp_path))


def test_every_finding_stands_in_the_documentation(root: Path):
    text = (root / "docs/doctor.md").read_text(encoding="utf-8")
    ids = ignoring.known_ids()
    assert len(ids) >= 60
    assert {name.partition(".")[0] for name in ids} == {*TOPICS}
    assert [name for name in ids if f"`{name}`" not in text] == []
    for name in ids:
        assert all(messages.has(f"{name}.{part}") for part in ("why", "fix")), name
