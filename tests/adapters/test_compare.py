"""What a file says against what the adapter says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.compare import compare
from lora_scripts.errors import NumericsError
from tests.adapters.networks import META, adapter


@pytest.fixture(scope="module")
def live() -> Adapter:
    return adapter(alpha=6.0)


def changed(live: Adapter, module: str, change) -> Adapter:
    component, _, path = module.partition(".")
    pairs = {c: dict(p) for c, p in live.pairs.items()}
    pairs[component][path] = change(pairs[component][path])
    return Adapter(pairs, live.meta)


MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v"


def test_equal_adapters_pass_however_the_scale_is_kept(live):
    compare(live, live)
    baked = {
        component: {path: LoraPair(pair.down, pair.up * pair.scale, pair.rank) for path, pair in pairs.items()}
        for component, pairs in live.pairs.items()
    }
    compare(Adapter(baked, META), live)


def test_the_tolerance_is_relative_to_the_update(live):
    compare(changed(live, MODULE, lambda pair: replace(pair, up=pair.up * (1 + 5e-7))), live)
    for size in (1.0, 1e-4):
        small = changed(live, MODULE, lambda pair, size=size: replace(pair, up=pair.up * size))
        wrong = changed(small, MODULE, lambda pair: replace(pair, up=pair.up * (1 + 3e-6)))
        with pytest.raises(NumericsError) as caught:
            compare(wrong, small)
        assert MODULE in str(caught.value) and "tiny style" in str(caught.value) and caught.value.exit_code == 5


def test_the_worst_module_is_named(live):
    wrong = changed(live, MODULE, lambda pair: replace(pair, alpha=pair.alpha * 2))
    wrong = changed(wrong, "text_encoder.text_model.encoder.layers.0.mlp.fc1", lambda p: replace(p, up=p.up * 1.01))
    with pytest.raises(NumericsError) as caught:
        compare(wrong, live)
    assert MODULE in str(caught.value) and "1.0e+00" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_fail(live, value):
    broken = changed(live, MODULE, lambda pair: replace(pair, up=pair.up * value))
    for written, own in ((broken, live), (live, broken), (broken, broken)):
        with pytest.raises(NumericsError, match="to_v"):
            compare(written, own)


def test_missing_and_spare_modules_fail(live):
    fewer = {component: dict(pairs) for component, pairs in live.pairs.items()}
    del fewer["unet"][MODULE.removeprefix("unet.")]
    for written, own in ((Adapter(fewer, META), live), (live, Adapter(fewer, META))):
        with pytest.raises(NumericsError) as caught:
            compare(written, own)
        assert "1 differ" in str(caught.value) and MODULE in str(caught.value)
    with pytest.raises(NumericsError) as caught:
        compare(Adapter({"unet": live.pairs["unet"]}, META), live)
    assert "12 differ" in str(caught.value) and str(caught.value).count("text_encoder.") == 10


def test_an_update_of_zero_equals_only_zero(live):
    zero = changed(live, MODULE, lambda pair: replace(pair, up=torch.zeros_like(pair.up)))
    compare(zero, zero)
    with pytest.raises(NumericsError, match="to_v"):
        compare(changed(zero, MODULE, lambda pair: replace(pair, up=pair.up + 1e-12)), zero)


def test_another_shape_fails(live):
    other = changed(live, MODULE, lambda pair: replace(pair, up=pair.up[:-1]))
    with pytest.raises(NumericsError, match="to_v"):
        compare(other, live)


def test_rounding_of_a_high_rank_passes():
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(1024, 96, generator=generator)
    up = torch.randn(96, 1024, generator=generator)
    own = Adapter({"unet": {"x": LoraPair(down, up, 300.0)}}, META)
    baked = Adapter({"unet": {"x": LoraPair(down, up * (300.0 / 1024), 1024.0)}}, META)
    compare(baked, own)
