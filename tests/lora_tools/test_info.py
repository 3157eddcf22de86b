"""What a file says of itself, and where it is strong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.lora_tools import info
from lora_scripts.lora_tools.programs import Facts, that_load
from tests.adapters import language
from tests.adapters.networks import networks
from tests.lora_tools import making


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    live = networks()
    pairs = making.random_pairs(live["unet"], live["text_encoder"], rank=4, alpha=2.0)
    return making.kohya(tmp_path / "style.safetensors", pairs, dtype=torch.float16)


def test_facts_from_the_header(lora):
    facts = info.info(lora)
    assert (facts.layout, facts.kind, facts.meta.family, facts.meta.trigger) == ("kohya", "lora", "sd", "in tiny style")
    assert facts.meta.name == "tiny style" and facts.meta.base_name == "tiny-base" and facts.meta.steps == 70
    assert {name: part.modules for name, part in facts.components.items()} == {"text_encoder": 10, "unet": 52}
    assert facts.components["unet"].ranks == {4: 52} and facts.components["unet"].alphas == {2.0: 52}
    assert facts.dtypes == {"F16": 124} and facts.size == lora.stat().st_size
    assert facts.parameters == sum(t.numel() for t in load_file(lora).values() if t.dim())
    assert facts.training == {"resolution": "64,96", "learning_rate": "0.0003", "optimizer": "lion"}
    assert facts.tags == {"cat": 4, "red hat": 2}
    assert "ComfyUI" in facts.programs and "diffusers" in facts.programs and not facts.unread


def test_norms_are_those_of_the_updates(lora):
    from lora_scripts.adapters import files

    facts = info.info(lora)
    deltas = making.deltas(files.load(lora).pairs)
    for block in facts.blocks:
        start = f"{block.component}.{block.name}."
        own = {name.removeprefix(start): float(d.norm()) for name, d in deltas.items() if name.startswith(start)}
        assert len(own) == block.modules > 0
        assert block.norm == pytest.approx(math.sqrt(sum(norm**2 for norm in own.values())), rel=1e-9)
        assert block.strongest == max(own, key=own.__getitem__)
    assert sum(block.modules for block in facts.blocks) == 62
    assert sum(block.share for block in facts.blocks) == pytest.approx(1)
    names = [block.name for block in facts.blocks if block.component == "unet"]
    assert names == ["down_blocks.0", "down_blocks.1", "mid_block.attentions.0", *names[3:]] and len(names) == 7


def test_a_file_whose_tensors_are_broken_is_still_described(lora):
    tensors = load_file(lora)
    tensors[next(iter(tensors))].fill_(float("nan"))
    save_file(tensors, lora, metadata=making.HEADER)
    facts = info.info(lora)
    assert "not finite" in facts.unread and facts.blocks == ()
    assert facts.meta.base_name == "tiny-base" and facts.components["unet"].modules == 52


def test_json_is_plain(lora):
    made = json.loads(json.dumps(info.info(lora).as_json(), allow_nan=False))
    assert made["meta"]["base_hash"] == "ab" * 32 and made["components"]["unet"]["ranks"] == {"4": 52}
    assert made["blocks"][0]["norm"] > 0


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '{"a": {"b": "x"}}', "null"])
def test_odd_tag_counts_are_left_out(text):
    assert info._tags(text) == {}


def test_a_language_models_folder(tmp_path):
    from tests.test_exporting import trained

    facts = info.info(trained(tmp_path / "lora", language.save_base(tmp_path / "base"), rank=4, alpha=8.0))
    assert (facts.layout, facts.kind, facts.meta.family) == ("peft", "lora", "causal_lm")
    assert facts.components["language_model"].ranks == {4: 14}
    assert [block.name for block in facts.blocks] == ["model.layers.0", "model.layers.1"]
    assert "vLLM" in facts.programs and "ComfyUI" not in facts.programs


@pytest.mark.parametrize(
    ("facts", "has", "lacks"),
    [
        (Facts("kohya", "lora"), "diffusers", "peft"),
        (Facts("kohya", "lora", mixed_alpha=True), "ComfyUI", "diffusers"),
        (Facts("kohya", "dora"), "LyCORIS", "diffusers"),
        (Facts("kohya", "loha"), "Forge", "diffusers"),
        (Facts("diffusers", "lora"), "diffusers", "ComfyUI"),
        (Facts("peft", "lokr"), "peft", "ComfyUI"),
        (Facts("peft", "lora", is_text=True), "vLLM", "ComfyUI"),
        (Facts("peft", "dora", is_text=True), "transformers", "vLLM"),
    ],
)
def test_programs(facts, has, lacks):
    assert has in that_load(facts) and lacks not in that_load(facts)


def test_an_unknown_kind_is_claimed_for_nobody():
    assert that_load(Facts("kohya", "new")) == that_load(Facts("other", "lora")) == ()
