"""Pairs in live networks: the laws of LoRA, seeded starts, refusals."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.inject import choose, inject
from lora_scripts.errors import BaseModelError, ConfigError
from tests.adapters.networks import ATTENTION, EVERYWHERE, META, TEXT, flat, networks, outputs, put, same, shake, single


def test_a_fresh_adapter_changes_nothing():
    modules = networks()
    before = outputs(modules)
    put(modules)
    after = outputs(modules)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merged_equals_unmerged():
    modules = networks()
    base = outputs(modules)
    injected = put(modules, alpha=6.0)
    shake(injected)
    live = outputs(modules)
    merged = networks()
    for module, pair in flat(injected.adapter(META)).items():
        component, _, path = module.partition(".")
        named = dict(merged[component].named_modules())
        weight = named.get(path, named.get(path.removeprefix("text_model."))).weight
        with torch.no_grad():
            weight += pair.delta().view_as(weight)
    for name, output in outputs(merged).items():
        assert (output - live[name]).abs().max() < 1e-5
        assert (base[name] - live[name]).abs().max() > 0.01


def test_only_the_pairs_get_gradients():
    modules = networks()
    injected = put(modules)
    shake(injected)
    text = modules["text_encoder"](torch.arange(3, 19)[None]).last_hidden_state
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    modules["unet"](noisy, torch.tensor([5]), encoder_hidden_states=text).sample.square().sum().backward()
    trained = {id(p) for c in injected.summary() for p in injected.parameters(c).values()}
    others = [p for module in modules.values() for p in module.parameters() if id(p) not in trained]
    assert len(trained) == 2 * sum(count.modules for count in injected.summary().values()) == 2 * 91
    assert len(others) > 100 and not any(p.requires_grad or p.grad is not None for p in others)
    reached = [p for c in injected.summary() for p in injected.parameters(c).values() if p.grad is not None]
    assert len(reached) == len(trained) and all(p.grad.abs().sum() > 0 for p in reached)


def test_a_half_precision_base_keeps_float32_pairs():
    modules = {name: module.to(torch.bfloat16) for name, module in networks().items()}
    before = outputs(modules)
    injected = put(modules)
    after = outputs(modules)
    tensors = [p for c in injected.summary() for p in injected.parameters(c).values()]
    assert len(tensors) == 182 and {p.dtype for p in tensors} == {torch.float32}
    assert {p.dtype for p in modules["unet"].conv_in.parameters()} == {torch.bfloat16}
    assert before["unet"].dtype == after["unet"].dtype == torch.bfloat16
    assert torch.equal(before["unet"], after["unet"])
    made = injected.adapter(META)
    assert all(pair.down.dtype == pair.up.dtype == torch.float32 for pair in flat(made).values())


def test_start_values_depend_on_seed_and_path_only():
    first = put(networks()).adapter(META)
    torch.manual_seed(77)
    shuffled = {name: module.to(torch.bfloat16) for name, module in reversed(networks().items())}
    reversed_targets = {name: tuple(reversed(EVERYWHERE[name])) for name in reversed(EVERYWHERE)}
    second = put(shuffled, reversed_targets).adapter(META)
    alone = put({"unet": networks()["unet"]}, {"unet": (r".*mid_block.*to_q",)}).adapter(META)
    other = put(networks(), seed=2).adapter(META)
    pairs = flat(first)
    assert len(pairs) == 91
    assert all(torch.equal(pair.down, flat(second)[name].down) for name, pair in pairs.items())
    assert len(flat(alone)) == 2
    assert all(torch.equal(pair.down, pairs[name].down) for name, pair in flat(alone).items())
    assert not any(torch.equal(pair.down, flat(other)[name].down) for name, pair in pairs.items())
    starts = [pair.down.flatten()[:3] for pair in pairs.values()]
    assert len({tuple(start.tolist()) for start in starts}) == 91


def test_start_values_have_the_spread_of_a_linear_layer():
    for pair in flat(put(networks(), rank=16).adapter(META)).values():
        bound = pair.down[0].numel() ** -0.5
        assert pair.up.abs().max() == 0
        assert 0.9 * bound < pair.down.abs().max() <= bound
        assert abs(float(pair.down.std()) / (bound / 3**0.5) - 1) < 0.15


def test_strength_multiplies_and_comes_back():
    modules = networks()
    base = outputs(modules)
    injected = put(modules, alpha=2.0)
    shake(injected, 0.05)
    full = outputs(modules)
    with injected.scaled(0.0):
        assert torch.equal(outputs(modules)["unet"], base["unet"])
    with injected.disabled(), injected.scaled(0.5):
        assert torch.equal(outputs(modules)["unet"], base["unet"])
    with injected.scaled(0.5):
        half = outputs(modules)
    doubled = networks()
    weaker = put(doubled, alpha=1.0)
    with torch.no_grad():
        for component in weaker.summary():
            for name, tensor in weaker.parameters(component).items():
                tensor.copy_(injected.parameters(component)[name])
    assert (outputs(doubled)["unet"] - half["unet"]).abs().max() < 1e-6
    assert not torch.equal(half["unet"], full["unet"]) and torch.equal(outputs(modules)["unet"], full["unet"])


def test_an_interrupted_preview_turns_the_adapter_on_again():
    modules = networks()
    injected = put(modules)
    shake(injected)
    full = outputs(modules)["unet"]
    with pytest.raises(KeyboardInterrupt), injected.disabled():
        raise KeyboardInterrupt
    assert torch.equal(outputs(modules)["unet"], full)


def test_paths_are_canonical_and_text_encoders_have_text_model_in_front():
    made = put(networks()).adapter(META)
    assert {len(pairs) for pairs in made.pairs.values()} == {79, 12}
    assert all(path.startswith("text_model.encoder.layers.") for path in made.pairs["text_encoder"])
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0" in made.pairs["unet"]
    injected = put(networks())
    names = injected.parameters("text_encoder")
    assert "text_model.encoder.layers.0.mlp.fc1.up" in names and len(names) == 24
    assert injected.module_names() == {component: list(pairs) for component, pairs in made.pairs.items()}


def test_live_and_canonical_patterns_choose_the_same_modules():
    modules = networks()
    canonical = choose(modules, {"text_encoder": (TEXT,)})
    live = choose(modules, {"text_encoder": (TEXT.replace(r"text_model\.", r"(?:text_model\.)?"),)})
    assert canonical == live and len(canonical["text_encoder"]) == 12


def test_a_copy_is_not_the_live_tensor():
    injected = put(networks())
    made = injected.adapter(META)
    shake(injected)
    assert all(pair.up.abs().max() == 0 and not pair.up.requires_grad for pair in flat(made).values())


def test_the_summary_counts():
    summary = put(networks(), ATTENTION, rank=4).summary()
    made = put(networks(), ATTENTION, rank=4).adapter(META)
    for component, count in summary.items():
        pairs = made.pairs[component].values()
        assert count.modules == len(pairs)
        assert count.parameters == sum(pair.down.numel() + pair.up.numel() for pair in pairs)
    assert summary["unet"].modules == 48 and summary["text_encoder"].modules == 12


def test_loading_gives_the_adapter_back_and_folds_another_scale():
    source = put(networks(), alpha=8.0)
    shake(source)
    made = source.adapter(META)
    target = put(networks(), alpha=8.0, seed=3)
    target.load(made)
    assert all(torch.equal(pair.up, flat(made)[name].up) for name, pair in flat(target.adapter(META)).items())
    folded = put(networks(), alpha=3.0)
    folded.load(made)
    assert {pair.alpha for pair in flat(folded.adapter(META)).values()} == {3.0}
    same(folded.adapter(META), made, tolerance=1e-6)


def test_loading_reads_a_linear_pair_into_a_1x1_convolution():
    convolution = put(networks(), {"unet": (r".*mid_block.*proj_in",)})
    linear = put(networks(linear=True), {"unet": (r".*mid_block.*proj_in",)})
    shake(linear)
    convolution.load(linear.adapter(META))
    (ours,), (theirs,) = flat(convolution.adapter(META)).values(), flat(linear.adapter(META)).values()
    assert ours.down.ndim == 4 and torch.equal(ours.delta().flatten(), theirs.delta().flatten())


def test_loading_other_modules_is_refused_with_ten_names_and_changes_nothing():
    injected = put(networks(), ATTENTION)
    before = injected.adapter(META)
    with pytest.raises(BaseModelError) as caught:
        injected.load(put(networks()).adapter(META))
    message = str(caught.value)
    assert "31 modules" in message and message.count("unet.") == 10 and "tiny style" in message
    everything = put(networks())
    with pytest.raises(BaseModelError) as caught:
        everything.load(single())
    assert "90 modules" in str(caught.value) and "text_model" in str(caught.value)
    assert str(caught.value).count("text_encoder.") == 10
    same(injected.adapter(META), before)


def test_loading_another_rank_is_refused_by_name():
    injected = put(networks(), rank=4)
    with pytest.raises(BaseModelError) as caught:
        injected.load(put(networks(), rank=8).adapter(META))
    assert "rank 8" in str(caught.value) and "lora_rank: 8" in str(caught.value)


def test_loading_another_size_is_refused_before_anything_changes():
    injected = put(networks(), {"unet": (r".*mid_block.*to_(q|k)",)}, rank=2)
    shake(injected)
    before = injected.adapter(META)
    pairs = dict(before.pairs["unet"])
    last = list(pairs)[-1]
    narrow = single().pairs["unet"]["mid_block.attentions.0.proj_in"]
    with pytest.raises(BaseModelError) as caught:
        injected.load(Adapter({"unet": {**pairs, last: narrow}}, META))
    assert last in str(caught.value) and "8 x 6" in str(caught.value)
    same(injected.adapter(META), before)


@pytest.mark.parametrize(
    ("targets", "bad", "nearest"),
    [
        ({"unet": (r".*attn1\.to_z",)}, "to_z", "attn1.to_"),
        ({"unet": (r".*attn1\.to_q", r".*mid_blok\.resnets\.0\.conv1")}, "mid_blok", "mid_block.resnets.0.conv1"),
        ({"unet": (r".*to_q",), "text_encoder": (r".*self_attn\.q_prj",)}, "q_prj", "self_attn.q_proj"),
        ({"unet": (r"to_q",)}, "to_q", "to_q"),
        ({"unet": (r"down_blocks\.0", r".*to_q")}, "down_blocks", ""),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(targets, bad, nearest):
    modules = networks()
    with pytest.raises(ConfigError) as caught:
        put({name: modules[name] for name in targets}, targets)
    message = str(caught.value)
    assert bad in message and nearest in message and "nearest" in message
    assert not any("lora" in name for name, _ in modules["unet"].named_parameters())


def test_a_pattern_meant_for_two_components_may_match_in_one():
    patterns = (r".*\.to_q", r".*self_attn\.q_proj")
    chosen = choose(networks(), {"unet": patterns, "text_encoder": patterns})
    assert {name: len(paths) for name, paths in chosen.items()} == {"unet": 8, "text_encoder": 2}


def test_a_component_without_targets_is_frozen():
    modules = networks()
    injected = inject(modules, targets={"unet": EVERYWHERE["unet"]}, rank=2, alpha=2, dropout=0.0, seed=0)
    assert list(injected.summary()) == ["unet"]
    assert not any(p.requires_grad for p in modules["text_encoder"].parameters())


def test_dropout_acts_on_the_pairs_until_the_networks_are_put_to_measuring():
    modules = networks()
    injected = inject(modules, targets=EVERYWHERE, rank=4, alpha=4, dropout=0.5, seed=1)
    shake(injected)
    first, second = outputs(modules)["unet"], outputs(modules)["unet"]
    is_equal = torch.equal(first, second)
    assert not is_equal
    for module in modules.values():
        module.eval()
    first, second = outputs(modules)["unet"], outputs(modules)["unet"]
    is_equal = torch.equal(first, second)
    assert is_equal
