"""Diffusers folders in the forms people have them: halves, shards, old names, and snapshots of the hub."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import embedded
from lora_scripts.contracts import Placement
from lora_scripts.errors import BaseModelError, MachineError
from lora_scripts.families import _hub
from lora_scripts.families.sd import StableDiffusion
from tests import tiny

PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.float32)
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("sd") / "tiny")


def outputs(path: Path) -> torch.Tensor:
    """One number that depends on every part."""
    family = StableDiffusion.load(StableDiffusion.recognise(path), PLACEMENT)
    ids = torch.arange(77)[None]
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    with torch.no_grad():
        states = family.text_encoder(ids).last_hidden_state
        decoded = family.vae.decode(family.unet(latents, 7, states).sample).sample
    return torch.cat([decoded.flatten(), states.flatten()])


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Every weight of every part, by part and name."""
    family = StableDiffusion.load(StableDiffusion.recognise(path), PLACEMENT)
    parts = {"unet": family.unet, "vae": family.vae, "text_encoder": family.text_encoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def rewrite(folder: Path, **wish) -> Path:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(folder).save_pretrained(folder.with_name("again"), **wish)
    return folder.with_name("again")


@pytest.mark.parametrize(
    ("wish", "sample"),
    [
        ({"variant": "fp16"}, "diffusion_pytorch_model.fp16.safetensors"),
        ({"max_shard_size": "400KB"}, "diffusion_pytorch_model-00001-of-"),
        ({"max_shard_size": "400KB", "variant": "fp16"}, "diffusion_pytorch_model.fp16-00001-of-"),
    ],
    ids=["variant", "shards", "shards of a variant"],
)
def test_every_way_of_storing_the_weights_gives_the_same(good, tmp_path, wish, sample):
    folder = rewrite(Path(shutil.copytree(good, tmp_path / "base")), **wish)
    assert [path for path in (folder / "unet").iterdir() if path.name.startswith(sample)]
    base = StableDiffusion.recognise(folder)
    assert base.parameters == StableDiffusion.recognise(good).parameters
    ours, theirs = weights(folder), weights(good)
    assert len(ours) > 100 and ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    # The last bits of a product depend on where in memory the weights lie, and so on the file they are mapped from.
    assert torch.allclose(outputs(folder), outputs(good), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("kind", ["index", "last shard"])
def test_a_sharded_part_needs_all_its_files(good, tmp_path, variant, kind):
    folder = rewrite(Path(shutil.copytree(good, tmp_path / "base")), max_shard_size="400KB", variant=variant)
    pattern = "*.index*.json" if kind == "index" else "*-of-*.safetensors"
    sorted((folder / "unet").glob(pattern))[-1].unlink()
    with pytest.raises(BaseModelError) as caught:
        StableDiffusion.recognise(folder)
    assert caught.value.code == "base.part_missing"


def test_attention_names_of_old_folders_are_understood(good, tmp_path):
    """Public folders of 2022 call the VAE's projections query, key, value and proj_attn."""
    folder = Path(shutil.copytree(good, tmp_path / "base"))
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, old in words.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    assert sum("query" in name for name in renamed) == 4
    save_file(renamed, path, metadata={"format": "pt"})
    assert torch.equal(outputs(folder), outputs(good))


def test_the_embedded_model_is_read_from_its_settings():
    base = StableDiffusion.recognise(embedded.resolve("embedded/pictures"))
    assert (base.variant, base.webui, base.prediction_type) == ("custom", False, "v_prediction")
    assert (base.resolution, base.multiple, base.max_tokens) == (64, 16, 24)
    family = StableDiffusion.load(base, PLACEMENT)
    assert float(family.alphas_cumprod[-1]) == 0.0
    assert family.vae.config.latent_channels == 16
    ids = family.tokenizer("a red apple", padding="max_length", max_length=24, return_tensors="pt").input_ids
    assert ids.shape == (1, 24)


@pytest.fixture
def hub(good, tmp_path, monkeypatch) -> Path:
    """A hub cache as huggingface_hub keeps it, with one repository in it."""
    root = tmp_path / "hub"
    snapshot = root / "models--someone--tiny" / "snapshots" / REVISION
    shutil.copytree(good, snapshot)
    (root / "models--someone--tiny" / "refs").mkdir()
    (root / "models--someone--tiny" / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(root))
    return snapshot


def test_a_hub_id_in_the_cache_needs_no_network(hub, good):
    base = StableDiffusion.recognise(Path("someone/tiny"))
    assert (base.name, os.path.realpath(base.path)) == ("tiny", os.path.realpath(hub))
    assert torch.equal(outputs(Path("someone/tiny")), outputs(good))


def test_halves_are_asked_of_the_hub_where_nothing_else_is_there(hub, good, monkeypatch):
    name = "unet/diffusion_pytorch_model"
    kept = (hub / f"{name}.safetensors").rename(hub.parent / "kept.safetensors")
    asked: list[str] = []
    fetch = _hub.fetch

    def deliver(repository: str, patterns: list[str]) -> Path:
        """Stands for the network: what is asked for by name arrives."""
        asked.extend(pattern for pattern in patterns if ".fp16" in pattern)
        if f"{name}.fp16.safetensors" in patterns:
            kept.rename(hub / f"{name}.fp16.safetensors")
        return fetch(repository, patterns)

    monkeypatch.setattr(_hub, "fetch", deliver)
    assert torch.equal(outputs(Path("someone/tiny")), outputs(good))
    assert asked == list(_hub.weight_patterns("unet", "diffusion_pytorch_model.fp16"))


def test_another_pipeline_of_the_hub_is_refused_before_its_weights_are_fetched(hub, monkeypatch):
    index = hub / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    asked: list[tuple[str, ...]] = []
    fetch = _hub.fetch
    monkeypatch.setattr(_hub, "fetch", lambda name, patterns: (asked.append(tuple(patterns)), fetch(name, patterns))[1])
    with pytest.raises(BaseModelError, match="FluxPipeline"):
        StableDiffusion.recognise(Path("someone/tiny"))
    assert asked == [("model_index.json",)]


def test_a_hub_id_that_is_not_there_is_told_with_both_readings():
    with pytest.raises(MachineError) as caught:
        StableDiffusion.recognise(Path("models/my_base"))
    assert caught.value.exit_code == 4
    assert "models/my_base" in str(caught.value)
    assert "local" in str(caught.value)


def test_neither_pickles_nor_code_are_asked_of_the_hub():
    import fnmatch

    patterns = [*_hub.SETTINGS, *_hub.weight_patterns("unet", "diffusion_pytorch_model")]
    wanted = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"]
    wanted += ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model-00001-of-00002.safetensors"]
    unwanted = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "pipeline.py"]
    unwanted += ["v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.py"]
    match = [name for name in wanted + unwanted if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert match == wanted
