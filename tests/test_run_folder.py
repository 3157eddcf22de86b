"""What --restart removes of an earlier run: what its record names, folders too, and nothing outside."""

from __future__ import annotations

import json
from pathlib import Path

from lora_scripts.runs import RunFolder


def test_files_and_folders_of_the_record_go_and_nothing_else(tmp_path: Path):
    folder, outside = tmp_path / "out", tmp_path / "other"
    for path in (folder / "style-peft/unet", folder / "mine", outside):
        path.mkdir(parents=True)
    for path in (folder / "style-peft/unet/adapter_config.json", folder / "style.safetensors", folder / "mine/x.txt"):
        path.write_text("x")
    (folder / "linked").symlink_to(outside)
    (outside / "kept").write_text("x")
    named = ["style.safetensors", "style-peft", "linked", "..", ".", "", "../other", "absent"]
    record = {"schema": 1, "config": {}, "data": {}, "base": {}, "state": "finished", "sessions": [], "files": named}
    (folder / "run.json").write_text(json.dumps(record))
    RunFolder(folder).clear()
    assert sorted(path.name for path in folder.iterdir()) == ["mine"]
    assert (outside / "kept").exists() and (folder / "mine/x.txt").exists()
