"""Kohya projects for tests: small folders of pictures, and every setting that sd-scripts' train_network knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lora_scripts.config.load import load
from lora_scripts.importing import kohya
from lora_scripts.importing.kohya import Imported

WIDE, SQUARE = (96, 64), (64, 64)

# As its command line names them, with values that are not the defaults.
EVERY_KEY: dict[str, Any] = {
    # The base and what is written into the file.
    **{"v2": True, "v_parameterization": True, "pretrained_model_name_or_path": "base", "tokenizer_cache_dir": "t"},
    **{"metadata_title": "a", "metadata_author": "b", "metadata_description": "c", "metadata_license": "d"},
    **{"metadata_tags": "e", "metadata_usage_hint": "f", "metadata_thumbnail": "g", "metadata_merged_from": "h"},
    **{"metadata_trigger_phrase": "i", "metadata_preprocessor": "j", "metadata_is_negative_embedding": "k"},
    **{"console_log_level": "INFO", "console_log_file": "l", "console_log_simple": True},
    # Optimizer and schedule.
    **{"optimizer_type": "Lion8bit", "use_8bit_adam": True, "use_lion_optimizer": True, "learning_rate": 3e-4},
    **{"max_grad_norm": 0.5, "optimizer_args": ["weight_decay=0.1"], "lr_scheduler_type": "", "lr_scheduler_args": []},
    **{"lr_scheduler": "polynomial", "lr_warmup_steps": 7, "lr_decay_steps": 3, "lr_scheduler_num_cycles": 2},
    **{"lr_scheduler_power": 1.5, "fused_backward_pass": True, "lr_scheduler_timescale": 5},
    **{"lr_scheduler_min_lr_ratio": 0.1},
    # Where results go.
    **{"output_dir": "out", "output_name": "n", "huggingface_repo_id": "a/b", "huggingface_repo_type": "model"},
    **{"huggingface_path_in_repo": "p", "huggingface_token": "hf_secret", "huggingface_repo_visibility": "public"},
    **{"save_state_to_huggingface": True, "resume_from_huggingface": True, "async_upload": True},
    **{"save_precision": "fp16", "save_every_n_epochs": 2, "save_every_n_steps": 11, "save_n_epoch_ratio": 3},
    **{"save_last_n_epochs": 4, "save_last_n_epochs_state": 5, "save_last_n_steps": 33, "save_last_n_steps_state": 44},
    **{"save_state": True, "save_state_on_train_end": True, "resume": "state", "save_model_as": "ckpt"},
    # How it is trained.
    **{"train_batch_size": 2, "max_token_length": 225, "mem_eff_attn": True, "torch_compile": True},
    **{"dynamo_backend": "eager", "xformers": True, "sdpa": True, "vae": "vae.pt", "max_train_steps": 99},
    **{"max_train_epochs": 3, "max_data_loader_n_workers": 2, "persistent_data_loader_workers": True, "seed": 7},
    **{"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "mixed_precision": "fp16", "full_fp16": True},
    **{"full_bf16": True, "fp8_base": True, "fp8_base_unet": True, "ddp_timeout": 1, "blocks_to_swap": 2},
    **{"ddp_gradient_as_bucket_view": True, "ddp_static_graph": True, "clip_skip": 2, "lowram": True},
    **{"highvram": True, "cpu_offload_checkpointing": True, "no_half_vae": True, "prior_loss_weight": 0.5},
    **{"deepspeed": True, "zero_stage": 2, "offload_optimizer_device": "cpu", "offload_optimizer_nvme_path": "q"},
    **{"offload_param_device": "cpu", "offload_param_nvme_path": "r", "zero3_init_flag": True},
    **{"zero3_save_16bit_model": True, "fp16_master_weights_and_gradients": True},
    # Logs.
    **{"logging_dir": "logs", "log_with": "wandb", "log_prefix": "s", "log_tracker_name": "u", "wandb_run_name": "w"},
    **{"log_tracker_config": "x", "wandb_api_key": "wandb_secret", "log_config": True},
    # Noise and loss.
    **{"noise_offset": 0.05, "noise_offset_random_strength": True, "multires_noise_iterations": 6},
    **{"multires_noise_discount": 0.2, "ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
    **{"adaptive_noise_scale": 0.01, "zero_terminal_snr": True, "min_timestep": 10, "max_timestep": 900},
    **{"loss_type": "smooth_l1", "huber_schedule": "exponential", "huber_c": 0.2, "huber_scale": 2.0},
    **{"min_snr_gamma": 5.0, "scale_v_pred_loss_like_noise_pred": True, "v_pred_like_loss": 0.1},
    **{"debiased_estimation_loss": True, "weighted_captions": True, "scale_weight_norms": 1.0},
    # Samples and validation.
    **{"sample_every_n_steps": 5, "sample_at_first": True, "sample_every_n_epochs": 1, "sample_prompts": "prompts.txt"},
    **{"sample_sampler": "euler_a", "validation_seed": 1, "validation_split": 0.25, "validate_every_n_steps": 8},
    **{"validate_every_n_epochs": 2, "max_validation_steps": 4},
    # Data.
    **{"train_data_dir": "train", "reg_data_dir": "reg", "cache_info": True, "shuffle_caption": True},
    **{"caption_separator": ";", "caption_extension": ".txt", "caption_extention": ".txt", "keep_tokens": 1},
    **{"keep_tokens_separator": "|||", "secondary_separator": ";;;", "enable_wildcard": True, "caption_prefix": "pre"},
    **{"caption_suffix": "suf", "color_aug": True, "flip_aug": True, "face_crop_aug_range": "2.0,4.0"},
    **{"random_crop": True, "debug_dataset": True, "resolution": "64,96", "cache_latents": True, "vae_batch_size": 4},
    **{"cache_latents_to_disk": True, "skip_cache_check": True, "enable_bucket": True, "min_bucket_reso": 32},
    **{"max_bucket_reso": 128, "bucket_reso_steps": 32, "bucket_no_upscale": True, "resize_interpolation": "area"},
    **{"token_warmup_min": 2, "token_warmup_step": 3, "alpha_mask": True, "dataset_class": "a.B"},
    **{"caption_dropout_rate": 0.1, "caption_dropout_every_n_epochs": 2, "caption_tag_dropout_rate": 0.2},
    **{"in_json": "", "dataset_repeats": 3, "masked_loss": True, "conditioning_data_dir": "masks"},
    **{"dataset_config": "", "skip_image_resolution": 8, "config_file": "c", "output_config": True},
    # The network.
    **{"no_metadata": True, "unet_lr": 1e-4, "text_encoder_lr": [5e-5, 1e-5], "network_weights": "old.safetensors"},
    **{"network_module": "networks.lora", "network_dim": 16, "network_alpha": 8, "network_dropout": 0.1},
    **{"network_args": ["conv_dim=4", "rank_dropout=0.1"], "network_train_unet_only": False},
    **{"network_train_text_encoder_only": False, "training_comment": "hello", "dim_from_weights": True},
    **{"base_weights": ["x.safetensors"], "base_weights_multiplier": [0.5], "skip_until_initial_step": True},
    **{"initial_epoch": 2, "initial_step": 5, "cache_text_encoder_outputs": False},
}


def toml(settings: Mapping[str, Any], section: str = "") -> str:
    """Write settings as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join([f"[{section}]" if section else "", *lines, ""])


def pictures(folder: Path, *sizes: tuple[int, int], caption: str = "", suffix: str = ".txt") -> Path:
    """Draw pictures of these sizes, each with its own colour, and a caption where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number % 256, 90, 200 - 30 * number % 200)).save(folder / f"{number}.png")
        if caption:
            (folder / f"{number}{suffix}").write_text(f"{caption} {number}", encoding="utf-8")
    return folder


def project(root: Path) -> Path:
    """Make the folders that `EVERY_KEY` names: 3 + 2 pictures to learn from, 2 that keep the base."""
    pictures(root / "train/3_red cat", SQUARE, SQUARE, WIDE, caption="a cat")
    pictures(root / "train/1_dog", SQUARE, WIDE)
    pictures(root / "reg/1_animal", SQUARE, WIDE)
    pictures(root / "masks", SQUARE)
    (root / "prompts.txt").write_text("# none\na cat --w 64 --s 12\na dog --s 12 --n bad\n", encoding="utf-8")
    return root


MINIMAL = {"pretrained_model_name_or_path": "owner/name", "train_data_dir": "train", "resolution": 64}


def imported(root: Path, settings: dict[str, Any], name: str = "train.toml") -> Imported:
    """Import a training file with these settings from `root`, and load what was written."""
    text = json.dumps(settings) if name.endswith(".json") else toml(settings)
    (root / name).write_text(text, encoding="utf-8")
    found = kohya.read(root / name, root / "ours.yaml")
    kohya.save(found, overwrite=True)
    load(root / "ours.yaml")
    return found


def verdicts(found: Imported) -> dict[str, str]:
    return {line.key: line.verdict for line in found.lines}
