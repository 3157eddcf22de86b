"""What a config says of the adapter, checked against the base before any weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_scripts import registry
from lora_scripts.adapters.names import LANGUAGE_MODEL
from lora_scripts.config.schema import RunConfig
from lora_scripts.contracts import Base, Family
from lora_scripts.data.record import Note
from lora_scripts.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    from lora_scripts.adapters.targets import Layer

LOW_BITS = ("fp8", "nf4")

Targets = Mapping[str, Sequence[str]]


def check_patterns(config: RunConfig) -> None:
    """Refuse what is no regular expression.

    Raises:
        ConfigError: it says where it stands.
    """
    targets = config.lora_targets if isinstance(config.lora_targets, tuple) else ()
    for pattern in targets:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError("config.bad_pattern", value=pattern, reason=error) from error
    for number, section in enumerate(config.lora_layers, 1):
        try:
            re.compile(section.match)
        except re.error as error:
            raise ConfigError("adapter.bad_match", number=number, pattern=section.match, reason=error) from error


def check(config: RunConfig, base: Base, family: type[Family], targets: Targets) -> list[Note]:
    """Refuse an adapter that cannot be put into this base, and a LoRA that cannot be continued.

    Returns:
        A note for each section of `lora_layers` that never counts.

    Raises:
        ConfigError, BaseModelError: in words.
    """
    _check_kind(config, targets)
    if config.init_lora is not None:
        _check_start(config, base, family, targets)
    if isinstance(config.lora_targets, tuple) or config.lora_layers:
        layers(config, base, family, targets)
    return _hidden(config, base, family, targets) if config.lora_layers else []


def layers(config: RunConfig, base: Base, family: type[Family], targets: Targets) -> Mapping[str, Mapping[str, Layer]]:
    """Return what each layer gets, by component and live path, from the base's shapes alone.

    Raises:
        ConfigError: a pattern matches nothing; the nearest names are told.
    """
    from lora_scripts.adapters.targets import settle

    modules = _modules(base, family, targets)
    return settle(modules, targets, rank=config.lora_rank, alpha=config.resolved_alpha, rules=config.lora_layers)


def largest_rank(config: RunConfig, settled: Mapping[str, Mapping[str, Layer]]) -> int:
    """Return the largest rank that a file of this run has."""
    rank = max(layer.rank for group in settled.values() for layer in group.values())
    return 2 * rank if _keeps_start(config) else rank


def _check_kind(config: RunConfig, targets: Targets) -> None:
    name = config.adapter.name
    kind = registry.load("adapters", name)
    if config.lora_dropout and not kind.DROPS_INPUTS:
        own = ", ".join(f"adapter.{key}" for key in kind.Config.model_fields if key.endswith("dropout"))
        raise ConfigError("adapter.no_dropout", value=config.lora_dropout, kind=name, own=own)
    # A language model's 4-bit weights are packed into one column; a picture model's keep their shape.
    if config.base_precision == "nf4" and LANGUAGE_MODEL in targets and kind.READS_SHAPE:
        raise ConfigError("adapter.packed", value=config.base_precision, kind=name)


def _check_start(config: RunConfig, base: Base, family: type[Family], targets: Targets) -> None:
    from lora_scripts.adapters import files

    path = config.init_lora
    assert path is not None
    if _keeps_start(config):
        raise ConfigError("adapter.start_taken", path=path)
    rank = None if config.lora_layers else config.lora_rank
    files.check(path, rank=rank, components=targets, family=base.family, kind=config.adapter.name)
    # A picture's LoRA is moved between bases of one shape as a habit; a language model's would only babble.
    digest = files.base_of(path)[1] if LANGUAGE_MODEL in targets else ""
    if digest and digest != family.weights_hash(base):
        raise BaseModelError("llm.init_other_base", adapter=path, base=base.path)


def _hidden(config: RunConfig, base: Base, family: type[Family], targets: Targets) -> list[Note]:
    from lora_scripts.adapters.targets import choose, hidden

    chosen = choose(_modules(base, family, targets), targets)
    sections = config.lora_layers
    numbers = hidden(chosen, sections)
    return [Note("adapter.rule_hidden", {"number": n, "pattern": sections[n - 1].match}) for n in numbers]


def _keeps_start(config: RunConfig) -> bool:
    kind = registry.load("adapters", config.adapter.name)
    return kind.keeps_start(kind.Config(**config.adapter.options))


def _modules(base: Base, family: type[Family], targets: Targets) -> Mapping[str, Any]:
    skeleton = family.skeleton(base)
    return {component: skeleton[component] for component in targets}
