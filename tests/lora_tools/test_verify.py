"""Broken files are found, whole ones are not blamed, and a base tells what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import messages, registry
from lora_scripts.adapters import files
from lora_scripts.lora_tools.verify import verify
from tests import tiny
from tests.adapters.networks import adapter
from tests.lora_tools import making


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sd_folder(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A file of ours, hashes included."""
    path = tmp_path / "tiny style.safetensors"
    registry.load("exporters", "kohya").export(adapter(), path)
    return path


def run(path: Path, base: str = "") -> tuple[list[str], list[str]]:
    """Return the sentences of what is good and of what is bad."""
    checks = list(verify(path, base))
    for check in checks:
        messages.text(check.code, **check.params)
    said = {good: [messages.text(c.code, **c.params) for c in checks if c.is_good is good] for good in (True, False)}
    return said[True], said[False]


def test_a_whole_file_is_whole(lora):
    good, bad = run(lora)
    assert bad == [] and len(good) == 4
    assert "91 modules in 273 tensors" in good[0]
    assert "sshs_model_hash" in good[1] and "modelspec.hash_sha256" in good[2] and "273 tensors" in good[3]


def test_one_flipped_byte_is_found(lora):
    data = bytearray(lora.read_bytes())
    data[-9] ^= 1
    lora.write_bytes(data)
    _, bad = run(lora)
    assert len(bad) == 2 and all("changed or damaged" in sentence for sentence in bad)


def test_a_file_without_hashes_is_not_blamed(tmp_path):
    pairs = making.random_pairs(tiny.parts()["unet"])
    good, bad = run(making.kohya(tmp_path / "style.safetensors", pairs))
    assert bad == [] and any("names no hash" in sentence for sentence in good)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(lora, value):
    tensors = load_file(lora)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[name][0] = value
    save_file(tensors, lora)
    _, bad = run(lora)
    assert len(bad) == 1 and "not finite" in bad[0] and name in bad[0]


def test_modules_that_do_nothing_are_told(lora):
    tensors = load_file(lora)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[name].zero_()
    save_file(tensors, lora)
    good, bad = run(lora)
    assert bad == [] and any(sentence.startswith("1 of 91 modules are zero") for sentence in good)


def test_half_a_pair_and_a_short_file(lora, tmp_path):
    tensors = load_file(lora)
    del tensors[next(name for name in tensors if name.endswith("lora_up.weight"))]
    save_file(tensors, tmp_path / "half.safetensors")
    assert "lacks tensors of 1 modules" in run(tmp_path / "half.safetensors")[1][0]
    (tmp_path / "short.safetensors").write_bytes(lora.read_bytes()[:-100])
    assert "cut short" in run(tmp_path / "short.safetensors")[1][0]
    assert "does not exist" in run(tmp_path / "absent.safetensors")[1][0]


def test_against_the_right_base(base, tmp_path):
    models = tiny.parts()
    pairs = making.random_pairs(models["unet"], models["text_encoder"])
    path = making.kohya(tmp_path / "style.safetensors", pairs)
    good, bad = run(path, str(base))
    assert bad == [] and any("all 62 modules are in base" in sentence for sentence in good)
    assert "has other weights" in good[-1]
    plugin = registry.load("families", "sd").plugin
    digest = plugin.weights_hash(plugin.recognise(base))
    making.kohya(path, pairs, header=making.HEADER | {"ss_base_weights_hash": digest})
    assert "the very weights" in run(path, str(base))[0][-1]


def test_against_another_base(base, tmp_path):
    models = tiny.parts()
    pairs = making.random_pairs(models["unet"])
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = pairs["unet"][module]
    pairs["unet"][module] = making.LoraPair(torch.ones(4, 5), pair.up, 1.0)
    path = making.kohya(tmp_path / "style.safetensors", pairs)
    _, bad = run(path, str(base))
    assert len(bad) == 1 and "1 of its modules are absent here or of another size" in bad[0] and module in bad[0]
    pairs["unet"] = {f"{module}.more": pair}
    _, bad = run(making.kohya(path, pairs), str(base))
    assert len(bad) == 1 and "does not have" in bad[0]
    assert files.load(path)
