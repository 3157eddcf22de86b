"""The whole checkup: a planted set is named exactly, the examples are clean, and nothing private is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_scripts import messages
from lora_scripts.doctor.finding import EXAMPLES, Finding, Severity
from lora_scripts.doctor.settings import Settings
from lora_scripts.doctor.texts import checkup
from lora_scripts.errors import DataError
from tests.doctor.texts.planted import HELD_ROWS, ROWS, TRAIN, Planted, clean_rows, plant

MUST = {"unreadable", "blank", "damaged", "lost", "card", "key", "leak", "group_leak", "label_spelling"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted") / "texts")


@pytest.fixture(scope="module")
def findings(planted: Planted) -> Sequence[Finding]:
    return checkup.find(Settings(planted.path, held_out=planted.held_out)).findings


def sentences(findings: Sequence[Finding]) -> list[str]:
    """Return all that a report would show of findings, in the language in force."""
    said = [finding.sentence(part) for finding in findings for part in ("what", "why", "fix")]
    said += [example for finding in findings for example in finding.examples]
    details = [item.detail for finding in findings for item in finding.items if item.detail is not None]
    return said + [messages.text(detail.code, **detail.params) for detail in details]


def named(findings: Sequence[Finding]) -> dict[str, set[str]]:
    found = {finding.name: {file for item in finding.items for file in item.files} for finding in findings}
    assert len(found) == len(findings)
    return {name: files for name, files in found.items() if files}


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def test_exactly_what_was_planted_is_named(planted: Planted, findings: Sequence[Finding]) -> None:
    assert len(planted.named) == 14
    assert named(findings) == planted.named
    assert {finding.name for finding in findings if finding.severity is Severity.MUST} == MUST
    assert all(finding.count == 1 for finding in findings if finding.name in MUST)


def test_findings_about_the_set_name_no_rows(findings: Sequence[Finding]) -> None:
    of_set = [finding for finding in findings if not finding.items]
    assert [finding.name for finding in of_set] == ["labels", "about_lengths"]
    assert all(finding.severity is Severity.GOOD and len(finding.examples) <= EXAMPLES for finding in of_set)
    assert not any(".jsonl" in example for finding in of_set for example in finding.examples)


def test_rows_are_counted(planted: Planted) -> None:
    steps: list[tuple[int, int]] = []
    found = checkup.find(Settings(planted.path, held_out=planted.held_out), lambda *step: steps.append(step))
    assert found.looked_at == ROWS + 12 + HELD_ROWS
    assert [done for done, _ in steps] == list(range(steps[-1][1] + 1))


@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_nothing_private_is_shown(
    planted: Planted, findings: Sequence[Finding], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_SCRIPTS_LANG", language)
    said = sentences(findings)
    assert len(said) > 50
    assert [each for each in said if any(secret in each for secret in planted.secrets)] == []


def test_two_hundred_clean_rows_are_clean(tmp_path: Path) -> None:
    train, held = write(tmp_path / "a.jsonl", clean_rows(ROWS)), write(tmp_path / "b.jsonl", clean_rows(HELD_ROWS, 7))
    found = checkup.find(Settings(train, held_out=held)).findings
    assert {finding.name for finding in found} == {"labels", "about_lengths"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_example_is_clean(root: Path, language: str) -> None:
    folder = root / "examples/customer_feedback"
    found = checkup.find(Settings(folder / f"train.{language}.jsonl", held_out=folder / f"heldout.{language}.jsonl"))
    assert found.looked_at == {"en": 928, "zh": 240}[language]
    assert {finding.name for finding in found.findings} == {"labels", "label_review", "about_lengths", "repeated_line"}
    assert {finding.severity for finding in found.findings} == {Severity.GOOD}


def test_a_whole_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "good.jsonl", clean_rows(60))
    (tmp_path / "table.csv").write_text("prompt,completion\nHow are you?,Quite well today\nbroken\n", encoding="utf-8")
    (tmp_path / "data.json").write_text("[{", encoding="utf-8")
    found = {finding.name: finding for finding in checkup.find(Settings(tmp_path)).findings}
    assert named([found["unreadable"]])["unreadable"] == {"table.csv:3", "data.json:1"}
    assert found["labels"].count == 60


def test_each_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", clean_rows(30))
    lines = path.read_text(encoding="utf-8").splitlines()
    for place in (0, 7, 29):
        lines[place] = lines[place][:-3]
    path.write_text("\n".join(lines), encoding="utf-8")
    before = path.read_bytes()
    found = checkup.find(Settings(path))
    assert named(found.findings)["unreadable"] == {"a.jsonl:1", "a.jsonl:8", "a.jsonl:30"}
    assert (found.looked_at, path.read_bytes()) == (30, before)
    assert str(tmp_path) not in " ".join(sentences(found.findings))


def test_a_file_that_is_not_utf8_is_one_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "发货太慢了，客服说今天会到"}\n'.encode("gbk"))
    (finding,) = checkup.find(Settings(path)).findings
    assert (finding.name, finding.severity, finding.items[0].files) == ("unreadable", Severity.MUST, ("a.jsonl",))


def test_rows_that_are_left_out_are_told_by_reason(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is the colour of stone number {i}?", "completion": f"Stone {i} is grey"} for i in range(5)
    ]
    rows += [{"prompt": "Who?", "completion": " "}, {"prompt": "", "completion": "Somebody"}, {"prompt": "Where?"}]
    found = checkup.find(Settings(write(tmp_path / "a.jsonl", rows))).findings
    assert named(found) == {"no_answer": {"a.jsonl:6"}, "blank": {"a.jsonl:7"}, "lacking": {"a.jsonl:8"}}


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "no.jsonl", "text.path_missing"), (tmp_path, "text.no_files")):
        with pytest.raises(DataError) as error:
            checkup.find(Settings(path))
        assert error.value.code == code


def test_names_of_both_parts_differ(tmp_path: Path) -> None:
    for folder in ("train", "held"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / TRAIN, clean_rows(20))
    found = checkup.find(Settings(tmp_path / "train" / TRAIN, held_out=tmp_path / "held" / TRAIN)).findings
    leak = next(finding for finding in found if finding.name == "leak")
    assert leak.count == 20
    assert leak.items[0].files == ("train.jsonl:1", "held/train.jsonl:1")
