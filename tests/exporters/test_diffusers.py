"""Diffusers' file: its keys, and that it does what the adapter does without any alpha in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.errors import NumericsError
from lora_scripts.exporters import diffusers
from tests.adapters.networks import META, adapter, flat, networks, outputs, put, same
from tests.exporters.loading import by_diffusers, difference


@pytest.mark.parametrize("linear", [False, True], ids=["sd1", "sd2"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 9.5), (2, 1.0)])
def test_the_file_does_what_the_adapter_does(linear, rank, alpha, tmp_path):
    made = adapter(rank=rank, alpha=alpha, linear=linear)
    path = tmp_path / diffusers.file_name(META)
    diffusers.export(made, path)
    trained = networks(linear)
    injected = put(trained, rank=rank, alpha=alpha)
    injected.load(made)
    base = outputs(networks(linear))
    for strength in (0.8, 1.0):
        with injected.scaled(strength):
            expected = outputs(trained)
        assert difference(by_diffusers(path, strength, linear=linear), expected) < 1e-5
        for name in base:
            assert (expected[name] - base[name]).abs().max() > 0.01


def test_keys_are_pefts_own_and_the_header_tells_whose_they_are(tmp_path):
    made = adapter(alpha=9.5)
    report = diffusers.export(made, tmp_path / "file.safetensors")
    header = read_header(tmp_path / "file.safetensors")
    assert report.tensors == len(header.tensors) == 182
    assert header.metadata == {"format": "pt", "family": "sd", "name": "tiny style", "base_hash": "ab" * 32}
    expected = {f"{module}.lora_{half}.weight" for module in flat(made) for half in "AB"}
    assert header.tensors.keys() == expected
    assert "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_B.weight" in expected
    assert header.tensors["unet.down_blocks.0.resnets.0.conv1.lora_A.weight"].shape == (4, 32, 3, 3)


def test_equal_alpha_and_rank_keep_every_bit(tmp_path):
    made = adapter(rank=4, alpha=4.0)
    diffusers.export(made, tmp_path / "file.safetensors")
    loaded = files.load(tmp_path / "file.safetensors")
    same(loaded, made)
    assert all(torch.equal(pair.up, flat(loaded)[module].up) for module, pair in flat(made).items())
    assert {pair.alpha for pair in flat(loaded).values()} == {4.0}


def test_mixed_ranks_and_scales_are_baked(tmp_path):
    small, large = adapter(rank=2, alpha=3.0), adapter(rank=8, alpha=20.0)
    made = Adapter(
        {
            component: {
                path: (small, large)[number % 2].pairs[component][path]
                for number, path in enumerate(small.pairs[component])
            }
            for component in small.pairs
        },
        META,
    )
    path = tmp_path / "file.safetensors"
    diffusers.export(made, path)
    compare(diffusers.read_back(path, made), made)
    compare(files.load(path), made)
    trained, expected = networks(), outputs(networks())
    with torch.no_grad():
        for module, pair in flat(made).items():
            component, _, name = module.partition(".")
            named = dict(trained[component].named_modules())
            weight = named[name.removeprefix("text_model.")].weight
            weight += 0.8 * pair.delta().view_as(weight)
    moved = difference(outputs(trained), expected)
    assert difference(by_diffusers(path, 0.8), outputs(trained)) < 1e-4 * moved and moved > 0.1


@pytest.mark.parametrize("pattern", [r".*self_attn\.q_proj", r".*mlp\.fc1"])
def test_any_choice_of_text_layers_is_read_back(pattern, tmp_path):
    made = adapter({"text_encoder": (pattern,)}, alpha=3.0)
    diffusers.export(made, tmp_path / "file.safetensors")
    compare(diffusers.read_back(tmp_path / "file.safetensors", made), made)


def test_reading_back_sees_a_file_that_differs(tmp_path):
    made = adapter(alpha=3.0)
    path = tmp_path / "file.safetensors"
    diffusers.export(made, path)
    tensors = load_file(path)
    tensors["unet.mid_block.attentions.0.proj_out.lora_B.weight"][0] *= 1.01
    save_file(tensors, path)
    with pytest.raises(NumericsError, match=r"mid_block\.attentions\.0\.proj_out"):
        compare(diffusers.read_back(path, made), made)


def test_the_name_does_not_matter_here():
    assert diffusers.refuses(replace(META, name="a:b")) is None
    assert diffusers.file_name(META) == "pytorch_lora_weights.safetensors"
