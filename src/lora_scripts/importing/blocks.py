"""Which modules kohya's numbered blocks are: 25 of the older UNet, 23 of one whose files have the original names.

The older UNet's are counted as diffusers' paths, three to a level: 12 on the way down (0 holds nothing), the middle,
12 on the way up. For the others the families' own tables of names are asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lora_scripts import registry
from lora_scripts.errors import LoraScriptsError

OLD, NEW = 25, 23
CONVOLUTIONS = r"(resnets\.\d+\.(conv1|conv2)|(downsamplers|upsamplers)\.0\.conv)"
"""The 3x3 convolutions inside a level, which have a rank of their own there."""
_LEVELS = 4


@cache
def starts(count: int) -> list[list[str]] | None:
    """Return the starts of the module paths of each block, or None where nobody knows that many blocks."""
    if count == OLD:
        return [_old(index) for index in range(OLD)]
    return _original() if count == NEW else None


def linear(paths: list[str], *, convolved: bool) -> list[str]:
    """Return those of a block's paths that hold layers besides 3x3 convolutions, among the layers that learn."""
    return [path for path in paths if ".attentions." in path or (convolved and ".resnets." in path)]


def convolutional(paths: list[str]) -> list[str]:
    """Return those of a block's paths that hold 3x3 convolutions."""
    return [path for path in paths if ".resnets." in path or "samplers" in path]


def pattern(paths: list[str], *, convolutions: bool = False) -> str:
    """Return a regular expression for whole module paths below these starts, or for the convolutions there only."""
    inside = "(" + "|".join(re.escape(path) for path in paths) + ")"
    if not convolutions:
        return rf"{inside}\..*"
    # A start may already be the convolution.
    return rf"(?={inside}(\.|$)).*\.{CONVOLUTIONS}"


def sides(count: int) -> tuple[int, int, int]:
    """Return how many blocks of rates there are on the way down, in the middle and on the way up."""
    return (12, 1, 12) if count == OLD else (9, 3, 9)


def count_for(base_model: str) -> int | None:
    """Return how many blocks a base has, or None where it is not there or nobody knows it."""
    path = Path(base_model)
    if not path.exists():
        return None
    try:
        for name in registry.names("families"):
            plugin = registry.load("families", name).plugin
            if plugin.recognise(path) is not None:
                return NEW if _table(plugin) else OLD
    except LoraScriptsError:
        return None
    return None


def _table(plugin: Any) -> Mapping[str, str]:
    """Return a family's original names of blocks; empty where its files have diffusers' names."""
    keys = getattr(plugin, "keys", None)
    return keys.parts["unet"].blocks if keys is not None and "unet" in keys.parts else {}


def _old(index: int) -> list[str]:
    """The deepest level has no attention, and the last one of each way no step to another size."""
    if index == 12:
        return ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
    down = index < 12
    if index == 0:
        return []
    level, layer = divmod(index - (1 if down else 13), 3)
    side, step = ("down_blocks", "downsamplers") if down else ("up_blocks", "upsamplers")
    attended = level < _LEVELS - 1 if down else level > 0
    found = [f"{side}.{level}.resnets.{layer}"] if layer < 2 or not down else []
    if found and attended:
        found.append(f"{side}.{level}.attentions.{layer}")
    return [*found, f"{side}.{level}.{step}"] if layer == 2 and level < _LEVELS - 1 else found


def _original() -> list[list[str]] | None:
    """Return the 23 blocks from the first family that has a table of original names."""
    for name in registry.names("families"):
        found: dict[int, list[str]] = defaultdict(list)
        for path, written in _table(registry.load("families", name).plugin).items():
            place = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\b", written)
            if place is not None:
                offset = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}[place[1]]
                found[offset + int(place[2])].append(path)
        if found:
            return [found.get(index, []) for index in range(NEW)]
    return None
