"""Checkpoints are whole or absent, damage is noticed, older ones step in."""

from __future__ import annotations

import json

import pytest
import torch

from lora_scripts.errors import CheckpointError, MachineError
from lora_scripts.train import checkpoint
from lora_scripts.train.checkpoint import State


def put(folder, *steps: int) -> None:
    for step in steps:
        state = State(step, {"weight/a": torch.full((3,), float(step))}, {"note": step})
        checkpoint.write(folder, state, lambda staged: (staged / "extra.txt").write_text("x"))


def newest(folder):
    told = []
    return checkpoint.load_newest(folder, lambda code, params: told.append((code, params))), told


def test_the_newest_comes_back(tmp_path):
    put(tmp_path, 5, 10, 9)
    state, told = newest(tmp_path)
    assert state.step == 10 and state.facts == {"note": 10} and told == []
    assert torch.equal(state.tensors["weight/a"], torch.full((3,), 10.0))
    assert sorted(p.name for p in (tmp_path / "step-10").iterdir()) == [
        "extra.txt",
        "manifest.json",
        "state.safetensors",
    ]


def damage_truncate(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def damage_bit(path):
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def damage_manifest(path):
    (path / "manifest.json").write_text("{")


def damage_missing(path):
    (path / "extra.txt").unlink()


@pytest.mark.parametrize("harm", [damage_truncate, damage_bit, damage_manifest, damage_missing])
def test_a_damaged_newest_gives_way_to_the_older_with_one_line(tmp_path, harm):
    put(tmp_path, 5, 10)
    harm(tmp_path / "step-10")
    state, told = newest(tmp_path)
    assert state.step == 5 and len(told) == 1 and told[0][1]["step"] == 10


def test_a_renamed_checkpoint_is_not_believed(tmp_path):
    put(tmp_path, 5)
    (tmp_path / "step-5").rename(tmp_path / "step-999")
    put(tmp_path, 6)
    state, told = newest(tmp_path)
    assert state.step == 6 and told[0][1]["step"] == 999


def test_all_damaged_is_refused_and_nothing_is_deleted(tmp_path):
    put(tmp_path, 5, 10)
    for step in (5, 10):
        damage_bit(tmp_path / f"step-{step}")
    with pytest.raises(CheckpointError) as caught:
        newest(tmp_path)
    assert caught.value.exit_code == 3 and "--restart" in str(caught.value)
    assert (tmp_path / "step-5" / "state.safetensors").exists()


def test_a_newer_format_is_refused_in_words(tmp_path):
    put(tmp_path, 5)
    path = tmp_path / "step-5" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(CheckpointError, match="newer version"):
        newest(tmp_path)


def test_an_incomplete_save_is_swept_and_a_displaced_one_put_back(tmp_path):
    put(tmp_path, 5, 10)
    (tmp_path / "step-10").rename(tmp_path / ".aside-step-10")
    (tmp_path / ".staged-step-15").mkdir()
    (tmp_path / ".staged-step-15" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "step-20").mkdir()
    checkpoint.sweep(tmp_path)
    assert checkpoint.steps(tmp_path) == [5, 10]
    assert not (tmp_path / ".staged-step-15").exists()


def test_pruning_keeps_the_newest(tmp_path):
    put(tmp_path, 1, 2, 3, 4)
    checkpoint.prune(tmp_path, None)
    assert checkpoint.steps(tmp_path) == [1, 2, 3, 4]
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [3, 4]


def test_a_failed_write_keeps_the_old_one(tmp_path):
    put(tmp_path, 5)

    def fail(staged):
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError) as caught:
        checkpoint.write(tmp_path, State(5, {"weight/a": torch.zeros(3)}, {}), fail)
    assert caught.value.exit_code == 4
    assert newest(tmp_path)[0].facts == {"note": 5}
    assert [p.name for p in tmp_path.iterdir()] == ["step-5"]
