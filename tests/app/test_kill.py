"""kill -9 at three moments; the same command again ends with the bytes of a run that was never touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("out.safetensors", "pytorch_lora_weights.safetensors")


def bytes_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def start(config_file: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--config", str(config_file)],
        cwd=config_file.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def steps_done(folder: Path) -> int:
    events = folder / "events.jsonl"
    return events.read_text().count('"Stepped"') if events.exists() else 0


def staged(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".staged-*"))


MOMENTS = {
    "between two saves": lambda out: steps_done(out) >= 5,
    "while a checkpoint is written": lambda out: steps_done(out) >= 3 and staged(out),
    "while the cache is filled": lambda out: any((out.parent / "cache").rglob("*.safetensors")),
}


@pytest.fixture
def long_config(config_file):
    path = config_file
    path.write_text(path.read_text().replace("epochs: 4", "epochs: 12"))
    return path


def test_kill_nine_and_the_same_command_again(long_config, tmp_path):
    out = tmp_path / "out"
    whole = start(long_config)
    assert whole.wait(240) == 0, whole.stderr.read().decode()
    expected = bytes_of(out)
    import shutil

    for name, moment in MOMENTS.items():
        for folder in ("out", "cache"):
            shutil.rmtree(tmp_path / folder)
        process = start(long_config)
        wait_for(lambda moment=moment: moment(out), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / FILES[0]).exists(), name
        again = start(long_config)
        assert again.wait(240) == 0, again.stderr.read().decode()
        assert bytes_of(out) == expected, name


def test_a_polite_kill_saves_and_says_143(long_config, tmp_path):
    out = tmp_path / "out"
    process = start(long_config)
    wait_for(lambda: steps_done(out) >= 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "Stopped at step" in process.stderr.read().decode()
    assert any((out / "checkpoints").glob("step-*/manifest.json"))
