"""A kohya project, folders and training file, imported and trained: the same number of steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from lora_scripts import cli
from tests.importing.kohya_projects import SQUARE, WIDE, pictures, toml

# 5 squares and 3 wide pictures to learn from, the dog seen twice: 6 + 4 visits. As many of the others' own kind: two
# pictures in turn, 5 + 5. Squares come to 11 and wide ones to 9: ceil(11 / 4) + ceil(9 / 4) = 6 steps an epoch, where
# steps of any sizes, as ours are, would be ceil(20 / 4) = 5.
EXPECTED_STEPS = 6


@pytest.fixture
def training_file(tmp_path: Path, base_folder: Path) -> Path:
    pictures(
        tmp_path / "kohya/train/1_red cat", SQUARE, SQUARE, SQUARE, SQUARE, WIDE, WIDE, caption="a red cat, sitting"
    )
    pictures(tmp_path / "kohya/train/2_dog", SQUARE, WIDE)
    pictures(tmp_path / "kohya/reg/1_animal", SQUARE, WIDE)
    model = {"pretrained_model_name_or_path": str(base_folder)}
    data = {
        **{"train_data_dir": "train", "reg_data_dir": "reg", "resolution": "96,64", "caption_extension": ".txt"},
        **{"enable_bucket": True, "min_bucket_reso": 32, "bucket_reso_steps": 32, "bucket_no_upscale": False},
        **{"shuffle_caption": True, "keep_tokens": 1, "flip_aug": True, "prior_loss_weight": 0.5},
    }
    rest = {
        **{"output_dir": "out", "output_name": "cat", "network_module": "networks.lora", "network_dim": 2, "seed": 3},
        **{"network_args": ["conv_dim=1"], "unet_lr": 1e-3, "text_encoder_lr": 5e-4, "optimizer_type": "AdamW"},
        **{"max_train_epochs": 1, "train_batch_size": 4, "min_snr_gamma": 5},
        **{"lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 1, "save_every_n_epochs": 1, "xformers": True},
    }
    path = tmp_path / "kohya/train.toml"
    path.write_text(toml(model, "model") + toml(data, "data") + toml(rest, "rest"), encoding="utf-8")
    return path


def test_the_same_total_steps(training_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "kohya", str(training_file)]) == 0
    printed = capsys.readouterr().out
    assert f"Steps: {EXPECTED_STEPS}," in printed
    assert "lora-scripts check --config kohya-train.yaml" in printed
    assert (
        cli.main(["train", "--config", "kohya-train.yaml", "--set", "preview=false", "--set", "exporters=[kohya]"]) == 0
    )
    out = tmp_path / "kohya/out/cat"
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["state"] == "finished"
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event["step"] for event in events if event["event"] == "Stepped"]
    assert steps == list(range(1, EXPECTED_STEPS + 1))
    # The text encoder learned too, and the convolutions with a rank of their own.
    with safe_open(out / "cat.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        convolution = next(name for name in names if name.endswith("resnets_0_conv1.lora_down.weight"))
        assert file.get_tensor(convolution).shape[0] == 1
    assert any(name.startswith("lora_te") for name in names)
    assert metadata["ss_steps"] == metadata["ss_max_train_steps"] == str(EXPECTED_STEPS)
