"""What every test stands on: no network, one thread, English, and a home folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# Set before any test file is imported: the libraries read these when they are.
os.environ |= {
    "HF_HOME": tempfile.mkdtemp(prefix="lora-scripts-tests-"),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LORA_SCRIPTS_LANG": "en",
}

import hypothesis
import pytest

# Derandomized: a red test is red for everyone; no deadline: shared machines stall.
hypothesis.settings.register_profile("offline", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("offline")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder for this test and the processes it starts; the user's caches are never touched."""
    folder = tmp_path_factory.mktemp("home")
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder))
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(folder / ".cache"))
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "LORA_SCRIPTS_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def cache_dir(home: Path) -> Path:
    """The folder where this test's caches lie."""
    folder = home / ".cache"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]
