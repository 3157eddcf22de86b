"""Rows that are only measured: none of them is trained on, and the step that does best on them can be the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import tiny_text
from tests.app.text_runs import FILES, train, write


def test_rows_that_leak_into_the_held_out_part_are_counted_and_dropped(text_base: Path, tmp_path: Path):
    train_rows, held_rows = tiny_text.task_rows(6), tiny_text.task_rows(3, start=20)
    same_message = {"id": "x", "customer": "stranger", "message": train_rows[0]["message"].upper(), "label": "billing"}
    same_customer = {"id": "y", "customer": train_rows[1]["customer"], "message": "something else", "label": "delivery"}
    held = write(tmp_path, "held.jsonl", [*held_rows, same_message, same_customer])
    data = write(tmp_path, "rows.jsonl", train_rows)
    outcome = train(tmp_path, text_base, train_data_dir=data, validation={"paths": [held], "answers": 0}, epochs=1)
    trained_on = {example.row.message for example in outcome.prepared.examples}
    assert trained_on == {row["message"] for row in train_rows[2:]}
    (note,) = [note for note in outcome.prepared.notes if note.code == "llm.leaked"]
    # A message's label and its reply are rows of their own.
    replies = sum("reply" in row for row in train_rows[:2])
    assert note.params["count"] == 2 + replies == 4 and "rows.jsonl:1" in note.params["names"]
    measured = [example.row.message for example in outcome.prepared.held]
    assert set(measured) == {row["message"] for row in [*held_rows, same_message, same_customer]}


def contrary(folder: Path) -> dict[str, Any]:
    """Rows whose held-out loss falls at first and then rises."""
    data = write(folder, "rows.jsonl", [{"prompt": f"say {i}", "completion": "aaaa aaaa"} for i in range(8)])
    held = write(folder, "held.jsonl", [{"prompt": f"tell {i}", "completion": "aabb abab"} for i in range(4)])
    values = {"epochs": 6, "save_steps": 2, "learning_rate": 3e-2, "gradient_accumulation": 1, "keep_checkpoints": 1}
    return values | {"train_data_dir": data, "validation": {"paths": [held], "use_best": True}}


def test_the_best_step_is_what_is_exported_and_kept(text_base: Path, tmp_path: Path):
    outcome = train(tmp_path, text_base, **contrary(tmp_path))
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["loss"] for row in lines if row["event"] == "Evaluated"}
    best = min((step for step in measured if step), key=lambda step: measured[step])
    assert 0 < best < outcome.steps == 12 and sorted(measured) == [0, 2, 4, 6, 8, 10, 12]
    kept = {path.name for path in (out / "checkpoints").iterdir()}
    assert kept == {f"step-{best}", "step-12"}
    final = load_file(out / FILES[0])
    then = load_file(out / "checkpoints" / f"step-{best}" / FILES[0])
    assert all(torch.equal(final[name], then[name]) for name in final)
    last = load_file(out / "checkpoints" / "step-12" / FILES[0])
    assert any(not torch.equal(final[name], last[name]) for name in final)


def test_without_use_best_the_last_step_is_exported(text_base: Path, tmp_path: Path):
    values = contrary(tmp_path)
    values["validation"] |= {"use_best": False}
    train(tmp_path, text_base, **values)
    final = load_file(tmp_path / "out" / FILES[0])
    last = load_file(tmp_path / "out" / "checkpoints" / "step-12" / FILES[0])
    assert all(torch.equal(final[name], last[name]) for name in final)


def test_the_report_tells_of_the_weights_that_are_kept(text_base: Path, tmp_path: Path):
    """Labels that the held-out part contradicts: what is best is early, and `task.json` and report say so."""
    rows = tiny_text.task_rows(16)
    swap = {"billing": "delivery", "delivery": "billing"}
    held = [
        {"id": f"h{i}", "customer": f"h{i}", "message": f"new {row['message']}", "label": swap[row["label"]]}
        for i, row in enumerate(rows)
    ]
    values = {"epochs": 6, "save_steps": 2, "learning_rate": 3e-2, "gradient_accumulation": 1, "batch_size": 8}
    section = {"paths": [write(tmp_path, "held.jsonl", held)], "use_best": True, "answers": 0}
    data = write(tmp_path, "rows.jsonl", rows)
    train(tmp_path, text_base, train_data_dir=data, validation=section, **values)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["logs"] for row in lines if row["event"] == "Evaluated"}
    best = max((step for step in measured if step), key=lambda step: (measured[step]["macro_f1"], -step))
    assert best < max(measured)
    task = json.loads((out / "task.json").read_text())["held_out"]
    assert task["macro_f1"] == round(measured[best]["macro_f1"], 4) and task["rows"] == 16
    assert f"After (step {best});" in (out / "report.md").read_text()
