"""Files for the base with two text encoders: their names, and that other programs draw what the adapter draws."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_scripts import registry
from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter, LoraPair
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.names import canonical
from lora_scripts.adapters.safetensors_file import read_header
from lora_scripts.exporters import _diffusers_reader, diffusers, kohya, peft
from tests.adapters.two_encoders import KOHYA, META, adapter, moved, outputs, two_encoders

Outputs = dict[str, torch.Tensor]


def apart(first: Outputs, second: Outputs) -> float:
    """Return the largest difference of any output."""
    assert first.keys() == second.keys() == {"unet", "text_encoder", "text_encoder_2"}
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def by_diffusers(path: Path, strength: float) -> Outputs:
    """Load a file as users of diffusers do."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline

    modules = two_encoders()
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=32),
        tokenizer=None,
        tokenizer_2=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        add_watermarker=False,
        **modules,
    )
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="lora")
    pipeline.set_adapters(["lora"], [strength])
    return outputs(modules)


RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}


def diffusers_block(name: str) -> str:
    """Invert the original repository's name of a block by hand: two layers a level, three levels."""
    way, number, place, rest = re.fullmatch(r"(input|middle|output)_blocks?_(\d+)_?(\d*)_?(.*)", name).groups()
    if way == "middle":
        inner = f"{place}_{rest}".strip("_") if place else rest
        block = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}[number]
        return f"mid_block_{block}_{RESNET.get(inner, inner)}"
    if way == "input":
        level, layer = divmod(int(number) - 1, 3)
        if rest == "op":
            return f"down_blocks_{level}_downsamplers_0_conv"
        return f"down_blocks_{level}_{('resnets', 'attentions')[int(place)]}_{layer}_{RESNET.get(rest, rest)}"
    level, layer = divmod(int(number), 3)
    if rest == "conv":
        return f"up_blocks_{level}_upsamplers_0_conv"
    return f"up_blocks_{level}_{('resnets', 'attentions')[int(place)]}_{layer}_{RESNET.get(rest, rest)}"


@torch.no_grad()
def by_hand(path: Path, strength: float) -> Outputs:
    """Apply a kohya file: W + strength * alpha / rank * up @ down, by names that are inverted here."""
    modules, tensors = two_encoders(), load_file(path)
    prefixes = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
    flat = {
        (component, canonical(component, name).replace(".", "_")): layer
        for component, network in modules.items()
        for name, layer in network.named_modules()
    }
    stems = {name.split(".")[0] for name in tensors}
    for stem in stems:
        prefix = next(one for one in prefixes if stem.startswith(one))
        name = stem.removeprefix(prefix)
        layer = flat[prefixes[prefix], diffusers_block(name) if prefix == "lora_unet_" else name]
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        product = up.flatten(1) @ down.flatten(1)
        layer.weight += (strength * tensors[f"{stem}.alpha"] / len(down) * product).view_as(layer.weight)
    assert len(tensors) == 3 * len(stems) > 0
    return outputs(modules)


@pytest.fixture(scope="module")
def base() -> Outputs:
    return outputs(two_encoders())


@pytest.mark.parametrize(("rank", "alpha"), [(4, 9.5), (2, 1.0)])
def test_the_kohya_file_does_what_the_adapter_does(rank: int, alpha: float, base: Outputs, tmp_path: Path):
    made = adapter(rank=rank, alpha=alpha)
    path = tmp_path / kohya.file_name(META)
    kohya.export(made, path)
    expected, hand, theirs = moved(made, 0.1), by_hand(path, 0.1), by_diffusers(path, 0.1)
    assert apart(hand, theirs) < 1e-5 and apart(hand, expected) < 1e-5
    for name in base:
        assert (expected[name] - base[name]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("export", [diffusers.export, diffusers.export_exact])
def test_the_diffusers_file_does_what_the_adapter_does(kind: str, export: Any, base: Outputs, tmp_path: Path):
    made = adapter("sdxl", kind, rank=4, alpha=1.5)
    path = tmp_path / diffusers.file_name(META)
    export(made, path)
    expected = moved(made)
    # A DoRA's strength scales its V inside diffusers, and nothing else's, so it is compared as trained.
    assert apart(by_diffusers(path, 1.0), expected) < 1e-4 * apart(expected, base) and apart(expected, base) > 0.1
    assert compare(diffusers.read_back(path, made), made) is None


def test_ranks_and_alphas_of_each_module_are_in_the_header(base: Outputs, tmp_path: Path):
    """Written as it is, read by diffusers with no difference, and by us with no other bit."""
    made = mixed(adapter(rank=2, alpha=3.0), adapter(rank=4, alpha=7.0))
    path = tmp_path / diffusers.file_name(META)
    diffusers.export_exact(made, path)
    expected = moved(made, 0.1)
    assert apart(by_diffusers(path, 0.1), expected) < 1e-5 and apart(expected, base) > 0.01
    loaded = files.load(path, dtype=None)
    for component, pairs in made.pairs.items():
        for module, pair in pairs.items():
            found = loaded.pairs[component][module]
            assert found.alpha == pair.alpha and torch.equal(found.up, pair.up) and torch.equal(found.down, pair.down)


def mixed(*made: Adapter) -> Adapter:
    """Take the modules from the adapters in turn."""
    pairs = {
        component: {module: made[number % len(made)].pairs[component][module] for number, module in enumerate(modules)}
        for component, modules in made[0].pairs.items()
    }
    return Adapter(pairs, made[0].meta)


@pytest.mark.parametrize("kind", registry.names("adapters"))
@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2"])
def test_peft_loads_each_networks_folder(kind: str, component: str, base: Outputs, tmp_path: Path):
    from peft import PeftModel

    made = adapter("sdxl", kind, rank=2, alpha=3.0)
    path = tmp_path / peft.file_name(META)
    assert path.name == "tiny large style-peft"
    peft.export(made, path)
    assert sorted(folder.name for folder in path.iterdir()) == ["text_encoder", "text_encoder_2", "unet"]
    modules = two_encoders()
    modules[component] = PeftModel.from_pretrained(modules[component], path / component).eval()
    only = Adapter({component: made.pairs[component]}, made.meta)
    expected, found = moved(only), outputs(modules)
    assert apart(expected, base) > 0.01
    assert apart(found, expected) < 1e-4 * max(1.0, apart(expected, base))


def test_keys_are_kohyas_at_full_shape(root: Path, tmp_path: Path):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    unet, first, second = (
        json.loads((root / f"tests/golden/{name}.json").read_text()) for name in ("sdxl_unet", "clip_l", "clip_g")
    )
    with torch.device("meta"):
        modules = {
            "unet": UNet2DConditionModel.from_config(unet),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**first)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**second)),
        }
    presets = registry.load("families", "sdxl").plugin.target_presets["kohya"]
    pairs: dict[str, dict[str, LoraPair]] = {}
    for component, network in modules.items():
        for path, layer in network.named_modules():
            full = canonical(component, path)
            wanted = any(re.fullmatch(pattern, full) for pattern in presets[component])
            if wanted and type(layer).__name__ in ("Linear", "Conv2d"):
                down, up = torch.zeros(1, *layer.weight.shape[1:]), torch.zeros(len(layer.weight), 1)
                pairs.setdefault(component, {})[full] = LoraPair(
                    down, up.reshape(*up.shape, *(1,) * (down.ndim - 2)), 1
                )
    made = Adapter(pairs, META)
    path = tmp_path / "large.safetensors"
    report = kohya.export(made, path)
    header = read_header(path)
    assert report.tensors == len(header.tensors) == 2958
    stems = {name.split(".")[0] for name in header.tensors}
    prefixes = Counter(re.match(r"lora_(unet|te1|te2)_", stem).group(1) for stem in stems)
    assert prefixes == {"unet": 722, "te1": 72, "te2": 192}
    parameters = sum(pair.down.numel() + pair.up.numel() for part in pairs.values() for pair in part.values())
    assert 4 * parameters == 14_252_032
    # Diffusers' own conversion finds each module again by its name, and each name is another module's.
    found = _diffusers_reader.modules(stems, pairs)
    assert len(found) == 986 and {*found.values()} == {(c, module) for c, part in pairs.items() for module in part}
    unet_names = {stem for stem in stems if stem.startswith("lora_unet_")}
    assert {re.match(r"lora_unet_(\w+?)_block", name).group(1) for name in unet_names} == {"input", "middle", "output"}
    assert {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_output_blocks_0_1_proj_in",
        "lora_te1_text_model_encoder_layers_11_mlp_fc2",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    } <= stems
    assert header.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    live = {component: [name for name, _ in network.named_modules()] for component, network in modules.items()}
    assert {c: len(p) for c, p in files.load(path, known_modules=live).pairs.items()} == {
        "unet": 722,
        "text_encoder": 72,
        "text_encoder_2": 192,
    }


def test_every_layer_of_the_networks_has_a_name_that_diffusers_reads(tmp_path: Path):
    made = adapter("sdxl", "lora", {"unet": r".*", "text_encoder": KOHYA["text_encoder"]})
    assert len(made) == 263 + 12
    path = tmp_path / "every.safetensors"
    kohya.export(made, path)
    compare(kohya.read_back(path, made), made)
    compare(files.load(path), made)
