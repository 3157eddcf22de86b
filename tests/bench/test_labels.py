"""The benchmark of labelling: both sides find the same phrases, and what it prints follows from what was measured."""

from __future__ import annotations

import json

import pytest

from bench import labels
from tests.tiny_clip import build_clip


def test_both_sides_put_the_same_phrase_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = build_clip(tmp_path / "model")
    pictures = [labels.draw(number) for number in range(4)]
    own, said = labels.ours(model, pictures, 2)
    plain, first = labels.plain(model, pictures, 2)
    assert own["pictures_a_second"] > 0 and 0 < own["tower_share"] < 1 and own["bank_seconds"] > 0
    assert plain.keys() == {"pictures_a_second"}
    from lora_scripts.captioners import clip

    captioner = clip.build(clip.Config(share=0.0), str(model), "cpu")
    banks = {bank.bank.group: bank for bank in captioner.banks}
    seen = captioner.embed_pictures(pictures)
    assert len(said) == len(first) == 4 and all(row.keys() == banks.keys() and len(row) == 13 for row in first)
    for row, picture in zip(first, seen, strict=True):
        for group, phrase in row.items():
            bank = banks[group]
            offered = captioner._candidates(bank, picture)
            assert (offered[0][0].text if offered else phrase) == phrase
            assert offered or phrase in bank.bank.contrast


def test_figures_follow_from_what_was_measured():
    facts = {"threads": 1, "versions": {}, "phrases": 9, "texts": 20, "tokens": 5.5}
    own = [
        {"side": "ours", "pictures_a_second": speed, "tower_share": 0.9, "bank_seconds": 8.0} for speed in (9, 10, 50)
    ]
    plain = [{"side": "plain", "pictures_a_second": speed} for speed in (0.9, 1.0, 2.0)]
    found = labels.summary([*own, *plain])
    assert found["ratio"] == pytest.approx(10)
    # n at 1 s a picture = 3 (8 s + n at 0.1 s).
    assert found["from_pictures"] == pytest.approx(24 / 0.7)
    slow = labels.summary([{**own[1], "pictures_a_second": 2}, plain[1]])
    assert slow["ratio"] == pytest.approx(2) and slow["from_pictures"] is None
    runs = [{**run, **facts} for run in (*own, *plain)]
    printed = list(labels.lines([{"batch": 16, "count": 2, "runs": runs, **found}]))
    assert len(printed) == 3 + 6 + 2 + 1 and "10.00" in printed[-1] and printed[-1].endswith("34")


def test_the_other_case_is_the_doctor_s(tmp_path, monkeypatch):
    from bench import labels_doctor

    asked = []
    monkeypatch.setattr(labels_doctor, "main", lambda arguments: asked.append(arguments) or 0)
    assert labels.main(["--case", "doctor", "--json", str(tmp_path / "a.json")]) == 0
    assert asked == [["--json", str(tmp_path / "a.json")]]


def test_a_model_and_a_run_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, out = build_clip(tmp_path / "model"), tmp_path / "out.json"
    for side in labels.SIDES:
        assert labels.main(["--batches", "2", "--count", "1", "--run", side, str(model), str(out)]) == 0
        found = json.loads(out.read_text())
        assert found["phrases"] > 700 and found["texts"] > found["phrases"] and found["pictures_a_second"] > 0
