"""A base that two processes hold together: the files of a run in which each holds all of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts.config.load import from_mapping
from lora_scripts.errors import ConfigError
from lora_scripts.train import sharding
from tests import tiny, tiny_text

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess:
    more = {"PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true"}
    command = [*TORCHRUN, str(ROOT / "train.py"), *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def same_files(one: Path, two: Path) -> int:
    names = sorted(path.name for path in one.glob("*.safetensors"))
    for name in names:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys() and len(first) > 4
        assert all(torch.equal(first[key], second[key]) for key in first), name
    return len(names)


def test_f97_pictures_on_a_shared_base_give_the_same_files(tmp_path, base_folder):
    """Uneven micro-batches, a preview on every process and held-out measurements included."""
    tiny.tiny_pictures(tmp_path / "pictures", 5)
    for out in ("whole", "shared"):
        config = {
            "train_data_dir": str(tmp_path / "pictures"),
            "base_model": str(base_folder),
            "output_dir": str(tmp_path / out),
            "cache_dir": str(tmp_path / "cache"),
            "name": "x",
            "lora_rank": 2,
            "batch_size": 1,
            "gradient_accumulation": 3,
            "epochs": 3,
            "save_steps": 2,
            "learning_rate": 1e-2,
            "base_precision": "float64",
            "preview": {"prompts": ["a thing"], "steps": 1},
            "validation": {"share": 0.3},
            "shard_base": out == "shared",
        }
        (tmp_path / f"{out}.yaml").write_text(json.dumps(config))
        done = launch(tmp_path, "--config", f"{out}.yaml")
    held, whole = re.search(r"each holds ([\d.]+) .* of ([\d.]+)", done.stdout).groups()
    assert 0.4 < float(held) / float(whole) < 0.8
    assert same_files(tmp_path / "whole", tmp_path / "shared") == 2
    shared = tmp_path / "shared"
    assert (shared / "previews/before_after.png").read_bytes() == (
        tmp_path / "whole/previews/before_after.png"
    ).read_bytes()
    # Nothing of the base is in a checkpoint: trained tensors, moments and one LoRA.
    adapter = (shared / "x.safetensors").stat().st_size
    for step in (shared / "checkpoints").iterdir():
        assert sum(path.stat().st_size for path in step.iterdir()) < 8 * adapter


@pytest.mark.slow
def test_f97_texts_on_a_shared_base_give_the_same_files(tmp_path, text_base):
    for out in ("whole", "shared"):
        config = tiny_text.config(tmp_path, base_model=str(text_base), base_precision="float64")
        config |= {"output_dir": str(tmp_path / out), "shard_base": out == "shared"}
        (tmp_path / f"{out}.yaml").write_text(json.dumps(config, default=str))
        launch(tmp_path, "--config", f"{out}.yaml")
    assert same_files(tmp_path / "whole", tmp_path / "shared") == 1


@pytest.mark.parametrize(
    ("key", "values", "objective"),
    [
        ("base_precision", {"base_precision": "nf4"}, "sft"),
        ("offload_blocks", {"offload_blocks": 2}, "sft"),
        ("adapter", {"adapter": {"name": "lora", "start": "pissa"}}, "sft"),
        ("objective", {}, "dpo"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(key, values, objective):
    config = from_mapping({"train_data_dir": "d", "base_model": "b", "output_dir": "o", "shard_base": True, **values})
    with pytest.raises(ConfigError, match=re.escape(key)):
        sharding.refuse(config, objective)


def test_one_process_alone_cannot_share(command, settings, data):
    tiny.tiny_pictures(data, 2)
    answer = command("train", settings | {"shard_base": True})
    assert answer.code == 2 and "torchrun" in answer.error
