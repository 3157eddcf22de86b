"""Tiny bases and six pictures, made once; each test trains in its own folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny, tiny_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def text_base(tmp_path_factory) -> Path:
    return tiny_text.write_base(tmp_path_factory.mktemp("text") / "base")


@pytest.fixture(scope="session")
def text_adapter(text_base, tmp_path_factory) -> Path:
    """The PEFT folder of a run that moved the model."""
    from tests.app.text_runs import train

    folder = tmp_path_factory.mktemp("trained")
    train(folder, text_base, learning_rate=3e-2, epochs=6)
    return folder / "out"


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    tiny.tiny_pictures(folder, 6)
    rows = [f"{path.name},a thing number {i}" for i, path in enumerate(sorted(folder.glob("*.png")))]
    (folder / "metadata.csv").write_text("file_name,prompt\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def config_file(tmp_path, base_folder, pictures) -> Path:
    """Four epochs of two steps; float32, so that any machine gives the same."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""\
train_data_dir: "{pictures}"
base_model: "{base_folder}"
output_dir: "{tmp_path / "out"}"
cache_dir: "{tmp_path / "cache"}"
lora_rank: 2
batch_size: 2
epochs: 4
learning_rate: 1e-2
save_steps: 3
base_precision: float32
lora_dropout: 0.1
flip: true
caption: {{dropout: 0.2}}
preview: false
"""
    )
    return path


@pytest.fixture
def command(tmp_path):
    """Run `lora-scripts` in a process of its own; returns the finished process."""

    def run(*words: object, **options):
        return subprocess.run(
            [sys.executable, "-c", "import sys; from lora_scripts.cli import main; sys.exit(main())", *map(str, words)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    return run
