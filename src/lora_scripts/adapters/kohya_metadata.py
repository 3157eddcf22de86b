"""What a kohya file's header tells about a LoRA, written and read: "ss_*" of kohya's tools, "modelspec.*" of ModelSpec.

Nothing of when, where or by which run: the same adapter gives the same bytes on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_scripts.adapters.adapter import AdapterMeta

MODELSPEC_VERSION = "1.0.1"
MODULE = "networks.lora"
_RUN_KEYS = ("session_id", "training_started_at", "training_finished_at")
# What `describe` makes from the adapter itself; everything else is kept in `AdapterMeta.training`.
_OWN_KEYS = {
    *("v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args", "output_name"),
    *("sd_model_name", "base_weights_hash", "resolution", "clip_skip", "steps", "epoch"),
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


@dataclass(frozen=True)
class Network:
    """The shape of a LoRA as the header tells it; kohya's own word for mixed values is "Dynamic"."""

    dim: str
    alpha: str
    args: str = ""


def describe(meta: AdapterMeta, network: Network) -> dict[str, str]:
    """Return the "ss_*" part, which kohya's tools, the WebUIs and their extensions read."""
    is_second = meta.variant.startswith("sd2")
    is_v = meta.prediction_type == "v_prediction"
    own = {
        "v2": str(is_second),
        "base_model_version": f"sd_v2{'_v' if is_v else ''}" if is_second else "sd_v1",
        "network_module": MODULE,
        "network_dim": network.dim,
        "network_alpha": network.alpha,
        "network_args": network.args,
        "output_name": meta.name,
        "sd_model_name": meta.base_name,
        # Not kohya's "new_sd_model_hash": that one is of the file, this one of the weights in it.
        "base_weights_hash": meta.base_hash,
        "resolution": f"{meta.resolution[0]},{meta.resolution[1]}",
        "clip_skip": "None",
        "steps": str(meta.steps),
        "epoch": str(meta.epochs),
    }
    training = {key: value for key, value in meta.training.items() if key not in _OWN_KEYS and key not in _RUN_KEYS}
    return {f"ss_{key}": value for key, value in {**training, **own}.items() if value}


def specify(meta: AdapterMeta, body_hash: str) -> dict[str, str]:
    """Return the "modelspec.*" part.

    Args:
        body_hash: sha256 of everything behind the header.
    """
    architecture = "stable-diffusion-v1"
    if meta.variant.startswith("sd2"):
        is_v = meta.prediction_type == "v_prediction"
        architecture = "stable-diffusion-v2-768-v" if is_v else "stable-diffusion-v2-512"
    own = {
        "sai_model_spec": MODELSPEC_VERSION,
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers",
        "title": meta.name,
        "resolution": f"{meta.resolution[0]}x{meta.resolution[1]}",
        "prediction_type": _PREDICTIONS.get(meta.prediction_type, meta.prediction_type),
        "hash_sha256": f"0x{body_hash}",
        "trigger_phrase": meta.trigger,
    }
    return {f"modelspec.{key}": value for key, value in own.items() if value}


def read(metadata: Mapping[str, str], stem: str) -> AdapterMeta:
    """Return what a header tells; a file without metadata is named by its stem."""
    training = {k.removeprefix("ss_"): v for k, v in metadata.items() if k.startswith("ss_")}
    said = {key: "" if value == "None" else value for key, value in training.items()}
    spec = {k.removeprefix("modelspec."): v for k, v in metadata.items() if k.startswith("modelspec.")}
    version = said.get("base_model_version", "")
    predictions = {word: name for name, word in _PREDICTIONS.items()}
    default = "v" if version.endswith("_v") else "epsilon"
    variant = {"sd_v1": "sd1", "sd_v2": "sd2"}.get(version.removesuffix("_v"), "")
    return AdapterMeta(
        family="sd",
        name=said.get("output_name") or stem,
        base_name=said.get("sd_model_name", ""),
        base_hash=said.get("base_weights_hash", ""),
        variant=variant,
        prediction_type=predictions.get(spec.get("prediction_type", default), "epsilon"),
        resolution=_resolution(said.get("resolution", "")),
        steps=_whole(said.get("steps", "")),
        epochs=_whole(said.get("epoch", "")),
        trigger=spec.get("trigger_phrase", ""),
        training={k: v for k, v in training.items() if k not in _OWN_KEYS and k not in _RUN_KEYS},
    )


def _resolution(text: str) -> tuple[int, int]:
    """Read "512,512" or "(512, 768)"; one number is a square, none is the native size of the first models."""
    numbers = [int(number) for number in re.findall(r"\d{1,6}", text)][:2]
    return (numbers[0], numbers[-1]) if numbers else (512, 512)


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0
