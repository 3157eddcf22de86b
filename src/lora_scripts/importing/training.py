"""The settings of a kohya training file besides its network and its data: base, rates, precision, saving, samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.config.schema import RunConfig
from lora_scripts.data.caption_tables import MAX_TEXT_BYTES
from lora_scripts.importing import prompts
from lora_scripts.importing.choices import Chosen, optimizer, schedule
from lora_scripts.importing.network import NETWORK_ARGUMENTS, Network
from lora_scripts.importing.sources import Source
from lora_scripts.importing.training_keys import IDLE, OFF
from lora_scripts.importing.translation import UNDERSTOOD, Line, Translation, shown, to_number

LEARNING_RATE = 2e-6
"""What sd-scripts take where nothing is said."""
OWN_RATE = 0.01
"""No plain optimizer is given more; those that find their own are given 1."""
SHARED = ("LyCORIS_preset", *NETWORK_ARGUMENTS)


def put_training(work: Translation, source: Source, steps: int, per_epoch: int) -> None:
    """Set every key that is not of the data; `steps` are the run's and `per_epoch` those of one of its epochs."""
    _base(work, source)
    _output(work, source)
    chosen = optimizer(work)
    network = Network(work)
    unet_rate = _rates(work, network, chosen)
    network.translate(unet_rate, one_rate=chosen.one_rate)
    _text_encoder(work, network, unet_rate, chosen)
    _start(work, source)
    schedule(work, steps, chosen)
    _batch(work)
    _loss(work)
    _precision(work)
    _saving(work, steps, per_epoch)
    _validation(work, per_epoch)
    _samples(work, source)


def judge_rest(work: Translation, gui: bool) -> None:
    """Say of every setting without a verdict that nothing is to be done, that it has no place, or is unknown."""
    for key, setting in work.settings.items():
        if work.judged(key):
            continue
        value = setting.value
        plain = _without_family(key)
        off = value in (None, "", 0, False, [], "none")
        if plain in IDLE or (gui and key in SHARED) or key in registry.names("families"):
            work.understood(key)
        elif plain in OFF:
            neutral, code = OFF[plain]
            if off or value in neutral or str(value) in map(str, neutral):
                work.understood(key)
            else:
                work.unsupported(key, code)
        else:
            work.unsupported(key, "import.why.unknown")


def _without_family(key: str) -> str:
    """Return a setting's name without the architecture that the window puts in front of some."""
    if key in IDLE or key in OFF:
        return key
    rest = key.partition("_")[2]
    return rest if rest in IDLE else key


def _base(work: Translation, source: Source) -> None:
    named = str(work.value("pretrained_model_name_or_path", ""))
    path = source.find(named)
    is_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", named) and not path.exists() and not path.suffix
    if named:
        work.same("pretrained_model_name_or_path", "base_model", named if is_hub else str(path))
    else:
        work.understood("pretrained_model_name_or_path")
    if work.flag("v_parameterization"):
        work.put("prediction_type", "v_prediction", "v_parameterization")
    elif work.flag("v2"):
        work.put("prediction_type", "epsilon", "v2")
    said = "prediction_type: v_prediction" if work.flag("v_parameterization") else ""
    work.understood("v_parameterization", said)
    skip = work.whole("clip_skip")
    if skip:
        work.same("clip_skip", "clip_skip", skip)
    else:
        work.understood("clip_skip")
    length = work.whole("max_token_length") or 75
    if length > 75:
        work.unsupported("max_token_length", "import.why.long_captions")
    else:
        work.understood("max_token_length")


def _output(work: Translation, source: Source) -> None:
    """A run here has a folder of its own; kohya's tools put many runs' files into one."""
    name = str(work.value("output_name", "last"))
    allowed = re.sub(r"[:<>=,/\\\x00-\x1f]", "_", name)[:100]
    folder = source.find(str(work.value("output_dir", "output"))) / allowed
    work.put("output_dir", str(folder), "output_dir", "output_name")
    work.put("name", allowed, "output_name")
    if work.has("output_dir"):
        work.changed("output_dir", "import.why.own_folder", f"output_dir: {folder}")
    if work.has("output_name") and allowed != name:
        work.changed("output_name", "import.why.name", f"name: {allowed}")
    else:
        work.understood("output_name", f"name: {allowed}" if work.has("output_name") else "")
    seed = work.whole("seed")
    if seed is not None and seed >= 0:
        work.same("seed", "seed", seed)
    else:
        default = RunConfig.model_fields["seed"].default
        work.put("seed", default, "seed", said="seed: random there")
        work.changed("seed", "import.why.seed", f"seed: {default}")


def _rates(work: Translation, network: Network, chosen: Chosen) -> float:
    """Set the UNet's rate and return it."""
    general = work.number("learning_rate", LEARNING_RATE)
    unet = work.number("unet_lr")
    key = "unet_lr" if unet is not None else "learning_rate"
    rate = unet if unet is not None else general
    if work.flag("network_train_text_encoder_only") or not rate:
        work.unsupported("network_train_text_encoder_only" if rate else key, "import.why.text_encoder_only")
        text = _text_rate(work, network)
        rate, key = rate or text or general or LEARNING_RATE, key if rate else "text_encoder_lr"
    if _for_another(chosen, rate):
        rate = RunConfig.model_fields["learning_rate"].default
        work.put("learning_rate", rate, key)
        work.changed(key, "import.why.rate_of_other", f"learning_rate: {shown(rate)}")
        return rate
    work.put("learning_rate", rate, key)
    if not work.has(key) and key == "learning_rate":
        work.tell(Line(key, shown(rate), UNDERSTOOD, f"learning_rate: {shown(rate)}", given=False))
    else:
        work.understood(key, f"learning_rate: {shown(rate)}")
    work.understood("learning_rate")
    work.understood("unet_lr")
    return rate


def _for_another(chosen: Chosen, rate: float) -> bool:
    """Say whether a rate was meant for an optimizer that finds its own, where the one chosen does not."""
    return chosen.stands_in and not chosen.adapts and rate > OWN_RATE


def _text_rate(work: Translation, network: Network) -> float | None:
    """Return the text encoder's rate, or None where it does not learn; two encoders share the first one's."""
    if work.flag("network_train_unet_only") or not network.layers_of_text():
        return None
    value = work.value("text_encoder_lr")
    parts = value if isinstance(value, list) else [] if value is None else str(value).replace(",", " ").split()
    rates = [to_number(part, work.written("text_encoder_lr")) for part in parts]
    if not rates:
        return work.number("learning_rate", LEARNING_RATE) or None
    return next((rate for rate in rates if rate), None)


def _text_encoder(work: Translation, network: Network, unet_rate: float, chosen: Chosen) -> None:
    wanted = _text_rate(work, network)
    rate = unet_rate if wanted is not None and (chosen.one_rate or _for_another(chosen, wanted)) else wanted
    key = "text_encoder_lr"
    work.understood("network_train_unet_only", "train_text_encoder: false" if rate is None else "")
    work.understood("network_train_text_encoder_only")
    if rate is None:
        work.put(
            "train_text_encoder", False, "network_train_unet_only" if work.flag("network_train_unet_only") else key
        )
        work.understood(key, "train_text_encoder: false" if work.has(key) and not work.number(key) else "")
        return
    if not work.has(key) and work.number("learning_rate") is None and unet_rate:
        work.tell(Line(key, shown(rate), UNDERSTOOD, f"train_text_encoder.learning_rate: {shown(rate)}", given=False))
    work.put("train_text_encoder", {"learning_rate": rate}, key if work.has(key) else "learning_rate")
    target = f"train_text_encoder.learning_rate: {shown(rate)}"
    value = work.value(key)
    if rate != wanted:
        code = "import.why.one_rate" if chosen.one_rate else "import.why.rate_of_other"
        work.changed(key if work.has(key) else "learning_rate", code, target)
    elif isinstance(value, list) and len(set(map(str, value))) > 1:
        work.changed(key, "import.why.one_text_rate", target)
    elif work.has(key):
        work.understood(key, target)
    else:
        work.understood(key)
        work.tell(Line("network_train_unet_only", "false", UNDERSTOOD, target, given=False))


def _start(work: Translation, source: Source) -> None:
    if work.has("network_weights"):
        path = source.find(str(work.value("network_weights")))
        work.same("network_weights", "init_lora", str(path))
    else:
        work.understood("network_weights")
    if not work.flag("dim_from_weights"):
        work.understood("dim_from_weights")
        return
    rank = _rank_of(source.find(str(work.value("network_weights", ""))))
    if rank is None:
        work.unsupported("dim_from_weights", "import.why.no_rank")
        return
    work.put("lora_rank", rank, "dim_from_weights")
    work.understood("dim_from_weights", f"lora_rank: {rank}")


def _rank_of(path: Path) -> int | None:
    """Return the rank of a LoRA file where all its pairs have one rank."""
    from lora_scripts.adapters.safetensors_file import read_header
    from lora_scripts.errors import LoraScriptsError

    try:
        tensors = read_header(path).tensors
    except (LoraScriptsError, OSError):
        return None
    ranks = {info.shape[0] for name, info in tensors.items() if name.endswith("lora_down.weight")}
    return ranks.pop() if len(ranks) == 1 else None


def _batch(work: Translation) -> None:
    work.same("gradient_accumulation_steps", "gradient_accumulation", work.whole("gradient_accumulation_steps", 1), 1)
    norm = work.number("max_grad_norm", 1.0)
    work.same("max_grad_norm", "max_grad_norm", norm if norm else "off", 1.0)
    work.put("gradient_checkpointing", work.flag("gradient_checkpointing"), "gradient_checkpointing")
    work.understood("gradient_checkpointing", f"gradient_checkpointing: {shown(work.flag('gradient_checkpointing'))}")
    swapped = work.whole("blocks_to_swap")
    if swapped:
        work.same("blocks_to_swap", "offload_blocks", swapped)
    else:
        work.understood("blocks_to_swap")
    processes = work.whole("num_processes") or 1
    if processes > 1:
        work.changed("num_processes", "import.why.processes", processes=processes)
    else:
        work.understood("num_processes")


def _loss(work: Translation) -> None:
    for key in ("noise_offset", "min_snr_gamma"):
        value = work.number(key)
        multires = key == "noise_offset" and str(work.value("noise_offset_type", "")).lower() == "multires"
        if value and not multires:
            work.same(key, key, value)
        else:
            work.understood(key)
    if work.has("noise_offset_type") and str(work.value("noise_offset_type")).lower() == "original":
        # The window hands these on for the other type only.
        work.understood("multires_noise_iterations")
        work.understood("multires_noise_discount")
    kind = str(work.value("loss_type", "l2")).lower()
    losses = {"l2": "mse", "mse": "mse", "l1": "l1", "huber": "huber", "smooth_l1": "huber"}
    loss = losses.get(kind, "mse")
    work.put("loss", loss, "loss_type")
    if kind in ("l2", "mse", "l1"):
        work.understood("loss_type", f"loss: {loss}" if work.has("loss_type") else "")
        return
    work.changed("loss_type", "import.why.huber" if kind in losses else "import.why.nothing_alike", f"loss: {loss}")
    for key in ("huber_c", "huber_schedule", "huber_scale"):
        if work.has(key):
            work.unsupported(key, "import.why.huber")


def _precision(work: Translation) -> None:
    given = str(work.value("mixed_precision", "no")).lower()
    mixed = {"fp16": "fp16", "bf16": "bf16"}.get(given, "float32")
    fp8 = next((key for key in ("fp8_base", "fp8_base_unet") if work.flag(key)), "")
    work.same("mixed_precision", "mixed_precision", mixed, "no")
    # The base is held there in the format that is computed in.
    work.put("base_precision", "fp8" if fp8 else mixed, fp8 or "mixed_precision")
    for key in ("fp8_base", "fp8_base_unet"):
        work.understood(key, "base_precision: fp8" if work.flag(key) else "")
    for key in ("full_fp16", "full_bf16"):
        if work.flag(key):
            work.changed(key, "import.why.full_half")
        else:
            work.understood(key)
    if work.has("save_precision") and str(work.value("save_precision")) not in ("float", "fp32", "None"):
        work.changed("save_precision", "import.why.save_precision")
    else:
        work.understood("save_precision")
    if str(work.value("save_model_as", "safetensors")) != "safetensors":
        work.changed("save_model_as", "import.why.file_kind")
    else:
        work.understood("save_model_as")


def _saving(work: Translation, steps: int, per_epoch: int) -> None:
    every, epochs = work.whole("save_every_n_steps"), work.whole("save_every_n_epochs")
    ratio = work.whole("save_n_epoch_ratio")
    key = "save_every_n_steps" if every else "save_every_n_epochs" if epochs else "save_n_epoch_ratio"
    if not every and not epochs and ratio:
        epochs = max(1, -(-steps // per_epoch) // ratio)
    save = every or (epochs or 0) * per_epoch
    for name in ("save_every_n_steps", "save_every_n_epochs", "save_n_epoch_ratio"):
        if name != key or not save:
            unused = bool(save and work.whole(name))
            work.changed(name, "import.why.one_rhythm") if unused else work.understood(name)
    if save:
        work.put("save_steps", save, key)
        work.understood(key, f"save_steps: {save}")
    kept_epochs, kept_steps = work.whole("save_last_n_epochs"), work.whole("save_last_n_steps")
    kept = kept_epochs or (-(-kept_steps // save) if kept_steps and save else None)
    if kept:
        work.put("keep_checkpoints", kept, "save_last_n_epochs" if kept_epochs else "save_last_n_steps")
    for name, value in (("save_last_n_epochs", kept_epochs), ("save_last_n_steps", kept_steps)):
        work.understood(name, f"keep_checkpoints: {kept}" if value and kept else "")
    log = str(work.value("log_with", "tensorboard")).lower()
    if log in ("tensorboard", "none"):
        work.understood("log_with")
    else:
        work.unsupported("log_with", "import.why.no_upload")


def _validation(work: Translation, per_epoch: int) -> None:
    share = work.number("validation_split") or 0
    every, epochs = work.whole("validate_every_n_steps"), work.whole("validate_every_n_epochs")
    if not share:
        for key in ("validation_split", "validate_every_n_steps", "validate_every_n_epochs"):
            work.understood(key)
        return
    section: dict[str, Any] = {"share": share, "every": every or (epochs or 1) * per_epoch}
    work.put("validation", section, "validation_split")
    work.changed("validation_split", "import.why.validation", f"validation.share: {shown(share)}")
    for key in ("validate_every_n_steps", "validate_every_n_epochs"):
        work.understood(key, f"validation.every: {section['every']}" if work.has(key) else "")


def _samples(work: Translation, source: Source) -> None:
    """Set `preview.prompts` and what all prompts' flags agree on; the rhythm of samples is that of the saves here."""
    for key in ("sample_every_n_steps", "sample_every_n_epochs"):
        if work.whole(key):
            work.changed(key, "import.why.sample_rhythm")
        else:
            work.understood(key)
    if work.has("sample_sampler"):
        work.changed("sample_sampler", "import.why.sampler")
    if not work.has("sample_prompts"):
        work.understood("sample_prompts")
        return
    found = _read_prompts(str(work.value("sample_prompts")), source)
    if not found.texts:
        work.unsupported("sample_prompts", "import.why.no_prompts")
        return
    section: dict[str, Any] = {"prompts": found.texts}
    ranges: dict[str, tuple[str, Callable[[float], Any], float, float]] = {
        "s": ("steps", int, 1, 1000),
        "l": ("guidance", float, 0, 50),
        "d": ("seed", int, 0, 2**63),
    }
    for flag, (name, kind, least, most) in ranges.items():
        value = found.one_number(flag)
        if value is not None and least <= value <= most:
            section[name] = kind(value)
    work.put("preview", section, "sample_prompts")
    target = f"preview.prompts: {len(found.texts)}"
    if found.flags:
        flags = ", ".join(f"--{flag}" for flag in found.flags)
        kept = ", ".join(name for name in ("steps", "guidance", "seed") if name in section) or "-"
        work.changed("sample_prompts", "import.why.prompt_flags", target, flags=flags, kept=kept)
    else:
        work.understood("sample_prompts", target)


def _read_prompts(value: str, source: Source) -> prompts.Prompts:
    """Read a file of prompts, or the prompts themselves, which the window keeps in its own file."""
    if "\n" in value or len(value) > 1000:
        return prompts.of_text(value[:MAX_TEXT_BYTES])
    path = source.find(value)
    return prompts.of_file(path) if path.is_file() else prompts.of_text(value if source.gui else "")
