"""Which layers get an update, and how large: patterns over module paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lora_scripts.adapters.names import LANGUAGE_MODEL, canonical
from lora_scripts.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

# A name rather than an expression: "q_proj", "self_attn.q_proj".
_PLAIN_NAME = re.compile(r"[\w.]+")


class Rule(Protocol):
    """A section of `lora_layers`."""

    @property
    def match(self) -> str:
        """Regular expression over whole module paths, as `lora_targets` has them."""

    @property
    def rank(self) -> int | None:
        """The layers' rank; 0 leaves them out; None is the run's."""

    @property
    def alpha(self) -> float | None:
        """The layers' alpha; None is as large for their rank as the run's for its rank."""

    @property
    def learning_rate(self) -> float | None:
        """The layers' rate; None is their component's."""


@dataclass(frozen=True)
class Layer:
    """What one layer gets.

    Attributes:
        group: of parameters that share a learning rate: the component, or "<component>/<number of the section>" where
            the section has a rate of its own.
    """

    rank: int
    alpha: float
    group: str


def settle(
    modules: Mapping[str, nn.Module],
    targets: Mapping[str, Sequence[str]],
    *,
    rank: int,
    alpha: float,
    rules: Sequence[Rule] = (),
) -> dict[str, dict[str, Layer]]:
    """Return what each chosen live path gets, by component; the first rule that matches counts. Needs no weights.

    Raises:
        ConfigError: as `choose`; or a rule that matches no chosen layer, or a component without any layer left.
    """
    chosen = choose(modules, targets)
    _check_matched(chosen, rules)
    settled: dict[str, dict[str, Layer]] = {}
    for component, paths in chosen.items():
        layers = {path: _settled(component, path, rank, alpha, rules) for path in paths}
        settled[component] = {path: layer for path, layer in layers.items() if layer.rank}
        if not settled[component]:
            raise ConfigError("adapter.all_left_out", component=component, count=len(paths))
    return settled


def _settled(component: str, path: str, rank: int, alpha: float, rules: Sequence[Rule]) -> Layer:
    number, rule = _first(component, path, rules)
    if rule is None:
        return Layer(rank, alpha, component)
    own = rank if rule.rank is None else rule.rank
    share = alpha * own / rank if rule.alpha is None else rule.alpha
    return Layer(own, share, component if rule.learning_rate is None else f"{component}/{number}")


def _first(component: str, path: str, rules: Sequence[Rule]) -> tuple[int, Rule | None]:
    """Return the rule that counts for a layer, and its number from 1."""
    found = (item for item in enumerate(rules, 1) if _matches(item[1].match, component, path))
    return next(found, (0, None))


def hidden(chosen: Mapping[str, Sequence[str]], rules: Sequence[Rule]) -> list[int]:
    """Return the numbers, from 1, of rules that never count, since earlier ones match all their layers.

    Args:
        chosen: what `choose` returned.
    """
    reached = {_first(component, path, rules)[0] for component, paths in chosen.items() for path in paths}
    return [number for number in range(1, len(rules) + 1) if number not in reached]


def _check_matched(chosen: Mapping[str, Sequence[str]], rules: Sequence[Rule]) -> None:
    """Refuse rules that match nothing."""
    places = [(component, path) for component, paths in chosen.items() for path in paths]
    for number, rule in enumerate(rules, 1):
        if not any(_matches(rule.match, component, path) for component, path in places):
            nearest = ", ".join(_nearest([path for _, path in places], [rule.match]))
            raise ConfigError("adapter.rule_unmatched", pattern=rule.match, number=number, nearest=nearest)


def choose(modules: Mapping[str, nn.Module], targets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each component's live paths that its patterns match; weights are not needed.

    Raises:
        ConfigError: a component has no match, or a pattern matches in none of the components it is meant for.
    """
    chosen = {component: matching(component, modules[component], patterns) for component, patterns in targets.items()}
    for pattern in dict.fromkeys(pattern for patterns in targets.values() for pattern in patterns):
        meant = [component for component, patterns in targets.items() if pattern in patterns]
        if not any(_matches(pattern, component, path) for component in meant for path in chosen[component]):
            nearest = ", ".join(
                path for component in meant for path in _nearest(_layer_paths(modules[component]), [pattern])
            )
            raise ConfigError("adapter.no_target", component=", ".join(meant), patterns=pattern, nearest=nearest)
    return chosen


def matching(component: str, module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the live paths of linear and convolution layers that a pattern matches whole; weights are not needed.

    Raises:
        ConfigError: the patterns match nothing; the nearest names are told.
    """
    paths = [path for path in _layer_paths(module) if any(_matches(pattern, component, path) for pattern in patterns)]
    if not paths:
        nearest = ", ".join(_nearest(_layer_paths(module), patterns))
        raise ConfigError("adapter.no_target", component=component, patterns=", ".join(patterns), nearest=nearest)
    return paths


def _matches(pattern: str, component: str, path: str) -> bool:
    """Match the path as the live network has it, or as LoRA files do."""
    if any(re.fullmatch(pattern, name) for name in (path, canonical(component, path))):
        return True
    return component == LANGUAGE_MODEL and bool(_PLAIN_NAME.fullmatch(pattern)) and path.endswith(f".{pattern}")


def _layer_paths(module: nn.Module) -> list[str]:
    """Return the layers that may get a pair; not a language model's output head, whose weights must be fixed ones."""
    find_head: Any = getattr(module, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    return [path for path, child in module.named_modules() if _is_adaptable(child) and child is not head]


def _is_adaptable(module: nn.Module) -> bool:
    from torch import nn

    if isinstance(module, nn.Conv2d):
        # No file format can hold a pair of a grouped convolution, and PEFT's pairs leave dilation out.
        return module.groups == 1 and set(module.dilation) == {1}
    return isinstance(module, nn.Linear)


def _nearest(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return up to three paths whose ends are most like what the patterns spell out."""
    paths = list(names)
    found: list[str] = []
    for pattern in patterns:
        spelled = re.sub(r"\\d|[\\^$*+?()|\[\]]", "", pattern).strip(".")
        parts = spelled.count(".") + 1
        ends = {".".join(path.split(".")[-parts:]): path for path in reversed(paths)}
        found += [ends[end] for end in difflib.get_close_matches(spelled, list(ends), n=1, cutoff=0.3)]
    return list(dict.fromkeys(found))[:3] or paths[:3]
