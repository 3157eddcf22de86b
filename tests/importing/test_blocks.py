"""Kohya's numbered blocks are the same layers as its own networks number: checked at full shape, without weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_scripts import families, registry
from lora_scripts.importing import blocks
from tests import tiny

CONFIGS = Path(families.__file__).parent / "configs"
SHAPES = {
    # (blocks, config, family, layers of the usual set, of the set with convolutions, blocks with attention)
    "older": (blocks.OLD, "sd1", "sd", 192, 278, 16),
    "newer": (blocks.NEW, "sdxl", "sdxl", 722, 788, 11),
}


def layers(config: str, family: str, preset: str) -> list[str]:
    """Return the UNet's layers that a preset chooses."""
    from diffusers import UNet2DConditionModel

    settings = json.loads((CONFIGS / f"{config}_unet.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(settings)
    patterns = registry.load("families", family).plugin.target_presets[preset]["unet"]
    leaves = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    return [name for name in leaves if any(re.fullmatch(pattern, name) for pattern in patterns)]


@pytest.mark.parametrize("which", sorted(SHAPES))
def test_each_layer_is_in_one_block(which: str) -> None:
    count, config, family, usual, convolved, attended = SHAPES[which]
    starts = blocks.starts(count)
    assert starts is not None and len(starts) == count
    names = layers(config, family, "kohya")
    assert len(names) == usual
    found = [[p for p in [blocks.linear(paths, convolved=False)] if p] for paths in starts]
    hits = {name: [i for i, p in enumerate(found) if p and re.fullmatch(blocks.pattern(p[0]), name)] for name in names}
    assert {name: where for name, where in hits.items() if len(where) != 1} == {}
    # No block that a section could be made of is without a layer, which would be refused.
    assert sorted({where[0] for where in hits.values()}) == [index for index, p in enumerate(found) if p]
    assert len([p for p in found if p]) == attended
    names = layers(config, family, "kohya+conv")
    assert len(names) == convolved
    plain = [blocks.linear(paths, convolved=True) for paths in starts]
    conv = [blocks.convolutional(paths) for paths in starts]
    for name in names:
        own = [i for i, p in enumerate(conv) if p and re.fullmatch(blocks.pattern(p, convolutions=True), name)]
        is_3x3 = re.fullmatch(rf".*\.{blocks.CONVOLUTIONS}", name) is not None
        assert len(own) == is_3x3, name
        if not is_3x3:
            assert sum(bool(p) and re.fullmatch(blocks.pattern(p), name) is not None for p in plain) == 1, name


@pytest.mark.parametrize(
    ("count", "index", "start"),
    [
        (blocks.OLD, 1, "down_blocks.0.attentions.0"),
        (blocks.OLD, 8, "down_blocks.2.attentions.1"),
        (blocks.OLD, 12, "mid_block.attentions.0"),
        (blocks.OLD, 16, "up_blocks.1.attentions.0"),
        (blocks.OLD, 24, "up_blocks.3.attentions.2"),
        # input_blocks.4, middle_block.1 and output_blocks.5 of the original names.
        (blocks.NEW, 5, "down_blocks.1.attentions.0"),
        (blocks.NEW, 11, "mid_block.attentions.0"),
        (blocks.NEW, 18, "up_blocks.1.attentions.2"),
    ],
)
def test_numbers_that_its_own_tools_print(count: int, index: int, start: str) -> None:
    starts = blocks.starts(count)
    assert starts is not None and start in starts[index]


def test_a_base_says_how_many_blocks_it_has(tmp_path: Path) -> None:
    assert blocks.count_for(str(tiny.tiny_sd_folder(tmp_path / "base"))) == blocks.OLD
    assert blocks.count_for("owner/name") is None
    assert blocks.count_for(str(tmp_path)) is None
