"""Settings of sd-scripts' train_network and of the kohya_ss window that need no work, and those with no place here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Done here without asking, of no effect on what is learned, or only how the other program shows and holds things.
IDLE = frozenset(
    {
        *("xformers", "sdpa", "mem_eff_attn", "cache_latents", "cache_latents_to_disk", "skip_cache_check"),
        *("vae_batch_size", "lowram", "highvram", "lowvram", "max_data_loader_n_workers"),
        *("persistent_data_loader_workers", "tokenizer_cache_dir", "logging_dir", "log_config", "log_prefix"),
        *("log_tracker_name", "console_log_level", "console_log_file", "console_log_simple", "no_half_vae"),
        *("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph", "cache_text_encoder_outputs"),
        *("cache_text_encoder_outputs_to_disk", "disable_mmap_load_safetensors", "save_state"),
        *("save_state_on_train_end", "config_file", "output_config", "sample_at_first", "use_safetensors", "v2"),
        *("num_cpu_threads_per_process", "main_process_port", "extra_accelerate_launch_args", "model_list"),
        *("save_as_bool", "dynamo_backend", "dynamo_mode", "dynamo_use_dynamic", "dynamo_use_fullgraph", "gpu_ids"),
        *("additional_parameters", "headless", "print_only", "multires_noise_discount", "noise_offset_type"),
        *("num_machines", "multi_gpu", "huber_c", "huber_schedule", "huber_scale"),
        *("save_last_n_epochs_state", "save_last_n_steps_state", "epoch", "train_blocks"),
    }
)

NOTHING_ALIKE = "import.why.nothing_alike"
# Settings with no place here -> values that mean "off", besides false, 0, "" and nothing; and why.
OFF: Mapping[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(
        (
            *("torch_compile", "fused_backward_pass", "cpu_offload_checkpointing", "dataset_class", "debug_dataset"),
            *("scale_weight_norms", "weighted_captions", "no_token_padding", "deepspeed", "zero_stage"),
            *("offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device"),
            *("offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model"),
            *("fp16_master_weights_and_gradients", "max_validation_steps", "validation_seed"),
        ),
        ((), NOTHING_ALIKE),
    ),
    **dict.fromkeys(
        (
            *("adaptive_noise_scale", "multires_noise_iterations", "ip_noise_gamma"),
            *("ip_noise_gamma_random_strength", "noise_offset_random_strength", "zero_terminal_snr"),
            *("debiased_estimation_loss", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"),
        ),
        ((), "import.why.loss_rule"),
    ),
    "min_timestep": ((), "import.why.loss_rule"),
    "max_timestep": ((1000,), "import.why.loss_rule"),
    **dict.fromkeys(
        (
            *("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token"),
            *("huggingface_repo_visibility", "save_state_to_huggingface", "resume_from_huggingface", "async_upload"),
            *("wandb_run_name", "wandb_api_key", "log_tracker_config", "use_wandb"),
        ),
        ((), "import.why.no_upload"),
    ),
    **dict.fromkeys(
        (
            *("metadata_title", "metadata_author", "metadata_description", "metadata_license", "metadata_tags"),
            *("metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase"),
            *("metadata_preprocessor", "metadata_is_negative_embedding", "metadata_unet_dtype"),
            *("metadata_vae_dtype", "training_comment", "no_metadata"),
        ),
        ((), "import.why.no_metadata"),
    ),
    "vae": ((), "import.why.no_vae"),
    "resume": ((), "import.why.no_resume"),
    "base_weights": ((), "import.why.no_base_weights"),
    "base_weights_multiplier": ((), "import.why.no_base_weights"),
    "initial_epoch": ((1,), "import.why.no_start"),
    "initial_step": ((), "import.why.no_start"),
    "skip_until_initial_step": ((), "import.why.no_start"),
    "stop_text_encoder_training": ((-1,), NOTHING_ALIKE),
}
