"""The toy captioner, known to every test of this folder, and a way to label as the command line does."""

from __future__ import annotations

import pytest

from lora_scripts.cli import main
from tests import toy_labels


@pytest.fixture
def toy(tmp_path, monkeypatch):
    toy_labels.register(tmp_path / "plug", monkeypatch)
    yield
    toy_labels.forget()


@pytest.fixture
def pictures(tmp_path):
    return toy_labels.folder(tmp_path / "data")


@pytest.fixture
def label(toy, pictures, capsys):
    """Label the folder; returns (exit code, standard output, standard error)."""

    def run(*words: str, folder=pictures, captioner="toy"):
        code = main(["label", "--input", str(folder), "--captioner", captioner, *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
