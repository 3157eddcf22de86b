"""What a kohya file's header tells about a LoRA, written and read: "ss_*" of kohya's tools, "modelspec.*" of ModelSpec.

Nothing of when, where or by which run: the same adapter gives the same bytes on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.adapters.keys import KeyMap

MODELSPEC_VERSION = "1.0.1"
MODULE = "networks.lora"
# How kohya's "ss_base_model_version" begins where its "ss_v2" is "True".
SECOND = "sd_v2"
# The end of a variant whose base predicts v.
V_VARIANT = "-v"
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
    module: str = MODULE


def describe(meta: AdapterMeta, network: Network, keys: KeyMap) -> dict[str, str]:
    """Return the "ss_*" part, which kohya's tools, the WebUIs and their extensions read."""
    version = _of_variant(keys.version, meta)
    own = {
        "v2": str(version.startswith(SECOND)),
        "base_model_version": version,
        "network_module": network.module,
        "network_dim": network.dim,
        "network_alpha": network.alpha,
        "network_args": network.args,
        "output_name": meta.name,
        "sd_model_name": meta.base_name,
        # Not kohya's "new_sd_model_hash": that one is of the file, this one of the weights in it.
        "base_weights_hash": meta.base_hash,
        "resolution": f"{meta.resolution[0]},{meta.resolution[1]}",
        "clip_skip": meta.training.get("clip_skip", "None"),
        "steps": str(meta.steps),
        "epoch": str(meta.epochs),
    }
    training = {key: value for key, value in meta.training.items() if key not in _OWN_KEYS and key not in _RUN_KEYS}
    return {f"ss_{key}": value for key, value in {**training, **own}.items() if value}


def specify(meta: AdapterMeta, body_hash: str, keys: KeyMap) -> dict[str, str]:
    """Return the "modelspec.*" part.

    Args:
        body_hash: sha256 of everything behind the header.
    """
    own = {
        "sai_model_spec": MODELSPEC_VERSION,
        "architecture": f"{_of_variant(keys.architecture, meta)}/lora",
        "implementation": keys.implementation,
        "title": meta.name,
        "resolution": f"{meta.resolution[0]}x{meta.resolution[1]}",
        "prediction_type": _PREDICTIONS.get(meta.prediction_type, meta.prediction_type),
        "hash_sha256": f"0x{body_hash}",
        "trigger_phrase": meta.trigger,
        "merged_from": meta.training.get("merged_from", ""),
    }
    return {f"modelspec.{key}": value for key, value in own.items() if value}


def read(metadata: Mapping[str, str], stem: str, family: str, keys: KeyMap) -> AdapterMeta:
    """Return what a header tells; a file without metadata is named by its stem."""
    training = {k.removeprefix("ss_"): v for k, v in metadata.items() if k.startswith("ss_")}
    said = {key: "" if value == "None" else value for key, value in training.items()}
    spec = {k.removeprefix("modelspec."): v for k, v in metadata.items() if k.startswith("modelspec.")}
    variant = keys.variant_of(said.get("base_model_version", ""))
    predictions = {word: name for name, word in _PREDICTIONS.items()}
    default = "v" if variant.endswith(V_VARIANT) else "epsilon"
    return AdapterMeta(
        family=family,
        name=said.get("output_name") or stem,
        base_name=said.get("sd_model_name", ""),
        base_hash=said.get("base_weights_hash", ""),
        variant=variant.removesuffix(V_VARIANT),
        prediction_type=predictions.get(spec.get("prediction_type", default), "epsilon"),
        resolution=_resolution(said.get("resolution", "")),
        steps=_whole(said.get("steps", "")),
        epochs=_whole(said.get("epoch", "")),
        trigger=spec.get("trigger_phrase", ""),
        training={k: v for k, v in training.items() if k not in _OWN_KEYS and k not in _RUN_KEYS},
    )


def _of_variant(table: Mapping[str, str], meta: AdapterMeta) -> str:
    """Return a base's entry: that of its variant with v-prediction, of its variant, or of last resort."""
    is_v = meta.prediction_type == "v_prediction"
    named = meta.variant.removesuffix(V_VARIANT)
    wanted = ((f"{named}{V_VARIANT}",) if is_v else ()) + (named, "")
    return next((table[variant] for variant in wanted if variant in table), "")


def _resolution(text: str) -> tuple[int, int]:
    """Read "512,512" or "(512, 768)"; one number is a square, none is the native size of the first models."""
    numbers = [int(number) for number in re.findall(r"\d{1,6}", text)][:2]
    return (numbers[0], numbers[-1]) if numbers else (512, 512)


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0
