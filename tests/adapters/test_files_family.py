"""Whose LoRA a file is: told by names, by widths, by headers; and where nothing tells it, by the base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_scripts.adapters import files
from lora_scripts.adapters.adapter import Adapter
from lora_scripts.adapters.compare import compare
from lora_scripts.adapters.families import key_maps
from lora_scripts.errors import BaseModelError
from lora_scripts.exporters import diffusers, kohya, peft
from tests.adapters import networks
from tests.adapters.test_files import write
from tests.adapters.two_encoders import SOME, adapter, two_encoders

PLAIN = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CROSS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
OPEN = "unet.mid_block.attentions.0.proj_in"


def pair(name: str, width: int = 6, down: str = "lora_down", up: str = "lora_up") -> dict[str, torch.Tensor]:
    return {f"{name}.{down}.weight": torch.ones(4, width), f"{name}.{up}.weight": torch.ones(8, 4)}


def path_pair(name: str, width: int = 6) -> dict[str, torch.Tensor]:
    return pair(name, width, "lora_A", "lora_B")


# What is in a file, its header, and the family it tells.
TOLD: dict[str, tuple[dict[str, torch.Tensor], dict[str, str], str]] = {
    "original names": (pair("lora_unet_input_blocks_4_1_proj_in"), {}, "sdxl"),
    "a second text encoder": (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), {}, "sdxl"),
    "a second text encoder, diffusers": (path_pair("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), {}, "sdxl"),
    "conditions of size": (path_pair("unet.add_embedding.linear_1"), {}, "sdxl"),
    "width of the second": (pair(CROSS, 2048), {}, "sdxl"),
    "width of the first": (pair(CROSS, 768), {}, "sd"),
    "width, old processors": (
        {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_lora.down.weight": torch.ones(
                4, 2048
            ),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_lora.up.weight": torch.ones(8, 4),
        },
        {},
        "sdxl",
    ),
    "kohya's header": (pair(CROSS), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
    "kohya's other header": (pair(CROSS), {"ss_base_model_version": "sd_v2_v"}, "sd"),
    "our own header": (path_pair(OPEN), {"family": "sdxl", "name": "mine"}, "sdxl"),
    "one text encoder's prefix": (pair("lora_te_text_model_encoder_layers_0_mlp_fc1"), {}, "sd"),
    # A header that was copied along does not outweigh what the tensors are.
    "names against a header": (pair("lora_unet_input_blocks_4_1_proj_in"), {"ss_base_model_version": "sd_v1"}, "sdxl"),
    "a width against a header": (pair(CROSS, 2048), {"ss_base_model_version": "sd_v1"}, "sdxl"),
    "our header against a width": (path_pair(f"unet.{PLAIN}", 768), {"family": "sdxl"}, "sdxl"),
}
# What leaves it open.
LEFT_OPEN: dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]] = {
    "a UNet under diffusers' names": (pair(CROSS), {}),
    "a UNet, diffusers": (path_pair(OPEN), {"format": "pt"}),
    "a first text encoder": (pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), {}),
    "a header that says nothing": (pair(CROSS), {"ss_base_model_version": "None", "family": "another tool's"}),
}


def test_the_tables_are_whole():
    assert (len(TOLD), len(LEFT_OPEN)) == (14, 4) and {row[2] for row in TOLD.values()} == {*key_maps()}


@pytest.mark.parametrize("case", TOLD)
def test_the_file_tells_its_family_and_no_other_base_takes_it(case: str, tmp_path: Path):
    tensors, metadata, family = TOLD[case]
    path = write(tmp_path / "file.safetensors", tensors, metadata)
    (other,) = key_maps().keys() - {family}
    for base in ("", family):
        assert files.load(path, family=base).meta.family == family
        assert [found.family for found in files.inspect(path, base)] == [family]
    words = {"sd": "Stable Diffusion 1.x / 2.x", "sdxl": "Stable Diffusion XL"}
    calls: list[Callable[[], Any]] = [
        lambda: files.load(path, family=other),
        lambda: files.inspect(path, other),
        lambda: files.check(path, rank=4, components=("unet",), family=other),
    ]
    for call in calls:
        with pytest.raises(BaseModelError) as caught:
            call()
        message = str(caught.value)
        assert f"is a LoRA for {words[family]}, and this base is {words[other]};" in message and "\n" not in message


@pytest.mark.parametrize("case", LEFT_OPEN)
def test_what_a_file_leaves_open_the_base_decides(case: str, tmp_path: Path):
    tensors, metadata = LEFT_OPEN[case]
    path = write(tmp_path / "file.safetensors", tensors, metadata)
    assert files.load(path).meta.family == "sd"
    for family in key_maps():
        assert files.load(path, family=family).meta.family == family


def test_a_folder_of_networks_is_one_lora(tmp_path: Path):
    """The text encoder alone would leave it open; the UNet beside it tells."""
    made = adapter("sdxl", "lora", {"unet": r".*attn2\.to_k", "text_encoder": r".*fc1"})
    bare = Adapter(made.pairs, replace(made.meta, name="x"))
    peft.export(bare, tmp_path / "x-peft")
    for component in bare.pairs:
        file = tmp_path / "x-peft" / component / "adapter_model.safetensors"
        from safetensors.torch import load_file

        tensors = load_file(file)
        write(file, tensors)
    assert files.load(tmp_path / "x-peft").meta.family == "sd"
    wide = load_file(tmp_path / "x-peft/unet/adapter_model.safetensors")
    wide = {name: torch.ones(4, 2048) if "lora_A" in name else tensor for name, tensor in wide.items()}
    write(tmp_path / "x-peft/unet/adapter_model.safetensors", wide)
    assert [found.family for found in files.inspect(tmp_path / "x-peft")] == ["sdxl", "sdxl"]


@pytest.mark.parametrize("exporter", [kohya, diffusers, peft])
@pytest.mark.parametrize("family", key_maps())
def test_our_own_files_tell_it_whatever_they_hold(exporter: Any, family: str, tmp_path: Path):
    made = adapter(family, "lora", {"unet": r"mid_block\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q"})
    path = tmp_path / exporter.file_name(made.meta)
    exporter.export(made, path)
    loaded = files.load(path)
    assert loaded.meta.family == family and loaded.meta.base_hash == made.meta.base_hash
    compare(loaded, made)
    assert files.base_of(path)[1] == made.meta.base_hash


def test_two_tools_names_in_one_file(tmp_path: Path):
    """InvokeAI refuses such files and diffusers drops half of one; both forms name the same modules."""
    made = adapter("sdxl", "lora", SOME)
    parts = key_maps()["sdxl"].parts
    tensors = {}
    for component, pairs in made.pairs.items():
        for number, (path, one) in enumerate(pairs.items()):
            flat = parts[component].kohya + path.replace(".", "_")
            name = flat if number % 2 else parts[component].kohya_name(path)
            tensors |= {f"{name}.lora_down.weight": one.down, f"{name}.lora_up.weight": one.up}
    path = write(tmp_path / "mixed.safetensors", tensors)
    known = {c: [name for name, _ in network.named_modules()] for c, network in two_encoders().items()}
    for modules in (None, known):
        compare(files.load(path, known_modules=modules), made)
    twice = pair("lora_unet_mid_block_attentions_0_proj_in") | pair("lora_unet_middle_block_1_proj_in")
    with pytest.raises(BaseModelError, match=r"names 1 modules twice.*mid"):
        files.load(write(tmp_path / "twice.safetensors", twice))


def test_modules_of_the_other_base_are_named(tmp_path: Path):
    """An open file of the other architecture, offered with the base's modules."""
    path = write(tmp_path / "file.safetensors", pair("lora_unet_up_blocks_3_attentions_0_proj_in"))
    known = {c: [name for name, _ in network.named_modules()] for c, network in two_encoders().items()}
    with pytest.raises(BaseModelError, match=r"1 modules .*up_blocks_3"):
        files.load(path, known_modules=known, family="sdxl")


def test_a_base_is_not_asked_where_none_is_there(tmp_path: Path):
    with pytest.raises(BaseModelError, match="makes pictures, and this base is a language model"):
        files.load(write(tmp_path / "file.safetensors", pair(CROSS)), family="causal_lm")


def test_another_kind_or_rank_is_refused_before_training(tmp_path: Path):
    made = adapter("sd", "loha", rank=2)
    path = tmp_path / "loha.safetensors"
    kohya.export(made, path)
    components = tuple(made.pairs)
    files.check(path, rank=2, components=components, family="sd", kind="loha")
    files.check(path, rank=None, components=components)
    with pytest.raises(BaseModelError, match=r"of the kind loha, and this config trains lora; set adapter: loha"):
        files.check(path, rank=2, components=components, kind="lora")
    with pytest.raises(BaseModelError, match=r"set lora_rank: 2"):
        files.check(path, rank=4, components=components, kind="loha")
    assert networks.META.family == "sd"
