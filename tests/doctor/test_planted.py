"""The whole verb over sets with known faults: it names these files, each for its fault, and no other one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from lora_scripts.cli import main
from tests.doctor import planted_pictures
from tests.doctor.planted_pictures import FUSED, MISSPELT, TRIGGER, Planted
from tests.doctor.test_report import Page
from tests.doctor.texts import planted as planted_texts


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted_pictures.plant(tmp_path_factory.mktemp("planted") / "pictures")


def named(findings: list[dict]) -> dict[str, list[set[str]]]:
    """The files of every item, by finding."""
    return {f["id"]: [set(item["files"]) for item in f["items"]] for f in findings if f["items"]}


def test_the_doctor_names_what_was_planted_and_nothing_else(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture
):
    before = {path: path.read_bytes() for path in planted.root.rglob("*")}
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    assert main(["doctor", str(planted.root), "--json", str(report), "--html", str(page)]) == 3
    assert {path: path.read_bytes() for path in planted.root.rglob("*")} == before
    value = json.loads(report.read_bytes())
    assert len(planted.clean) == 36
    assert (value["kind"], value["looked_at"]) == ("pictures", 44)
    exact, saved_again = planted.duplicates
    assert named(value["findings"]) == {
        "pictures.unreadable": [{planted.truncated}],
        "pictures.exact": [{*exact}],
        "pictures.near": [{*saved_again}],
        "pictures.crop": [{*planted.cut}],
        "pictures.small": [{planted.small}],
        "pictures.blurry": [{planted.blurry}],
        "pictures.turned": [{planted.rotated}],
        "captions.without_picture": [{planted.lone_caption}],
        "captions.missing": [{planted.uncaptioned}],
        "captions.trigger_misspelt": [{planted.misspelt}],
    }
    by_id = {finding["id"]: finding for finding in value["findings"]}
    severities = {name: by_id[name]["severity"] for name in ("pictures.unreadable", "captions.trigger_misspelt")}
    assert set(severities.values()) == {"must_fix"}
    assert by_id["captions.fused_words"]["examples"] == [f"{FUSED} (40/43)"]
    assert by_id["pictures.near"]["items"][0]["files"] == [*saved_again]
    assert by_id["pictures.crop"]["items"][0]["box"] == pytest.approx(
        [130 / 768, 60 / 512, 700 / 768, 480 / 512], abs=0.02
    )
    assert MISSPELT in by_id["captions.trigger_misspelt"]["items"][0]["detail"]
    # What is true of the whole set names no file.
    whole = [finding for finding in value["findings"] if not finding["items"]]
    assert {f["id"] for f in whole} == {
        "captions.fused_words",
        "captions.lengths",
        "captions.trigger_inferred",
        "pictures.buckets",
        "pictures.lonely_buckets",
    }
    assert not re.search(r"\.(png|jpg|txt)", json.dumps([finding["examples"] for finding in whole]))
    innocent = set(planted.clean) - {
        name for items in named(value["findings"]).values() for each in items for name in each
    }
    assert len(innocent) == 32
    told = report.read_text() + page.read_text(encoding="utf-8") + capsys.readouterr().out
    assert [name for name in innocent if name in told] == []
    assert TRIGGER in told
    shown = Page(page.read_text(encoding="utf-8"))
    alts = {image["alt"] for image in shown.of("img")}
    assert {f"Picture {name}" for name in (*exact, *saved_again, *planted.cut, planted.small, planted.rotated)} <= alts
    assert len([each for each in shown.of("span") if each.get("class") == "mark"]) == 1
    assert page.stat().st_size < 500_000


def test_clean_pictures_alone_have_nothing_to_mend(planted: Planted, tmp_path: Path):
    root = tmp_path / "clean"
    root.mkdir()
    for name in planted.clean:
        shutil.copy(planted.root / name, root / name)
        text = (planted.root / name).with_suffix(".txt").read_text(encoding="utf-8")
        text = text.replace(MISSPELT, TRIGGER).replace(f" near one {FUSED}", "")
        (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    report = tmp_path / "report.json"
    assert main(["doctor", str(root), "--json", str(report)]) == 0
    value = json.loads(report.read_bytes())
    assert named(value["findings"]) == {}
    assert (value["summary"]["must_fix"], value["summary"]["should_look"]) == (0, 0)


def test_fix_mends_the_planted_set_and_undo_gives_it_back(planted: Planted, tmp_path: Path):
    root = tmp_path / "copy"
    shutil.copytree(planted.root, root)
    before = {path.relative_to(root): path.read_bytes() for path in root.rglob("*")}
    report = tmp_path / "report.json"
    assert main(["doctor", str(root), "--fix", "--json", str(report)]) == 0
    left = named(json.loads(report.read_bytes())["findings"])
    assert set(left) == {
        "pictures.near",
        "pictures.crop",
        "pictures.small",
        "pictures.blurry",
        "pictures.turned",
        "captions.missing",
    }
    assert main(["doctor", str(root), "--undo"]) == 0
    assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*")} == before


def test_the_doctor_names_the_rows_that_were_planted(tmp_path: Path, capsys: pytest.CaptureFixture):
    planted = planted_texts.plant(tmp_path / "texts")
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    command = ["doctor", str(planted.path), "--held-out", str(planted.held_out)]
    assert main([*command, "--json", str(report), "--html", str(page)]) == 3
    value = json.loads(report.read_bytes())
    assert (value["kind"], value["looked_at"]) == ("texts", 232)
    found = {name.partition(".")[2]: set().union(*items) for name, items in named(value["findings"]).items()}
    assert len(planted.named) >= 12
    assert found.keys() == planted.named.keys()
    # Which labels are wrong is judged by a classifier; it may doubt one more.
    doubted, wrong = found.pop("label_doubtful"), planted.named.pop("label_doubtful")
    assert wrong <= doubted and len(doubted) <= len(wrong) + 1
    assert found == planted.named
    told = report.read_text() + page.read_text(encoding="utf-8") + capsys.readouterr().out
    assert [secret for secret in planted.secrets if secret in told] == []
