"""A run on a base with two text encoders, from a folder and from one file, with nothing but the usual keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_scripts import app
from lora_scripts.config.load import load
from lora_scripts.errors import ConfigError
from tests import tiny

RUN = """\
train_data_dir: "{pictures}"
base_model: "{base}"
lora_rank: 2
batch_size: 2
epochs: 1
learning_rate: 2e-2
output_dir: "{out}"
save_steps: 100
base_precision: float32
cache_dir: "{cache}"
preview: false
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("xl")
    return {"folder": tiny.tiny_sdxl_folder(root / "tiny"), "file": tiny.tiny_sdxl_file(root / "tiny.safetensors")}


def config(tmp_path: Path, pictures: Path, base: Path, name: str) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(RUN.format(pictures=pictures, base=base, out=tmp_path / name, cache=tmp_path / "cache"))
    return path


def test_folder_and_file_train_the_same_lora(bases, pictures, tmp_path):
    """The same keys; the same values up to what the last bits of the two loaders' memory make of them."""
    trained = {}
    for kind, base in bases.items():
        # The two say another native size; small pictures are never scaled up.
        app.train(load(config(tmp_path, pictures, base, kind), ["resolution=32", "train_text_encoder=true"]))
        trained[kind] = load_file(tmp_path / kind / f"{kind}.safetensors")
        assert (tmp_path / kind / "pytorch_lora_weights.safetensors").exists()
        record = json.loads((tmp_path / kind / "run.json").read_text())
        assert record["state"] == "finished"
    one, other = trained["folder"], trained["file"]
    assert one.keys() == other.keys() and len(one) > 300
    starts = {name.split("_")[1] for name in one}
    assert starts == {"unet", "te1", "te2"}
    assert any(name.startswith("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.") for name in one)
    worst = max(float((one[name] - other[name]).abs().max()) for name in one)
    moved = [name for name in one if name.endswith("lora_up.weight") and float(one[name].abs().max()) > 1e-3]
    assert worst < 1e-3 and len(moved) > 100


def test_the_header_says_which_base_and_how_many_layers_were_skipped(bases, pictures, tmp_path):
    app.train(load(config(tmp_path, pictures, bases["folder"], "skip"), ["clip_skip=2", "lora_targets=attention"]))
    with safe_open(tmp_path / "skip" / "skip.safetensors", "pt") as file:
        said = file.metadata()
    assert said["ss_clip_skip"] == "2"
    assert said["ss_base_model_version"].startswith("sdxl_")


def test_another_familys_name_is_refused(bases, pictures, tmp_path):
    path = config(tmp_path, pictures, bases["file"], "wrong")
    with pytest.raises(ConfigError) as caught:
        app.train(load(path, ["family=sd"]))
    assert caught.value.code == "config.family_differs" and "sdxl" in str(caught.value)


def test_previews_are_drawn_in_float32_by_the_vae(bases, pictures, tmp_path):
    wish = "preview={prompts: [a thing], steps: 1}"
    app.train(load(config(tmp_path, pictures, bases["folder"], "drawn"), [wish, "base_precision=float64"]))
    assert (tmp_path / "drawn" / "previews" / "before_after.png").stat().st_size > 1000
    assert torch.get_default_dtype() == torch.float32
