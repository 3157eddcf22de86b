"""Weights in few bits: what they are, what they compute, what they keep, and that pairs train beside them."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_scripts import registry
from lora_scripts.adapters.inject import inject
from lora_scripts.contracts import Placement
from lora_scripts.errors import ConfigError
from lora_scripts.families import _held
from tests import tiny, tiny_text

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
needs_library = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
FORMATS = ("fp8", pytest.param("nf4", marks=needs_library))
TARGETS = {"unet": [r".*\.transformer_blocks\.\d+\.(attn[12]\.to_[qkv]|ff\.net\.2)", r".*\.resnets\.\d+\.conv1"]}


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = {
        "linear": nn.Linear(96, 160),
        "bare": nn.Linear(96, 160, bias=False),
        "plain": nn.Conv2d(64, 48, 3, padding=1),
        "strided": nn.Conv2d(64, 48, 3, stride=2, padding=1),
        "grouped": nn.Conv2d(64, 128, 3, groups=2),
        "point": nn.Conv2d(64, 80, 1),
    }
    return nn.ModuleDict(layers).requires_grad_(False)


def rows_for(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    shape = (2, 5, 96) if isinstance(layer, nn.Linear) else (2, 64, 9, 7)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantisation", FORMATS)
def test_layers_compute_with_the_weights_that_are_read_from_them(quantisation: str, dtype: torch.dtype):
    held = network()
    plain = copy.deepcopy(held).to(dtype)
    _held.hold(held, quantisation, dtype)
    assert sum(map(_held.is_held, held.children())) == 6
    for name, layer in held.named_children():
        assert isinstance(layer, type(plain[name]))
        with torch.no_grad():
            plain[name].weight.copy_(layer.weight)
        results = []
        for one in (layer, plain[name]):
            x = rows_for(one, dtype).requires_grad_(True)
            y = one(x)
            y.square().sum().backward()
            results.append((y, x.grad))
        assert torch.equal(results[0][0], results[1][0]), name
        assert torch.equal(results[0][1], results[1][1]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_bits_are_the_nearest_number_of_their_format(dtype: torch.dtype):
    layer = network()["plain"]
    before = layer.weight.detach().clone()
    _held.hold_layer(layer, "fp8", dtype)
    scales = layer.held_scales.view(-1, 1, 1, 1)
    exact = layer.held_codes.view(torch.float8_e4m3fn).float().view(before.shape) * scales
    assert torch.equal(layer.weight, exact.to(dtype))
    # Three bits of mantissa: half a step is a sixteenth of the number, or of the smallest normal number.
    bound = (before.abs() / 16).clamp_min(2.0**-6 / 16 * scales)
    assert bool(((exact - before).abs() <= bound).all())
    assert bool((scales.log2() % 1 == 0).all())
    assert float(exact.abs().max() / scales.max()) <= _held.LARGEST


@pytest.mark.parametrize(
    ("quantisation", "least", "most"), [("fp8", 0.01, 0.03), pytest.param("nf4", 0.05, 0.1, marks=needs_library)]
)
def test_how_far_weights_are_off(quantisation: str, least: float, most: float):
    """What the ladder says of them."""
    layer = nn.Linear(512, 512).requires_grad_(False)
    nn.init.normal_(layer.weight)
    before = layer.weight.clone()
    _held.hold_layer(layer, quantisation, torch.float32)
    assert least < float((layer.weight - before).norm() / before.norm()) < most


def test_rows_of_zeros_and_of_tiny_numbers_stay_finite():
    layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
    layer.weight[0] = 0
    layer.weight[1] = 1e-30
    for dtype in DTYPES:
        held = copy.deepcopy(layer)
        _held.hold_layer(held, "fp8", dtype)
        assert bool(torch.isfinite(held.weight).all())
        assert bool((held.weight[:2] == 0).all())
        assert bool((held.weight[2:] != 0).any())


@pytest.mark.parametrize(("quantisation", "bits"), [("fp8", 8), pytest.param("nf4", 4.5, marks=needs_library)])
def test_bytes_that_are_held_and_kept(quantisation: str, bits: float):
    layer = nn.Linear(1024, 512).to(torch.bfloat16).requires_grad_(False)
    _held.hold_layer(layer, quantisation)
    held = sum(tensor.nbytes for tensor in [*layer.parameters(), *layer.buffers()])
    assert held == pytest.approx(1024 * 512 * bits / 8, rel=0.01)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.zeros(4, 1024, dtype=torch.bfloat16, requires_grad=True))
    assert kept == []


@pytest.mark.parametrize("quantisation", FORMATS)
def test_pairs_train_beside_a_held_network(quantisation: str):
    unet = copy.deepcopy(tiny.parts()["unet"]).to(torch.bfloat16).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    x, states = (torch.randn(s, generator=generator).to(torch.bfloat16) for s in ((1, 4, 16, 16), (1, 4, 64)))
    arguments = (x, torch.tensor([7]), states)
    with torch.no_grad():
        before = unet(*arguments).sample
    _held.hold(unet, quantisation)
    held = [path for path, module in unet.named_modules() if _held.is_held(module)]
    assert len(held) == 38
    kept = [path for path in ("conv_in", "conv_out", "time_embedding.linear_1") if path not in held]
    assert len(kept) == 3
    assert not [path for path in held if "emb" in path or "norm" in path]
    injected = inject({"unet": unet}, targets=TARGETS, rank=2, alpha=2, dropout=0.0, seed=1)
    parameters = list(injected.parameters("unet").values())
    with torch.autocast("cpu", torch.bfloat16):
        made = unet(*arguments).sample
    distance = float((made.detach().float() - before.float()).norm() / before.float().norm())
    assert 0 < distance < 0.3
    made.float().square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in parameters)
    # The halves that start at zero learn first.
    learning = sum(bool(p.grad.abs().max() > 0) for p in parameters)
    assert learning == len(parameters) // 2
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in parameters}


def test_a_held_network_can_be_copied():
    held = network()
    _held.hold(held, "fp8", torch.float32)
    twin = copy.deepcopy(held)
    x = rows_for(held["linear"], torch.float32)
    assert torch.equal(twin["linear"](x), held["linear"](x))


def test_nothing_to_hold_is_refused():
    with pytest.raises(ConfigError) as raised:
        _held.hold(nn.Sequential(nn.Linear(8, 8)), "fp8")
    assert "fp8" in str(raised.value)


@pytest.mark.parametrize("quantisation", ["fp8", "nf4"])
def test_shapes_alone_need_no_library(quantisation: str):
    with torch.device("meta"):
        layer = nn.Linear(256, 128)
    _held.hold_layer(layer, quantisation, torch.bfloat16)
    assert layer.held_codes.is_meta
    assert layer.held_codes.nbytes == (256 * 128 if quantisation == "fp8" else 256 * 64)


def test_a_language_model_in_eight_bits_is_that_of_its_weights(tmp_path: Path):
    """Its outputs and gradients are those of the same model whose weights are what the eight bits say."""
    base = tiny_text.write_base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    plugin = registry.load("families", "causal_lm").plugin
    found, weights = [], {}
    for quantisation in ("fp8", ""):
        placement = Placement(torch.device("cpu"), torch.float32, torch.float32, quantisation=quantisation)
        family = plugin.load(plugin.recognise(base), placement)
        for name, module in family.model.named_modules():
            if _held.is_held(module):
                weights[name] = module.weight
            elif not quantisation and name in weights:
                module.weight.data = weights[name]
        targets = plugin.target_presets["all-linear"]
        injected = inject(family.trainable(), targets=targets, rank=4, alpha=8.0, dropout=0.0, seed=1)
        family.injected(injected)
        ids = torch.arange(3, 15)
        hidden = family.hidden(ids, torch.arange(12), [12])
        hidden.square().mean().backward()
        found.append([hidden.detach(), *(p.grad for p in injected.parameters("language_model").values())])
    # The key and value layers of so small a model are too small.
    assert len(weights) == 10
    assert len(found[0]) == len(found[1]) == 29
    for held, plain in zip(*found, strict=True):
        assert torch.allclose(held, plain, rtol=1e-4, atol=1e-6)
