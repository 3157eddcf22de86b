"""What is no kohya project is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_scripts.errors import ConfigError, DataError, LoraScriptsError
from lora_scripts.importing import kohya
from tests.importing.kohya_projects import project


def big(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100_000_000)


@pytest.mark.parametrize(
    ("name", "content", "error", "sentence"),
    [
        ("absent.toml", None, ConfigError, "does not exist"),
        ("a.toml", b"this is no TOML", ConfigError, "not valid TOML"),
        ("a.json", b"{broken", ConfigError, "not valid JSON"),
        ("a.json", b"[" * 100_000, ConfigError, "not valid JSON"),
        ("a.json", b"[1, 2]", ConfigError, "holds a list"),
        ("a.toml", b"\x89PNG\r\n\x1a\n\0\0", ConfigError, "not UTF-8"),
        ("a.toml", b"a = 'b\0c'", ConfigError, "not UTF-8"),
        ("a.toml", big, ConfigError, "larger than 1024 KiB"),
        ("a.toml", b"[project]\nname = 'x'\n", ConfigError, "no kohya config"),
        ("a.toml", b"network_module = 'networks.lora'", ConfigError, "neither train_data_dir nor dataset_config"),
        ("a.toml", b"dataset_config = 'gone.toml'", ConfigError, "gone.toml does not exist"),
        ("a.toml", b"dataset_config = 'a.toml'", ConfigError, "no [[datasets]]"),
        ("a.toml", b"train_data_dir = 'gone'", DataError, "gone does not exist"),
        ("a.toml", b"train_data_dir = 'masks'", DataError, "no folder such as 10_name"),
        ("a.toml", b"train_data_dir = 'train'\nreg_data_dir = 'gone'", DataError, "gone does not exist"),
        ("a.toml", b"train_data_dir = 'train'\nnetwork_dim = 'many'", ConfigError, "network_dim is many"),
        ("a.toml", b"train_data_dir = 'train'\nnetwork_dim = 100000", ConfigError, "lora_rank"),
        ("a.toml", b"train_data_dir = 'train'\nresolution = 'big'", ConfigError, "resolution is big"),
        ("a.toml", b"train_data_dir = 'train'\nresolution = [1, 2, 3]", ConfigError, "resolution is"),
        ("a.toml", b"train_data_dir = 'train'\nlearning_rate = inf", ConfigError, "learning_rate is inf"),
        ("a.toml", b"train_data_dir = 'train'\nin_json = 'a.toml'", DataError, "no metadata file"),
        ("a.toml", b"train_data_dir = 'train'\nnetwork_args = ['block_dims=1,2', 'block_alphas=1,2']", None, ""),
        ("a.toml", b"[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", ConfigError, "no image_dir"),
        ("a.toml", b"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'gone'", DataError, "gone does not exist"),
        ("a.toml", b"[[datasets]]\nresolution = 64", DataError, "no picture"),
        ("a.toml", b"datasets = [{subsets = 5}]", ConfigError, "subsets is 5"),
        ("a.toml", b"general = 5\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'masks'", None, ""),
    ],
)
def test_what_is_no_project_is_told_in_one_sentence(
    tmp_path: Path, name: str, content: Any, error: type[LoraScriptsError] | None, sentence: str
) -> None:
    path = project(tmp_path) / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    if error is None:
        kohya.read(path, tmp_path / "ours.yaml")
        return
    with pytest.raises(error) as raised:
        kohya.read(path, tmp_path / "ours.yaml")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
