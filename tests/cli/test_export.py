"""`lora-scripts export` as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts import cli, exporting, merging
from lora_scripts.cli import export
from tests.adapters import language
from tests.test_exporting import trained


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return trained(tmp_path / "lora", language.save_base(tmp_path / "base"))


def test_the_verb_knows_what_there_is():
    assert export.TARGETS == exporting.TARGETS and tuple(merging.DTYPE_NAMES) == export.DTYPES


@pytest.mark.parametrize(("language_code", "word"), [("en", "loaded again"), ("zh_CN", "重新读取")])
def test_it_says_what_it_wrote_and_compared(lora: Path, language_code: str, word: str, capsys, monkeypatch):
    monkeypatch.setenv("LORA_SCRIPTS_LANG", language_code)
    for to, name in (("peft", "peft"), ("gguf", "tiny drafts.gguf"), ("merged", "merged")):
        assert cli.main(["export", "--adapter", str(lora), "--to", to]) == 0
        printed = capsys.readouterr()
        assert str(lora / name) in printed.out and word in printed.out and printed.err == ""
        assert (lora / name).exists()


def test_exit_codes(lora: Path, tmp_path: Path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    absent, full, out = str(tmp_path / "absent"), str(tmp_path / "full"), str(tmp_path / "full" / "x" / "y.gguf")
    for words, code in (
        (["--adapter", absent, "--to", "gguf"], 2),
        (["--adapter", str(lora), "--to", "merged", "--base", absent], 2),
        (["--adapter", str(lora), "--to", "merged", "--output", full], 2),
        (["--adapter", str(lora), "--to", "gguf", "--dtype", "bf16"], 2),
        (["--adapter", str(lora), "--to", "gguf", "--output", out], 4),
    ):
        assert cli.main(["export", *words]) == code
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "Traceback" not in printed.err
    for words in (["--to", "onnx"], []):
        with pytest.raises(SystemExit) as caught:
            cli.main(["export", "--adapter", str(lora), *words])
        assert caught.value.code == 2
