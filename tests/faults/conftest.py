"""A tiny base, and both ways to the plan: the command a person types, and what it prints before the first step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import tiny, tiny_text


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def text_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_base(tmp_path_factory.mktemp("text") / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command ended with: its exit code, and what it said on standard output and standard error."""

    code: int
    out: str
    error: str


@pytest.fixture
def settings(tmp_path: Path, base_folder: Path, data: Path) -> dict[str, Any]:
    """A short run over `data`."""
    return {
        "train_data_dir": str(data),
        "base_model": str(base_folder),
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
        "lora_rank": 2,
        "batch_size": 2,
        "epochs": 2,
        "base_precision": "float32",
        "preview": False,
    }


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Run a verb with a config as a person would; whatever happens, it ends in sentences and a code of ours."""
    from lora_scripts.cli import main

    monkeypatch.chdir(tmp_path)

    def run(verb: str, settings: dict[str, Any], *words: str) -> Answer:
        # JSON is YAML.
        (tmp_path / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
        code = main([verb, "--config", "run.yaml", *words])
        out, error = capfd.readouterr()
        assert "Traceback" not in out + error
        assert not (tmp_path / "lora-scripts-error.log").exists(), (tmp_path / "lora-scripts-error.log").read_text()
        return Answer(code, out, error)

    return run


@pytest.fixture
def plan() -> Callable[[dict[str, Any]], str]:
    """Return the plan of a config as it is printed, without training."""
    from lora_scripts.cli import _plan_table
    from lora_scripts.config.load import from_mapping
    from lora_scripts.preparation import prepare

    return lambda settings: "\n".join(_plan_table.lines(prepare(from_mapping(settings))))


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Return the sha256 of every regular file below a folder, by its path."""
    return lambda folder: {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
