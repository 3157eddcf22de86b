"""Every kind in a language model whose layers were told to keep less for the backward pass."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.families import _fused
from tests.adapters import language
from tests.adapters.kinds.cases import CASES, Section
from tests.adapters.networks import put, shake

PLAIN = {"lora", "rslora"}


@pytest.mark.parametrize("name", list(CASES))
def test_values_and_gradients_are_those_of_peft_s_layers(name):
    ids = torch.arange(2, 34).reshape(2, 16)
    base = language.model().double()(input_ids=ids).logits
    losses, gradients, alone = [], [], []
    for fused in (False, True):
        model = language.model().double()
        targets, rules = {"language_model": language.EVERYWHERE}, [Section(match="v_proj", rank=2, alpha=5.0)]
        injected = put({"language_model": model}, targets, rules=rules, dtype=torch.float64, **CASES[name])
        shake(injected, 0.1)
        if fused:
            _fused.install(model)
            replaced = ["forward" in vars(layer) for layer in injected.layers["language_model"].values()]
            assert len(replaced) == 14 and set(replaced) == {name in PLAIN}
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
        gradients.append({key: p.grad for key, p in injected.parameters("language_model").items()})
        with injected.disabled():
            alone.append(model(input_ids=ids).logits)
    assert abs(losses[0].item() - losses[1].item()) < 1e-12
    assert torch.equal(alone[0], base) and (alone[1] - base).abs().max() < 1e-12
    assert all((gradients[1][key] - gradient).abs().max() < 1e-12 for key, gradient in gradients[0].items())
