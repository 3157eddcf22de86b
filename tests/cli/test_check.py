"""`check --memory`: the ladder as a table, the lines for the config, and an exit code where nothing fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lora_scripts import units
from lora_scripts.cli import main
from tests import tiny

MIB = 1 << 20
PICTURES = 48


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    values = {
        "train_data_dir": str(tiny.tiny_pictures(tmp_path / "pictures", PICTURES)),
        "base_model": str(tiny.tiny_sd_folder(tmp_path / "base")),
        "base_precision": "float32",
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
        "batch_size": PICTURES,
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_ladder_names_the_first_rung_that_fits(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Its lines are YAML that the config takes, and with them the same size fits as it is."""
    from lora_scripts import counting

    monkeypatch.setenv("COLUMNS", "200")
    # This process holds whatever tests ran before.
    monkeypatch.setattr(counting.memory, "used_bytes", lambda device: 400 << 20)
    assert main(["check", "--config", str(config), "--memory", "10MiB"]) == 4
    said = capsys.readouterr()
    assert "Nothing fits into 10.0 MiB" in said.err
    assert "text encoders and VAE leave" in said.out
    rows = [line for line in said.out.splitlines() if re.search(r"[0-9]x  ", line)]
    assert len(rows) == 6
    assert "1.00x" in rows[0]
    sizes = [units.parse_bytes(re.search(r"[0-9.]+ [MG]iB", row)[0]) for row in rows]
    assert sizes[2] + 8 * MIB < min(sizes[:2])
    assert f"at least {units.format_bytes(min(sizes))}" in said.err

    limit = f"{sizes[2] // MIB + 2}MiB"
    assert main(["check", "--config", str(config), "--memory", limit]) == 0
    table, lines = capsys.readouterr().out.split("Lines for the config:")
    assert "one example at a time" in table.splitlines()[-1]
    values = yaml.safe_load(lines)
    assert values == {"base_precision": "bf16", "batch_size": 1, "gradient_accumulation": 48}
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert main(["check", "--config", str(config), "--memory", limit, *overrides]) == 0
    assert "fits as it is" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["banana", "0", "-3GiB", "", "8 GiB of it"])
def test_a_size_that_is_none_is_refused_before_anything_is_read(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["check", "--config", str(tmp_path / "absent.yaml"), f"--memory={value}"]) == 2
    assert "8GiB" in capsys.readouterr().err


def test_without_a_size_it_says_where_the_run_does_not_fit(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from lora_scripts import counting

    assert main(["check", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "Estimate: about" in said
    assert "--memory" not in said
    monkeypatch.setattr(counting.memory, "free_bytes", lambda device: 0)
    monkeypatch.setattr(counting.memory, "used_bytes", lambda device: 100 << 20)
    assert main(["check", "--config", str(config)]) == 0
    assert "--memory 100.0MiB" in capsys.readouterr().out
