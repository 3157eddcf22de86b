"""`lora-scripts import kohya` at the terminal: three lists, the file, and what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_scripts import cli
from lora_scripts.config.load import load
from tests.importing.kohya_projects import EVERY_KEY, project, toml


@pytest.fixture
def training_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = project(tmp_path) / "train.toml"
    path.write_text(toml(EVERY_KEY), encoding="utf-8")
    return path


def test_three_lists_with_their_counts(training_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "kohya", "train.toml"]) == 0
    printed = capsys.readouterr().out
    assert "network_dim = 16 -> lora_rank: 16" in printed
    assert "resolution = 64,96 -> resolution: 78: width and height only say the area" in printed
    assert "color_aug = true: pictures are only mirrored here (flip)" in printed
    assert "max_grad_norm = 0.5" in printed
    counts = [int(line.split("(")[1].split(")")[0]) for line in printed.splitlines() if line.endswith("):")]
    # Arguments and folders have lines of their own: one more argument, and three folders.
    assert sum(counts) == len(EVERY_KEY) + 1 + 3
    assert "Next: lora-scripts check --config kohya-train.yaml" in printed
    assert load(Path("kohya-train.yaml")).lora_rank == 16


def test_in_chinese(training_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_SCRIPTS_LANG", "zh_CN")
    assert cli.main(["import", "kohya", "train.toml", "--output", "mine.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "已理解" in printed and "有改动" in printed and "不支持" in printed and "mine.yaml" in printed
    assert Path("mine.yaml").read_text(encoding="utf-8").startswith("# 由 lora-scripts 从 train.toml 导入")


def test_what_is_there_stays(training_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("kohya-train.yaml").write_text("mine", encoding="utf-8")
    assert cli.main(["import", "kohya", "train.toml"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("kohya-train.yaml").read_text(encoding="utf-8") == "mine"
    assert cli.main(["import", "kohya", "train.toml", "--overwrite"]) == 0


def test_folders_alone_ask_for_a_base(training_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "kohya", "train"]) == 0
    printed = capsys.readouterr().out
    assert '3_red cat = 3 pictures -> repeats: 3, class_words: "red cat"' in printed
    assert "--set base_model=BASE" in printed


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["absent.toml"], 2, "does not exist"),
        (["masks"], 3, "no folder such as 10_name"),
        (["train.toml", "--output", "train"], 2, "is a folder"),
        (["train.toml", "--output", "absent/x.yaml"], 2, "does not exist"),
    ],
)
def test_refusals_are_one_sentence(
    training_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str
) -> None:
    assert cli.main(["import", "kohya", *words]) == code
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said
