"""Ranks, alphas and rates by layer."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.adapters.targets import choose, hidden, settle
from lora_scripts.errors import ConfigError
from tests.adapters import language
from tests.adapters.kinds.cases import Section
from tests.adapters.networks import EVERYWHERE, META, flat, networks, put, shake

RULES = (
    Section(match=r"mid_block\..*to_q", rank=16, learning_rate=3e-3),
    Section(match=r".*to_q", rank=2),
    Section(match=r".*to_k", alpha=1.0),
    Section(match=r".*resnets.*", rank=0),
    Section(match=r"text_model\..*fc1", learning_rate=2e-5),
)


def test_the_first_section_that_matches_counts():
    settled = settle(networks(), EVERYWHERE, rank=4, alpha=2.0, rules=RULES)
    unet = settled["unet"]
    assert not any("resnets" in path for path in unet) and len(unet) == 50
    mid = unet["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert (mid.rank, mid.alpha, mid.group) == (16, 8.0, "unet/1")
    down = unet["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert (down.rank, down.alpha, down.group) == (2, 1.0, "unet")
    key = unet["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"]
    assert (key.rank, key.alpha, key.group) == (4, 1.0, "unet")
    # The live path has no "text_model." in front; the section names it as files do.
    groups = {path: layer.group for path, layer in settled["text_encoder"].items()}
    assert {group for path, group in groups.items() if path.endswith("fc1")} == {"text_encoder/5"}
    assert {group for path, group in groups.items() if not path.endswith("fc1")} == {"text_encoder"}


def test_what_is_injected_has_them():
    injected = put(networks(), alpha=2.0, rules=RULES)
    shake(injected)
    pairs = flat(injected.adapter(META))
    assert {(pair.rank, pair.alpha) for pair in pairs.values()} == {(16, 8.0), (2, 1.0), (4, 1.0), (4, 2.0)}
    groups = injected.groups()
    assert list(groups) == ["unet", "unet/1", "text_encoder", "text_encoder/5"]
    assert {name.rpartition(".")[0] for name in groups["unet/1"]} == {
        f"mid_block.attentions.0.transformer_blocks.0.attn{n}.to_q" for n in (1, 2)
    }
    every = [id(p) for group in groups.values() for p in group.values()]
    assert len(every) == len(set(every)) == 2 * len(pairs)
    together = {id(p) for component in injected.summary() for p in injected.parameters(component).values()}
    assert together == set(every)


def test_a_component_whose_layers_all_have_rates_of_their_own_has_no_group_of_its_own():
    rules = [Section(match=r".*fc1", learning_rate=1e-5), Section(match=r".*", learning_rate=1e-6)]
    injected = put(networks(), {"text_encoder": EVERYWHERE["text_encoder"]}, rules=rules)
    assert list(injected.groups()) == ["text_encoder/2", "text_encoder/1"] and injected.buffers() == {}


def test_a_name_that_is_the_end_of_another_gets_its_own_rank():
    class Nested(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8)})
            self.fc = torch.nn.Linear(8, 8)

    rules = [Section(match="fc", rank=2, alpha=5.0)]
    injected = put({"unet": Nested()}, {"unet": (r".*fc",)}, rules=rules)
    found = {path: (pair.rank, pair.alpha) for path, pair in injected.adapter(META).pairs["unet"].items()}
    assert found == {"fc": (2, 5.0), "inner.fc": (4, 4.0)}


def test_a_plain_name_is_the_end_of_a_language_model_s_path():
    modules = {"language_model": language.model()}
    targets = {"language_model": ("q_proj", "v_proj")}
    settled = settle(modules, targets, rank=4, alpha=4.0, rules=[Section(match="v_proj", rank=8)])
    assert {path.split(".")[-1]: layer.rank for path, layer in settled["language_model"].items()} == {
        "q_proj": 4,
        "v_proj": 8,
    }


def test_a_section_that_matches_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        settle(networks(), EVERYWHERE, rank=4, alpha=4.0, rules=[RULES[0], Section(match=r".*attn1\.to_z", rank=2)])
    message = str(caught.value)
    assert "Section 2" in message and "to_z" in message and "attn1.to_" in message
    # Matching a layer that is not chosen is no match either.
    with pytest.raises(ConfigError, match="conv_in"):
        settle(networks(), EVERYWHERE, rank=4, alpha=4.0, rules=[Section(match="conv_in", rank=2)])


def test_leaving_out_a_whole_component_is_refused():
    rules = [Section(match=r"(text_model\.)?encoder\..*", rank=0)]
    with pytest.raises(ConfigError, match="all 12 layers of text_encoder"):
        settle(networks(), EVERYWHERE, rank=4, alpha=4.0, rules=rules)


def test_a_section_behind_one_that_takes_all_its_layers_is_told():
    chosen = choose(networks(), EVERYWHERE)
    assert hidden(chosen, RULES) == []
    assert hidden(chosen, [Section(match=r".*to_q"), *RULES]) == [2, 3]
