"""How PEFT scales updates: what adapter_config.json says, or what diffusers keeps of it in a file's header."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_scripts.adapters.names import LANGUAGE_MODEL
from lora_scripts.adapters.safetensors_file import Header
from lora_scripts.errors import BaseModelError

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"

# The kinds of initialisation that leave the base as it was, so that the pairs alone are the whole update.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "lycoris")
# What a language model's PEFT config may ask for beyond pairs, each absent, false, empty or "none" in a plain LoRA.
_MORE_THAN_PAIRS = (
    *("modules_to_save", "bias", "lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    *("use_bdlora", "use_qalora"),
)

# Matching time grows with the length of a path to this power.
MOST_REPETITIONS = 3


@dataclass(frozen=True)
class Settings:
    """How PEFT scales the updates of one component, as its config says.

    Attributes:
        rank: the denominator that the config states, for updates whose tensors do not tell it.
        patterns, ranks: alpha and rank by regular expression, matched on the end of a module's path.
    """

    alpha: float
    rank: int = 0
    rank_stabilised: bool = False
    patterns: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def scale_of(self, module: str, rank: int) -> tuple[float, int]:
        """Return numerator and denominator of a module's scale.

        Args:
            rank: what its tensors say, or 0 where they do not tell.
        """
        alpha = _matched(self.patterns, module, self.alpha)
        rank = rank or _matched(self.ranks, module, self.rank)
        # With `use_rslora` the scale is alpha / sqrt(rank).
        return (alpha * math.sqrt(rank) if self.rank_stabilised else alpha), rank


def _matched(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    found = (value for key, value in patterns.items() if re.match(_whole(key), module))
    return next(found, otherwise)


def read(path: Path, header: Header, config: Path | None) -> dict[str, Any]:
    """Read PEFT's config, or what diffusers keeps of it in the header under "unet.r", "unet.lora_alpha", ...

    Raises:
        BaseModelError: it is not readable.
    """
    try:
        text = config.read_text(encoding="utf-8") if config else header.metadata.get(DIFFUSERS_CONFIG, "")
        return dict(json.loads(text).items()) if text else {}
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise BaseModelError("adapter.bad_config", path=config or path, reason=error) from error


def settings(
    source: Path, values: Mapping[str, Any], components: Iterable[str], kind: str, *, is_whole: bool
) -> dict[str, Settings]:
    """Return each component's settings; one that the config does not speak of is left out.

    Args:
        kind: of the updates, as the tensors' names tell it.
        is_whole: the config is of one component; else names have the component in front.

    Raises:
        BaseModelError: not readable, of another kind than the tensors, or with more than updates of layers.
    """
    try:
        own = {c: _for_component(values, c, is_whole) for c in components}
        _refuse_more_than_pairs(source, own.get(LANGUAGE_MODEL, {}))
        return {component: _parse(source, part, kind) for component, part in own.items() if part}
    except (ValueError, TypeError, AttributeError, OverflowError, re.error) as error:
        raise BaseModelError("adapter.bad_config", path=source, reason=error) from error


def patterns(updates: Mapping[str, Any]) -> tuple[int, float, dict[str, int], dict[str, float]]:
    """Return the commonest rank and alpha of a component's updates, and the others' by their paths."""
    ranks = {path: update.rank for path, update in sorted(updates.items())}
    alphas = {path: float(update.alpha) for path, update in sorted(updates.items())}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return (
        rank,
        alpha,
        {path: value for path, value in ranks.items() if value != rank},
        {path: value for path, value in alphas.items() if value != alpha},
    )


def _for_component(values: Mapping[str, Any], component: str, is_whole: bool) -> dict[str, Any]:
    if is_whole:
        return dict(values)
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def _parse(path: Path, values: Mapping[str, Any], kind: str) -> Settings:
    said = str(values.get("peft_type") or "LORA").rpartition(".")[2]
    if (said, bool(values.get("use_dora"))) != peft_type(kind):
        shown = "DoRA" if said == "LORA" else said
        raise BaseModelError("adapter.other_kind", path=path, kind=f"{shown} ({kind})")
    is_pairs = said == "LORA"
    start = values.get("init_lora_weights" if is_pairs else "init_weights")
    if start not in _PLAIN_INITIALISATIONS:
        raise BaseModelError("adapter.other_kind", path=path, kind=start)
    patterns = {_pattern(k): float(v) for k, v in (values.get("alpha_pattern") or {}).items()}
    ranks = {_pattern(k): int(v) for k, v in (values.get("rank_pattern") or {}).items()}
    # Eight is what PEFT takes where a key is absent.
    alpha = float(values.get("lora_alpha" if is_pairs else "alpha", 8))
    if not all(math.isfinite(number) for number in (alpha, *patterns.values())):
        raise ValueError(f"alpha {alpha}, alpha_pattern {patterns}")
    return Settings(alpha, int(values.get("r", 8)), bool(values.get("use_rslora")), patterns, ranks)


def _pattern(text: str) -> str:
    """Return an expression from a file, if matching it ends soon: no repeated groups, and few repetitions.

    Raises:
        ValueError, re.error: it may take for ever, or is none.
    """
    if re.search(r"\)[*+{]", text) or len(re.findall(r"[*+{]", text)) > MOST_REPETITIONS:
        raise ValueError(f"pattern {text}")
    re.compile(_whole(text))
    return text


def _whole(pattern: str) -> str:
    """Return what PEFT matches: the pattern at the end of a path."""
    return rf"(.*\.)?({pattern})$"


def peft_type(kind: str) -> tuple[str, bool]:
    """Return what PEFT's config calls a kind of update: `peft_type` and `use_dora`."""
    return ("LORA", kind == "dora") if kind in ("lora", "dora") else (kind.upper(), False)


def _refuse_more_than_pairs(path: Path, values: Mapping[str, Any]) -> None:
    for key in _MORE_THAN_PAIRS:
        if values.get(key) not in (None, False, "none", [], {}):
            raise BaseModelError("adapter.other_kind", path=path, kind=f"LoRA + {key}")
