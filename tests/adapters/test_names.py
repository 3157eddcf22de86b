"""Module paths and their kohya names: one table, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_scripts.adapters.names import (
    KOHYA_PREFIXES,
    canonical,
    component_of,
    kohya_name,
    kohya_paths,
    some,
    split_words,
)
from lora_scripts.errors import BaseModelError
from tests.adapters.networks import networks


@pytest.fixture(scope="module")
def golden(root: Path) -> dict[str, list[str]]:
    """Kohya names without prefix, by component, of an SD 1.5 LoRA."""
    keys = json.loads((root / "tests/golden/sd15_kohya_default.json").read_text())["keys"]
    names = sorted({key.split(".")[0] for key in keys})
    return {c: [n.removeprefix(p) for n in names if n.startswith(p)] for c, p in KOHYA_PREFIXES.items()}


def test_words_and_names_are_inverse_on_every_golden_name(golden):
    assert {component: len(names) for component, names in golden.items()} == {"unet": 192, "text_encoder": 72}
    for component, names in golden.items():
        for name in names:
            assert kohya_name(component, split_words(name)) == KOHYA_PREFIXES[component] + name
    assert split_words("up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0") == (
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
    )
    assert split_words("down_blocks_0_attentions_1_transformer_blocks_0_ff_net_0_proj").endswith("ff.net.0.proj")
    assert split_words("text_model_encoder_layers_11_self_attn_out_proj") == (
        "text_model.encoder.layers.11.self_attn.out_proj"
    )


def test_words_find_every_module_of_a_live_network():
    found = 0
    for component, module in networks().items():
        for path, part in module.named_modules():
            if type(part).__name__ in ("Linear", "Conv2d"):
                full = canonical(component, path)
                assert split_words(full.replace(".", "_")) == full
                found += 1
    assert found == 79 + 12 + 4  # conv_in, conv_out and the two of the time embedding carry no pair by default


def test_known_modules_and_names_are_inverse():
    for component, module in networks().items():
        known = [path for path, _ in module.named_modules()]
        paths = kohya_paths(component, known)
        assert len(paths) == len(known) > 30
        assert all(kohya_name(component, path) == KOHYA_PREFIXES[component] + flat for flat, path in paths.items())


def test_known_modules_settle_words_that_nobody_foresaw():
    paths = kohya_paths("unet", ["my_new_block.0.some_proj", "my_new_block.0"])
    assert paths["my_new_block_0_some_proj"] == "my_new_block.0.some_proj"


def test_two_modules_with_one_kohya_name_are_refused():
    with pytest.raises(BaseModelError) as caught:
        kohya_paths("unet", ["block.to_q", "block.to.q"])
    assert "block.to_q" in str(caught.value) and "block.to.q" in str(caught.value)


@pytest.mark.parametrize(
    ("component", "path", "expected"),
    [
        ("text_encoder", "encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder", "embeddings.token_embedding", "text_model.embeddings.token_embedding"),
        ("text_encoder", "text_projection", "text_projection"),
        ("unet", "encoder.layers.0", "encoder.layers.0"),
    ],
)
def test_canonical(component: str, path: str, expected: str):
    assert canonical(component, path) == expected


@pytest.mark.parametrize(
    ("path", "component"),
    [("mid_block.x", "unet"), ("encoder.layers.0", "text_encoder"), ("text_model.x", "text_encoder"), ("x.y", None)],
)
def test_component_of(path: str, component: str | None):
    assert component_of(path) == component


def test_at_most_ten_names_are_told():
    assert some(["b", "a"]) == "a, b"
    assert some(f"{i:02}" for i in range(10)).count(",") == 9
    assert some(f"{i:02}" for i in range(11)).endswith("09, ...")
