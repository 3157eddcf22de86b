"""`lora info`: what a LoRA file says about itself, and how strongly it changes which part of the base."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.adapters import arithmetic, files
from lora_scripts.adapters.adapter import Adapter, AdapterMeta
from lora_scripts.adapters.files import Found
from lora_scripts.errors import BaseModelError
from lora_scripts.lora_tools import programs, sources

# What kohya's headers tell of the training that a person asks for, in this order; each has a sentence of its own.
FACTS = (
    *(
        "resolution",
        "num_train_images",
        "num_reg_images",
        "total_batch_size",
        "batch_size_per_device",
        "max_train_steps",
    ),
    *("learning_rate", "unet_lr", "text_encoder_lr", "optimizer", "lr_scheduler", "clip_skip", "noise_offset"),
    *("min_snr_gamma", "network_dropout", "mixed_precision", "seed", "training_comment"),
)
MOST_TAGS = 12
MOST_BLOCKS = 12
_SAYS_NOTHING = ("", "None", "none", "False", "{}", "[]")


@dataclass(frozen=True)
class Component:
    """One trained part of the base.

    Attributes:
        ranks, alphas: how many modules have which; alphas are empty where the file was not read.
    """

    modules: int
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]


@dataclass(frozen=True)
class Block:
    """How strongly a group of modules is changed.

    Attributes:
        norm: root of the sum of squares of all changes.
        share: of the whole LoRA's sum of squares.
        strongest: the module with the largest norm, as it goes on behind the block's name.
    """

    component: str
    name: str
    modules: int
    norm: float
    share: float
    strongest: str


@dataclass(frozen=True)
class Facts:
    """What is known of a LoRA; everything but alphas and blocks from headers alone.

    Attributes:
        training: kohya's word -> value, of `FACTS`.
        tags: the commonest of the training captions, with their counts.
        unread: why the tensors could not be read, or "".
    """

    path: Path
    layout: str
    kind: str
    meta: AdapterMeta
    components: Mapping[str, Component]
    dtypes: Mapping[str, int]
    parameters: int
    size: int
    programs: Sequence[str]
    training: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, int] = field(default_factory=dict)
    blocks: Sequence[Block] = ()
    unread: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return plain values; numbers are not rounded."""
        made = dict(vars(self))
        meta = {key: value for key, value in vars(self.meta).items() if key != "training"}
        return made | {
            "path": str(self.path),
            "meta": meta | {"resolution": list(self.meta.resolution)},
            "components": {name: vars(part) for name, part in self.components.items()},
            "blocks": [vars(block) for block in self.blocks],
            "programs": list(self.programs),
        }


def info(path: Path) -> Facts:
    """Read a LoRA's headers, and its tensors where they can be read.

    Raises:
        BaseModelError: there is none, or its header cannot be read.
    """
    found = files.inspect(path)
    meta = files.describe(path)
    adapter, unread = None, ""
    try:
        adapter = files.load(path)
    except BaseModelError as error:
        unread = str(error)
    tensors = [entry for part in found for entry in part.header.tensors.values()]
    said = {key: value for part in found for key, value in part.header.metadata.items()}
    components = _components(found, adapter)
    return Facts(
        path=path,
        layout=found[0].layout,
        kind=found[0].kind,
        meta=meta,
        components=components,
        dtypes=dict(Counter(entry.dtype for entry in tensors if entry.shape).most_common()),
        parameters=sum(math.prod(entry.shape) for entry in tensors if entry.shape),
        size=sum(part.path.stat().st_size for part in found),
        programs=programs.that_load(_facts(found[0], adapter)),
        training={k: said[f"ss_{k}"] for k in FACTS if said.get(f"ss_{k}", "") not in _SAYS_NOTHING},
        tags=_tags(said.get("ss_tag_frequency", "")),
        blocks=blocks(adapter) if adapter else (),
        unread=unread,
    )


def programs_of(path: Path, adapter: Adapter) -> Sequence[str]:
    """Return the programs that load a file."""
    return programs.that_load(_facts(files.inspect(path)[0], adapter))


def _facts(found: Found, adapter: Adapter | None) -> programs.Facts:
    parts = adapter.pairs.values() if adapter else ()
    mixed = any(len({update.alpha for update in part.values()}) > 1 for part in parts)
    return programs.Facts(found.layout, found.kind, mixed, is_text=found.family == files.LANGUAGE_FAMILY)


def _components(found: Sequence[Found], adapter: Adapter | None) -> dict[str, Component]:
    ranks: dict[str, Counter[int]] = {}
    for part in found:
        for (component, _), rank in part.ranks.items():
            ranks.setdefault(component, Counter())[rank] += 1
    alphas = {
        component: dict(sorted(Counter(float(update.alpha) for update in updates.values()).items()))
        for component, updates in (adapter.pairs if adapter else {}).items()
    }
    return {c: Component(r.total(), dict(sorted(r.items())), alphas.get(c, {})) for c, r in sorted(ranks.items())}


def _tags(text: str) -> dict[str, int]:
    """Return the commonest tags of {"10_cat": {"cat": 3}}, all folders together."""
    try:
        counts: Counter[str] = Counter()
        for folder in json.loads(text or "{}").values():
            counts.update({str(tag): int(count) for tag, count in folder.items()})
        return dict(counts.most_common(MOST_TAGS))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}


def blocks(adapter: Adapter) -> list[Block]:
    """Return the norms of all updates that are known without the base, by block, in the network's order."""
    norms: dict[tuple[str, str], dict[str, float]] = {}
    for component, updates in adapter.pairs.items():
        for module, update in updates.items():
            if sources.depends(update):
                continue
            part = arithmetic.factors(update)
            name = block_of(module)
            rest = module.removeprefix(name).lstrip(".") or module
            norms.setdefault((component, name), {})[rest] = math.sqrt(max(0.0, arithmetic.product(part, part)))
    whole = sum(norm**2 for group in norms.values() for norm in group.values())
    made = []
    for (component, name), group in sorted(norms.items(), key=lambda item: _natural(item[0])):
        energy = sum(norm**2 for norm in group.values())
        strongest = max(group, key=lambda module: (group[module], module))
        share = energy / whole if whole else 0.0
        made.append(Block(component, name, len(group), math.sqrt(energy), share, strongest))
    return made


def block_of(module: str) -> str:
    """Return a path up to its first number: "down_blocks.0", "text_model.encoder.layers.3"."""
    match = re.match(r".*?\.\d+(?=\.)", module)
    return match[0] if match else module.partition(".")[0]


def _natural(place: tuple[str, str]) -> tuple[str, list[tuple[int, str]]]:
    words = re.split(r"(\d+)", place[1])
    return place[0], [(int(word), "") if word.isdecimal() else (-1, word) for word in words]
