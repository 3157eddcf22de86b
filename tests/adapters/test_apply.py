"""LoRAs added to live weights and taken away."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.apply import added
from lora_scripts.errors import BaseModelError
from tests.adapters.networks import META, adapter, flat, networks, outputs, put, single


def weights(modules) -> dict[str, torch.Tensor]:
    return {f"{c}.{k}": v.clone() for c, module in modules.items() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("linear", [False, True])
def test_an_added_lora_gives_what_the_trained_network_gives(linear):
    made = adapter(alpha=6.0, linear=linear)
    trained = networks(linear)
    injected = put(trained, alpha=6.0)
    injected.load(made)
    modules = networks(linear)
    base = outputs(modules)
    for strength in (1.0, 0.4, -0.5):
        with injected.scaled(strength):
            expected = outputs(trained)
        with added(modules, [(made, strength)]):
            got = outputs(modules)
        for name in base:
            assert (got[name] - expected[name]).abs().max() < 1e-5
            assert (got[name] - base[name]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_old_weights_come_back_exactly(dtype):
    modules = {name: module.to(dtype) for name, module in networks().items()}
    before = weights(modules)
    made = adapter()
    with pytest.raises(KeyboardInterrupt), added(modules, [(made, 0.7), (made, 3.0)]):
        changed = sum(not torch.equal(before[name], tensor) for name, tensor in weights(modules).items())
        assert changed == 91
        raise KeyboardInterrupt
    after = weights(modules)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_several_add_up_and_are_rounded_once():
    modules = {name: module.to(torch.bfloat16) for name, module in networks().items()}
    first, second = adapter(rank=4), adapter(rank=2, alpha=1.0)
    named = dict(modules["unet"].named_modules())
    old = {path: named[path].weight.float() for path in first.pairs["unet"]}
    with added(modules, [(first, 0.5), (second, -0.25), (first, 0.125)]):
        for path, pair in first.pairs["unet"].items():
            wanted = old[path] + 0.5 * pair.delta().view_as(old[path])
            wanted = wanted - 0.25 * second.pairs["unet"][path].delta().view_as(old[path])
            wanted = wanted + 0.125 * pair.delta().view_as(old[path])
            assert torch.equal(named[path].weight, wanted.to(torch.bfloat16)), path


def test_strength_zero_and_no_lora_change_nothing():
    modules = networks()
    before = outputs(modules)["unet"]
    for adapters in ([], [(adapter(), 0.0)]):
        with added(modules, adapters):
            assert torch.equal(outputs(modules)["unet"], before)


def test_a_lora_for_another_base_is_refused_before_anything_changes():
    modules = networks()
    before = weights(modules)
    good = adapter()
    absent = Adapter(
        {"unet": {**good.pairs["unet"], "up_blocks.9.x": good.pairs["unet"]["mid_block.attentions.0.proj_in"]}}, META
    )
    wide = single()
    # As many values as the live weight, but turned.
    pair = flat(good)["unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"]
    turned = replace(pair, down=pair.up.t().contiguous(), up=pair.down.t().contiguous())
    path = "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
    for wrong, name in ((absent, "up_blocks.9.x"), (wide, "proj_in"), (Adapter({"unet": {path: turned}}, META), path)):
        with pytest.raises(BaseModelError) as caught, added(modules, [(good, 1.0), (wrong, 1.0)]):
            pass
        assert "1 of its modules" in str(caught.value) and name in str(caught.value)
        assert all(torch.equal(before[key], value) for key, value in weights(modules).items())


def test_a_component_that_the_base_lacks_is_refused():
    with pytest.raises(BaseModelError) as caught, added({"unet": networks()["unet"]}, [(adapter(), 1.0)]):
        pass
    assert "12 of its modules" in str(caught.value)
