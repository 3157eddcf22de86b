"""Kohya's file: its keys, its header, and that it does what the adapter does."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_scripts import registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.safetensors_file import read_header, save
from lora_scripts.errors import NumericsError
from lora_scripts.exporters import kohya
from tests.adapters.networks import ATTENTION, META, adapter, flat, networks, outputs, put, same
from tests.exporters.loading import by_diffusers, by_hand, difference


@pytest.mark.parametrize("linear", [False, True], ids=["sd1", "sd2"])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 9.5), (2, 1.0)])
def test_the_file_does_what_the_adapter_does(linear, rank, alpha, tmp_path):
    made = adapter(rank=rank, alpha=alpha, linear=linear)
    path = tmp_path / "tiny style.safetensors"
    kohya.export(made, path)
    trained = networks(linear)
    injected = put(trained, rank=rank, alpha=alpha)
    injected.load(made)
    base = outputs(networks(linear))
    for strength in (0.8, 1.0):
        with injected.scaled(strength):
            expected = outputs(trained)
        assert difference(by_hand(path, strength, linear=linear), expected) < 1e-5
        assert difference(by_diffusers(path, strength, linear=linear), expected) < 1e-5
        for name in base:
            assert (expected[name] - base[name]).abs().max() > 0.01


def test_keys_and_shapes_of_stable_diffusion_are_the_golden_ones(root: Path, tmp_path):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    golden = json.loads((root / "tests/golden/sd15_kohya_default.json").read_text())
    unet, text = (json.loads((root / f"tests/golden/{name}.json").read_text()) for name in ("sd15_unet", "clip_l"))
    with torch.device("meta"):
        modules = {
            "unet": UNet2DConditionModel.from_config(unet),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
    targets = registry.load("families", "sd").plugin.target_presets["kohya"]
    injected = put(modules, targets, rank=golden["rank"], alpha=1.0)
    pairs: dict[str, dict[str, LoraPair]] = {}
    for component in modules:
        shapes = injected.parameters(component)
        names = [name.removesuffix(".down") for name in shapes if name.endswith(".down")]
        pairs[component] = {
            name: LoraPair(torch.zeros(shapes[f"{name}.down"].shape), torch.zeros(shapes[f"{name}.up"].shape), 1.0)
            for name in names
        }
    path = tmp_path / "sd15.safetensors"
    report = kohya.export(Adapter(pairs, META), path)
    header = read_header(path)
    found = {name: list(info.shape) for name, info in header.tensors.items()}
    assert len(golden["keys"]) == report.tensors == 792
    assert found == golden["keys"]
    assert {info.dtype for info in header.tensors.values()} == {"F32"}
    assert sum(count.parameters for count in injected.summary().values()) == golden["lora_parameters"]
    assert {name: count.modules for name, count in injected.summary().items()} == golden["modules_by_component"]
    known = {component: [n for n, _ in module.named_modules()] for component, module in modules.items()}
    assert len(files.load(path, known_modules=known)) == 264


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path):
    made = adapter(alpha=9.5)
    kohya.export(made, tmp_path / "first")
    kohya.export(files.load(tmp_path / "first"), tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_differing_scales_are_folded_into_one_alpha(tmp_path):
    small, large = adapter(rank=2, alpha=2.0), adapter(rank=8, alpha=20.0)
    mixed: dict[str, dict[str, LoraPair]] = {}
    for component in small.pairs:
        for number, path in enumerate(small.pairs[component]):
            pair = (small, large)[number % 2].pairs[component][path]
            mixed.setdefault(component, {})[path] = replace(pair, alpha=pair.alpha * (1 + number % 3))
    made = Adapter(mixed, META)
    path = tmp_path / "mixed.safetensors"
    kohya.export(made, path)
    tensors = load_file(path)
    for prefix in ("lora_unet_", "lora_te_"):
        alphas = {float(t) for name, t in tensors.items() if name.startswith(prefix) and name.endswith(".alpha")}
        assert len(alphas) == 1
    compare(files.load(path), made)
    compare(kohya.read_back(path, made), made)
    turned = Adapter({c: dict(reversed(pairs.items())) for c, pairs in made.pairs.items()}, META)
    kohya.export(turned, tmp_path / "turned")
    assert (tmp_path / "turned").read_bytes() == path.read_bytes()
    base = outputs(networks())
    hand, diffusers = by_hand(path, 0.8), by_diffusers(path, 0.8)
    assert difference(hand, diffusers) < 1e-4 * difference(hand, base) and difference(hand, base) > 0.1
    assert read_header(path).metadata["ss_network_dim"] == "Dynamic"


def test_two_components_may_have_two_alphas(tmp_path):
    made = adapter(alpha=4.0)
    text = {path: replace(pair, alpha=1.5) for path, pair in made.pairs["text_encoder"].items()}
    made = Adapter({**made.pairs, "text_encoder": text}, META)
    path = tmp_path / "two.safetensors"
    kohya.export(made, path)
    compare(kohya.read_back(path, made), made)
    assert difference(by_hand(path, 0.8), by_diffusers(path, 0.8)) < 1e-5


@pytest.mark.parametrize("pattern", [r".*self_attn\.q_proj", r".*mlp\.fc1", r".*(q_proj|fc2)", r".*attn\..*_proj"])
def test_any_choice_of_text_layers_is_read_back(pattern, tmp_path):
    made = adapter({"text_encoder": (pattern,)}, alpha=3.0)
    kohya.export(made, tmp_path / "file.safetensors")
    compare(kohya.read_back(tmp_path / "file.safetensors", made), made)


def test_every_layer_of_the_unet_is_read_back(tmp_path):
    made = adapter({"unet": (r".*",)}, alpha=3.0)
    assert len(made) == 83
    kohya.export(made, tmp_path / "file.safetensors")
    compare(kohya.read_back(tmp_path / "file.safetensors", made), made)
    same(files.load(tmp_path / "file.safetensors"), made)


def split(data: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + length], data[8 + length :]


def test_the_header_holds_the_hashes_that_tools_compute(tmp_path):
    made = adapter()
    path = tmp_path / "small.safetensors"
    kohya.export(made, path)
    metadata = read_header(path).metadata
    header, body = split(path.read_bytes())
    assert header.startswith(b'{"')
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    assert metadata["sshs_legacy_hash"] == "e3b0c442"
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "4.0"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "4.0"}
    kohya.export(adapter(ATTENTION), path)
    assert "ss_network_args" not in read_header(path).metadata


def test_the_legacy_hash_of_a_larger_file(tmp_path):
    generator = torch.Generator().manual_seed(4)
    pair = LoraPair(torch.randn(64, 5000, generator=generator), torch.randn(600, 64, generator=generator), 64.0)
    made = Adapter({"unet": {"mid_block.attentions.0.proj_in": pair}}, META)
    path = tmp_path / "large.safetensors"
    kohya.export(made, path)
    metadata = read_header(path).metadata
    bare = tmp_path / "bare"
    save(bare, load_file(path), {key: value for key, value in metadata.items() if key.startswith("ss_")})
    with bare.open("rb") as file:
        file.seek(0x100000)
        assert metadata["sshs_legacy_hash"] == hashlib.sha256(file.read(0x10000)).hexdigest()[:8] != "e3b0c442"


@pytest.mark.parametrize("tamper", ["value", "alpha", "missing"])
def test_reading_back_sees_a_file_that_differs(tamper, tmp_path):
    made = adapter(alpha=3.0)
    path = tmp_path / "file.safetensors"
    kohya.export(made, path)
    tensors = load_file(path)
    name = "lora_unet_mid_block_attentions_0_proj_out"
    if tamper == "value":
        tensors[f"{name}.lora_up.weight"][0] *= 1.01
    elif tamper == "alpha":
        tensors |= {key: tensor * 1.01 for key, tensor in tensors.items() if key.endswith(".alpha")}
    else:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
    save_file(tensors, path)
    with pytest.raises(NumericsError) as caught:
        compare(kohya.read_back(path, made), made)
    assert tamper == "alpha" or "mid_block.attentions.0.proj_out" in str(caught.value)


def test_the_name_is_the_file_and_what_prompts_say():
    assert kohya.file_name(replace(META, name="猫 style-2.1")) == "猫 style-2.1.safetensors"
    assert kohya.refuses(replace(META, name="猫 style-2.1")) is None


BAD_NAMES = ["a:b", "a>b", "a<b", "a=b", "a,b", "a/b", "a\\b", "a|b", "a?b", "a*b", 'a"b', "a\nb", "", " ", " a", "a."]


@pytest.mark.parametrize("name", [*BAD_NAMES, "None", "none", "Addams", "pytorch_lora_weights", "x" * 191, "猫" * 64])
def test_names_that_prompts_or_folders_cannot_hold_are_refused(name):
    note = kohya.refuses(replace(META, name=name))
    assert note is not None and note.code == "adapter.bad_name" and note.params == {"name": name}


def test_every_pair_has_three_tensors_in_its_own_format(tmp_path):
    made = adapter(alpha=3.0)
    half = Adapter(
        {
            c: {p: replace(x, down=x.down.half(), up=x.up.half()) for p, x in part.items()}
            for c, part in made.pairs.items()
        },
        META,
    )
    report = kohya.export(half, tmp_path / "file.safetensors")
    tensors = load_file(tmp_path / "file.safetensors")
    assert report.tensors == len(tensors) == 3 * len(flat(made)) == 273
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(t.shape == () and t == 3.0 for name, t in tensors.items() if name.endswith(".alpha"))
