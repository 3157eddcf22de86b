"""PEFT folders of language models: read whoever wrote them, refused in words, and never taken for a picture's LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.adapters import base_folder, files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.apply import added
from lora_scripts.adapters.base_hash import hash_of_folder, weight_files
from lora_scripts.adapters.uniform import settings, uniform
from lora_scripts.errors import BaseModelError
from tests.adapters import language, networks
from tests.adapters.networks import same, shake

COMPONENT = "language_model"


def by_peft(folder: Path, live: Any = None, save: dict[str, Any] | None = None, **settings: Any) -> tuple[Path, Any]:
    """Let peft itself make, move and save an adapter; return the folder and the model with it."""
    from peft import LoraConfig, get_peft_model

    values = {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = get_peft_model(live or language.model(), LoraConfig(**{**values, **settings})).eval()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if "lora_B" in name:
                    tensor.normal_(std=0.2)
    model.save_pretrained(folder, **(save or {}))
    return folder, model


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({}, 4),
        ({"use_rslora": True}, 4),
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": ["lm_head", "v_proj"], "save": {"save_embedding_layers": False}}, 3),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 3}}, 4),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True}, 4),
        ({"layers_to_transform": [1]}, 2),
    ],
)
def test_what_peft_saved_does_what_it_did(settings: dict[str, Any], modules: int, tmp_path: Path):
    folder, trained = by_peft(tmp_path / "my drafts", **settings)
    loaded = files.load(folder)
    assert list(loaded.pairs) == [COMPONENT] and len(loaded) == modules
    assert loaded.meta.family == "causal_lm" and loaded.meta.name == "my drafts"
    assert all(p.down.dtype == p.up.dtype == torch.float32 for p in loaded.pairs[COMPONENT].values())
    base = language.model()
    before = language.logits(base)
    with added({COMPONENT: base}, [(loaded, 1.0)]):
        got = language.logits(base)
    assert (got - language.logits(trained)).abs().max() < 1e-5 < 1e-2 < (got - before).abs().max()
    files.check(folder, rank=4, components=[COMPONENT]) if "rank_pattern" not in settings else None


@pytest.mark.parametrize("kind", ["gpt_neox", "opt", "mpt", "phi3"])
def test_other_ways_of_nesting_layers(kind: str, tmp_path: Path):
    sizes = {
        "gpt_neox": {"target_modules": ["query_key_value"]},
        "opt": {"target_modules": ["q_proj"]},
        "mpt": {"target_modules": ["Wqkv"]},
        "phi3": {"target_modules": ["qkv_proj"]},
    }
    more: dict[str, Any] = {"mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4}, "opt": {"word_embed_proj_dim": 32}}
    live = language.model(kind, **more.get(kind, {}))
    folder, _ = by_peft(tmp_path / kind, live, **sizes[kind])
    loaded = files.load(
        folder,
        known_modules={COMPONENT: [name for name, _ in language.model(kind, **more.get(kind, {})).named_modules()]},
    )
    assert len(loaded.pairs[COMPONENT]) >= 2


def test_paths_are_those_of_the_model(tmp_path: Path):
    folder, _ = by_peft(tmp_path)
    known = {COMPONENT: [name for name, _ in language.model().named_modules()]}
    loaded = files.load(folder, known_modules=known)
    assert sorted(loaded.pairs[COMPONENT]) == [
        *("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"),
        *("model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"),
    ]
    fewer = {COMPONENT: [name for name in known[COMPONENT] if "layers.1" not in name]}
    with pytest.raises(BaseModelError, match=r"2 modules .*layers\.1\.mlp\.down_proj"):
        files.load(folder, known_modules=fewer)


def test_training_goes_on_from_peft(tmp_path: Path):
    folder, trained = by_peft(tmp_path)
    live = language.model()
    injected = language.put(live, (r".*(q|down)_proj",), rank=4, alpha=3.0)
    injected.load(files.load(folder, known_modules=injected.module_names()))
    assert (language.logits(live) - language.logits(trained)).abs().max() < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa"),
    "whole layers": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "token indices": ({"trainable_token_indices": [3]}, "trainable_tokens"),
    "biases of the pairs": ({"lora_bias": True}, "lora_bias"),
    "an embedding": ({"target_modules": ["embed_tokens"]}, "embedding LoRA"),
    "repeated layers": ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_peft_can_do_beyond_pairs_is_refused(kind: str, tmp_path: Path):
    settings, words = REFUSED[kind]
    folder, _ = by_peft(tmp_path / "out", **settings)
    for call in (files.inspect, files.load, files.base_of):
        with pytest.raises(BaseModelError) as caught:
            call(folder)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_biases_and_embeddings_beside_the_pairs_are_refused(tmp_path: Path):
    live = language.model(attention_bias=True)
    folder, _ = by_peft(tmp_path / "bias", live, bias="all")
    with pytest.raises(BaseModelError, match="LoRA \\+ bias"):
        files.load(folder)
    folder, _ = by_peft(tmp_path / "embeddings", save={"save_embedding_layers": True})
    with pytest.raises(BaseModelError, match=r"save_embedding_layers \(base_model\.model\.lm_head\.weight"):
        files.load(folder)
    folder, _ = by_peft(tmp_path / "setting")
    edit_config(folder, target_parameters=["experts.weight"])
    with pytest.raises(BaseModelError, match="target_parameters"):
        files.load(folder)


def test_turned_weights_are_refused(tmp_path: Path):
    """GPT-2's layers hold their weights turned round; a pair for a square one would fit and be wrong."""
    live = language.model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64)
    folder, _ = by_peft(tmp_path / "gpt2", live, target_modules=["c_proj"])
    with pytest.raises(BaseModelError, match="fan_in_fan_out"):
        files.load(folder)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_offered_to_a_picture_base_it_is_refused_in_words(tmp_path: Path):
    folder, _ = by_peft(tmp_path)
    modules = networks.networks()
    known = {c: [name for name, _ in module.named_modules()] for c, module in modules.items()}
    calls: list[Callable[[], Any]] = [
        lambda: files.load(folder, known_modules=known),
        lambda: files.check(folder, rank=4, components=["unet"]),
        lambda: files.check(folder, rank=99, components=["unet", "text_encoder"]),
    ]
    for call in calls:
        with pytest.raises(BaseModelError, match="LoRA for a language model, and this base makes pictures"):
            call()
    with pytest.raises(BaseModelError, match="4 of its modules"), added(modules, [(files.load(folder), 1.0)]):
        pass


def test_a_picture_lora_is_refused_by_a_language_model(tmp_path: Path):
    path = tmp_path / "file.safetensors"
    name = "unet.mid_block.attentions.0.proj_in.lora_{}.weight"
    save_file({name.format("A"): torch.ones(4, 6), name.format("B"): torch.ones(8, 4)}, path)
    known = {COMPONENT: [name for name, _ in language.model().named_modules()]}
    for call in (
        lambda: files.load(path, known_modules=known),
        lambda: files.check(path, rank=4, components=[COMPONENT]),
    ):
        with pytest.raises(BaseModelError, match="makes pictures, and this base is a language model"):
            call()


def test_another_rank_is_told(tmp_path: Path):
    folder, _ = by_peft(tmp_path)
    with pytest.raises(BaseModelError, match="set lora_rank: 4"):
        files.check(folder, rank=8, components=[COMPONENT])


def test_the_base_is_told_as_far_as_the_folder_tells_it(tmp_path: Path):
    folder, _ = by_peft(tmp_path / "theirs")
    assert files.base_of(folder) == ("", "")
    edit_config(folder, base_model_name_or_path="owner/name")
    assert files.base_of(folder) == ("owner/name", "")
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "base_hash": "ab" * 32, "family": "causal_lm", "name": "drafts"})
    assert files.base_of(folder) == ("owner/name", "ab" * 32) == files.base_of(file)
    assert files.load(folder).meta.name == "drafts"
    save_file(load_file(file), file, {"format": "pt", "base_hash": "ab" * 32, "family": "another tool's", "name": "x"})
    assert files.base_of(folder) == ("owner/name", "") and files.load(folder).meta.name == "theirs"


def test_the_hash_follows_the_weights_that_are_loaded_and_nothing_else(tmp_path: Path):
    whole, shards = language.save_base(tmp_path / "a"), language.save_base(tmp_path / "b", max_shard_size="20KB")
    first = hash_of_folder(whole)
    assert len(first) == 64 and first == hash_of_folder(language.save_base(tmp_path / "moved"))
    assert len(weight_files(shards)) > 2 and hash_of_folder(shards) != first
    save_file({"x": torch.ones(1)}, whole / "adapter_model.safetensors")
    save_file({"x": torch.ones(1)}, whole / "consolidated.safetensors")
    (whole / "config.json").write_text("{}")
    assert hash_of_folder(whole) == first
    weights = load_file(whole / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, whole / "model.safetensors", {"format": "pt"})
    assert hash_of_folder(whole) != first
    weight_files(shards)[1].unlink()
    with pytest.raises(BaseModelError, match="whole weights"):
        hash_of_folder(shards)
    with pytest.raises(BaseModelError, match="whole weights"):
        hash_of_folder(tmp_path)


def test_a_base_is_found_as_a_folder_or_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = language.save_base(tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40))
    refs = base.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert base_folder.find(str(base)) == base
    assert base_folder.find("owner/name") == base
    for absent in ("", "owner/absent", "embedded/pictures", str(tmp_path), "no such thing", "a..b/c"):
        assert base_folder.find(absent) is None
    live = language.model()
    assert base_folder.module_names(base) == {
        name for name, module in live.named_modules() if getattr(module, "weight", None) is not None
    }
    assert base_folder.config(base)["model_type"] == "llama"


def test_a_uniform_adapter_keeps_every_bit():
    made = language.adapter(rank=3, alpha=7.0)
    again = uniform(made)
    assert settings(again) == (3, 7)
    for path, pair in made.pairs[COMPONENT].items():
        assert torch.equal(pair.down, again.pairs[COMPONENT][path].down)
        assert torch.equal(pair.up, again.pairs[COMPONENT][path].up)


@pytest.mark.parametrize(
    ("alphas", "ranks", "expected"),
    [
        ((8.0, 8.0, 2.5), (4, 4, 4), (4, 8)),
        ((2.5, 2.5, 8.0), (4, 4, 4), (4, 4)),
        ((0.0, 0.0, 0.0), (4, 4, 4), (4, 4)),
        ((8.0, 4.0, 16.0), (4, 2, 8), (8, 16)),
        ((-3.0, -3.0, 5.0), (4, 4, 4), (4, 4)),
        ((1e12, 1e12, 1e12), (4, 4, 4), (4, 4)),
    ],
)
def test_differing_ranks_and_alphas_are_folded(alphas, ranks, expected):
    sources = {rank: language.adapter(rank=rank).pairs[COMPONENT] for rank in set(ranks)}
    paths = sorted(sources[ranks[0]])
    mixed = {p: replace(sources[ranks[i % 3]][p], alpha=alphas[i % 3]) for i, p in enumerate(paths)}
    made = Adapter({COMPONENT: mixed}, language.meta())
    again = uniform(made)
    assert settings(again) == expected
    for path, pair in mixed.items():
        difference = (pair.delta() - again.pairs[COMPONENT][path].delta()).norm()
        assert difference <= 1e-6 * pair.delta().norm(), path
    assert len(again) == len(paths) == 14


def test_shaken_pairs_move_the_model():
    live = language.model()
    before = language.logits(live)
    injected = language.put(live)
    assert torch.equal(language.logits(live), before)
    shake(injected)
    assert (language.logits(live) - before).abs().max() > 0.01
    same(language.adapter(), injected.adapter(language.meta()))
