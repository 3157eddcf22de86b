"""Optimizers in whole runs: killed and resumed, averaged, and what they ask of the rest of the config."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import app, optimization
from lora_scripts.config.load import from_mapping, load
from lora_scripts.errors import ConfigError, MachineError

ROOT = Path(__file__).resolve().parents[2]
FILES = ("out.safetensors", "pytorch_lora_weights.safetensors")


@pytest.fixture
def config(config_file):
    """Writes the config of a run of five steps, two an epoch, with this optimizer."""

    def write(optimizer: str, *more: str) -> Path:
        kept = [line for line in config_file.read_text().splitlines() if not line.startswith(("epochs", "save_steps"))]
        lines = [*kept, "steps: 5", "save_steps: 2", f"optimizer: {optimizer}", *more]
        config_file.write_text("\n".join(lines).replace("learning_rate: 1e-2\n", "") + "\n")
        return config_file

    return write


def last_state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / "step-5" / "state.safetensors")


def kill_after_a_checkpoint(config: Path, out: Path) -> None:
    """Run `python train.py` until step 2 is saved, and kill it."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--config", str(config)],
        cwd=config.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "step-2").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / FILES[0]).exists()


@pytest.mark.parametrize("optimizer", ["prodigy", "schedule_free"])
def test_killed_and_resumed_a_run_ends_with_the_same_bytes(config, tmp_path, optimizer):
    """The files, the weights, and all that the optimizer keeps."""
    pytest.importorskip("pytorch_optimizer", reason="in the extra optimizers")
    path, out = config(optimizer), tmp_path / "out"
    app.train(load(path))
    files, whole = [(out / name).read_bytes() for name in FILES], last_state(out)
    assert len([name for name in whole if name.startswith("optimizer/")]) > 100
    out.rename(tmp_path / "whole")
    kill_after_a_checkpoint(path, out)
    outcome = app.train(load(path))
    assert outcome.steps == 5 and not outcome.already
    assert [(out / name).read_bytes() for name in FILES] == files
    again = last_state(out)
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def events(out: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def test_what_is_measured_and_exported_is_the_average(config, tmp_path):
    """x = y + (1 - 1 / beta1) (z - y), from the checkpoint's y and z; `steps` cuts the third epoch short."""
    pytest.importorskip("pytorch_optimizer", reason="in the extra optimizers")
    out = tmp_path / "out"
    path = config("schedule_free", "learning_rate: 3e-2", "validation: {share: 0.3, levels: 2, every: 5}")
    app.train(load(path, ["lora_dropout=0", "batch_size=1", "gradient_accumulation=1"]))
    state = last_state(out)
    exported = load_file(out / "pytorch_lora_weights.safetensors")
    beside = load_file(next((out / "checkpoints" / "step-5").glob("out-*.safetensors")))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    y, z = (state[f"{kind}/unet/{name}.up"] for kind in ("weight", "optimizer/z"))
    x = y.lerp(z, 1 - 1 / 0.9)
    assert torch.equal(exported[f"unet.{name}.lora_B.weight"], x) and (x - y).abs().max() > 1e-4
    assert any(tensor.shape == x.shape and torch.equal(tensor, x) for tensor in beside.values())

    ended = events(out, "EpochEnded")
    assert [(row["epoch"], row["step"]) for row in ended] == [(1, 2), (2, 4), (3, 5)]
    losses = [row["loss"] for row in events(out, "Stepped")]
    assert ended[-1]["loss"] == losses[-1] and events(out, "Started")[0]["epochs"] == 3

    measured = events(out, "Evaluated")[-1]
    over = ["lora_dropout=0", f"init_lora={out / FILES[0]}", f"output_dir={tmp_path / 'next'}", "optimizer=adamw"]
    app.train(load(path, [*over, "steps=1"]))
    first = events(tmp_path / "next", "Evaluated")[0]
    assert first["step"] == 0 and measured["step"] == 5
    assert first["loss"] == pytest.approx(measured["loss"], rel=1e-6)


def settled(optimizer: str, **keys):
    config = from_mapping({"train_data_dir": "x", "base_model": "y", "output_dir": "z", "optimizer": optimizer, **keys})
    return optimization.settle(config, config.model_fields_set)


def test_a_rate_that_is_not_given_is_the_optimizers():
    config, notes = settled("prodigy")
    assert config.learning_rate == 1.0 and config.schedule.name == "cosine"
    assert str(notes[0].params["chosen"]) == "learning_rate 1" and notes[0].params["optimizer"] == "prodigy"
    assert settled("prodigy", learning_rate=0.5)[0].learning_rate == 0.5
    assert settled("lion")[0].learning_rate == 3e-5 and settled("came")[1] == []
    config, notes = settled("adamw")
    assert config.learning_rate == 1e-4 and notes == []


def test_prodigy_has_one_rate():
    """Half of it for the text encoder, as elsewhere, would be ignored by the library; so it is not asked for."""
    config, notes = settled("prodigy", train_text_encoder=True)
    assert config.train_text_encoder.learning_rate == 1.0 and config.train_text_encoder.enabled
    assert "train_text_encoder.learning_rate 1" in str(notes[0].params["chosen"])
    layer = {"match": "mid.*", "learning_rate": 0.1}
    with pytest.raises(ConfigError) as caught:
        settled("prodigy", train_text_encoder={"learning_rate": 0.5}, lora_layers=[layer])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and all("one rate" in line for line in lines)
    assert "lora_layers.0.learning_rate is 0.1" in lines[0] and "train_text_encoder.learning_rate is 0.5" in lines[1]
    assert settled("adamw", train_text_encoder={"learning_rate": 0.5}, lora_layers=[layer])[1] == []


def test_schedule_free_has_no_schedule_and_no_second_average():
    config, notes = settled("schedule_free", learning_rate=1e-3)
    assert config.schedule.name == "constant" and config.learning_rate == 1e-3
    assert notes[0].params["chosen"] == "schedule constant"
    assert settled("schedule_free", schedule="constant", learning_rate=1e-3)[1] == []
    with pytest.raises(ConfigError) as caught:
        settled("schedule_free", schedule="rex", ema=0.99)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "schedule is rex" in lines[0] and "ema is 0.99" in lines[1]
    assert caught.value.exit_code == 2


def test_a_missing_library_names_its_extra_before_anything_is_read(monkeypatch):
    """Nothing of these is installed where the finder finds nothing."""
    monkeypatch.setattr(optimization, "find_spec", lambda package: None)
    needs = {}
    for optimizer in ("adamw8bit", "lion", "prodigy", "schedule_free", "came", "muon"):
        with pytest.raises(MachineError) as caught:
            app.train(
                from_mapping({"train_data_dir": "no", "base_model": "no", "output_dir": "no", "optimizer": optimizer})
            )
        assert caught.value.exit_code == 4 and f"optimizer: {optimizer}" in str(caught.value)
        needs[optimizer] = str(caught.value.params["extra"])
    assert needs.pop("adamw8bit") == "quantized" and set(needs.values()) == {"optimizers"}
    for optimizer in ("adamw", "adafactor"):
        optimization.check_installed(
            from_mapping({"train_data_dir": "no", "base_model": "no", "output_dir": "no", "optimizer": optimizer})
        )


def test_steps_and_epochs_together_are_refused():
    given = {"train_data_dir": "x", "base_model": "y", "output_dir": "z", "steps": 100}
    assert from_mapping(given).steps == 100 and from_mapping({**given, "steps": "auto"}).steps is None
    with pytest.raises(ConfigError, match=r"epochs \(3\) and steps \(100\)"):
        from_mapping({**given, "epochs": 3})


def test_halves_of_double_precision_are_refused():
    given = {"train_data_dir": "x", "base_model": "y", "output_dir": "z", "base_precision": "float64"}
    assert from_mapping(given).base_precision == "float64"
    with pytest.raises(ConfigError, match="mixed_precision bf16"):
        from_mapping({**given, "mixed_precision": "bf16"})
