"""Two towers: what they are shown equals what transformers would show, and what does not fit together is a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from lora_scripts.captioners import _towers
from lora_scripts.errors import BaseModelError
from tests.tiny_clip import build_clip, build_towers

SIZES = ((40, 70), (71, 33), (32, 32), (200, 60), (33, 100))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Path:
    return build_towers(tmp_path_factory.mktemp("towers") / "tiny")


def pictures() -> list[Image.Image]:
    rng = numpy.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=numpy.uint8)) for w, h in SIZES]


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / "copy"))


def settle(folder: Path, **settings) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3},
        {"size": {"shortest_edge": 48}, "crop_size": 32, "resample": 2},
        {"size": {"shortest_edge": 32}, "crop_size": 32, "do_normalize": False},
        {"size": {"shortest_edge": 32}, "crop_size": 32, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 1},
    ],
)
def test_pictures_are_made_ready_as_transformers_does_it(model, tmp_path, settings):
    from transformers import CLIPImageProcessorPil

    folder = copied(model, tmp_path)
    settle(folder, **settings)
    wanted = CLIPImageProcessorPil.from_pretrained(folder)(pictures(), return_tensors="pt").pixel_values
    look = _towers.load(str(folder), "cpu").look
    ready = torch.stack([_towers._ready(picture, look) for picture in pictures()])
    assert ready.shape == wanted.shape == (len(SIZES), 3, 32, 32)
    assert (ready - wanted).abs().max() < 1e-5


def test_a_siglip_equals_the_model_s_own(model, tmp_path):
    from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    folder = copied(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(0)
    network = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})
    ).eval()
    with torch.no_grad():
        network.logit_scale.fill_(2.0)
    network.save_pretrained(folder)
    settle(folder, size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)
    process = SiglipImageProcessorPil.from_pretrained(folder)
    said = ["a red square", "a picture of a green stripe " * 9]
    tokens = tokenizer(said, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    with torch.inference_mode():
        seen = network.get_image_features(process(pictures(), return_tensors="pt").pixel_values).pooler_output
        read = network.get_text_features(tokens).pooler_output
    ours = _towers.load(str(folder), "cpu")
    assert abs(ours.embed_pictures(pictures()) - torch.nn.functional.normalize(seen, dim=-1).numpy()).max() < 1e-5
    assert abs(ours.embed_texts(said) - torch.nn.functional.normalize(read, dim=-1).numpy()).max() < 1e-5
    assert ours.scale == pytest.approx(float(torch.tensor(2.0).exp()))
    # Without a file that says otherwise, SigLIP squashes and takes colours from -1 to 1.
    (folder / "preprocessor_config.json").unlink()
    assert _towers.load(str(folder), "cpu").look == _towers.Look(32, "squash", (0.5,) * 3, (0.5,) * 3, 32)


def test_embeddings_have_norm_one_and_many_texts_fit(model, towers):
    for folder in (model, towers):
        ours = _towers.load(str(folder), "cpu")
        texts = [f"a picture of {i} red squares" for i in range(_towers.TEXTS_AT_ONCE + 3)]
        for rows in (ours.embed_texts(texts), ours.embed_pictures(pictures())):
            assert rows.dtype == numpy.float32 and abs(numpy.linalg.norm(rows, axis=1) - 1).max() < 1e-5
        assert abs(ours.embed_texts(texts)[-1] - ours.embed_texts(texts[-1:])[0]).max() < 1e-5


def test_the_hash_tells_weights_and_settings_apart(model, tmp_path):
    folder = copied(model, tmp_path)
    same = _towers.load(str(folder), "cpu").weights_hash
    assert same == _towers.load(str(model), "cpu").weights_hash
    _change_weights(lambda name, weight: weight + 0.01 if name == "logit_scale" else weight)(folder)
    other = _towers.load(str(folder), "cpu").weights_hash
    settle(folder, size=32, crop_size=32, resample=2)
    assert len({same, other, _towers.load(str(folder), "cpu").weights_hash}) == 3


def _change_weights(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        path = folder / "model.safetensors"
        changed = {name: change(name, weight) for name, weight in load(path.read_bytes()).items()}
        kept = {name: weight for name, weight in changed.items() if weight is not None}
        path.write_bytes(save({name: weight.contiguous() for name, weight in kept.items()}, {"format": "pt"}))

    return fault


def _configured(**settings) -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    return fault


def _without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("*token*.json"), *folder.glob("vocab*"), *folder.glob("merges*")]:
        path.unlink()


FAULTS = {
    "a tower is absent": (_change_weights(lambda name, w: None if "text_model" in name else w), "lacks weights"),
    "a tensor of another shape": (_change_weights(lambda name, w: w[:-1] if w.ndim == 2 else w), "lacks weights"),
    "not finite": (_change_weights(lambda name, w: w * float("nan")), "not finite"),
    "no tokenizer": (_without_tokenizer, "tokenizer"),
    "a number that is a word": (_configured(projection_dim="x"), "projection_dim"),
    "text tower is a number": (_configured(text_config=3), "text_config"),
    "pictures in pieces": (_configured(model_type="siglip2"), "siglip2"),
    "pictures of another size": (lambda folder: settle(folder, size={"shortest_edge": 64}, crop_size=64), "64"),
    "crop larger than the picture": (lambda folder: settle(folder, size=32, crop_size=64), "64 px"),
    "one colour": (lambda folder: settle(folder, image_mean=[0.5]), "[0.5]"),
    "a filter that there is not": (lambda folder: settle(folder, resample=9), "9"),
    "settings are a list": (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "list"),
    "torn": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x07" * 90), "model.safetensors"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_does_not_fit_together_is_a_sentence(model, tmp_path, name):
    fault, said = FAULTS[name]
    folder = copied(model, tmp_path)
    fault(folder)
    with pytest.raises(BaseModelError) as caught:
        _towers.load(str(folder), "cpu")
    assert caught.value.exit_code == 2 and str(folder) in str(caught.value)
    assert said in str(caught.value) or name == "torn"


def test_the_embedded_form_is_refused_when_half_of_it_is_another_s(towers, tmp_path):
    folder = copied(towers, tmp_path)
    _change_weights(lambda name, w: w if "classifier" not in name else None)(folder / "image_tower")
    with pytest.raises(BaseModelError, match="lacks weights"):
        _towers.load(str(folder), "cpu")


def test_half_of_a_model_in_the_hub_s_cache_is_passed_over(model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub/models--openai--clip-vit-base-patch32"
    snapshot = kept / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("0" * 40)
    assert _towers.load(None, "cpu").name == "openai/clip-vit-base-patch32"
    _without_tokenizer(snapshot)
    assert _towers.load(None, "cpu").name == "embedded/labeller"
