"""A kohya project becomes a config of ours, and every setting of it gets a verdict."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lora_scripts.config.load import load
from lora_scripts.errors import ConfigError
from lora_scripts.importing import kohya
from tests.importing.kohya_projects import EVERY_KEY, MINIMAL, SQUARE, WIDE, imported, pictures, project, toml, verdicts

BUCKETS = {"enable_bucket": True, "min_bucket_reso": 32, "bucket_reso_steps": 32, "resolution": "96,64"}


def test_every_key_of_train_network_gets_one_verdict(tmp_path: Path) -> None:
    assert len(EVERY_KEY) > 190
    lines = imported(project(tmp_path), EVERY_KEY).lines
    counts = Counter(line.key.partition(".")[0] for line in lines if line.given)
    assert {key: counts[key] for key in EVERY_KEY if counts[key] != 1 and not key.endswith("_args")} == {}
    assert counts["network_args"] == 2
    assert counts["optimizer_args"] == 1
    assert [line.key for line in lines if line.note and line.note.code == "import.why.unknown"] == []
    assert {line.verdict for line in lines} == {"understood", "changed", "unsupported"}


def test_an_unknown_key_is_not_supported(tmp_path: Path) -> None:
    found = imported(project(tmp_path), MINIMAL | {"no_such_setting": False})
    (line,) = [line for line in found.lines if line.key == "no_such_setting"]
    assert (line.verdict, line.note and line.note.code) == ("unsupported", "import.why.unknown")


def test_secrets_are_neither_shown_nor_written(tmp_path: Path) -> None:
    found = imported(project(tmp_path), EVERY_KEY)
    shown = " ".join(line.value for line in found.lines)
    assert "hf_secret" not in shown and "wandb_secret" not in shown
    assert all(b"_secret" not in data.replace(b"_secrets", b"") for data in found.contents.values())


def test_every_value_goes_where_it_belongs(tmp_path: Path) -> None:
    tree = imported(project(tmp_path), EVERY_KEY).tree
    expected = {
        "base_model": str(tmp_path / "base"),
        "prediction_type": "v_prediction",
        "clip_skip": 2,
        "resolution": 78,  # the root of 64 x 96
        "batch_size": 2,
        "gradient_accumulation": 2,
        "output_dir": str(tmp_path / "out/n"),
        "name": "n",
        "seed": 7,
        "lora_rank": 16,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "lora_targets": "kohya+conv",
        "init_lora": str(tmp_path / "old.safetensors"),
        "train_text_encoder": {"learning_rate": 5e-5},
        "learning_rate": 1e-4,
        "optimizer": {"name": "lion", "weight_decay": 0.1},
        "schedule": {"name": "polynomial", "power": 1.5, "floor": 0.1},
        "warmup": 7,
        "max_grad_norm": 0.5,
        "gradient_checkpointing": True,
        "offload_blocks": 2,
        "noise_offset": 0.05,
        "min_snr_gamma": 5.0,
        "loss": "huber",
        "mixed_precision": "fp16",
        "base_precision": "fp8",
        "save_steps": 11,
        "keep_checkpoints": 4,
        "validation": {"share": 0.25, "every": 8},
        "preview": {"prompts": ["a cat", "a dog"], "steps": 12},
    }
    assert {key: tree[key] for key in expected} == expected
    assert tree["caption"] == {
        "shuffle": True,
        "keep_tokens": 1,
        "keep_separator": "|||",
        "prefix": "pre",
        "suffix": "suf",
        "dropout": 0.1,
        "tag_dropout": 0.2,
    }
    first, second, third = tree["datasets"]
    assert {"path": str(tmp_path / "train/1_dog"), "class_words": "dog", "flip": True}.items() <= first.items()
    masked = {"path": str(tmp_path / "train/3_red cat"), "repeats": 3, "mask": str(tmp_path / "masks")}
    assert masked.items() <= second.items()
    # Those that keep the base have no masks there; their own transparency still counts.
    assert {"regularisation": True, "weight": 0.5, "mask": "alpha"}.items() <= third.items()
    (layer,) = tree["lora_layers"]
    assert (layer["rank"], layer["alpha"]) == (4, 1.0)


def test_what_is_left_out_gets_kohyas_defaults(tmp_path: Path) -> None:
    found = imported(project(tmp_path), MINIMAL)
    tree = found.tree
    expected = {
        "base_model": "owner/name",
        "lora_rank": 4,
        "lora_alpha": 1.0,
        "learning_rate": 2e-6,
        "train_text_encoder": {"learning_rate": 2e-6},
        "batch_size": 1,
        "gradient_accumulation": 1,
        "steps": 1600,
        "optimizer": "adamw",
        "schedule": "constant",
        "warmup": 0,
        "mixed_precision": "float32",
        "seed": 42,
    }
    assert {key: tree[key] for key in expected} == expected
    told = {line.key for line in found.lines if not line.given}
    assert {"network_dim", "network_alpha", "learning_rate", "max_train_steps", "seed", "optimizer_type"} <= told


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # Squares: 3 + 3 + 1 visits, wide: 3 + 1; one bucket each with buckets, one for all without.
        ({"max_train_epochs": 5}, 5 * 11),
        ({"max_train_epochs": 5, "train_batch_size": 4}, 5 * 3),
        # ceil(7 / 3) + ceil(4 / 3) in two buckets, ceil(11 / 3) in one.
        ({"max_train_epochs": 5, "train_batch_size": 3, **BUCKETS}, 5 * 5),
        ({"max_train_epochs": 5, "train_batch_size": 3, "resolution": "96,64"}, 5 * 4),
        ({"max_train_epochs": 5, "train_batch_size": 4, "gradient_accumulation_steps": 2}, 5 * 2),
        ({"max_train_epochs": 5, "max_train_steps": 3}, 5 * 11),
        ({"max_train_steps": 3}, 3),
        # As many regularisation visits as others: 11 + 11.
        ({"max_train_epochs": 2, "reg_data_dir": "reg", "train_batch_size": 4}, 2 * 6),
        # A quarter of each folder held out: 3 of 3 (2.25 rounded up) and 2 of 2 stay.
        ({"max_train_epochs": 1, "validation_split": 0.25}, 11),
        ({"max_train_epochs": 1, "validation_split": 0.5}, 2 * 3 + 1),
    ],
)
def test_steps(tmp_path: Path, settings: dict[str, Any], steps: int) -> None:
    found = imported(project(tmp_path), MINIMAL | settings)
    assert found.steps == found.tree["steps"] == steps


def test_a_data_sets_file(tmp_path: Path) -> None:
    pictures(tmp_path / "a", SQUARE, SQUARE, WIDE, caption="first", suffix=".caption")
    pictures(tmp_path / "b", SQUARE, caption="second")
    text = toml({"shuffle_caption": True, "enable_bucket": True, "caption_extension": ".txt"}, "general")
    text += "[[datasets]]\nresolution = [64, 64]\nbatch_size = 2\nwhat = 1\n"
    text += '[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 2\nclass_tokens = "cat"\ncolor_aug = true\n'
    text += '[[datasets.subsets]]\nimage_dir = "b"\nis_reg = true\nkeep_tokens = 2\n'
    text += '[[datasets.subsets]]\nimage_dir = "b"\n'
    (tmp_path / "data.toml").write_text(text, encoding="utf-8")
    settings = {"pretrained_model_name_or_path": "owner/name", "dataset_config": "data.toml", "max_train_epochs": 3}
    found = imported(tmp_path, settings)
    first, second = found.tree["datasets"]
    assert first["repeats"] == 2
    assert first["caption"] == {"shuffle": True}
    assert second["caption"] == {"shuffle": True, "keep_tokens": 2}
    assert (second["regularisation"], second["visits"]) == (True, 6)
    # Without smaller bounds every picture gets 256 pixels at least: one bucket; 6 + 6 visits by 2.
    assert found.steps == 3 * 6
    lines = verdicts(found)
    assert lines["datasets[0].subsets[0].color_aug"] == lines["datasets[0].what"] == "unsupported"
    assert lines["datasets[0].subsets[2].image_dir"] == "changed"
    assert lines["datasets[0].resolution"] == lines["general.shuffle_caption"] == "understood"


def test_the_same_folders_at_several_resolutions(tmp_path: Path) -> None:
    pictures(tmp_path / "a", SQUARE, WIDE)
    sets = "".join(
        f'[[datasets]]\nresolution = {side}\nbatch_size = {batch}\n[[datasets.subsets]]\nimage_dir = "a"\n'
        for side, batch in ((64, 2), (128, 1))
    )
    (tmp_path / "data.toml").write_text(sets, encoding="utf-8")
    settings = {"pretrained_model_name_or_path": "o/n", "dataset_config": "data.toml", "max_train_epochs": 1}
    found = imported(tmp_path, settings)
    assert found.tree["resolution"] == [64, 128]
    assert len(found.tree["datasets"]) == 1
    assert found.steps == 1 + 2
    assert verdicts(found)["datasets[1].batch_size"] == "changed"


def test_captions_are_those_that_kohya_would_read(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "train/1_cat", SQUARE, SQUARE, SQUARE)
    (folder / "0.txt").write_text("first line\nsecond line", encoding="utf-8")
    (folder / "1.caption").write_text("not read there", encoding="utf-8")
    found = imported(tmp_path, MINIMAL | {"caption_extension": ".txt"})
    path = Path(found.tree["datasets"][0]["metadata"])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["first line", "cat", "cat"]
    assert verdicts(found)["caption_extension"] == "changed"
    # What both read alike needs no table.
    (folder / "0.txt").write_text("first line", encoding="utf-8")
    (folder / "1.caption").unlink()
    assert "metadata" not in imported(tmp_path, MINIMAL | {"caption_extension": ".txt"}).tree["datasets"][0]


def test_the_fine_tuning_style(tmp_path: Path) -> None:
    pictures(tmp_path / "train", SQUARE, SQUARE)
    said = {"0": {"caption": "a cat", "tags": "red, small"}}
    (tmp_path / "meta.json").write_text(json.dumps(said), encoding="utf-8")
    found = imported(tmp_path, MINIMAL | {"in_json": "meta.json", "max_train_epochs": 1, "dataset_repeats": 3})
    assert found.steps == 3
    (table,) = [data for path, data in found.contents.items() if path.suffix == ".jsonl"]
    assert json.loads(table) == {"file_name": "0.png", "text": "a cat,red, small"}


def test_the_windows_file(tmp_path: Path) -> None:
    settings = {
        **{"LoRA_type": "Kohya LoCon", "pretrained_model_name_or_path": "owner/name", "train_data_dir": "train"},
        **{"max_resolution": "64,64", "optimizer": "Lion", "optimizer_args": "", "epoch": 2, "train_batch_size": 4},
        **{"max_train_steps": 0, "max_train_epochs": 0, "lr_warmup": 50, "seed": "", "conv_dim": 2, "conv_alpha": 1},
        **{"network_dim": 8, "network_alpha": 4, "unet_lr": 1e-4, "text_encoder_lr": 0, "learning_rate": 1e-3},
        **{"noise_offset_type": "Original", "multires_noise_iterations": 8, "min_snr_gamma": 0, "factor": -1},
        **{"xformers": "none", "down_lr_weight": "", "reg_data_dir": "", "LyCORIS_preset": "full", "use_cp": False},
        **{"sample_prompts": "a cat --w 64\na dog", "additional_parameters": "--color_aug --caption_prefix=x --seed 5"},
    }
    found = imported(project(tmp_path), settings, "project.json")
    tree = found.tree
    # 11 visits in batches of 4 for 2 epochs: the window rounds once, at the end.
    assert found.steps == 6
    assert (tree["warmup"], tree["seed"], tree["caption"]["prefix"]) == (3, 5, "x")
    assert tree["train_text_encoder"] is False
    assert tree["preview"]["prompts"] == ["a cat", "a dog"]
    assert (tree["lora_targets"], tree["lora_layers"][0]["rank"]) == ("kohya+conv", 2)
    lines = verdicts(found)
    assert [key for key in settings if not any(line.split(".")[0] == key for line in lines)] == []
    assert lines["additional_parameters.color_aug"] == "unsupported"
    assert lines["multires_noise_iterations"] == "understood"
    assert [line.key for line in found.lines if line.note and line.note.code == "import.why.unknown"] == []


def test_numbered_folders_alone(tmp_path: Path) -> None:
    root = project(tmp_path) / "train"
    pictures(root / "unnumbered", SQUARE)
    found = kohya.read(root, tmp_path / "ours.yaml")
    assert [section.get("repeats", 1) for section in found.tree["datasets"]] == [1, 3]
    assert found.steps == 0
    assert not found.complete
    assert verdicts(found) == {
        "train/1_dog": "understood",
        "train/3_red cat": "understood",
        "train/unnumbered": "unsupported",
    }


def test_the_file_says_where_each_value_is_from(tmp_path: Path) -> None:
    imported(project(tmp_path), MINIMAL | {"network_dim": 16})
    text = (tmp_path / "ours.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Imported by lora-scripts from train.toml.")
    assert "lora_rank: 16" in text and "# network_dim = 16" in text
    assert "# network_alpha: default" in text


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    (project(tmp_path) / "train.toml").write_text(toml(MINIMAL), encoding="utf-8")
    mine = tmp_path / "ours.yaml"
    mine.write_text("mine", encoding="utf-8")
    found = kohya.read(tmp_path / "train.toml", mine)
    with pytest.raises(ConfigError, match="--overwrite"):
        kohya.save(found)
    assert mine.read_text(encoding="utf-8") == "mine"
    kohya.save(found, overwrite=True)
    # The same again is no other file.
    kohya.save(found)
    load(mine)
