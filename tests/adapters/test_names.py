"""Module paths and their names in files: each family's table, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_scripts.adapters.families import key_maps, title
from lora_scripts.adapters.names import canonical, some, split_words
from lora_scripts.errors import BaseModelError
from tests.adapters.networks import networks
from tests.adapters.two_encoders import two_encoders

MAPS = key_maps()
# Live tiny networks by family, and how many layers they have.
LIVE = {"sd": (networks, 83 + 12), "sdxl": (two_encoders, 263 + 12 + 19)}


@pytest.fixture(scope="module")
def golden(root: Path) -> dict[str, list[str]]:
    """Kohya names without prefix, by component, of an SD 1.5 LoRA."""
    keys = json.loads((root / "tests/golden/sd15_kohya_default.json").read_text())["keys"]
    names = sorted({key.split(".")[0] for key in keys})
    prefixes = {component: part.kohya for component, part in MAPS["sd"].parts.items()}
    return {c: [n.removeprefix(p) for n in names if n.startswith(p)] for c, p in prefixes.items()}


def layers(network) -> list[str]:
    return [path for path, part in network.named_modules() if type(part).__name__ in ("Linear", "Conv2d")]


def test_every_picture_family_has_a_table():
    assert MAPS.keys() == LIVE.keys() == {"sd", "sdxl"}
    assert {title(name) for name in MAPS} == {"Stable Diffusion 1.x / 2.x", "Stable Diffusion XL"}
    assert title("unheard of") == "unheard of"


def test_words_and_names_are_inverse_on_every_golden_name(golden):
    assert {component: len(names) for component, names in golden.items()} == {"unet": 192, "text_encoder": 72}
    for component, names in golden.items():
        part = MAPS["sd"].parts[component]
        for name in names:
            assert part.kohya_name(part.from_words(name)) == part.kohya + name
    unet, text = MAPS["sd"].parts["unet"], MAPS["sd"].parts["text_encoder"]
    assert unet.from_words("up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_out_0") == (
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0"
    )
    assert unet.from_words("down_blocks_0_attentions_1_transformer_blocks_0_ff_net_0_proj").endswith("ff.net.0.proj")
    assert text.from_words("text_model_encoder_layers_11_self_attn_out_proj") == (
        "text_model.encoder.layers.11.self_attn.out_proj"
    )


@pytest.mark.parametrize("family", LIVE)
def test_names_of_a_live_network_are_read_with_it_and_without(family: str):
    make, expected = LIVE[family]
    found = 0
    for component, network in make().items():
        part = MAPS[family].parts[component]
        known = layers(network)
        by_name = part.paths(component, known)
        names = set()
        for path in known:
            full = canonical(component, path)
            name = part.kohya_name(full).removeprefix(part.kohya)
            # As written, and as diffusers' own names flattened: both are read, by the model's modules or by words.
            for form in (name, full.replace(".", "_")):
                assert by_name[form] == part.from_words(form) == full
            names.add(name)
            found += 1
        assert len(names) == len(known)
    assert found == expected


def test_known_modules_settle_words_that_nobody_foresaw():
    paths = MAPS["sd"].parts["unet"].paths("unet", ["my_new_block.0.some_proj", "my_new_block.0"])
    assert paths["my_new_block_0_some_proj"] == "my_new_block.0.some_proj"
    assert split_words("my_new_block_0_some_proj", ("some_proj", "my_new_block", "my_new")) == (
        "my_new_block.0.some_proj"
    )


def test_two_modules_with_one_kohya_name_are_refused():
    with pytest.raises(BaseModelError) as caught:
        MAPS["sd"].parts["unet"].paths("unet", ["block.to_q", "block.to.q"])
    assert "block.to_q" in str(caught.value) and "block.to.q" in str(caught.value)


@pytest.mark.parametrize(
    ("component", "path", "expected"),
    [
        ("text_encoder", "encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder_2", "encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"),
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
@pytest.mark.parametrize("family", MAPS)
def test_a_bare_path_tells_its_component(family: str, path: str, component: str | None):
    assert MAPS[family].component_of(path) == component


def test_at_most_ten_names_are_told():
    assert some(["b", "a"]) == "a, b"
    assert some(f"{i:02}" for i in range(10)).count(",") == 9
    assert some(f"{i:02}" for i in range(11)).endswith("09, ...")
