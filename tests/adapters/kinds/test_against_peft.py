"""Our layers against PEFT's own, loaded by PEFT from tensors named as our files name them; float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lora_scripts import registry
from tests.adapters import language
from tests.adapters.kinds.cases import CASES, MIXED, MODULES, Section
from tests.adapters.networks import META, networks, outputs, put, shake

# PiSSA's layers are not PEFT's: see test_pissa.
THEIRS = [name for name in CASES if name != "pissa"]
RANK, ALPHA = 4, 6.0
# One expression each that matches in every component, for PEFT looks for its patterns in each.
RULES = (
    Section(match=r".*(conv1|v_proj)", rank=2, alpha=3.0),
    Section(match=r".*(fc1|to_q|up_proj)", rank=6, alpha=3.0),
)


def peft_config(case: Mapping[str, Any], paths: list[str]) -> Any:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    kind, options = case["kind"], case.get("options", {})
    patterns = {
        "rank_pattern": {rule.match: rule.rank for rule in RULES},
        "alpha_pattern": {rule.match: rule.alpha for rule in RULES},
        "target_modules": paths,
    }
    if kind == "loha":
        return LoHaConfig(r=RANK, alpha=ALPHA, **patterns)
    if kind == "lokr":
        factor, low = options.get("factor", -1), options.get("decompose_both", False)
        return LoKrConfig(r=RANK, alpha=ALPHA, decompose_factor=factor, decompose_both=low, **patterns)
    stabilised = options.get("rank_stabilised", False)
    return LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=stabilised, use_dora=kind == "dora", **patterns)


def reference(model: Any, tensors: Mapping[str, torch.Tensor], case: Mapping[str, Any]) -> Any:
    """Return the model with PEFT's own layers, which PEFT fills from named tensors."""
    from peft import get_peft_model, set_peft_model_state_dict

    live = {path for path, _ in model.named_modules()}
    suffixes = registry.load("adapters", case["kind"]).SUFFIXES["peft"]
    named = {}
    for full, tensor in tensors.items():
        path, _, role = full.rpartition(".")
        here = path if path in live else path.removeprefix("text_model.")
        named[here, role] = tensor.detach().clone()
    theirs = get_peft_model(model, peft_config(case, sorted({path for path, _ in named})))
    stored = {f"base_model.model.{path}.{suffixes[role]}": tensor for (path, role), tensor in named.items()}
    result = set_peft_model_state_dict(theirs, stored)
    assert not result.unexpected_keys and stored
    assert not [key for key in result.missing_keys if any(mark in key for mark in ("lora_", "hada_", "lokr_"))]
    return theirs.eval()


def both(case: Mapping[str, Any], modules: Mapping[str, Any], targets: Any) -> tuple[dict, dict, Any]:
    """Return ours and theirs, and what we injected."""
    ours = {name: copy.deepcopy(module).double() for name, module in modules.items()}
    theirs = {name: copy.deepcopy(module).double() for name, module in modules.items()}
    injected = put(ours, targets, rank=RANK, alpha=ALPHA, rules=RULES, dtype=torch.float64, **case)
    shake(injected, 0.1)
    ranks = {layer.r["default"] for group in injected.layers.values() for layer in group.values()}
    assert ranks == {2, 4, 6}
    return ours, {c: reference(model, injected.parameters(c), case) for c, model in theirs.items()}, injected


@pytest.mark.parametrize("name", THEIRS)
def test_pictures(name):
    case = CASES[name]
    ours, theirs, injected = both(case, networks(), MIXED)
    base = outputs({name: module.double() for name, module in networks().items()})
    got, wanted = outputs(ours), outputs(theirs)
    for component in base:
        assert (got[component] - wanted[component]).abs().max() < 1e-10
        assert (got[component] - base[component]).abs().max() > 1e-3
    # What PEFT merges into a weight is what the update says.
    made = injected.adapter(META).pairs
    assert sum(len(updates) for updates in made.values()) == MODULES
    for component, module in theirs.items():
        after = dict(module.merge_and_unload().named_modules())
        before = dict(networks()[component].named_modules())
        for path, update in made[component].items():
            here = path if path in before else path.removeprefix("text_model.")
            weight = before[here].weight.detach()
            delta = after[here].weight.detach() - weight.double()
            assert (update.delta(weight) - delta).abs().max() < 2e-6 * (weight.abs().max() + delta.abs().max()), path


@pytest.mark.parametrize("name", THEIRS)
def test_texts_with_gradients(name):
    case = CASES[name]
    model = language.model("llama")
    ours, theirs, injected = both(case, {"language_model": model}, {"language_model": language.EVERYWHERE})
    ids = torch.arange(2, 34).reshape(2, 16)
    losses = []
    for one in (ours, theirs):
        losses.append(one["language_model"](input_ids=ids, labels=ids).loss)
        losses[-1].backward()
    base = model.double()(input_ids=ids, labels=ids).loss
    assert abs(losses[0].item() - losses[1].item()) < 1e-10 < 1e-4 < abs(losses[0].item() - base.item())
    wanted = dict(theirs["language_model"].named_parameters())
    suffixes = registry.load("adapters", case["kind"]).SUFFIXES["peft"]
    compared = 0
    for full, parameter in injected.parameters("language_model").items():
        path, _, role = full.rpartition(".")
        start = f"base_model.model.{path}.{suffixes[role].removesuffix('.weight')}.default"
        twin = wanted[start] if start in wanted else wanted[f"{start}.weight"]
        assert twin.grad is not None and (parameter.grad - twin.grad).abs().max() < 1e-10, full
        compared += 1
    assert compared >= 28
