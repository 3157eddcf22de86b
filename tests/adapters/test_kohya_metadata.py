"""A kohya file's header: what is written, and what is read from files of others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_scripts.adapters import kohya_metadata
from lora_scripts.adapters.adapter import AdapterMeta
from lora_scripts.adapters.families import key_maps
from lora_scripts.adapters.kohya_metadata import Network
from tests.adapters.networks import META

NETWORK = Network(dim="4", alpha="6.0")
MAPS = key_maps()


def describe(meta: AdapterMeta, network: Network) -> dict[str, str]:
    return kohya_metadata.describe(meta, network, MAPS[meta.family])


def specify(meta: AdapterMeta, body_hash: str) -> dict[str, str]:
    return kohya_metadata.specify(meta, body_hash, MAPS[meta.family])


def read(metadata: dict[str, str], stem: str, family: str = "sd") -> AdapterMeta:
    return kohya_metadata.read(metadata, stem, family, MAPS[family])


@pytest.mark.parametrize(
    ("variant", "prediction", "version", "v2", "architecture", "word"),
    [
        ("sd1", "epsilon", "sd_v1", "False", "stable-diffusion-v1/lora", "epsilon"),
        ("sd1", "v_prediction", "sd_v1", "False", "stable-diffusion-v1/lora", "v"),
        ("sd2", "epsilon", "sd_v2", "True", "stable-diffusion-v2-512/lora", "epsilon"),
        ("sd2-v", "v_prediction", "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "v"),
    ],
)
def test_the_kind_of_base(variant, prediction, version, v2, architecture, word):
    meta = replace(META, variant=variant, prediction_type=prediction)
    written = {**describe(meta, NETWORK), **specify(meta, "cd" * 32)}
    assert (written["ss_base_model_version"], written["ss_v2"]) == (version, v2)
    assert written["modelspec.architecture"] == architecture and written["modelspec.prediction_type"] == word
    assert read(written, "x").prediction_type == prediction


@pytest.mark.parametrize(("prediction", "word"), [("epsilon", "epsilon"), ("v_prediction", "v")])
@pytest.mark.parametrize("variant", ["sdxl", "custom", ""])
def test_the_base_with_two_encoders(variant: str, prediction: str, word: str):
    meta = replace(META, family="sdxl", variant=variant, prediction_type=prediction)
    written = {**describe(meta, NETWORK), **specify(meta, "cd" * 32)}
    assert (written["ss_base_model_version"], written["ss_v2"]) == ("sdxl_base_v1-0", "False")
    assert written["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert written["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert written["modelspec.prediction_type"] == word
    assert read(written, "x", "sdxl") == replace(meta, variant="")


def test_what_is_written():
    written = {**describe(META, NETWORK), **specify(META, "cd" * 32)}
    assert all(isinstance(value, str) and value for value in written.values())
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "6.0",
        "ss_output_name": "tiny style",
        "ss_sd_model_name": "tiny-base",
        "ss_resolution": "64,96",
        "ss_steps": "70",
        "ss_epoch": "3",
        "ss_num_train_images": "12",
        "ss_tag_frequency": '{"10_cat": {"cat": 3}}',
        "modelspec.title": "tiny style",
        "modelspec.resolution": "64x96",
        "modelspec.trigger_phrase": "in tiny style",
        "modelspec.hash_sha256": "0x" + "cd" * 32,
        "modelspec.implementation": "diffusers",
    }
    assert expected.items() <= written.items()
    assert not {key for key in written if "time" in key or "session" in key or "path" in key or "date" in key}


def test_what_is_read_is_what_was_written():
    written = {**describe(META, NETWORK), **specify(META, "cd" * 32)}
    assert read(written, "other stem") == META


def test_facts_cannot_replace_what_the_adapter_itself_says():
    lying = replace(META, training={"network_dim": "999", "session_id": "7", "training_started_at": "1.5", "seed": "3"})
    written = describe(lying, NETWORK)
    assert written["ss_network_dim"] == "4" and written["ss_seed"] == "3"
    assert "ss_session_id" not in written and "ss_training_started_at" not in written


def test_a_header_of_others_is_read():
    meta = read(
        {
            "ss_output_name": "None",
            "ss_base_model_version": "sd_v2_v",
            "ss_resolution": "(768, 512)",
            "ss_steps": "1200",
            "ss_epoch": "many",
            "ss_session_id": "123",
            "ss_training_started_at": "1700000000.5",
            "ss_clip_skip": "2",
            "ss_dataset_dirs": "{}",
        },
        "stem",
    )
    assert meta.name == "stem" and meta.variant == "sd2" and meta.prediction_type == "v_prediction"
    assert meta.resolution == (768, 512) and (meta.steps, meta.epochs) == (1200, 0)
    assert meta.training == {"dataset_dirs": "{}"}


def test_no_header_at_all():
    assert read({}, "stem") == AdapterMeta(family="sd", name="stem")
