"""PiSSA: the start is the weight's principal part, and the update is told relative to the untouched base."""

from __future__ import annotations

import pytest
import torch

from lora_scripts.adapters.adapter import Adapter
from lora_scripts.errors import BaseModelError
from tests.adapters.kinds.cases import MIXED, MODULES
from tests.adapters.networks import META, flat, networks, outputs, put, shake

PISSA = {"kind": "lora", "options": {"start": "pissa"}}


@pytest.mark.parametrize(("alpha", "stabilised"), [(4.0, False), (6.0, False), (6.0, True)])
def test_the_start_is_the_best_part_of_its_rank(alpha, stabilised):
    injected = put(
        networks(), MIXED, alpha=alpha, kind="lora", options={"start": "pissa", "rank_stabilised": stabilised}
    )
    checked = 0
    for layers in injected.layers.values():
        for layer in layers.values():
            weight = layer.get_base_layer().weight.detach().double().flatten(1)
            down, up = (half["default"].weight.detach().double().flatten(1) for half in (layer.lora_A, layer.lora_B))
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            best = left[:, :4] * values[:4] @ right[:4]
            assert (layer.scaling["default"] * up @ down - best).norm() < 1e-5 * best.norm()
            # Both halves got the root of each singular value.
            assert ((up.norm(dim=0) / down.norm(dim=1)) - 1).abs().max() < 1e-5
            checked += 1
    assert checked == MODULES


def test_the_base_keeps_every_bit_and_files_get_the_difference_of_two_pairs():
    modules = networks()
    injected = put(modules, MIXED, alpha=6.0, **PISSA)
    fresh = flat(injected.adapter(META))
    assert len(fresh) == MODULES and all(not update.delta().any() and update.rank == 8 for update in fresh.values())
    starts = {name: tensor.double() for part in injected.buffers().values() for name, tensor in part.items()}
    assert len(starts) == 2 * MODULES
    shake(injected)
    after = {name: tensor for part in injected.buffers().values() for name, tensor in part.items()}
    assert all(torch.equal(tensor.float(), after[name]) for name, tensor in starts.items())
    for component, layers in injected.layers.items():
        own = dict(networks()[component].named_modules())
        for path, layer in layers.items():
            original = own.get(path, own.get(path.removeprefix("text_model."))).weight
            assert torch.equal(layer.get_base_layer().weight, original)
            live = [half["default"].weight.detach().double().flatten(1) for half in (layer.lora_B, layer.lora_A)]
            first = [starts[f"{path}.start_{half}"].flatten(1) for half in ("up", "down")]
            wanted = 1.5 * (live[0] @ live[1] - first[0] @ first[1])
            got = injected.adapter(META).pairs[component][path].delta().flatten(1)
            assert (got - wanted).norm() < 1e-6 * wanted.norm()


def test_small_changes_survive_16_bits():
    """A pair that has moved by a thousandth: the plain difference of two products would be rounding."""
    modules = {name: module.to(torch.bfloat16) for name, module in networks().items()}
    injected = put(modules, MIXED, **PISSA)
    layer = injected.layers["unet"]["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    with torch.no_grad():
        for half in (layer.lora_A, layer.lora_B):
            half["default"].weight.mul_(1.001)
    delta = injected.adapter(META).pairs["unet"]["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"].delta()
    x = torch.randn(5, delta.shape[1], generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        made = layer.lora_variant["default"].forward(layer, "default", x, torch.zeros(5, delta.shape[0]))
    wanted = x @ delta.T
    assert wanted.norm() > 0 and (made - wanted).norm() < 0.01 * wanted.norm()


def test_it_learns_as_peft_s_own():
    """Three steps of gradient descent; linear layers only, PEFT has no principal start for convolutions."""
    from peft import LoraConfig, get_peft_model

    targets = {"unet": (r"mid_block\..*(to_(q|k|v|out\.0)|ff\.net\..*)",)}
    ours, theirs = networks(linear=True), networks(linear=True)
    injected = put(ours, targets, alpha=6.0, **PISSA)
    live = list(injected.layers["unet"])
    config = LoraConfig(r=4, lora_alpha=6.0, init_lora_weights="pissa", target_modules=live)
    theirs["unet"] = get_peft_model(theirs["unet"], config)
    generator = torch.Generator().manual_seed(3)
    text, noisy = torch.randn(2, 16, 32, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    losses: list[list[float]] = []
    for unet in (ours["unet"], theirs["unet"]):
        trained = [p for p in unet.parameters() if p.requires_grad]
        assert len(trained) == 2 * len(live) > 10
        optimizer = torch.optim.SGD(trained, lr=5.0)
        losses.append([])
        for _ in range(4):
            loss = unet(noisy, torch.tensor([10, 700]), encoder_hidden_states=text).sample.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][0] > losses[0][-1] * 1.01
    assert max(abs(a / b - 1) for a, b in zip(*losses, strict=True)) < 1e-4


def test_a_rank_above_the_weight_s_own_is_filled_up():
    modules = networks()
    before = outputs(modules)["unet"]
    injected = put(modules, {"unet": (r"mid_block\..*attn1\.to_q",)}, rank=80, alpha=80.0, **PISSA)
    assert torch.equal(outputs(modules)["unet"], before)
    (layer,) = injected.layers["unet"].values()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.get_base_layer().weight
    assert (up @ down - weight).abs().max() < 1e-5
    assert not up[:, 64:].any() and down[64:].abs().sum(1).min() > 0


def test_only_its_own_updates_can_be_put_back():
    injected = put(networks(), MIXED, **PISSA)
    shake(injected)
    made = injected.adapter(META)
    trained = {name: p.clone() for name, p in injected.parameters("unet").items()}
    twin = put(networks(), MIXED, **PISSA)
    twin.load(made)
    for name, parameter in twin.parameters("unet").items():
        assert (parameter - trained[name]).abs().max() < 1e-6
    # As an exporter may write it: another alpha, the rest folded into `up`.
    from dataclasses import replace

    folded = {
        component: {path: replace(pair, alpha=pair.alpha * 4, up=pair.up / 4) for path, pair in pairs.items()}
        for component, pairs in made.pairs.items()
    }
    twin.load(Adapter(folded, META))
    pair = made.pairs["unet"]
    for other in (
        put(networks(), MIXED, rank=8),
        put(networks(), MIXED, rank=4),
        put(networks(), MIXED, rank=4, **PISSA),
    ):
        shake(other)
        wrong = other.adapter(META)
        if other.buffers():
            moved = {path: replace(one, up=one.up.flip(1)) for path, one in pair.items()}
            wrong = Adapter({**made.pairs, "unet": moved}, META)
        with pytest.raises(BaseModelError, match="pissa"):
            injected.load(wrong)
    assert all(torch.equal(parameter, trained[name]) for name, parameter in injected.parameters("unet").items())
