"""LoRA files that are not read: each is refused in one sentence that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_scripts.adapters import files
from lora_scripts.errors import BaseModelError
from tests.adapters.test_files import write

DOWN, UP = torch.ones(4, 6), torch.ones(8, 4)


def pair(name: str, down: str = "lora_down", up: str = "lora_up") -> dict[str, torch.Tensor]:
    return {f"{name}.{down}.weight": DOWN, f"{name}.{up}.weight": UP}


def path_pair(name: str) -> dict[str, torch.Tensor]:
    return pair(name, "lora_A", "lora_B")


KOHYA = "lora_unet_mid_block_attentions_0_proj_in"
PLAIN = "unet.mid_block.attentions.0.proj_in"

REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "FLUX, kohya": (pair("lora_unet_double_blocks_0_img_attn_qkv"), "FLUX"),
    "FLUX, diffusers": (path_pair("transformer.single_transformer_blocks.0.attn.to_q"), "FLUX"),
    "FLUX, original": (path_pair("diffusion_model.double_blocks.0.img_attn.qkv"), "FLUX"),
    "SD3, kohya": (pair("lora_unet_joint_blocks_0_x_block_attn_qkv"), "Stable Diffusion 3"),
    "SD3, diffusers": (path_pair("transformer.transformer_blocks.0.attn.to_q"), "diffusion transformer"),
    "Wan": (path_pair("diffusion_model.blocks.0.self_attn.q"), "diffusion_model"),
    "Llama without its config": (path_pair("base_model.model.model.layers.0.self_attn.q_proj"), "adapter_config.json"),
    "Llama without the prefix": (path_pair("model.layers.0.self_attn.q_proj"), '"base_model.model."'),
    "Llama with half the prefix": (path_pair("base_model.model.layers.0.self_attn.q_proj"), '"base_model.model."'),
    "GPT-2 without the prefix": (path_pair("transformer.h.0.attn.c_attn"), '"base_model.model."'),
    "DoRA over inputs": (pair(KOHYA) | {f"{KOHYA}.dora_scale": torch.ones(1, 6)}, "[1, 6]"),
    "DoRA of one module": (
        pair(KOHYA) | {f"{KOHYA}.dora_scale": torch.ones(8, 1)} | pair("lora_unet_mid_block_resnets_0_time_emb_proj"),
        "dora, lora",
    ),
    "a magnitude alone": (pair(KOHYA) | {"lora_unet_conv_in.dora_scale": torch.ones(8, 1)}, "conv_in"),
    "half of LoHa": ({f"{KOHYA}.hada_w1_a": UP, f"{KOHYA}.hada_w1_b": DOWN}, "lacks tensors of 1 modules"),
    "LoHa of two ranks": (
        {f"{KOHYA}.hada_w{n}_a": torch.ones(8, n) for n in (1, 2)}
        | {f"{KOHYA}.hada_w{n}_b": torch.ones(n, 6) for n in (1, 2)},
        "do not fit",
    ),
    "LoHa with a magnitude": (
        {f"{KOHYA}.hada_w{n}_a": UP for n in "12"}
        | {f"{KOHYA}.hada_w{n}_b": DOWN for n in "12"}
        | {f"{KOHYA}.dora_scale": torch.ones(8, 1)},
        "dora + loha",
    ),
    "LoHa among diffusers' names": ({f"{PLAIN}.hada_w1_a": UP, f"{PLAIN}.hada_w1_b": DOWN}, "loha (diffusers)"),
    "half of LoKr": ({f"{KOHYA}.lokr_w1": DOWN, f"{KOHYA}.lokr_w2_a": UP}, "lacks tensors of 1 modules"),
    "LoKr twice": ({f"{KOHYA}.lokr_w1": DOWN, f"{KOHYA}.lokr_w2": UP, f"{KOHYA}.lokr_w2_a": UP}, "lacks tensors"),
    "Tucker": (pair(KOHYA) | {f"{KOHYA}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "Tucker"),
    "full difference": (pair(KOHYA) | {"lora_unet_conv_in.diff": DOWN}, "full difference"),
    "whole model": ({"model.diffusion_model.input_blocks.0.0.weight": DOWN}, "no LoRA"),
    "whole UNet": ({"down_blocks.0.attentions.0.proj_in.weight": DOWN}, "no LoRA"),
    "textual inversion": ({"emb_params": DOWN}, "no LoRA"),
    "nothing": ({}, "no LoRA"),
    "unknown word": (pair(KOHYA) | {f"{KOHYA}.weird": DOWN}, "weird"),
    "bias": (path_pair(PLAIN) | {f"{PLAIN}.lora_B.bias": torch.ones(8)}, "lora_B.bias"),
    "unknown component": (path_pair("something.else"), "something.else"),
    "two layouts": (pair(KOHYA) | path_pair(PLAIN), PLAIN),
    "half a pair": ({f"{KOHYA}.lora_down.weight": DOWN}, "lacks tensors of 1"),
    "alpha alone": (pair(KOHYA) | {"lora_unet_conv_in.alpha": torch.tensor(1.0)}, "lacks tensors of 1"),
    "ranks differ": ({f"{KOHYA}.lora_down.weight": DOWN, f"{KOHYA}.lora_up.weight": torch.ones(8, 3)}, "[4, 6]"),
    "three dimensions": (
        {f"{KOHYA}.lora_down.weight": torch.ones(4, 6, 1), f"{KOHYA}.lora_up.weight": torch.ones(8, 4, 1)},
        "[4, 6, 1]",
    ),
    "rank of zero": (
        {f"{KOHYA}.lora_down.weight": torch.ones(0, 6), f"{KOHYA}.lora_up.weight": torch.ones(8, 0)},
        "[0, 6]",
    ),
    "PEFT without its config": (path_pair("base_model.model.mid_block.attentions.0.proj_in"), "adapter_config.json"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_from_the_header(kind: str, tmp_path: Path):
    tensors, words = REFUSED[kind]
    path = write(tmp_path / "a lora.safetensors", tensors)
    for call in (files.inspect, files.load):
        with pytest.raises(BaseModelError) as caught:
            call(path)
        message = str(caught.value)
        assert words in message and str(path) in message and "\n" not in message


def test_the_table_is_whole():
    assert len(REFUSED) == 35


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [("flux1", True), ("sd3-m", True), ("sdxl_base_v1-0", False), ("sd_v1", False), ("", False)],
)
def test_the_header_tells_the_family(version: str, is_refused: bool, tmp_path: Path):
    path = write(tmp_path / "file.safetensors", pair(KOHYA), {"ss_base_model_version": version})
    if not is_refused:
        assert len(files.load(path)) == 1
        return
    with pytest.raises(BaseModelError) as caught:
        files.load(path)
    assert version in str(caught.value)


def test_values_that_are_not_finite_are_refused(tmp_path: Path):
    tensors = pair(KOHYA)
    tensors[f"{KOHYA}.lora_up.weight"] = UP.clone()
    tensors[f"{KOHYA}.lora_up.weight"][3, 1] = float("nan")
    with pytest.raises(BaseModelError) as caught:
        files.load(write(tmp_path / "file.safetensors", tensors))
    assert f"{KOHYA}.lora_up.weight" in str(caught.value)


def test_many_unknown_names_are_counted_and_ten_told(tmp_path: Path):
    tensors = {f"lora_unet_x{i}.weird.lora_": torch.ones(1) for i in range(30)}
    with pytest.raises(BaseModelError) as caught:
        files.load(write(tmp_path / "file.safetensors", tensors))
    assert "30 tensors" in str(caught.value) and str(caught.value).count("weird") == 10


def peft(folder: Path, text: str) -> Path:
    write(folder / "adapter_model.safetensors", path_pair("base_model.model.mid_block.attentions.0.proj_in"))
    (folder / "adapter_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not readable"),
        ("[1]", "not readable"),
        ('{"peft_type": "LORA", "lora_alpha": "much"}', "not readable"),
        ('{"peft_type": "LORA", "alpha_pattern": {"(": 1}}', "not readable"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "not readable"),
        (json.dumps({"peft_type": "LOHA"}), "LOHA"),
        (json.dumps({"peft_type": "LORA", "use_dora": True}), "DoRA"),
        (json.dumps({"peft_type": "LORA", "init_lora_weights": "pissa"}), "pissa"),
    ],
)
def test_peft_settings_that_are_not_read(config: str, words: str, tmp_path: Path):
    with pytest.raises(BaseModelError) as caught:
        files.load(peft(tmp_path / "lora", config))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_broken_settings_in_a_header(tmp_path: Path):
    path = write(tmp_path / "file.safetensors", path_pair(PLAIN), {"lora_adapter_metadata": "{broken"})
    with pytest.raises(BaseModelError) as caught:
        files.load(path)
    assert "not readable" in str(caught.value)


def test_folders_that_hold_no_single_lora(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"no single LoRA \(found: -\)"):
        files.load(tmp_path)
    for name in ("b", "a"):
        write(tmp_path / f"{name}.safetensors", pair(KOHYA))
    with pytest.raises(BaseModelError, match=r"a\.safetensors, b\.safetensors"):
        files.load(tmp_path)
    (tmp_path / "a.safetensors").unlink()
    assert len(files.load(tmp_path)) == 1


@pytest.mark.parametrize("name", ["absent.safetensors", "absent folder"])
def test_absent(name: str, tmp_path: Path):
    with pytest.raises(BaseModelError, match="does not exist"):
        files.load(tmp_path / name)


@pytest.mark.parametrize("name", ["lora.pt", "lora.ckpt", "lora.safetensors"])
def test_pickles(name: str, tmp_path: Path):
    torch.save(pair(KOHYA), tmp_path / name)
    with pytest.raises(BaseModelError, match="pickle"):
        files.load(tmp_path / name)


def test_a_peft_folder_with_a_pickle(tmp_path: Path):
    torch.save(pair(KOHYA), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(BaseModelError, match="pickle"):
        files.load(tmp_path)


def test_a_cut_file(tmp_path: Path):
    path = write(tmp_path / "file.safetensors", pair(KOHYA))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BaseModelError, match="cut short"):
        files.load(path)
