"""The labeller that ships: whole, small, safe, and as good as its card says where that can be measured here."""

from __future__ import annotations

import json
from pathlib import Path

import lora_scripts.embedded

FOLDER = Path(lora_scripts.embedded.__file__).parent / "labeller"


def test_the_folder_is_whole_and_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    assert not [path.name for path in files if path.suffix in (".bin", ".ckpt", ".pt")]
    names = (FOLDER / "names.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == len(set(names)) == 1447 and all(name == name.lower() for name in names)
    settings = json.loads((FOLDER / "towers.json").read_text())
    assert settings["image_size"] == 64 and 1 < settings["logit_scale"] <= 100 and 0.3 < settings["temperature"] < 3


def test_the_examples_pictures_were_never_learned(root):
    rows = [json.loads(line) for line in (FOLDER / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = {path.stem for path in (root / "examples/style_high_contrast").glob("*.png")}
    learned = {row["name"].replace(" ", "-") for row in rows if row["style"] == "high contrast"}
    assert len(rows) > 5000 and len(shown) == 60 and not learned & shown
    assert {row["style"] for row in rows} == {"noto", "flat", "3d", "high contrast"}


def test_the_log_falls():
    rows = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert len(losses) == 45 and losses[-1] < 0.2 * losses[0]


def test_it_is_no_base_model():
    assert "embedded/labeller" not in lora_scripts.embedded.names()
