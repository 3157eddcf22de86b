"""Settings as the kohya_ss window saves them, under the names that sd-scripts' command line has for the same things.

Numbers that are 0 there mean "not set" for many settings, and the kind of network is one choice instead of a module
and its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_scripts.importing.translation import Setting

NAMES = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
    "stop_text_encoder_training_pct": "stop_text_encoder_training",
}
# 0 is "not set" in the window's fields.
ZERO_IS_UNSET = (
    *("seed", "max_train_steps", "max_train_epochs", "min_snr_gamma", "noise_offset", "adaptive_noise_scale"),
    *("save_every_n_epochs", "save_every_n_steps", "save_last_n_epochs", "save_last_n_epochs_state"),
    *("save_last_n_steps", "save_last_n_steps_state", "sample_every_n_steps", "sample_every_n_epochs"),
    *("ip_noise_gamma", "multires_noise_iterations", "scale_weight_norms", "network_dropout", "vae_batch_size"),
    *("v_pred_like_loss", "min_timestep", "lr_warmup_steps", "clip_skip"),
)
MODULES = {
    "Standard": "networks.lora",
    "Kohya LoCon": "networks.lora",
    "Kohya DyLoRA": "networks.dylora",
    "LoRA-FA": "networks.lora_fa",
    "LoCon": "lycoris.kohya",
}
ALGORITHMS = {
    "LoCon": "locon",
    "LyCORIS/LoCon": "locon",
    "LyCORIS/LoHa": "loha",
    "LyCORIS/LoKr": "lokr",
    "LyCORIS/DyLoRA": "dylora",
    "LyCORIS/GLoRA": "glora",
    "LyCORIS/iA3": "ia3",
    "LyCORIS/Diag-OFT": "diag-oft",
    "LyCORIS/BOFT": "boft",
    "LyCORIS/Native Fine-Tuning": "full",
}
_BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    *("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
)
_CONV = ("conv_dim", "conv_alpha")
_DROPOUT = ("rank_dropout", "module_dropout")
_LYCORIS = (
    *("use_tucker", "use_cp", "use_scalar", "rank_dropout_scale", "factor", "decompose_both", "train_norm"),
    *("constrain", "rescaled", "train_on_input", "dora_wd", "bypass_mode", "full_matrix", "unit", "LyCORIS_preset"),
)
NETWORK_FIELDS = (*_CONV, *_BLOCKS, *_DROPOUT, *_LYCORIS)
"""Fields that become arguments of the network, for the kinds of network that have them."""


def is_gui(flat: Mapping[str, Setting]) -> bool:
    """Say whether the window wrote the file: only it knows a kind of LoRA, and a resolution by that name."""
    return "LoRA_type" in flat or "max_resolution" in flat


def from_gui(flat: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings under sd-scripts' names; each keeps the name that the file has for it."""
    named = {NAMES.get(key, key): setting for key, setting in flat.items()}
    for key in ZERO_IS_UNSET:
        if key in named and _is_zero(named[key].value):
            named[key] = Setting(named[key].written, None, named[key].value)
    kind = str(named["LoRA_type"].value) if "LoRA_type" in named else "Standard"
    written = "LoRA_type" if named.pop("LoRA_type", None) else ""
    named["network_module"] = Setting(written, MODULES.get(kind, "lycoris.kohya" if kind in ALGORITHMS else kind), kind)
    used = _fields_of(kind)
    arguments = {key: named[key].value for key in NETWORK_FIELDS if key in used and key in named}
    if kind in ALGORITHMS:
        arguments["algo"] = ALGORITHMS[kind]
    named["network_args"] = Setting("", {k: v for k, v in arguments.items() if v not in ("", None, 0)})
    return named | _rates(named)


def _fields_of(kind: str) -> tuple[str, ...]:
    """Return the fields that the window hands on for a kind of network."""
    if kind in ("Standard", "LoRA-FA"):
        return (*_BLOCKS, *_DROPOUT)
    if kind in ("Kohya LoCon", "Kohya DyLoRA"):
        return (*_BLOCKS, *_DROPOUT, *_CONV, *(("unit",) if kind == "Kohya DyLoRA" else ()))
    return (*_CONV, *_DROPOUT, *_LYCORIS)


def _rates(named: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return what the window makes of its three rates: one of two that is 0 leaves that network out."""
    rates = {key: named[key] for key in ("unet_lr", "text_encoder_lr") if key in named}
    zero = [key for key, setting in rates.items() if setting.value in ("", None) or _is_zero(setting.value)]
    if len(zero) == len(rates):
        return {key: Setting(rates[key].written, None, rates[key].value) for key in zero}
    only = {"text_encoder_lr": "network_train_unet_only", "unet_lr": "network_train_text_encoder_only"}
    found: dict[str, Setting] = {}
    for key in zero:
        found[key] = Setting(rates[key].written, 0, rates[key].value)
        found[only[key]] = Setting("", True)
    return found


def _is_zero(value: Any) -> bool:
    if isinstance(value, bool) or isinstance(value, list | dict):
        return False
    return value == "" or (isinstance(value, int | float | str) and _number(value) == 0)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
